"""What users watch and choose, and what is refused."""

import dataclasses
import json
import threading
import time

import pytest

from s7jax.devices import DEVICES
from s7jax.errors import InputError, UsageError
from s7jax.terminal import progress
from s7jax.terminal.progress import Progress
from s7jax.train import loop
from s7jax.train.options import Every, Options, parse_tokens
from s7jax.train.watch import journal, metrics
from s7jax.train.watch.journal import Journal
from s7jax.train.watch.metrics import Clock, Throughput
from tests.train.training import train_trunk


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [100.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    return now


def test_throughput_and_utilisation_by_hand(clock):
    """1 M tokens per step of 368 MFLOP in two seconds on eight A100s."""
    watched = Throughput(10**6, 368 * 10**6, DEVICES["a100-40gb"], 8)
    assert watched.step() == {}
    clock[0] += 2
    assert watched.step() == {
        "tokens_per_second": 500_000.0,
        "mfu": round(500_000 * 368e6 / (8 * 312e12), 4),
    }
    clock[0] += 50  # a save
    watched.start()
    clock[0] += 4
    assert watched.step()["tokens_per_second"] == 250_000.0


@pytest.mark.parametrize("device", [None, DEVICES["cpu"]], ids=["unknown", "no peak"])
def test_nothing_is_claimed_of_devices_without_a_source(clock, device):
    watched = Throughput(10**6, 10**9, device, 1)
    watched.start()
    clock[0] += 1
    assert watched.step() == {"tokens_per_second": 1e6}


def test_more_than_the_peak_is_refused_and_said_once(clock, capsys):
    watched = Throughput(10**6, 10**9, DEVICES["a100-40gb"], 1)
    watched.start()
    for _ in range(2):
        clock[0] += 1
        assert watched.step() == {"tokens_per_second": 1e6}
    assert capsys.readouterr().out.count("321% of the devices' peak is impossible") == 1


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("50B", 50 * 10**9),
        ("2.5M", 2_500_000),
        ("7", 7),
        ("1k", 1_000),
        ("9007199254740993", 9_007_199_254_740_993),
    ],
)
def test_tokens_as_people_write_them(text, tokens):
    assert parse_tokens(text, "--tokens") == tokens
    assert Every.parse(text, "--save-every") == Every(tokens=tokens)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "-5",
        "5b",
        "five",
        "1e6",
        "0steps",
        "steps",
        "0.1",
        "1.5",
        "0.0001k",
        "9" * 400,
        "9" * 400 + "steps",
        "٣",
    ],
)
def test_what_is_no_length_is_refused_by_its_flag(text):
    with pytest.raises(UsageError, match=f"--save-every '{text}': expected .* such as 500steps"):
        Every.parse(text, "--save-every")


def test_intervals_in_steps():
    assert Every.parse("500steps", "--save-every").in_steps(10**6) == 500
    assert Every(tokens=5 * 10**9).in_steps(1_048_576) == 4_768
    assert Every(tokens=1).in_steps(1_048_576) == 1


@pytest.mark.long(minutes=0.4)
def test_a_trace_of_some_steps(new_run):
    x = dataclasses.replace(new_run("traced"), options=Options(profile=2))
    train_trunk(x)
    assert list((x.folder.profile / "trunk").rglob("*.xplane.pb"))


def test_pools_in_several_processes_are_refused_with_the_way_out(new_run, monkeypatch):
    x = new_run("pools", on="2x1x1")
    monkeypatch.setattr(loop.jax, "process_count", lambda: 2)
    with pytest.raises(UsageError, match="a job of its own with --domain"):
        loop.train_experts(x, range(4))


def test_every_moment_went_into_one_thing(clock):
    spent = Clock()
    for seconds, what in ((3.0, "compile"), (0.5, "stall"), (2.0, "step"), (0.25, "stall")):
        clock[0] += seconds
        spent.mark(what)
    assert spent.take() == {"compile": 3.0, "stall": 0.75, "step": 2.0}
    assert spent.take() == {}


def line(phase: str, step: int) -> dict[str, object]:
    return {"phase": phase, "step": step, "seconds": 1.0, "spent": {"step": 0.5, "save": 0.25}}


def test_metrics_are_cut_back_to_the_step_that_a_phase_resumes_from(tmp_path):
    path = tmp_path / "metrics.jsonl"
    other = Journal(path, "expert0", 0)
    first = Journal(path, "trunk", 0)
    for step in range(5):
        first.append(line("trunk", step))
        other.append(line("expert0", step))
    with path.open("a") as file:
        file.write('{"phase": "trunk", "st')  # killed while it wrote
    again = Journal(path, "trunk", 3)
    again.append(line("trunk", 3))
    other.append(line("expert0", 5))  # whose process goes on meanwhile
    steps = [(tree["phase"], tree["step"]) for tree in journal.read(path)]
    assert [step for phase, step in steps if phase == "trunk"] == [0, 1, 2, 3]
    assert [step for phase, step in steps if phase == "expert0"] == [0, 1, 2, 3, 4, 5]
    assert again.lost == 2 * 0.75


@pytest.mark.parametrize(
    "wrong", ["[1]", "{", '{"phase": "trunk"}', '{"phase": 1, "seconds": "x"}']
)
def test_what_is_no_line_of_metrics_is_named(tmp_path, wrong):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(line("trunk", 0)) + f"\n{wrong}\n")
    with pytest.raises(InputError, match=r"metrics.jsonl: line 2 is no training step"):
        journal.read(path)


def test_a_torn_last_line_of_metrics_is_not_read(tmp_path):
    """Its process was killed while writing, or is writing now."""
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(line("trunk", 0)) + "\n" + json.dumps(line("trunk", 1))[:-5])
    assert [tree["step"] for tree in journal.read(path)] == [0]


def test_slow_work_has_a_rate_too(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "PLAIN_INTERVAL", 0.0)
    with Progress("reading", 4, "parts") as bar:
        bar.advance(1)
        now[0] += 4
        bar.advance(1)
    assert (
        capsys.readouterr()
        .err.splitlines()[1]
        .startswith("reading: 2 parts of 4 parts, 0.25 parts/s")
    )


def test_no_rate_is_said_before_there_is_one(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "PLAIN_INTERVAL", 0.0)
    with Progress("trunk", 60, "steps", (100, "tokens"), done=50, first="compiling") as bar:
        now[0] += 30  # compiles
        bar.advance(1, "loss 2")
        for seconds in (0.5, 1.5, 2):
            now[0] += seconds
            bar.advance(1)
    first, early, second, third = capsys.readouterr().err.splitlines()
    assert first == "trunk: 51 steps of 60 steps, loss 2"
    assert early == "trunk: 52 steps of 60 steps"
    assert second == "trunk: 53 steps of 60 steps, 100 tokens/s, 7 s left"
    assert third == "trunk: 54 steps of 60 steps, 75 tokens/s, 8 s left"


def test_a_line_that_waits_while_the_file_is_cut_back_is_not_lost(tmp_path, monkeypatch):
    path, write = tmp_path / "metrics.jsonl", journal.write_bytes
    other, first = Journal(path, "expert0", 0), Journal(path, "trunk", 0)
    first.append(line("trunk", 0))
    waiting = threading.Thread(target=other.append, args=(line("expert0", 0),))

    def slow(*given):
        waiting.start()
        time.sleep(0.3)  # until it waits for the file that is replaced
        write(*given)

    monkeypatch.setattr(journal, "write_bytes", slow)
    Journal(path, "trunk", 0)
    waiting.join()
    assert [tree["phase"] for tree in journal.read(path)] == ["expert0"]
