"""The transcript: the same however a phase came to its end, and nothing else passes for one."""

import dataclasses
import errno
import json
import os

import msgpack
import numpy as np
import pytest

from s7jax.data.mixture import Receipt
from s7jax.errors import InputError
from s7jax.model import parameters
from s7jax.train import checkpoint, transcript
from s7jax.train.options import Every, Options
from s7jax.train.phase import Phase
from s7jax.train.run import batches, inputs_record, load_trunk
from tests.train import reader
from tests.train.stopping import Stopped, stop_at
from tests.train.training import train_trunk

pytestmark = pytest.mark.usefixtures("compiled_alike")


@pytest.fixture(scope="module")
def trunk(tmp_path_factory, open_run):
    """A run through Phase 1."""
    run = open_run(tmp_path_factory.mktemp("transcript") / "a")
    train_trunk(run)
    return run


def entries(path) -> list:
    unpacker = msgpack.Unpacker(raw=False)
    unpacker.feed(path.read_bytes())
    return list(unpacker)


def written(path, found: list):
    path.write_bytes(b"".join(msgpack.packb(entry, use_bin_type=True) for entry in found))
    return path


def test_it_says_what_every_step_was_fed_and_gave(trunk):
    found, phase = transcript.read(trunk.folder.transcript("trunk")), Phase(trunk.config)
    assert found.head["inputs"] == inputs_record(trunk, "trunk", None)
    assert len(found.steps) == phase.steps
    receipt, data = Receipt.start(4), batches(trunk.prepared, phase)
    for i, step in enumerate(found.steps):
        receipt = receipt.extend(data.batch(i))
        assert step.receipt.hex() == receipt.chain
    record = checkpoint.read_record(trunk.folder.final("trunk"))
    assert record["transcript_sha256"] == found.root.hex()
    assert found.end.hex() == record["params_sha256"] == parameters.digest(load_trunk(trunk))
    assert set(found.states) == set(range(1, phase.steps + 1))


def test_a_reader_written_from_the_document_reads_it(trunk):
    path = trunk.folder.transcript("trunk")
    found, told = reader.read(path.read_bytes()), transcript.read(path)
    assert (found["head"], found["end"], found["root"]) == (told.head, told.end, told.root)
    assert found["states"] == {
        done: (left.gradient.hex(), left.state.hex()) for done, left in told.states.items()
    }
    lines = [json.loads(line) for line in trunk.folder.metrics.read_text().splitlines()]
    assert found["losses"] == [line["loss"] for line in lines]


def test_groups_saves_and_stops_leave_no_trace_in_it(trunk, new_run, monkeypatch):
    other = dataclasses.replace(
        new_run("b", on="2x1"), options=Options(save_every=Every(steps=2), keep_last=1)
    )
    with pytest.raises(Stopped):
        stop_at(7, monkeypatch, other)
    train_trunk(other)
    path = trunk.folder.transcript("trunk")
    assert other.folder.transcript("trunk").read_bytes() == path.read_bytes()


def test_where_steps_are_lost_there_is_none(new_run, monkeypatch, capsys):
    run = new_run("lost")
    with pytest.raises(Stopped):
        stop_at(7, monkeypatch, run)
    path = run.folder.transcript("trunk")
    written(path, entries(path)[:4])
    train_trunk(run)
    assert "no transcript is kept" in capsys.readouterr().out
    assert not path.exists()
    assert "transcript_sha256" not in checkpoint.read_record(run.folder.final("trunk"))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda e: e[1:], "begins otherwise"),
        (lambda e: [[*e[0][:1], 2, *e[0][2:]], *e[1:]], "begins otherwise"),
        (lambda e: [[*e[0][:2], {**e[0][2], "steps": True}], *e[1:]], "begins otherwise"),
        (lambda e: [[*e[0][:2], {**e[0][2], "phase": 1}], *e[1:]], "begins otherwise"),
        (
            lambda e: [e[0], ["environment", False, e[1][2]], *e[2:]],
            "entry \\['environment', False",
        ),
        (lambda e: [*e[:2], ["\x1b[2J" * 99, 0], *e[2:]], r"entry \['\\x1b\[2J.{9,200}…, 0\]"),
        (lambda e: e[:2] + e[3:], "after 0 steps: unexpected entry \\['state', 1\\]"),
        (lambda e: e[:3] + e[4:], "after 1 steps: unexpected entry \\['step', 1\\]"),
        (lambda e: [*e[:2], e[4], *e[2:]], "after 0 steps: unexpected entry"),
        (lambda e: [*e, e[-1]], "unexpected entry \\['end', 10\\]"),
        (lambda e: [*e[:2], [*e[2][:3], b"", *e[2][4:]], *e[3:]], "of another length"),
        (lambda e: [*e[:2], [*e[2], 0], *e[3:]], "after 0 steps: unexpected entry"),
        (lambda e: [*e[:2], {}, *e[2:]], "not in its one encoding"),
        (lambda e: [], "empty"),
    ],
)
def test_what_is_no_transcript_is_refused(trunk, tmp_path, change, problem):
    path = written(tmp_path / "x.s7t", change(entries(trunk.folder.transcript("trunk"))))
    with pytest.raises(InputError, match=problem):
        transcript.read(path)


def test_what_claims_more_than_it_holds_is_refused(tmp_path):
    path = tmp_path / "x.s7t"
    for data in (b"\xdd\x7f\xff\xff\xff" * 9, b"\x91" * 1000 + b"\x90", b"\x91" * 5000, b"\xc1"):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"x\.s7t: (not msgpack|cut off|begins otherwise)"):
            transcript.read(path)
    path.unlink()
    os.mkfifo(path)  # which would be waited for
    with pytest.raises(InputError, match="not a regular file"):
        transcript.read(path)


class Full:
    """A file on a disk that takes less at once than it is given, then nothing."""

    name = "x.s7t"

    def __init__(self, room: int):
        self.room, self.data = room, b""

    def write(self, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = min(len(data), self.room, 50)
        self.data, self.room = self.data + data[:count], self.room - count
        return count


def recorded(path, steps: int) -> transcript.Recorder:
    """A transcript of ten steps, so many of them done."""
    head = {"phase": "trunk", "inputs": {}, "steps": 10, "states_every": 1}
    recorder = transcript.Recorder(path, head, 0, {"device": "a"})
    put(recorder, range(steps))
    return recorder


def put(recorder, steps) -> None:
    for i in steps:
        metrics = {"loss": np.float32(i), "grad_norm": np.float32(1), "skipped": False}
        recorder.put(i, "11" * 32, metrics)
        recorder.state(i + 1, transcript.State(bytes(32), bytes(32)))


def test_a_disk_that_fills_up_leaves_no_hole(tmp_path):
    recorder = recorded(tmp_path / "a.s7t", 10)
    recorder.close()
    recorder = recorded(tmp_path / "b.s7t", 0)
    begun = (tmp_path / "b.s7t").read_bytes()
    recorder.close()
    recorder._file = full = Full(1 << 20)
    put(recorder, range(10))
    assert begun + full.data == (tmp_path / "a.s7t").read_bytes()
    full.room = 20
    with pytest.raises(OSError, match=r"No space left on device: 'x\.s7t'"):
        recorder.end(10, "00" * 32)


def test_what_was_written_and_lost_with_its_checkpoint_is_not_told(tmp_path):
    path = tmp_path / "a.s7t"
    recorded(path, 7).close()
    head = transcript.read(path).head
    for device in "ba":  # on b a step was begun after the checkpoint, and none was saved
        recorder = transcript.Recorder(path, head, 5, {"device": device})
        put(recorder, range(5, 6))
        recorder.close()
    assert transcript.read(path).environments == {0: {"device": "a"}}
    for damage in (["step"], [], ["step", "x"], ["state", 1, 1]):
        written(path, [*entries(path)[:4], damage, *entries(path)[4:]])
        recorder = transcript.Recorder(path, head, 5, {"device": "a"})
        assert not path.exists()
        recorded(path, 7).close()


def test_bytes_that_are_cut_or_encoded_otherwise_are_refused(trunk, tmp_path):
    data, path = trunk.folder.transcript("trunk").read_bytes(), tmp_path / "x.s7t"
    path.write_bytes(data[:-1])
    with pytest.raises(InputError, match="cut off within the entry at byte"):
        transcript.read(path)
    path.write_bytes(data.replace(b"\xa4step", b"\xd9\x04step", 1))
    with pytest.raises(InputError, match="not in its one encoding at byte"):
        transcript.read(path)
    with pytest.raises(InputError, match="No such file"):
        transcript.read(tmp_path / "none")
