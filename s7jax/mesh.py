"""Device meshes: "4x2" becomes a mesh of data × model devices.

``data`` groups each see their own sequences; the devices of one ``model`` group share one
copy of the weights, split Megatron-style (arXiv 1909.08053). §3's cluster, four nodes of two
A100s, is ``4x2``. Axes are explicit: array types carry their sharding, and a wrong layout is
an error at trace time.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from s7jax.architecture import Architecture, Parameter, Split, TensorSpec, divisors
from s7jax.config import Recipe
from s7jax.errors import InputError, UsageError

DATA, MODEL = AXES = "data", "model"
# XLA ends a process whose devices come to a collective too far apart. Virtual devices take turns on
# the cores: with one gradient of s7-140m each, eight of them on two busy cores come 27 s apart.
PATIENCE = {"warn_stuck": 600, "terminate": 3_600}  # seconds
MOST_VIRTUAL = 256  # devices that a CPU is presented as: each has threads of its own
EXPLICIT = (AxisType.Explicit, AxisType.Explicit)


@dataclass(frozen=True)
class MeshShape:
    """How many data-parallel groups, and how many devices share one copy of the model."""

    data: int
    model: int
    pools: int = 1  # independent meshes of that shape (§4)

    @property
    def devices(self) -> int:
        """Devices in all."""
        return self.pools * self.data * self.model

    def __str__(self) -> str:
        pools = f"{self.pools}x" if self.pools > 1 else ""
        return f"{pools}{self.data}x{self.model}"


def parse(text: str) -> MeshShape:
    """``"4x2"`` → 4 data-parallel groups of 2 model-parallel devices; ``"4x4x1"`` 4 pools of that.

    Raises:
        UsageError: not of that form.
    """
    match = re.fullmatch(r"(?:([1-9]\d{0,4})x)?([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if match is None:
        raise UsageError(
            f"--mesh {text!r}: expected DATAxMODEL or POOLSxDATAxMODEL, each at least 1, "
            "such as 4x2"
        )
    return MeshShape(data=int(match[2]), model=int(match[3]), pools=int(match[1] or 1))


def check(shape: MeshShape, model: Architecture, recipe: Recipe) -> None:
    """Refuse a mesh over which the model or the microbatches of a step do not divide.

    Raises:
        UsageError: with the numbers, and the largest meshes that would work.
    """
    if problem := _problem(shape, model, recipe):
        groups = [1 << i for i in range(recipe.microbatches.bit_length())]
        parts = range(1, min(divisors(model).values()) + 1)
        sizes = [MeshShape(data=d, model=m) for d in groups for m in parts]
        fitting = [
            s for s in sizes if s.devices <= shape.devices and not _problem(s, model, recipe)
        ]
        largest = sorted(fitting, key=lambda s: (-s.devices, s.model))[:3]
        raise UsageError(
            f"--mesh {shape}: {problem}; meshes that work: {', '.join(map(str, largest))}"
        )


def check_model(shape: MeshShape, model: Architecture) -> None:
    """Refuse a mesh whose model axis does not divide the model.

    Raises:
        UsageError: with the numbers, and the largest model axis that would work.
    """
    if problem := _indivisible(shape.model, model):
        size = next(m for m in range(shape.model, 0, -1) if not _indivisible(m, model))
        fits = MeshShape(data=shape.data, model=size, pools=shape.pools)
        raise UsageError(f"--mesh {shape}: {problem}; a mesh that works: {fits}")


def _indivisible(parts: int, model: Architecture) -> str | None:
    for name, size in divisors(model).items():
        if size % parts:
            return f"{name} {size} not divisible by {parts} model-parallel devices"
    return None


def _problem(shape: MeshShape, model: Architecture, recipe: Recipe) -> str | None:
    if problem := _indivisible(shape.model, model):
        return problem
    if shape.data & (shape.data - 1):
        return f"{shape.data} data-parallel groups: expected a power of two"
    if recipe.microbatches % shape.data:
        return (
            f"{recipe.microbatches} microbatches per step (batch {recipe.batch} in microbatches of "
            f"{recipe.microbatch}) not divisible by {shape.data} data-parallel groups"
        )
    return None


@dataclass(frozen=True)
class Cluster:
    """Processes that train together, one coordinator; all None: found by JAX itself.

    JAX knows SLURM, Open MPI, Kubernetes and Cloud TPU environments.
    """

    coordinator: str | None = None  # HOST:PORT of process 0
    processes: int | None = None
    process: int | None = None  # this one, from 0


def provision(shape: MeshShape | None, cluster: Cluster | None = None, virtual: int = 1) -> str:
    """Make sure enough devices exist, before JAX is first used; returns what they are, in words.

    With an accelerator the real devices are used. Without one, the CPU is presented as
    ``shape.devices`` virtual devices, shared out over the processes of the cluster; without a
    shape as ``virtual``, if this process has not used JAX yet.

    Raises:
        UsageError: there are accelerators, but fewer than one pool of the mesh needs; CPU devices
            do not divide over the processes, or are more than :data:`MOST_VIRTUAL` in one; or
            this process has used JAX on fewer.
        InputError: JAX finds none of the devices that JAX_PLATFORMS names.
    """
    wanted, processes = shape.devices if shape else virtual, 1
    if cluster:
        processes = cluster.processes or wanted
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(cluster.coordinator, cluster.processes, cluster.process)
    if wanted % processes:
        raise UsageError(
            f"--mesh {shape}: {wanted} devices do not divide over {processes} processes"
        )
    if wanted // processes > MOST_VIRTUAL:
        raise UsageError(
            f"--mesh {shape}: {wanted:,} devices; a CPU stands for {MOST_VIRTUAL} at most"
        )
    if wanted > 1:
        try:
            jax.config.update("jax_num_cpu_devices", wanted // processes)
        except RuntimeError:
            if shape:
                raise UsageError(
                    f"--mesh {shape}: this process has used JAX on {jax.device_count()} devices "
                    "already: start a new one (in a notebook restart the kernel)"
                ) from None
            wanted = jax.device_count()
        _wait_for_slow_devices()
    try:
        backend, found = jax.default_backend(), jax.device_count()
    except (RuntimeError, AssertionError) as e:
        asked = os.environ.get("JAX_PLATFORMS", "")
        raise InputError(f"JAX finds no device (JAX_PLATFORMS is {asked!r}): {e}") from None
    enough = shape.data * shape.model if shape else 1
    if found < enough:
        raise UsageError(
            f"--mesh {shape} needs {enough} devices; {backend} has {found}. Use a smaller mesh, "
            f"or JAX_PLATFORMS=cpu for {wanted} virtual CPU devices"
        )
    where = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    if backend == "cpu":
        return f"no accelerator: {wanted} virtual CPU device{'s' * (wanted > 1)}{where}"
    few = f", {found // enough} of {shape.pools} pools at once" if shape and found < wanted else ""
    return f"{found} {jax.devices()[0].device_kind}{where}{few}"


def _wait_for_slow_devices() -> None:
    """Have XLA on CPUs wait :data:`PATIENCE`, unless the environment says how long."""
    flags = os.environ.get("XLA_FLAGS", "")
    for what, seconds in PATIENCE.items():
        flag = f"--xla_cpu_collective_call_{what}_timeout_seconds"
        if flag not in flags:
            flags += f" {flag}={seconds}"
    os.environ["XLA_FLAGS"] = flags.strip()


def partition(tensor: Parameter | TensorSpec) -> P:
    """Where a tensor of the table lies: its split axis over ``model``, the others whole."""
    axis = tensor.split.axis if isinstance(tensor.split, Split) else tensor.split
    return P(*(MODEL if i == axis else None for i in range(len(tensor.shape))))


def make(shape: MeshShape) -> Mesh:
    """The mesh over the first devices, with explicit axes; of several pools the first."""
    return pools(shape)[0]


def pools(shape: MeshShape) -> list[Mesh]:
    """One mesh for each pool, on devices of its own; fewer pools where devices are fewer."""
    size = shape.data * shape.model
    devices = jax.devices()
    count = min(shape.pools, len(devices) // size)
    return [of(shape, devices[i * size : (i + 1) * size]) for i in range(count)]


def joined(made: Sequence[Mesh]) -> Mesh:
    """Pools as one mesh, their data groups side by side."""
    return on_devices(np.concatenate([pool.devices for pool in made]))


def single() -> Mesh:
    """A 1 × 1 mesh on this process's first device."""
    return of(SINGLE, jax.local_devices()[:1])


def of(shape: MeshShape, devices: Sequence[jax.Device]) -> Mesh:
    """One pool's mesh on devices in the order that suits their connections."""
    return jax.make_mesh((shape.data, shape.model), AXES, axis_types=EXPLICIT, devices=devices)


def on_devices(devices_DM: np.ndarray) -> Mesh:
    """The mesh on devices that already have their places, [data, model]."""
    return Mesh(devices_DM, AXES, axis_types=EXPLICIT)


SINGLE = MeshShape(data=1, model=1)
