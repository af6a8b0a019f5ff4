"""One compilation serves all data groups, and computes on each group's own devices."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from jax import config, monitoring
config.update("jax_num_cpu_devices", 8)
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from s7jax import mesh
from s7jax.train.compilation import for_groups
from s7jax.train.groups import submeshes

groups = submeshes(mesh.make(mesh.parse(sys.argv[1])))
compiled = []
monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))
program = jax.jit(lambda a, b: jax.numpy.sin(a) @ b, donate_argnums=0, out_shardings=None)
numbers = np.random.default_rng(0).standard_normal((2, 64, 64), np.float32)

def placed(group):
    rows, columns = NamedSharding(group, P("model", None)), NamedSharding(group, P(None, None))
    return jax.device_put(numbers[0], rows), jax.device_put(numbers[1], columns)

before = len(compiled)
each = for_groups(program, groups, placed(groups[0]))
for _ in range(2):  # arguments are donated: new ones each time
    results = []
    for group, call in zip(groups, each, strict=True):
        with jax.set_mesh(group):
            results.append(call(*placed(group)))
times = compiled[before:].count("/jax/core/compile/backend_compile_duration")
same = {np.asarray(result).tobytes() for result in results}
with jax.set_mesh(groups[0]):
    same.add(np.asarray(program(*placed(groups[0]))).tobytes())
at = [sorted(device.id for device in result.devices()) for result in results]
print(times, len(same), at == [[d.id for d in g.devices.flat] for g in groups])
"""


@pytest.mark.parametrize(
    ("mesh", "cached", "compiled"), [("4x2", "", 1), ("8x1", "", 1), ("2x1", "x", 2)]
)
def test_groups_share_one_compilation(tmp_path, mesh, cached, compiled):
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cached and str(tmp_path)}
    command = [sys.executable, "-c", PROGRAM, mesh]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [str(compiled), "1", "True"], done.stderr
