"""Dense controls: of equal cost, trained once, scored as the run is, and in nobody's way."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from s7jax import commands
from s7jax.architecture import counts
from s7jax.config import PRESETS
from s7jax.errors import InputError, UsageError
from s7jax.mesh import single
from s7jax.model import parameters
from s7jax.model.flops import flops_per_token
from s7jax.report.write import write
from s7jax.runs.controls import controlled, controls
from s7jax.runs.pipeline import final_params
from s7jax.runs.upkeep import overview, remove, spare, whole
from s7jax.storage import lock
from s7jax.train import checkpoint
from s7jax.train.evaluate import evaluate, mean_interval
from s7jax.train.folder import CONTROLS, RunFolder
from s7jax.train.phase import ROUTERS, TRUNK, phases
from s7jax.train.watch import journal
from tests.conftest import TINY
from tests.train.conftest import open_run, prepared  # noqa: F401 fixtures

pytestmark = pytest.mark.usefixtures("compiled_alike")

SPENT = [("trunk", 1.0), ("trunk", 3.0), *((f"expert{e}", 0.5) for e in range(4))]
CONFIGS = {**PRESETS, "tiny": TINY}


@pytest.fixture(scope="module")
def run(tmp_path_factory, open_run):  # noqa: F811
    """A run that is trained, with weights that nothing had to train."""
    domains = tuple(dataclasses.replace(domain, tokens=256) for domain in TINY.domains)
    trunk = dataclasses.replace(TINY.trunk, tokens=512)
    config = dataclasses.replace(TINY, domains=domains, trunk=trunk)
    run = open_run(tmp_path_factory.mktemp("controls") / "runs/r", config)
    params = parameters.host(parameters.initial(run.config.model, 0, single()))
    draws = np.random.default_rng(0)

    def moved(tree):
        return jax.tree.map(lambda x: x + np.float32(0.05) * draws.normal(size=x.shape), tree)

    finals = {"trunk": {name: params[name] for name in TRUNK}}
    finals |= {f"expert{e}": moved(params[f"expert{e}"]) for e in range(4)}
    finals["router"] = {name: moved(params["router"]) for name in ROUTERS}
    for name, tree in finals.items():
        record = {"phase": name, "inputs": {}}
        checkpoint.save_final(run.folder.final(name), jax.tree.map(np.float32, tree), record)
    with run.folder.metrics.open("w") as file:
        for name, seconds in SPENT:
            line = {"phase": name, "step": 0, "tokens": 256, "loss": 5.0, "seconds": 9}
            line |= {"spent": {"step": seconds, "save": 7}}
            file.write(json.dumps(line) + "\n")
    return run


@pytest.fixture(scope="module")
def before(run):
    """Every file of the run as it was without controls."""
    return {p: p.read_bytes() for p in run.folder.path.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def report(run, before):
    return controls(run)


def cost(config) -> tuple[int, int]:
    """Tokens and operations of all phases."""
    each = {
        p: flops_per_token(config.model, p.expert is None, causal=False) for p in phases(config)
    }
    return sum(p.tokens for p in each), sum(p.tokens * n for p, n in each.items())


@pytest.mark.parametrize("name", CONFIGS)
def test_a_control_costs_what_the_run_costs(name):
    config = CONFIGS[name]
    tokens, operations = cost(config)
    for equal in CONTROLS:
        control = controlled(config, equal, {"trunk": 4.0, "expert0": 1.0, "expert1": 1.0})
        a_token = flops_per_token(control.model, True, causal=False)
        if equal == "tokens":
            assert control.trunk.tokens == tokens
        elif equal == "time":
            assert control.trunk.tokens == int(1.5 * config.trunk.tokens)
        else:
            spent = control.trunk.tokens * a_token
            assert operations - a_token < spent <= operations
        assert (control.model == config.model) == (equal != "parameters")
        assert dataclasses.replace(control, model=config.model, trunk=config.trunk) == config
    sizes, deeper = counts(config.model), controlled(config, "parameters").model
    one = (counts(deeper)["trunk"] - sizes["trunk"]) // (
        deeper.trunk.layers - config.model.trunk.layers
    )
    assert abs(counts(deeper)["trunk"] - sizes["trunk"] - sizes["expert0"]) <= one / 2


def test_every_model_is_scored_as_the_run_and_its_phases_are(run, report):
    models = {row["model"]: row for row in report["models"]}
    quality = evaluate(run, final_params(run))
    for domain, bits in quality["bits_per_byte"].items():
        for name, value in bits.items():
            assert models[name]["bits_per_byte"][domain] == pytest.approx(value, rel=1e-6)
        for name in ("random", "nearest_centroid"):
            value = quality["routers"][name]["bits_per_byte"][domain]
            assert models[name]["bits_per_byte"][domain] == pytest.approx(value, rel=1e-6)
    for equal in CONTROLS:
        folder = run.folder.control(equal)
        found, row = journal.read(folder.metrics)[-1], models[f"dense_{equal}"]
        assert row["bits_per_byte"] == pytest.approx(found["held_out"], rel=1e-5)
        assert row["tokens"] == found["tokens"]
        assert row["mean"] < models["trunk"]["mean"], "which nothing has trained"
    assert report["documents"].keys() == report["sequences"].keys()
    assert models["dense_time"]["tokens"] == 768, "1.5 times what the trunk saw: 6 seconds for 4"
    tokens = sum(phase.steps * phase.tokens_per_step for phase in phases(run.config))
    assert models["routed"]["tokens"] == tokens
    assert models["trunk"]["parameters"] == models["dense_tokens"]["parameters"]


def test_the_routed_model_is_set_against_each_within_intervals(report):
    routed = next(row for row in report["models"] if row["model"] == "routed")
    for row in report["models"]:
        bits = {**row["bits_per_byte"]}
        ratios = {d: routed["bits_per_byte"][d] / bits[d] - 1 for d in report["domains"]}
        ratios["mean"] = np.mean([*ratios.values()])
        for domain, (change, low, high) in row["routed"].items():
            assert change == pytest.approx(ratios[domain], abs=1e-9)
            assert low <= change <= high
            assert (low < high) == (row is not routed)


def test_each_domain_of_a_mean_is_drawn_from_by_itself():
    rng = np.random.default_rng(1)
    pair = (x := rng.gamma(9.0, size=200)), x * rng.normal(0.97, 0.05, 200)
    (one, low, high), (mean, lowest, highest) = mean_interval([pair]), mean_interval([pair] * 4)
    assert mean == pytest.approx(one)
    assert highest - lowest == pytest.approx((high - low) / 2, rel=0.1)


def test_what_is_trained_is_not_trained_again(run, report, capsys):
    capsys.readouterr()
    assert controls(run, ["flops"])["models"] == [
        row
        for row in report["models"]
        if row["model"] not in ("dense_tokens", "dense_time", "dense_parameters")
    ]
    assert capsys.readouterr().out.count("already trained") == 1


def test_the_run_is_as_it_was_and_is_removed_with_its_controls(run, before, report, tmp_path):
    assert {path: path.read_bytes() for path in before} == before
    folder = RunFolder(shutil.copytree(run.folder.path, tmp_path / "r"))
    assert overview(folder)["state"] == "router fitted"
    spared = spare(folder)
    assert [path for path in spared if "controls" in path.parts] == [
        folder.control(equal).checkpoints / "trunk" for equal in CONTROLS
    ]
    saves = folder.control("tokens").checkpoints / "trunk"
    with lock(saves / ".lock"), pytest.raises(InputError, match="another process"):
        remove(folder, spared)
    remove(folder, spared)
    assert not saves.exists()
    folder.tasks.write_text("{}")
    remove(folder, whole(folder))
    assert not folder.path.exists()


def test_the_command_and_the_report_show_the_table(run, report, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(run.folder.path.parent.parent)
    with pytest.raises(SystemExit) as end:
        commands.run("controls", ["--json"])
    assert end.value.code == 0
    assert json.loads(capsys.readouterr().out) == report
    with pytest.raises(SystemExit):
        commands.run("runs", ["--json"])
    assert [told["name"] for told in json.loads(capsys.readouterr().out)] == ["r"]

    folder = RunFolder(shutil.copytree(run.folder.path, tmp_path / "r"))
    quality = evaluate(run, final_params(run))
    folder.evaluation.write_text(json.dumps({"quality": quality}))
    _, summary = write(folder, folder.page)
    mean = next(row["mean"] for row in report["models"] if row["model"] == "dense_flops")
    assert f"| {mean:.4f} |" in summary.read_text()
    assert "dense, equal FLOPs and parameters" in folder.page.read_text()
    folder.controls_file.write_text(json.dumps(report | {"config_sha256": "0" * 64}))
    write(folder, folder.page)
    for form in (folder.page, summary):
        text = form.read_text()
        assert f"s7jax controls --run {folder.path}" in text
        assert "before its configuration changed" in text
        assert f"{mean:.4f}" not in text


def test_a_run_that_is_not_trained_or_has_changed_is_refused(run, report, open_run, tmp_path):  # noqa: F811
    begun = open_run(tmp_path / "begun")
    with pytest.raises(InputError, match=r"begun/checkpoints/trunk_final is not there"):
        controls(begun)
    assert not begun.folder.controls.exists()
    longer = tuple(dataclasses.replace(d, tokens=2 * d.tokens) for d in run.config.domains)
    changed = dataclasses.replace(run, config=dataclasses.replace(run.config, domains=longer))
    with pytest.raises(UsageError, match=r"controls/tokens holds a run with another config"):
        controls(changed, ["tokens"])
    folder = RunFolder(shutil.copytree(run.folder.path, tmp_path / "cut"))
    lines = folder.metrics.read_text().splitlines(keepends=True)
    folder.metrics.write_text("".join(lines[:-1]))
    with pytest.raises(InputError, match=r"does not say how long expert3 took"):
        controls(dataclasses.replace(run, folder=folder), ["time"])
