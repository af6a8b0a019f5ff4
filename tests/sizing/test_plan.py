"""The planner against sums by hand, sealed bytes, the compiler and a real run."""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import MODEL, write_inputs

from s7jax import s7l
from s7jax.architecture import Architecture, Stack, counts
from s7jax.config import override, preset
from s7jax.devices import DEVICES, of_kind
from s7jax.errors import InputError, UsageError
from s7jax.mesh import parse
from s7jax.sizing import budget, inference, show
from s7jax.sizing.compiled import Compiled, compile_job, cuda_target
from s7jax.sizing.fit import described, fit
from s7jax.sizing.plan import placement, plan
from s7jax.sizing.reconcile import rows
from s7jax.sizing.schedule import jobs, measured_mfu, roofline, total

ROOT = Path(__file__).parents[2]
BIG, NANO = preset("s7-140m"), preset("s7-nano")
A100 = DEVICES["a100-40gb"]


def tool(*args, cwd=ROOT):
    command = [sys.executable, str(ROOT / "tools/plan.py"), *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_parameters_by_hand():
    sizes = counts(BIG.model)
    assert sizes["embedding"] == 24_576 * 768
    # Six layers: four square matrices, two of the FFN, two gains; the final norm.
    layer = 4 * 768**2 + 2 * 768 * 1_024 + 2 * 768
    assert sizes["trunk"] == 6 * layer + 768
    layer = 4 * 512**2 + 2 * 512 * 2_048 + 2 * 512
    assert sizes["expert2"] == 8 * layer + 2 * 768 * 512 + 768 + 512
    assert sizes["router"] == 768 * 4 + 4


def test_section_8_to_the_byte():
    found = {s.name.split(".", 2)[2]: stored for s, stored in budget.layer(BIG.model)}
    assert found == {
        **{f"attn.{p}_proj.weight": 262_144 for p in "qkvo"},
        "ffn.fc1.weight": 1_048_576,
        "ffn.fc2.weight": 1_048_576,
    }
    parts = budget.sealed(BIG.model)
    assert parts["trunk"].padded == 6 * (4 * 768**2 + 2 * 768 * 1_024) == 23_592_960
    assert parts["embedding"].padded == 18_874_368
    assert sum(part.padded for part in parts.values()) == 146_279_424


def test_the_layout_is_that_of_a_sealed_file(tmp_path):
    write_inputs(tmp_path)
    s7l.seal(tmp_path / "weights", tmp_path / "vocab.json", tmp_path / "m.s7l")
    seal = s7l.open(tmp_path / "m.s7l")
    stacks = {name: Stack(**MODEL[name]) for name in ("trunk", "expert")}
    cfg = Architecture(**{**MODEL, "domains": tuple(MODEL["domains"]), **stacks})
    for name, part in budget.sealed(cfg).items():
        tensors = seal.manifest.components[name]
        int8 = [t for t in tensors if t.spec.dtype == "int8"]
        assert part.int8 == sum(t.spec.size for t in int8)
        assert part.padded == sum(t.stored for t in int8)
        assert part.constants == sum(t.stored for t in tensors) - part.padded
        assert part.end == tensors[-1].offset + tensors[-1].stored
    assert part.end == seal.manifest.field_bytes


def test_work_by_hand():
    (trunk,) = jobs(BIG, parse("4x2"), "trunk")
    assert trunk.phase.tokens_per_step == 512 * 2_048
    assert trunk.phase.steps == 47_684  # 50e9 / 1,048,576 = 47,683.7
    assert (trunk.checkpoints, trunk.microbatches) == (10, 8)
    assert trunk.checkpoint_bytes == 12 * (18_874_368 + 23_602_944)
    # 6 operations a weight, 12 · layers · context · hidden for attention over the square.
    weights = 18_874_368 + 23_592_960
    assert trunk.flops == 50 * 10**9 * (6 * weights + 12 * 6 * 2_048 * 768)
    experts = jobs(BIG, parse("4x4x1"), "experts")
    # The trunk and the head's weights run forward alone; the head's input has a gradient.
    head, layers, inner = 18_874_368, 25_165_824, 768 * 512
    token = 2 * 23_592_960 + 4 * 6 * 2_048 * 768
    token += 4 * head + 6 * layers + 12 * 8 * 2_048 * 512 + (4 + 6) * inner
    assert [job.flops for job in experts] == [d.tokens * token for d in BIG.domains]


def test_muon_keeps_one_moment_of_a_hidden_matrix():
    muon = override(BIG, ['trunk.optimizer="muon"'])
    (adamw,), (muon,) = (jobs(c, parse("4x2"), "trunk") for c in (BIG, muon))
    assert adamw.moments == 2 * (18_874_368 + 23_602_944)
    assert muon.moments == adamw.moments - 23_592_960
    assert muon.checkpoint_bytes == adamw.checkpoint_bytes - 4 * 23_592_960
    assert roofline(muon, A100).memory < roofline(adamw, A100).memory


def test_roofline_by_hand():
    (trunk,) = jobs(BIG, parse("8x1"), "trunk")
    time = roofline(trunk, A100, mfu=0.5)
    flops = trunk.flops / trunk.phase.tokens * trunk.phase.tokens_per_step
    assert time.compute == pytest.approx(flops / 8 / 312e12 / 0.5)
    assert time.collectives == pytest.approx(3 * 4 * trunk.trained / 12.5e9)
    assert time.step == max(time.compute, time.memory) + time.collectives
    assert time.cost == pytest.approx(2.5 * time.step * trunk.phase.steps * 8 / 3600)
    half = roofline(trunk, A100, mfu=0.25)
    assert half.compute == pytest.approx(2 * time.compute)


def test_the_whole_plan_is_what_arithmetic_says():
    """Some 76 A100-hours at 50 % for 50 B + 59 B tokens, without what crosses the network."""
    work = jobs(BIG, parse("1x1"), "all")
    hours, cost = total([roofline(job, A100) for job in work])
    assert hours == pytest.approx(76.4, abs=0.5)
    assert cost == pytest.approx(2.5 * hours)


def test_every_row_of_the_specification_has_ours_and_a_reason():
    found = rows(BIG)
    assert {row.section for row in found} == {"§2", "§3", "§4", "§6", "§8"}
    for row in found:
        assert row.ours > 0
        assert 0.9 < row.ratio < 1.1 or row.why, row
    by = {row.what: row for row in found}
    assert by["trunk layers, parameters"].ours == pytest.approx(23.6, abs=0.01)
    assert by["Phase 1, GPU-hours"].ratio > 250
    assert by["expert layer"].ours == 3_072


def test_placement_puts_experts_round_robin():
    found = {row["component"]: row["socket"] for row in placement(BIG, 2)}
    assert found["trunk"] == 0
    assert [found[f"expert{e}"] for e in range(4)] == [0, 1, 0, 1]
    with pytest.raises(UsageError, match="--sockets 0"):
        placement(BIG, 0)


def test_devices_are_found_by_the_name_that_jax_gives():
    assert of_kind("NVIDIA H100 80GB HBM3") is DEVICES["h100"]
    assert of_kind("TPU v5 lite") is DEVICES["v5e"]
    assert of_kind("Radeon") is None
    assert all(device.source for device in DEVICES.values())


def test_calibration_reads_a_run(tmp_path):
    (job,) = jobs(NANO, parse("1x1"), "trunk")
    step = job.flops / job.phase.tokens * job.phase.tokens_per_step / A100.peak_bf16 / 0.25
    lines = [json.dumps({"phase": "trunk", "step": i, "seconds": 5 + i * step}) for i in range(5)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert measured_mfu(tmp_path / "metrics.jsonl", job, A100) == pytest.approx(0.25)
    with pytest.raises(InputError, match="no steps"):
        measured_mfu(tmp_path / "metrics.jsonl", jobs(NANO, parse("1x1"), "experts")[0], A100)
    fast = [json.dumps({"phase": "trunk", "seconds": 5 + i * step / 5}) for i in range(5)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(fast))
    with pytest.raises(InputError, match="cannot be"):
        measured_mfu(tmp_path / "metrics.jsonl", job, A100)


# What a program holds is laid out before the passes that are left out.
@pytest.mark.long(minutes=0.3)
@pytest.mark.usefixtures("quick_compiling")
def test_the_compiled_step_on_two_model_devices():
    (job,) = jobs(NANO, parse("2x2"), "trunk")
    found = compile_job(job)
    one = compile_job(jobs(NANO, parse("4x1"), "trunk")[0])
    # Matrices are halved, gains are not.
    assert one.weights == 4 * job.trained
    assert 4 * job.moments <= one.optimizer <= 4 * job.moments + 8  # Adam counts its steps, too
    assert one.weights / 2 < found.weights < 0.51 * one.weights
    assert found.temporaries < one.temporaries
    assert one.collectives == {}
    assert found.collectives["all-reduce"] > 0


def test_fit_takes_the_fastest_plan_that_fits():
    """Against a compiler whose memory follows a rule: half of the microbatch, half of it."""
    asked = []

    def rule(job, device):
        asked.append(job)
        size = 10**9 * job.phase.recipe.microbatch // (4 if job.phase.config.compute.remat else 1)
        return Compiled(0, 0, 0, 0, 0, size, {}, 0)

    small = dataclasses.replace(A100, memory=5 * 10**9)
    config, shape, found = fit(BIG, parse("8x1"), "trunk", small, rule)
    assert found.peak <= small.memory
    assert (shape, config.trunk.microbatch) == (parse("8x1"), 4)
    assert not config.compute.remat, "recomputing is slower than smaller microbatches here"
    assert "--set trunk.microbatch=4" in described(config, shape, "trunk")
    with pytest.raises(InputError, match="more devices"):
        fit(BIG, parse("8x1"), "trunk", dataclasses.replace(A100, memory=1), rule)
    with pytest.raises(UsageError, match="memory of cpu"):
        fit(BIG, parse("8x1"), "trunk", DEVICES["cpu"], rule)


def test_running_and_calibrating_by_hand():
    found = inference.infer(BIG, A100)
    assert found["cache_per_token_bytes"] == 2 * 6 * 768 + 2 * 8 * 512 == 17_408
    assert found["cache_per_sequence_bytes"] == 2_048 * (9_216 + 4 * 8_192)
    work = inference.quantize(BIG, A100, 0.5, None)
    assert work["samples"] == 4 * 4_096
    trunk = 2 * 23_592_960 + 6 * 4 * 2_048 * 768
    expert = 2 * (25_165_824 + 2 * 768 * 512) + 8 * 4 * 2_048 * 512
    assert work["flops"] == 4 * 4_096 * 2_048 * (trunk + 4 * expert)


def test_a_gpu_as_its_compiler_reads_it():
    text = cuda_target(A100)
    assert "core_count: 108" in text
    assert 'device_description_str: "NVIDIA A100-SXM4-40GB"' in text


@pytest.mark.parametrize(("target", "module"), [("v5e", "libtpu"), ("h100", "jax_cuda12_plugin")])
def test_the_step_compiles_for_devices_that_are_not_there(target, module):
    flags = ("--preset", "s7-nano", "--phase", "trunk", "--mesh", "2x2", "--target", target)
    done = tool(*flags, "--compile", "--json")
    if importlib.util.find_spec(module) is None:
        assert done.returncode == 2
        assert "pip install" in done.stderr
        return
    (memory,) = json.loads(done.stdout)["memory"]
    assert memory["fits"] is True
    assert memory["collectives"]["all-reduce"] > 0


MEASURE = """
import json, sys
from pathlib import Path
import jax, numpy as np
from s7jax.config import override, preset
from s7jax.mesh import single
from s7jax.model import parameters
from s7jax.train import step
from s7jax.train.phase import TRUNK

def kilobytes(kind):
    rows = Path("/proc/self/status").read_text().splitlines()
    return int(next(row for row in rows if row.startswith(kind)).split()[1])

config = override(preset("s7-nano"), json.loads(sys.argv[1]))
mesh = single()
with jax.set_mesh(mesh):
    params = parameters.initial(config.model, 0, mesh, TRUNK)
    tokens = np.zeros((config.trunk.microbatch, config.model.context + 1), np.int32)
    placed = step.place(tokens, mesh)
    made = step.gradient_program(config.model, step.trunk_loss, config.compute)
    made = made.lower(params, {}, placed).compile()
    # the first call alone: what a call took is given back some time after its results are there
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew here
    before = kilobytes("VmRSS")
    jax.block_until_ready(made(params, {}, placed))
    print(1024 * (kilobytes("VmHWM") - before))
"""


@pytest.mark.long(minutes=0.4)
@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="the kernel gives no peak of memory"
)
def test_predicted_memory_is_what_a_real_step_takes():
    changes = ["trunk.batch=64", "trunk.microbatch=64", "compute.loss_chunk=0"]
    (job,) = jobs(override(NANO, changes), parse("1x1"), "trunk")
    found = compile_job(job)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, json.dumps(changes)],
        capture_output=True,
        text=True,
        check=True,
    )
    measured, predicted = int(done.stdout), found.temporaries + found.gradients
    assert measured > 200e6, "too small to tell"
    assert measured == pytest.approx(predicted, rel=0.15)


@pytest.mark.usefixtures("quick_compiling")
def test_the_tool_in_every_form(here, tmp_path):
    nano = ("--preset", "s7-nano", "--phase", "trunk", "--mesh", "2x1")
    tree = json.loads(here("plan", *nano, "--json")[1])
    assert tree["total"]["cost"] > 0
    assert tree == json.loads(
        json.dumps(plan(override(NANO, ['compute.precision="bf16"']), parse("2x1"), "trunk", A100))
    )
    text = here("plan", *nano, "--markdown")[1]
    assert "| component | parameters | FP32 bytes |" in text
    assert text == show.markdown(tree)
    assert "Time by roofline" in here("plan", *nano)[1]
    page = tmp_path / "plan.html"
    assert here("plan", *nano, "--html", page)[0] == 0
    first = page.read_text()
    assert first.count("<svg") == 3
    assert "http" not in first.replace("http://www.w3.org", "")
    assert tool(*nano, "--html", page).returncode == 0
    assert page.read_text() == first
    compiled = json.loads(tool(*nano, "--target", "cpu", "--compile", "--json").stdout)
    assert compiled["memory"][0]["peak"] > compiled["memory"][0]["temporaries"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--target", "a1000"), "invalid choice: 'a1000'"),
        (("--mesh", "1x5"), "meshes that work: 4x1, 2x2, 1x4"),
        (("--mfu", "2"), "--mfu 2.0"),
        (("--fit",), "--fit needs --phase"),
        (("--batch", "7"), "whole number of microbatches"),
        (("--mesh", "99999x99999"), "meshes that work: 32x4, 32x2, 16x4"),
        (("--mesh", "99999x99999x99999"), "meshes that work: 32x4, 32x2, 16x4"),
        (("--price", "nan"), "--price nan: expected dollars"),
        (("--price=-1",), "--price -1.0: expected dollars"),
        (("--json", "--markdown"), "--markdown: not allowed with argument --json"),
        (("--measured", "x.md"), "--measured goes with --document"),
        (("--document", "d.md", "--measured", "none.md"), "none.md: no such file"),
        (("--html", "none/x.html"), "--html none/x.html: no such folder"),
        (("--failures", "1e300"), "--failures, --restart: with a failure every"),
        (("--failures", "5e-324"), "--failures 5e-324: expected 1e-12"),
        (("--set", "trunk.checkpoint=0"), "trunk.checkpoint is 0; expected from 1"),
    ],
)
def test_bad_input_says_what_fixes_it(here, args, message):
    code, _, err = here("plan", *args)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("columns", [40, 80, 300])
def test_no_figure_is_cut_in_a_terminal_of_any_width(columns, monkeypatch, capsys):
    tree = plan(BIG, parse("4x2"), "trunk", A100, price=4.73)
    show.terminal(tree)  # into a pipe
    piped = capsys.readouterr().out
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    show.terminal(tree)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    for _, names, cells in show.sections(tree):
        for row in cells:
            for name, cell in zip(names, row, strict=True):
                if name not in ("why", "what"):
                    assert cell in shown
                assert cell in piped
