"""One model-axis size, any number of data groups, any split over processes: the same bytes."""

import ast
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s7jax import mesh
from s7jax.config import override, preset
from s7jax.data.prepared import Prepared
from s7jax.train import loop
from s7jax.train.groups import join, split, submeshes
from s7jax.train.reduction import across_groups, tree_sum
from tests import compiling
from tests.train.stopping import Stopped, stop_at
from tests.train.training import train_trunk

ROOT = Path(__file__).parent.parent.parent
HANGS = 1800  # seconds after which something hangs: nothing here is asked to be fast
SIZE = """model.vocab=320 model.context=32 model.trunk.layers=1 model.trunk.hidden=32
model.trunk.ffn=64 trunk.tokens=1280 trunk.batch=8 trunk.microbatch=1 experts.batch=8
experts.microbatch=1""".split()


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch):
    """Held-out text is scored by a program of its own, which has no part in what is trained."""
    monkeypatch.setattr(loop, "bits_per_byte", lambda *_: {})


# Each device and each group compiles for itself: the largest meshes are the dearest.
@pytest.mark.parametrize(
    "shapes",
    [
        ("1x1", "2x1"),
        pytest.param(("1x1", "4x1"), marks=pytest.mark.long(minutes=0.3)),
        pytest.param(("1x2", "2x2"), marks=pytest.mark.long(minutes=0.4)),
        pytest.param(("1x1", "8x1"), marks=pytest.mark.long(minutes=1)),
        pytest.param(("1x2", "4x2"), marks=pytest.mark.long(minutes=0.5)),
    ],
    ids=" ".join,
)
def test_any_number_of_data_groups_trains_the_same_bytes(new_run, shapes: tuple[str, ...]):
    digests = {shape: train_trunk(new_run(shape, on=shape)) for shape in shapes}
    assert len(set(digests.values())) == 1, digests


@pytest.mark.long(minutes=0.3)
def test_in_bf16_too(tiny, new_run):
    config = override(tiny, ['compute.precision="bf16"'])
    digests = {train_trunk(new_run(on, config, on)) for on in ("1x1", "2x1")}
    assert len(digests) == 1


@pytest.mark.long(minutes=0.4)
def test_a_plain_all_reduce_does_not(tiny, new_run):
    """So the test above can fail."""
    config = override(tiny, ['reduction="psum"'])
    digests = {train_trunk(new_run(on, config, on)) for on in ("1x1", "4x1")}
    assert len(digests) > 1


@pytest.mark.long(minutes=0.4)
def test_a_run_resized_by_restarts_ends_with_the_same_bytes(new_run, monkeypatch):
    undisturbed = train_trunk(new_run("undisturbed", on="2x1"))
    for shape, step in (("4x1", 4), ("1x1", 7)):
        with pytest.raises(Stopped):
            stop_at(step, monkeypatch, new_run("resized", on=shape))
    assert train_trunk(new_run("resized", on="2x1")) == undisturbed


# In which order so many leaves are added.
ORDER = {
    1: "0",
    2: "0 + 1",
    3: "(0 + 1) + 2",
    4: "(0 + 1) + (2 + 3)",
    5: "((0 + 1) + (2 + 3)) + 4",
    6: "((0 + 1) + 2) + ((3 + 4) + 5)",
    8: "((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7))",
    12: "(((0 + 1) + 2) + ((3 + 4) + 5)) + (((6 + 7) + 8) + ((9 + 10) + 11))",
}


def added(order, values):
    """The float32 sum in a given order, each addition rounded."""

    def at(node):
        return (
            values[node.value] if isinstance(node, ast.Constant) else at(node.left) + at(node.right)
        )

    return at(ast.parse(order, mode="eval").body)


def summed(values):
    """The sum by the tree of training, and the leaves in the order in which it asked for them."""
    group, used = mesh.make(mesh.SINGLE), []

    def leaf(i):
        used.append(i)
        return [{"x": jax.device_put(values[i], jax.NamedSharding(group, jax.P()))}]

    (total,) = tree_sum(leaf, len(values), (group,))
    return np.asarray(total["x"]), used


@given(st.sampled_from(sorted(ORDER)), st.integers(0, 2**32 - 1))
def test_the_tree_is_fixed_and_complete(count, seed):
    """To the bit the order written down; and each leaf is used once, in order."""
    values = np.random.default_rng(seed).normal(size=count).astype(np.float32)
    total, used = summed(values)
    assert used == list(range(count))
    assert total.tobytes() == added(ORDER[count], values).tobytes()


@pytest.mark.parametrize("count", sorted(set(ORDER) - {1, 2}))
def test_another_order_gives_another_sum(count):
    """So the test above can fail: from left to right, and from right to left."""
    rows = np.random.default_rng(0).normal(size=(50, count)).astype(np.float32)
    ours = [added(ORDER[count], row) for row in rows]
    left = [added(" + ".join(map(str, range(count))), row) for row in rows]
    right = [added(" + ".join(map(str, reversed(range(count)))), row) for row in rows]
    assert ours != right
    assert (ours != left) == (count > 3)  # three leaves are added from left to right


def test_three_leaves_by_hand():
    big = np.float32(2**24)  # to which 1 is nothing, and 2 is not
    assert summed(np.array([big, 1, 1], np.float32))[0] == big
    assert summed(np.array([1, 1, big], np.float32))[0] == big + 2


@pytest.mark.parametrize("shape", ["2x1", "8x1", "4x2"])
def test_the_sum_across_groups_is_the_binary_tree_in_every_group(shape: str):
    made = mesh.make(mesh.parse(shape))
    groups = submeshes(made)
    values = np.random.default_rng(0).normal(size=(len(groups), 6)).astype(np.float32)
    trees = [
        jax.device_put(row, jax.NamedSharding(group, jax.P("model")))
        for row, group in zip(values, groups, strict=True)
    ]
    while len(values) > 1:
        values = values[::2] + values[1::2]
    for result in across_groups(trees, made):
        assert np.asarray(result).tobytes() == values[0].tobytes()


def test_split_and_join_copy_nothing():
    made = mesh.make(mesh.parse("4x2"))
    whole = jax.device_put(
        np.arange(8.0, dtype=np.float32), jax.NamedSharding(made, jax.P("model"))
    )
    parts = split({"x": whole}, submeshes(made))
    again = join(parts, made)["x"]
    pointers = [shard.data.unsafe_buffer_pointer() for shard in whole.addressable_shards]
    assert [s.data.unsafe_buffer_pointer() for s in again.addressable_shards] == pointers
    assert again.sharding == whole.sharding


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def train_in_processes(
    processes: int, mesh: str, folder: Path, prepared: Prepared, *extra: str
) -> str:
    """Run experiments/trunk.py as real processes on one mesh; returns the digest."""
    env = compiling.environment()
    command = [sys.executable, str(ROOT / "experiments/trunk.py"), "--preset", "s7-nano"]
    command += ["--mesh", mesh, "--run", "r", "--prepared", str(prepared.path), "--set", *extra]
    port = free_port()
    running = []
    for i in range(processes):
        cluster = ["--coordinator", f"localhost:{port}", "--processes", str(processes)]
        arguments = [*command, *cluster, "--process", str(i)] if processes > 1 else command
        running.append(
            subprocess.Popen(
                arguments, cwd=folder, env=env, text=True, stdout=-1, stderr=subprocess.STDOUT
            )
        )
    outputs = [process.communicate(timeout=HANGS)[0] for process in running]
    assert [process.returncode for process in running] == [0] * processes, "\n".join(outputs)
    assert not any("sha256" in output for output in outputs[1:]), "only process 0 reports"
    return outputs[0].rsplit("parameters sha256 ", 1)[1].strip()


@pytest.mark.usefixtures("own_programs")
@pytest.mark.parametrize(
    "shapes",
    [
        pytest.param(("1x1", "4x1", "one core"), marks=pytest.mark.long(minutes=4)),
        pytest.param(("1x2", "4x2"), marks=pytest.mark.long(minutes=4)),
    ],
    ids=str,
)
def test_commands_give_the_same_bytes_on_any_number_of_devices_and_cores(
    tmp_path, prepared_nano: Path, shapes: tuple[str, ...]
):
    """Each a process of its own, at shapes that XLA spreads over as many threads as devices."""
    digests = {}
    for shape in shapes:
        run = ["--run", f"r{shape[:3]}", "--mesh", shape if "x" in shape else "1x1"]
        settings = ["--prepared", str(prepared_nano), "--set", "eval_sequences=4"]
        settings += [f"{phase}.batch=48" for phase in ("trunk", "experts")]
        settings += [f"{phase}.tokens=24576" for phase in ("trunk", "domains.code")]
        cores = {min(os.sched_getaffinity(0))} if shape == "one core" else os.sched_getaffinity(0)
        pin = (
            f"import os, sys; os.sched_setaffinity(0, {cores}); "
            "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
        )
        # What many cores have compiled a single one must not be given.
        alone = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "alone")} if len(cores) == 1 else {}
        for script, arguments in (("trunk.py", settings), ("experts.py", ["--domain", "code"])):
            done = subprocess.run(
                [sys.executable, "-c", pin, str(ROOT / "experiments" / script), *run, *arguments],
                env=os.environ | alone,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            digests[shape, script] = done.stdout.rsplit("sha256 ", 1)[1].strip()
    assert len(set(digests.values())) == 2, digests


@pytest.mark.parametrize(
    ("shape", "counts"),
    [
        pytest.param("4x1", (1, 2), marks=pytest.mark.long(minutes=0.5)),
        pytest.param("8x1", (1, 2, 4), marks=pytest.mark.long(minutes=2)),
    ],
)
def test_any_split_over_processes_trains_the_same_bytes(
    tmp_path, prepared: Prepared, shape: str, counts: tuple[int, ...]
):
    digests = {}
    for processes in counts:
        folder = tmp_path / str(processes)
        folder.mkdir()
        digests[processes] = train_in_processes(processes, shape, folder, prepared, *SIZE)
    assert len(set(digests.values())) == 1, digests


@pytest.mark.long(minutes=1)
def test_a_run_goes_on_in_another_number_of_processes(
    tmp_path, prepared: Prepared, open_run, monkeypatch
):
    changes = [*SIZE, "trunk.checkpoint=256"]
    config = override(preset("s7-nano"), changes)
    undisturbed = train_trunk(open_run(tmp_path / "undisturbed", config, "2x1"))
    with pytest.raises(Stopped):
        stop_at(3, monkeypatch, open_run(tmp_path / "runs/r", config, "1x1"))
    assert train_in_processes(2, "2x1", tmp_path, prepared, *changes) == undisturbed


SLURM = {
    "SLURM_JOB_ID": "{job}",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_NTASKS": "2",
    "SLURM_STEP_NUM_NODES": "1",
    "SLURM_PROCID": "{rank}",
    "SLURM_LOCALID": "{rank}",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "{job}.0;tcp://127.0.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "{rank}",
    "OMPI_COMM_WORLD_LOCAL_RANK": "{rank}",
}


@pytest.mark.usefixtures("quick_compiling")
@pytest.mark.parametrize(
    "scheduler",
    [
        pytest.param(SLURM, id="SLURM", marks=pytest.mark.long(minutes=0.5)),
        pytest.param(OPEN_MPI, id="Open MPI", marks=pytest.mark.long(minutes=0.5)),
    ],
)
def test_a_scheduler_is_found_and_its_processes_train_the_same_bytes(
    tmp_path, prepared: Prepared, scheduler
):
    """Two processes train what one does alone."""
    command = [sys.executable, str(ROOT / "experiments/trunk.py"), "--mesh", "2x1", "--distributed"]
    command += ["--preset", "s7-nano"]
    command += ["--run", "r", "--prepared", str(prepared.path), "--set", *SIZE]
    job = str(free_port() * 4_097)  # both derive their port from it
    running = [
        subprocess.Popen(
            command,
            cwd=tmp_path,
            env=os.environ | {k: v.format(job=job, rank=rank) for k, v in scheduler.items()},
            text=True,
            stdout=-1,
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]
    first, second = (process.communicate(timeout=HANGS)[0] for process in running)
    assert [process.returncode for process in running] == [0, 0], first + second
    assert "in 2 processes" in first
    assert "sha256" not in second
    (tmp_path / "alone").mkdir()
    alone = train_in_processes(1, "1x1", tmp_path / "alone", prepared, *SIZE)
    assert first.rsplit("parameters sha256 ", 1)[1].strip() == alone
