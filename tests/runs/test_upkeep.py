"""What a list of runs says, and what may be removed."""

import json

import pytest

from s7jax import commands
from s7jax.errors import InputError
from s7jax.runs.upkeep import overview, remove, spare, whole
from s7jax.storage import lock
from s7jax.train.folder import RunFolder, start
from tests.conftest import TINY


@pytest.fixture
def run(tmp_path) -> RunFolder:
    (tmp_path / "runs").mkdir()
    return start(RunFolder(tmp_path / "runs/r"), TINY, None, None)


def make(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x" * 100)


def test_a_run_is_listed_with_what_it_has_come_to(run, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    states = [overview(run)["state"]]
    for path in (
        run.data / "manifest.json",
        run.checkpoints / "trunk/3/state/x",
        run.final("trunk") / "params",
        run.checkpoints / "expert1/4/state/x",
        run.final("expert1") / "params",
        run.final("router") / "params",
        run.weights / "a.npy",
        run.model / "moe.s7l",
    ):
        make(path)
        states.append(overview(run)["state"])
    assert states == [
        "begun",
        "prepared",
        "trunk: 3 of 10 steps",
        "trunk trained",
        "expert1: 4 of 5 steps",
        "expert1 trained",
        "router fitted",
        "quantised",
        "sealed",
    ]
    bits = {d: {"routed": float(i)} for i, d in enumerate(TINY.model.domains)}
    run.evaluation.write_text(json.dumps({"quality": {"bits_per_byte": bits}}))
    with pytest.raises(SystemExit) as end:
        commands.run("runs", ["--json"])
    (told,) = json.loads(capsys.readouterr().out)
    assert end.value.code == 0
    assert told["bits_per_byte"] == 1.5
    assert told["bytes"] == sum(p.stat().st_size for p in run.path.rglob("*") if p.is_file())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("evaluation.json", "{"),
        ("evaluation.json", '{"quality": {}}'),
        ("evaluation.json", '{"quality": {"bits_per_byte": {}}}'),
    ],
)
def test_a_damaged_run_is_listed_with_the_others(run, monkeypatch, tmp_path, capsys, name, text):
    monkeypatch.chdir(tmp_path)
    damaged = start(RunFolder(tmp_path / "runs/damaged"), TINY, None, None)
    (damaged.path / name).write_text(text)
    with pytest.raises(SystemExit) as end:
        commands.run("runs", [])
    told = capsys.readouterr()
    assert end.value.code == 0
    assert "│ r " in told.out
    assert "damaged │" in told.out
    assert told.err.startswith(f"damaged: runs/damaged/{name}: ")


def test_what_is_needed_stays(run):
    needed = [run.final("trunk") / "params", run.checkpoints / "expert0/4/state/x", run.metrics]
    spared = [run.checkpoints / "trunk/3/state/x", run.model / ".answers-x/model.s7l"]
    make(*needed, *spared)
    assert remove(run, spare(run)) == 200
    assert all(path.exists() for path in needed)
    assert not any(path.exists() for path in spared)


def test_a_whole_run_goes_and_nothing_else(run):
    made = [run.final("trunk") / "params", run.tensorboard / "trunk/x", run.trackers / "x.json"]
    made += [run.transcript("trunk"), run.profile / "trunk/x"]
    make(*made, run.path / "notes.txt")
    with pytest.raises(InputError, match=r"notes.txt is no part of a run"):
        whole(run)
    (run.path / "notes.txt").unlink()
    remove(run, whole(run))
    assert not run.path.exists()


def test_a_run_that_is_being_trained_is_left_alone(run):
    make(run.final("trunk") / "params", run.checkpoints / "trunk/3/state/x")
    with lock(run.checkpoints / "trunk/.lock"), pytest.raises(InputError, match="another process"):
        remove(run, spare(run))
    assert (run.checkpoints / "trunk/3").is_dir()
