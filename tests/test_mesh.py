import os
import subprocess
import sys

import pytest

from s7jax import mesh
from s7jax.config import preset
from s7jax.errors import UsageError
from s7jax.mesh import MeshShape

RECIPE = preset("s7-140m").trunk


def test_a_mesh_is_data_by_model():
    shape = mesh.parse("4x2")
    assert shape == MeshShape(data=4, model=2)
    assert str(shape) == "4x2"
    made = mesh.make(shape)
    assert dict(made.shape) == {"data": 4, "model": 2}
    assert made.devices.size == 8


def test_pools_are_meshes_on_devices_of_their_own():
    shape = mesh.parse("2x2x2")
    assert (shape.pools, shape.devices, str(shape)) == (2, 8, "2x2x2")
    first, second = mesh.pools(shape)
    assert dict(first.shape) == dict(second.shape) == {"data": 2, "model": 2}
    assert not set(first.devices.flat) & set(second.devices.flat)


@pytest.mark.parametrize(
    "text", ["4", "4x", "0x2", "4x2x", "1x2x3x4", "-1x2", "4X2", "4x2\n", "٤x2"]
)
def test_other_text_is_refused(text: str):
    with pytest.raises(UsageError, match="expected DATAxMODEL"):
        mesh.parse(text)


@pytest.mark.parametrize("shape", ["300x1", "99999x99999", "17x16x1"])
def test_more_virtual_devices_than_a_machine_has_threads_for_are_refused(shape: str):
    with pytest.raises(
        UsageError, match=f"--mesh {shape}: .* devices; a CPU stands for 256 at most"
    ):
        mesh.provision(mesh.parse(shape))


@pytest.mark.parametrize(
    ("shape", "problem"),
    [
        ("1x16", "trunk heads 12"),
        ("3x1", "3 data-parallel groups: expected a power of two"),
        ("64x1", "32 microbatches per step"),
        ("1x5", "vocabulary 24576"),
    ],
)
def test_a_mesh_that_does_not_divide_is_refused_with_the_numbers_and_ones_that_work(shape, problem):
    with pytest.raises(UsageError, match=f"{problem}.*meshes that work: ") as error:
        mesh.check(mesh.parse(shape), preset("s7-140m").model, RECIPE)
    suggested = str(error.value).split("work: ")[1].split(", ")
    for text in suggested:
        mesh.check(mesh.parse(text), preset("s7-140m").model, RECIPE)


def test_the_specified_cluster_fits():
    mesh.check(mesh.parse("4x2"), preset("s7-140m").model, RECIPE)


APART = """
import os, time
import jax, numpy as np
from jax.sharding import PartitionSpec as P
from s7jax import mesh as meshes

meshes.provision(meshes.parse("2x1"))
mesh = meshes.make(meshes.parse("2x1"))

def wait(x):
    time.sleep(4 * float(x[0]))
    return x

def run(x):
    x = jax.pure_callback(wait, jax.ShapeDtypeStruct(x.shape, x.dtype), x)
    return jax.lax.psum(x, "data")

with jax.set_mesh(mesh):
    run = jax.jit(jax.shard_map(run, in_specs=P("data"), out_specs=P(), check_vma=False))
    rows = jax.NamedSharding(mesh, P("data"))
    print(run(jax.device_put(np.arange(2, dtype=np.float32), rows)))
print(os.environ["XLA_FLAGS"])
"""


def test_devices_may_come_to_a_collective_far_apart():
    """With limits of 1 s XLA ends the process; without any in the environment, ours are wide."""
    flag = "--xla_cpu_collective_call_{}_timeout_seconds=1"
    impatient = f"{flag.format('warn_stuck')} {flag.format('terminate')}"

    def outcome(flags: str) -> subprocess.CompletedProcess[str]:
        command, env = [sys.executable, "-c", APART], os.environ | {"XLA_FLAGS": flags}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    assert outcome(impatient).returncode != 0
    value, flags = outcome("").stdout.splitlines()
    assert value == "[1.]"
    assert "terminate_timeout_seconds=3600" in flags
