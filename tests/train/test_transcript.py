"""The transcript: the same however a phase came to its end, and nothing else passes for one."""

import dataclasses
import json

import msgpack
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
        new_run("b", on="4x1"), options=Options(save_every=Every(steps=2), keep_last=1)
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
