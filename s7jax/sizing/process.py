"""What a process holds that computes on virtual CPU devices: all of them at once, and JAX itself.

Every device has its own copy of what it would have as a device; but only as many compute at a
time as there are cores, each with the others of its model group, which wait for each other.
"""

import os
from collections.abc import Sequence
from typing import Any

from s7jax.architecture import counts
from s7jax.config import Config
from s7jax.mesh import MeshShape
from s7jax.sizing.budget import FP32
from s7jax.sizing.compiled import Compiled
from s7jax.sizing.schedule import Job

JAX = 560 << 20  # Python, JAX, XLA and what it has compiled; measured
COMPILER = 512 << 20  # of a step, and what the allocator does not give back after it; measured


def training(found: Compiled, job: Job, pools: int = 1, cores: int | None = None) -> int:
    """Bytes of a process that trains a job on each of its pools, each of which compiles.

    While gradients are computed each group holds its sum of them and one more, if it has several
    microbatches; while groups exchange sums, those, the partner's and the new ones.
    """
    devices = pools * job.shape.data * job.shape.model
    held = found.weights + found.frozen + found.optimizer
    sums = 2 if job.microbatches > 1 else 1
    working = _at_once(devices, job.shape.model, cores) * found.temporaries
    computing = devices * (held + sums * found.gradients + found.batch) + working
    exchanging = devices * (held + 3 * found.gradients) if job.shape.data > 1 else 0
    return JAX + pools * COMPILER + max(computing, exchanging)


def using(
    found: Sequence[dict[str, Any]],
    config: Config,
    components: Sequence[str],
    shape: MeshShape,
    together: int = 1,
    cores: int | None = None,
) -> int:
    """Bytes of a process that runs the float programs of one use.

    Args:
        found: the programs as compiled, see :class:`s7jax.sizing.uses.Executable`.
        config: of the model.
        components: whose float32 parameters are loaded.
        shape: the mesh.
        together: programs that do not wait for each other, such as those of the experts.
        cores: that compute; default: this machine's.
    """
    devices, sizes = shape.devices, counts(config.model)
    weights = FP32 * sum(sizes[name] for name in components) // shape.model
    working = max(program["temporaries"] + program["outputs"] for program in found)
    return JAX + devices * weights + _at_once(together * devices, shape.model, cores) * working


def _at_once(programs: int, model: int, cores: int | None) -> int:
    return min(programs, model * (cores or os.cpu_count() or 1))
