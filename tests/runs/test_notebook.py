"""A run from Python: the commands' own flags, checked as there. The same bytes: test_scripts.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import s7jax
from s7jax.errors import InputError, UsageError
from s7jax.runs import notebook, pipeline
from s7jax.train.folder import RunFolder
from s7jax.train.run import Run
from tests.report.test_report import finished


@pytest.fixture
def begun(monkeypatch):
    """The arguments that a run was started with, which is not trained."""
    seen = []
    monkeypatch.setattr(notebook, "begin", seen.append)
    monkeypatch.setattr(pipeline, "train", lambda _: {})
    monkeypatch.setattr(notebook, "TrainedRun", lambda *_: None)
    return seen


def test_arguments_are_the_flags_of_the_command(begun):
    s7jax.pretrain(
        "mine",
        preset="s7-nano",
        data={"code": "src/", "math": ["a.jsonl", Path("b.jsonl")]},
        tokens=5_000,
        expert_tokens=["1k", 2_000, "3k", "4k"],
        set={"trunk.peak_lr": 0.01, "reduction": "psum"},
        save_every="2steps",
        log_to="tensorboard",
        seed=3,
    )
    (args,) = begun
    assert args.run == "mine"
    assert args.data == ["code=src/", "math=a.jsonl", "math=b.jsonl"]
    assert (args.tokens, args.expert_tokens) == ("5000", ["1k", "2000", "3k", "4k"])
    assert args.set == ["trunk.peak_lr=0.01", 'reduction="psum"']
    assert (args.save_every, args.seed, args.log_to) == ("2steps", 3, ["tensorboard"])
    assert args.mesh is args.prepared is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tokens": "many"}, "--tokens 'many': expected a number of tokens"),
        ({"preset": "s8"}, "argument --preset: invalid choice: 's8'"),
        ({"sed": 1}, "unrecognized arguments: --sed=1"),
        ({"set": {"trunk.tokenz": 1}}, "no field 'trunk.tokenz'"),
        ({"mesh": "3x1"}, "--mesh 3x1"),
        ({"data": {"code": "nowhere/"}}, "math"),
        ({"log_to": "wanb"}, "argument --log-to: invalid choice: 'wanb'"),
        ({"keep_last": 0}, "--keep-last 0"),
        ({"step_timeout": float("nan")}, "--step-timeout"),
        ({"data": {"code": 5}}, "data['code'] is 5; expected a source"),
        ({"set": ["seed=1"]}, "set is ['seed=1']; expected fields by name"),
        ({"set": {"trunk.peak_lr": object()}}, "expected plain numbers"),
    ],
)
def test_what_the_command_refuses_is_refused_and_leaves_nothing(
    given, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as refused:
        s7jax.pretrain("r", **{"preset": "s7-nano", **given})
    assert message in str(refused.value)
    assert not list(tmp_path.iterdir())
    for call, name in (
        (lambda: s7jax.pretrain(5), "run is 5"),
        (lambda: s7jax.pretrain("r", prepared=5), "prepared is 5"),
        (lambda: s7jax.prepare(5, preset="s7-nano"), "out is 5"),
        (lambda: s7jax.prepare("o\0x", preset="s7-nano"), "out is "),
        (lambda: s7jax.open(None), "path is None"),
    ):
        with pytest.raises(UsageError, match=f"{name}.*; expected"):
            call()
    with pytest.raises((UsageError, InputError)):
        s7jax.prepare("data", preset="s7-nano", data={"code": "nowhere/"})
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match="--out: expected a folder"):
        s7jax.prepare("", preset="s7-nano")
    assert not list(tmp_path.iterdir())


def test_curves_and_report_of_a_run(tmp_path, prepared_run):
    run = prepared_run
    assert run.metrics()[0]["phase"] == "trunk"
    for phase in ("trunk", "math"):
        shown = run.plot(phase)._repr_html_()
        assert "<svg" in shown
        assert "--c0:#" in shown
        assert "--faint:#" in shown
    with pytest.raises(UsageError, match="expected trunk, code, math, reason, general"):
        run.plot("maths")
    assert run.report() == run.folder / "report.html"
    assert "<svg" in run.report().read_text()


@pytest.fixture
def prepared_run(tmp_path) -> notebook.TrainedRun:
    folder: RunFolder = finished(tmp_path)
    return notebook.TrainedRun(Run(folder, folder.config(), None, ()), {})


def python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    gone = ("PJRT_NPROC", "XLA_FLAGS")
    env = {k: v for k, v in os.environ.items() if k not in gone}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def test_a_process_that_has_used_jax_does_not_train(tmp_path):
    """Its bits would be others than the command's."""
    code = "import jax, s7jax; jax.devices(); s7jax.pretrain('r', preset='s7-nano')"
    refused = python(code, tmp_path)
    assert "UsageError: this process has used JAX before" in refused.stderr
    assert not list(tmp_path.iterdir())


def test_importing_s7jax_imports_nothing_heavy(tmp_path):
    heavy = "[m for m in ('jax', 'numpy') if m in sys.modules]"
    code = f"import sys, s7jax; s7jax.pretrain; print({heavy})"
    assert python(code, tmp_path).stdout == "[]\n"
