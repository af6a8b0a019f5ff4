"""Where components live (§8), on imitated machines and on this one."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from synthetic import MODEL

from s7jax.architecture import Architecture, Stack
from s7jax.config import PRESETS
from s7jax.devices import DEVICES
from s7jax.native import library, machine
from s7jax.native.program import NativeProgram
from s7jax.sizing.inference import infer

CFG = Architecture(
    **MODEL
    | {"trunk": Stack(**MODEL["trunk"]), "expert": Stack(**MODEL["expert"])}
    | {"domains": tuple(MODEL["domains"])}
)


def imitate(root, *names):
    for name in names:
        (root / name).mkdir()
    return root


@pytest.mark.parametrize(
    ("names", "homes"),
    [
        (["node0"], [0, 0, 0, 0]),
        (["node0", "node1"], [0, 1, 0, 1]),
        (["node0", "node2", "node10", "power", "has_cpu"], [0, 2, 10, 0]),
        ([], [0, 0, 0, 0]),
    ],
)
def test_trunk_first_experts_round_robin(tmp_path, names, homes):
    placed = machine.placement(CFG, machine.nodes(imitate(tmp_path, *names)))
    assert placed["trunk"] == placed["embedding"] == placed["router"] == homes[0]
    assert [placed[f"expert{e}"] for e in range(4)] == homes
    assert set(placed) == set(CFG.components)


def test_asking_for_a_node_that_is_not_there_changes_no_bit(seal):
    """The system refuses, memory comes from where it can, and the policy is the old one again."""
    tokens = np.arange(9, dtype=np.int32)[None]
    plain, _ = NativeProgram(seal, 1).answer(tokens)
    program = NativeProgram(seal, 1)
    program._nodes, program._homes = [0, 1], machine.placement(CFG, [0, 1])
    moved, _ = program.answer(tokens)
    assert np.array_equal(moved, plain)


def test_the_plan_for_a_cpu_has_the_sizes_of_this_machine():
    planned, sizes = infer(PRESETS["s7-140m"], DEVICES["cpu"]), library.tuning()
    assert planned["native_panel_bytes"] == 16_384, "a panel stays in a first cache of 32 KiB"
    assert planned["native_rows_read_ahead"] == sizes["ahead"]
    assert planned["native_memory_nodes"] == len(machine.nodes())
    assert "native_panel_bytes" not in infer(PRESETS["s7-140m"], DEVICES["h100"])


def test_selftest_tells_what_this_machine_got(sealed):
    tool = Path(__file__).parents[2] / "tools/selftest.py"
    command = [sys.executable, tool, sealed, "--machine"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert f"engine: native {library.instructions()[0]}" in said
    assert "placement: " in said
    assert f"ahead {library.tuning()['ahead']}" in said
