"""Trackers show what training does; they never decide anything of it."""

import dataclasses
import json
import math
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from s7jax import commands
from s7jax.train.options import Options
from s7jax.train.watch import sender, trackers
from s7jax.train.watch.trackers import Place, Subject, flat
from tests.train.conftest import WORDS
from tests.train.stopping import Stopped, stop_at
from tests.train.training import train_trunk


class Recording:
    """Keeps what it is given, as W&B and MLflow do: by a place in the run's folder."""

    def __init__(self, subject: Subject) -> None:
        self.subject, self.rows, self.ended = subject, [], None
        self.place = Place(subject, "recording", "memory")
        if self.place.id is None:
            self.place.keep(f"run {len(opened)}")
        opened.append(self)

    def write(self, rows) -> None:
        self.rows += self.place.new(rows)

    def close(self, finished: bool) -> None:
        self.ended = finished


opened: list[Recording] = []


@pytest.fixture
def tracked(new_run, monkeypatch):
    """A run that is logged to one tracker of some kind, in MLflow's place."""
    opened.clear()

    def make(name: str, kind: type = Recording):
        monkeypatch.setitem(trackers.TRACKERS, "mlflow", kind)
        return dataclasses.replace(new_run(name), options=Options(log_to=("mlflow",)))

    return make


@pytest.fixture(scope="module")
def untracked(tmp_path_factory, open_run) -> str:
    """The digest of a trunk that nobody watches."""
    run = open_run(tmp_path_factory.mktemp("plain") / "r")
    return train_trunk(dataclasses.replace(run, options=Options(log_to=())))


def lines(run) -> list[dict]:
    return [json.loads(line) for line in run.folder.metrics.read_text().splitlines()]


def test_a_tracker_gets_the_scalars_of_the_metrics_and_the_configuration(tracked, untracked):
    run = tracked("a")
    assert train_trunk(run) == untracked
    (one,) = opened
    assert one.ended is True
    assert one.subject.run == "a"
    assert one.subject.config == run.config.to_json()
    assert [step for step, _ in one.rows] == list(range(10))
    for line, (_, scalars) in zip(lines(run), one.rows, strict=True):
        for name in ("loss", "grad_norm", "learning_rate"):
            assert scalars[name] == line[name]
        for domain, bits in line.get("held_out", {}).items():
            assert scalars[f"held_out/{domain}"] == bits


def test_a_run_that_resumes_goes_on_where_it_was_and_writes_no_step_twice(
    tracked, untracked, monkeypatch
):
    run = tracked("a")
    with pytest.raises(Stopped):
        stop_at(7, monkeypatch, run)
    assert train_trunk(run) == untracked
    before, after = opened
    assert (before.ended, after.ended) == (False, True)
    assert before.place.id == after.place.id == "run 0"
    assert after.subject.first <= before.rows[-1][0], "steps were done again"
    assert [step for step, _ in before.rows + after.rows] == list(range(10))


def test_other_inputs_are_another_run(tmp_path):
    def place(**inputs: str) -> Place:
        subject = Subject("r", "trunk", 0, {}, inputs, tmp_path, tmp_path / "trackers")
        return Place(subject, "recording", "memory")

    place(data="a").keep("one", 7)
    assert place(data="a").id == "one"
    assert place(data="a").new([(7, {}), (8, {})]) == [(8, {})]
    assert place(data="a").new([(8, {})]) == []
    assert place(data="b").id is None
    assert place(data="b").new([(0, {})]) == [(0, {})]


def test_a_tracker_that_fails_warns_once_and_changes_nothing(tracked, untracked, capsys):
    class Failing(Recording):
        def write(self, rows) -> None:
            super().write(rows)
            if len(self.rows) > 2:
                raise ConnectionError("the server is gone\nand so on")

    run = tracked("a", Failing)
    assert train_trunk(run) == untracked
    assert [line["step"] for line in lines(run)] == list(range(10))
    said = capsys.readouterr().out
    assert said.count("warning") == 1
    assert (
        "trunk: warning: --log-to mlflow failed, metrics.jsonl has what it lacks: "
        "ConnectionError: the server is gone\n"
    ) in said


def test_a_tracker_that_cannot_be_opened_changes_nothing(tracked, untracked, capsys):
    class Closed:
        def __init__(self, subject: Subject) -> None:
            raise TimeoutError("nobody there")

    assert train_trunk(tracked("a", Closed)) == untracked
    assert capsys.readouterr().out.count("TimeoutError: nobody there") == 1


def test_a_tracker_that_hangs_is_left_behind(tracked, untracked, capsys, monkeypatch):
    answered = threading.Event()

    class Hanging(Recording):
        def __init__(self, subject) -> None:
            answered.wait()

        def write(self, rows) -> None:
            pass

        def close(self, finished) -> None:
            pass

    waited, join = [], threading.Thread.join
    monkeypatch.setattr(sender, "PATIENCE", 0.1)
    monkeypatch.setattr(sender, "_silent", set())

    def joined(thread, timeout=None) -> None:
        if thread.name == "log to mlflow":
            waited.append(timeout)
        join(thread, timeout)

    monkeypatch.setattr(threading.Thread, "join", joined)
    try:
        assert train_trunk(tracked("a", Hanging)) == untracked
        sender.Sender("mlflow", SimpleNamespace(phase="expert0")).close(True)
    finally:
        answered.set()
    assert capsys.readouterr().out.count("--log-to mlflow does not answer") == 2
    assert waited == [0.1, 0], "once is enough"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["mlflow"], "error: --log-to mlflow needs a package: "),
        (["tensorboard", "wandb"], "error: --log-to wandb needs a package: "),
        (["wanb"], "invalid choice: 'wanb' (choose from "),
    ],
)
def test_a_tracker_that_is_not_there_is_refused_before_anything_is_made(
    flags, message, tmp_path, monkeypatch, capsys
):
    version = metadata.version

    def without(name: str) -> str:
        if name in trackers.OPTIONAL:
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", without)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        commands.run("trunk", ["--preset", "s7-nano", "--run", "r", "--log-to", *flags])
    said = capsys.readouterr().err
    assert (end.value.code, message in said) == (2, True), said
    if "package" in message:
        how = re.search(rf"-m pip install '?{flags[-1]}>|pip install -e '.\[{flags[-1]}\]'", said)
        assert how, said
        assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_configuration_is_flat_parameters():
    tree = {"model": {"vocab": 320, "rope": None}, "domains": [{"name": "law"}], "skip": [7, 9]}
    assert flat(tree) == {
        "model.vocab": "320",
        "model.rope": "null",
        "domains.0.name": "law",
        "skip": "[7, 9]",
    }


# A run as a command starts it, killed once, and gone on with: each a process of its own.
SIZE = """
model.vocab=320 model.context=32 model.routing_window=8
model.trunk.layers=1 model.trunk.hidden=32 model.trunk.ffn=64
model.expert.layers=1 model.expert.hidden=16 model.expert.ffn=32
trunk.tokens=2560 trunk.batch=8 trunk.microbatch=2
domains.*.tokens=1280 experts.batch=8 experts.microbatch=2
""".split()


@pytest.fixture
def folder(tmp_path) -> Path:
    """With a little text for every domain."""
    rng = np.random.default_rng(0)
    for domain, words in WORDS.items():
        texts = [json.dumps({"text": " ".join(rng.choice(words, 60))}) for _ in range(120)]
        (tmp_path / f"{domain}.jsonl").write_text("\n".join(texts) + "\n")
    return tmp_path


def command(folder: Path, *words: object, stop: bool = False, **environment: str) -> str:
    """Run ``s7jax``; with ``stop`` it gets SIGTERM as soon as a step has its line."""
    process = subprocess.Popen(
        [sys.executable, "-m", "s7jax", *map(str, words)],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if stop:
        metrics = folder / "runs/r/metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and metrics.read_text()):
            time.sleep(0.02)
        process.terminate()
    said, _ = process.communicate(timeout=1800)
    assert process.returncode in ((143, 0) if stop else (0,)), said
    return said


def begin(tracker: str, folder: Path) -> list[str]:
    data = [f"{domain}={folder / domain}.jsonl" for domain in WORDS]
    how = ["--log-to", tracker, "tensorboard", "--save-every", "4steps"]
    return ["trunk", "--preset", "s7-nano", "--run", "r", "--data", *data, *how, "--set", *SIZE]


def go_on(tracker: str) -> list[list[str]]:
    """What goes on with the trunk, and trains experts side by side."""
    how = ["--run", "r", "--log-to", tracker]
    return [["trunk", *how], ["experts", *how, "--mesh", "2x1x1"]]


@pytest.mark.long(minutes=6)
def test_wandb_offline(folder):
    """Without a network, in the run's folder; a run that goes on has one id."""
    pytest.importorskip("wandb")
    offline = {"WANDB_MODE": "offline", "HOME": str(folder)}
    command(folder, *begin("wandb", folder), stop=True, **offline)
    for words in go_on("wandb"):
        said = command(folder, *words, **offline)
        assert "warning: --log-to" not in said, said
    kept = {
        path.stem: json.loads(path.read_text())
        for path in (folder / "runs/r/trackers").glob("wandb-*.json")
    }
    names = ["trunk", *(f"expert{e}" for e in range(4))]
    assert sorted(kept) == sorted(f"wandb-{name}" for name in names)
    assert kept["wandb-trunk"]["last"] == 9
    assert kept["wandb-expert3"]["last"] == 4
    assert len({place["id"] for place in kept.values()}) == 5
    for name, attempts in (("trunk", 2), ("expert0", 1)):
        run = kept[f"wandb-{name}"]["id"]
        files = sorted((folder / "runs/r/trackers/wandb").glob(f"offline-run-*/run-{run}.wandb"))
        assert len(files) in (attempts, attempts - 1 or 1), "the signal may have come too late"
        steps = [step for file in files for step in logged(file)]
        assert steps == sorted(set(steps)), "a step twice"
        assert steps == list(range(10 if name == "trunk" else 5))
    refused = subprocess.run(
        [sys.executable, "-m", "s7jax", "trunk", "--run", "new", "--log-to", "wandb"],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if "WANDB" not in k} | {"HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2, refused.stderr
    assert "error: --log-to wandb: W&B has no key" in refused.stderr
    assert not (folder / "runs/new").exists()


def logged(file: Path) -> Iterator[int]:
    """The steps in a file of W&B."""
    from wandb.proto import wandb_internal_pb2

    for data in records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            found = {item.key or item.nested_key[0]: item for item in record.history.item}
            assert math.isfinite(json.loads(found["loss"].value_json))
            yield record.history.step.num


def records(data: bytes) -> Iterator[bytes]:
    """LevelDB's log format: blocks of 32 KiB; checksum, length and kind before each part."""
    at, whole = 7, b""  # after the name of the format
    assert data.startswith(b":W&B")
    while at < len(data):
        if (left := -at % 32_768) and left < 7:  # too little for another part
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield whole
            whole = b""


@pytest.fixture
def server(tmp_path_factory) -> Iterator[str]:
    """A tracking server of MLflow with a database of its own."""
    pytest.importorskip("mlflow")
    home, port = tmp_path_factory.mktemp("mlflow"), free_port()
    words = ["server", "--backend-store-uri", f"sqlite:///{home}/runs.db", "--workers", "1"]
    words += ["--artifacts-destination", str(home), "--host", "127.0.0.1", "--port", str(port)]
    with (home / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words],
            stdout=log,
            stderr=log,
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # nothing of ours
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 900
        while True:
            assert process.poll() is None, (home / "log").read_text()
            assert time.monotonic() < until, "it hangs"
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.long(minutes=10)
def test_mlflow_on_a_real_tracking_server(folder, server):
    from mlflow import MlflowClient

    there = {"MLFLOW_TRACKING_URI": server, "MLFLOW_EXPERIMENT_NAME": "tiny"}
    command(folder, *begin("mlflow", folder), stop=True, **there)
    for words in go_on("mlflow"):
        said = command(folder, *words, **there)
        assert "warning: --log-to" not in said, said
    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("tiny").experiment_id
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    names = ["trunk", *(f"expert{e}" for e in range(4))]
    assert sorted(runs) == sorted(f"r/{name}" for name in names)
    metrics = (folder / "runs/r/metrics.jsonl").read_text()
    recorded = [json.loads(line) for line in metrics.splitlines()]
    for name in names:
        run = runs[f"r/{name}"]
        assert run.info.status == "FINISHED"
        assert run.data.params["model.trunk.hidden"] == "32"
        assert run.data.params["domains.0.name"] == "code"
        assert run.data.tags["s7jax.phase"] == name
        for metric in ("loss", "learning_rate", "grad_norm"):
            history = client.get_metric_history(run.info.run_id, metric)
            found = [(point.step, point.value) for point in history]
            wanted = [(x["step"], x[metric]) for x in recorded if x["phase"] == name]
            assert found == wanted, (name, metric)
    assert "held_out/math" in runs["r/trunk"].data.metrics


@pytest.mark.long(minutes=6)
def test_an_mlflow_server_that_goes_away_does_not_stop_training(folder):
    pytest.importorskip("mlflow")
    nobody = {
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{free_port()}",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }
    said = command(folder, *begin("mlflow", folder), **nobody)
    assert said.count("warning: --log-to mlflow failed") == 1
    assert (folder / "runs/r/checkpoints/trunk_final").is_dir()
    assert len((folder / "runs/r/metrics.jsonl").read_text().splitlines()) == 10


def test_tensorboard_does_not_load_pytorch():
    """Three seconds at the start of every phase, where it is installed."""
    code = "import sys; from s7jax.train.watch import trackers; trackers._summary_writer(); "
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
