"""Which run is meant, what a refused start leaves, and where a run may be taken."""

import json
import shutil
from pathlib import Path

import pytest

from s7jax import sample
from s7jax.errors import UsageError
from s7jax.train.folder import RunFolder, named, newest, newest_seal, start
from tests.conftest import TINY


def begun(name: str, *has: str) -> Path:
    """A run under ``runs/`` that has some files."""
    folder = Path("runs") / name
    for path in ("config.json", *has):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps({"config": TINY.to_json()}))
    return folder


def test_the_newest_run_is_the_newest_that_has_what_is_needed(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert newest_seal() == sample.SEALED
    begun("a", "model/moe.s7l", "checkpoints/trunk_final/record")
    begun("b", "checkpoints/trunk_final/record")
    begun("c")
    assert newest_seal() == Path("runs/a/model/moe.s7l")
    assert newest(lambda run: run.final("trunk")).path.name == "b"
    with pytest.raises(UsageError, match=r"has checkpoints/router_final: start one"):
        newest(lambda run: run.final("router"))


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_no_name_is_no_run(name):
    with pytest.raises(UsageError, match=f"--run '{name}': expected the name of a run"):
        named(name)


@pytest.mark.parametrize(
    "wrong",
    [
        ("--run", ""),
        ("--run", "x", "--tokens", ""),
        ("--run", "x", "--mesh", ""),
        ("--run", "x", "--set", "trunk.peak_lr=NaN"),
        ("--run", "x", "--keep-last", "0"),
        ("--run", "deep/er/x", "--data", "code=no", "math=no", "reason=no", "general=no"),
        ("--run", "x", "--prepared", ""),
        ("--run", "x", "--resume-from", "5"),
        ("--run", "x", "--mesh", "99999x1"),
        ("--run", "x", "--set", f"trunk.peak_lr=1{'0' * 400}"),
        ("--run", "x", "--set", f"trunk.clip=-1{'0' * 400}"),
    ],
    ids=lambda words: " ".join(words)[:60],
)
def test_a_refused_start_leaves_nothing(here, tmp_path, wrong):
    code, _, err = here("trunk", *wrong)
    assert code in (1, 2)
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_a_runs_place_is_said(here, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/x").write_text("mine")
    code, _, err = here("trunk", "--run", "x")
    assert (code, err) == (2, "error: --run runs/x: is there and no folder; choose another\n")


@pytest.mark.parametrize(
    "config", ["folder", "[]", '{"config": {}, "data": null, "prepared": 5}', "[" * 5_000]
)
def test_a_run_that_cannot_be_read_hides_no_other(here, tmp_path, config):
    start(RunFolder(tmp_path / "runs/sound"), TINY, None, None)
    broken = tmp_path / "runs/broken/config.json"
    broken.parent.mkdir(parents=True)
    broken.mkdir() if config == "folder" else broken.write_text(config)
    code, out, err = here("runs")
    assert code == 0, err
    assert "sound" in out
    assert "broken" in out
    code, _, err = here("report", "broken")
    assert (code, err.count("\n")) == (1, 1)
    assert "runs/broken/config.json: " in err


def test_a_link_to_a_run_is_not_emptied(here, tmp_path):
    run = start(RunFolder(tmp_path / "elsewhere/run"), TINY, None, None)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/x").symlink_to(run.path)
    code, _, err = here("clean", "--whole", "x")
    assert code == 1
    assert f"runs/x is a link to {run.path}" in err
    assert run.config_file.exists()


def test_a_refused_start_leaves_what_was_there(here, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mine.txt").write_text("text")
    code, _, err = here("trunk", "--run", "./", "--data", *[f"{d}=no" for d in TINY.model.domains])
    assert code == 1, err
    assert [p.name for p in tmp_path.rglob("*")] == ["data", "mine.txt"]


def test_shards_that_were_moved_are_found_by_their_new_place(tmp_path):
    (tmp_path / "old").mkdir()
    run = start(RunFolder(tmp_path / "r"), TINY, None, str(tmp_path / "old"))
    with pytest.raises(UsageError, match=r"prepared is .*old.* there, .*new.* here"):
        start(run, TINY, None, str(tmp_path / "new"))
    shutil.move(tmp_path / "old", tmp_path / "new")
    start(run, TINY, None, str(tmp_path / "new"))
    assert run.prepared == tmp_path / "new"
