"""The transcript of a phase: what every step was fed and gave, in one chain, for others to check.

One file for each phase, ``transcript/NAME.s7t``: entries of canonical msgpack, one after another.
Each is hashed together with the hash before it; the last hash, the root, is sealed with the model.
No entry depends on the number of data groups, on saves or on stops: whoever trains the phase again
writes the same file. Byte by byte: ``docs/transcript.md``.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import takewhile
from pathlib import Path
from typing import IO, Any, Self, cast

import jax
import msgpack
import numpy as np

from s7jax.digests import tree_digest
from s7jax.errors import InputError, show
from s7jax.storage import read_regular, write_bytes
from s7jax.terminal.processes import say
from s7jax.train.checkpoint import tensor_sha256
from s7jax.train.phase import Phase, states_every
from s7jax.train.step import Stepper

FORMAT, VERSION = "s7-transcript", 1
MAX_BYTES = 1 << 30  # of a file that is read: ten million steps


def head(phase: Phase, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What a transcript is of; ``inputs`` as :func:`s7jax.train.run.inputs_record` has them."""
    return {
        "phase": phase.name,
        "inputs": dict(inputs),
        "steps": phase.steps,
        "states_every": states_every(phase.steps),
    }


class Told:
    """What is told field by field, and compared so."""

    def difference(self, other: Self) -> str | None:
        """The first field that is not the same in another telling."""
        names = (field.name for field in fields(cast(Any, self)))
        return next((n for n in names if getattr(self, n) != getattr(other, n)), None)

    def shown(self, what: str) -> str:
        """One field, to be read: floats in the digits that tell them apart."""
        value = getattr(self, what)
        if what in ("loss", "grad_norm"):
            return str(np.frombuffer(value, "<f4")[0])
        return value.hex() if isinstance(value, bytes) else str(value)


@dataclass(frozen=True)
class Step(Told):
    """One step: the receipt of all batches up to it, and what it gave, as float32 bits."""

    receipt: bytes  # SHA-256
    loss: bytes
    grad_norm: bytes
    skipped: bool

    @classmethod
    def of(cls, receipt: str, metrics: Mapping[str, jax.Array]) -> Self:
        """A step that has been trained, by its receipt and the metrics on the device."""
        found = jax.device_get({k: metrics[k] for k in ("loss", "grad_norm", "skipped")})
        loss, norm = (np.asarray(found[k], "<f4").tobytes() for k in ("loss", "grad_norm"))
        return cls(bytes.fromhex(receipt), loss, norm, bool(found["skipped"]))


@dataclass(frozen=True)
class State(Told):
    """What a step left: two trees of tensors, each by its digest (:func:`tree_digest`).

    Attributes:
        gradient: the sum of the gradients of all microbatches of the step.
        state: the training state after it: parameters, moments and running loss.
    """

    gradient: bytes
    state: bytes

    @classmethod
    def of(cls, stepper: Stepper) -> Self:
        """Of a step that was told to keep its gradient."""
        return cls(*(tree_digest(tensor_sha256(t)) for t in (stepper.gradient_sum, stepper.state)))


@dataclass(frozen=True)
class End(Told):
    """What a phase ends with: SHA-256 of its parameters."""

    end: bytes


@dataclass(frozen=True)
class Transcript:
    """A transcript that was read, whole or as far as its phase has come.

    Attributes:
        head: what it is of (:func:`head`).
        environments: what it was trained on, by the steps done before.
        steps: every step from the first.
        states: gradient and training state, by the steps done.
        end: SHA-256 of the parameters that the phase ended with; None if it has not.
        root: the last hash of the chain.
    """

    head: Mapping[str, Any]
    environments: Mapping[int, Mapping[str, Any]]
    steps: tuple[Step, ...]
    states: Mapping[int, State]
    end: bytes | None
    root: bytes


def read(path: Path) -> Transcript:
    """A transcript, checked for its form and order.

    Raises:
        InputError: missing, or not one: where, and what was expected there.
    """
    return _told(path, _entries(path, read_regular(path, MAX_BYTES)))


def _told(path: Path, entries: Iterable[tuple[bytes, Any]]) -> Transcript:
    """What entries tell, each refused where it is not due."""
    chain, first = Chain(), dict[str, Any]()
    steps: list[Step] = []
    states: dict[int, State] = {}
    environments: dict[int, Mapping[str, Any]] = {}
    end: bytes | None = None
    for raw, entry in entries:
        chain.extend(raw)
        if not first:
            first = _head_of(path, entry)
            continue
        done = len(steps)
        match entry:
            case [_, bool(), *_]:  # which passes for int
                raise _unexpected(path, done, entry)
            case ["environment", int(at), dict(found)] if at == done and end is None:
                environments[at] = found
            case [
                "step",
                int(at),
                bytes(receipt),
                bytes(loss),
                bytes(norm),
                bool(skipped),
            ] if (
                at == done < first["steps"]
                and end is None
                and (done in states or not due(first, done))
            ):
                if (len(receipt), len(loss), len(norm)) != (32, 4, 4):
                    raise InputError(f"{path}: step {at}: hashes or floats of another length")
                steps.append(Step(receipt, loss, norm, skipped))
            case ["state", int(at), bytes(gradient), bytes(state)] if (
                at == done
                and at not in states
                and len(gradient) == len(state) == 32
                and due(first, at)
            ):
                states[at] = State(gradient, state)
            case ["end", int(at), bytes(sha256)] if (
                at == done == first["steps"] and at in states and len(sha256) == 32 and not end
            ):
                end = sha256
            case _:
                raise _unexpected(path, done, entry)
    if not first:
        raise InputError(f"{path}: empty, not a transcript")
    if 0 not in environments:
        raise InputError(f"{path}: does not say what it was trained on")
    return Transcript(first, environments, tuple(steps), states, end, chain.value)


def _unexpected(path: Path, done: int, entry: list[Any]) -> InputError:
    what = ", ".join(map(show, entry[:2]))
    return InputError(f"{path}: after {done} steps: unexpected entry [{what}]")


def due(head: Mapping[str, Any], done: int) -> bool:
    """Whether gradient and state are told after so many steps."""
    return done > 0 and (done % head["states_every"] == 0 or done == head["steps"])


def unlike(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """The first field that is not the same in two heads, and both values, printable."""
    one, other = (h | {f"inputs.{k}": v for k, v in h["inputs"].items()} for h in map(dict, (a, b)))
    del one["inputs"], other["inputs"]
    for name in one | other:
        if one.get(name) != other.get(name):
            return name, show(one.get(name)), show(other.get(name))
    return None


def _head_of(path: Path, entry: Any) -> dict[str, Any]:
    match entry:
        case [str(name), int(version), dict(found)] if (name, version) == (FORMAT, VERSION):
            match found:
                case {"phase": str(), "inputs": dict(), "steps": steps, "states_every": every}:
                    if all(type(n) is int and n > 0 for n in (version, steps, every)):
                        return found
    raise InputError(f"{path}: begins otherwise than a transcript of version {VERSION}")


class Chain:
    """Each entry hashed together with the hash before it."""

    def __init__(self) -> None:
        self.value = hashlib.sha256(FORMAT.encode()).digest()

    def extend(self, raw: bytes) -> None:
        """One more entry, as it is encoded."""
        self.value = hashlib.sha256(self.value + raw).digest()


def _packed(entry: Any) -> bytes:
    return msgpack.packb(entry, use_bin_type=True)


def _entries(path: Path, data: bytes, whole: bool = True) -> Iterator[tuple[bytes, Any]]:
    """Encoded and decoded; a piece of one at the end is an error, or left out."""
    # No array or map is longer than the file, whatever it says.
    unpacker = msgpack.Unpacker(raw=False, strict_map_key=True, max_buffer_size=len(data) or 1)
    unpacker.feed(data)
    at = 0
    while at < len(data):
        try:
            entry = unpacker.unpack()
        except msgpack.OutOfData:
            if whole:
                raise InputError(f"{path}: cut off within the entry at byte {at}") from None
            return
        except (ValueError, msgpack.UnpackException) as e:
            raise InputError(f"{path}: not msgpack at byte {at}: {show(str(e))}") from None
        raw = data[at : unpacker.tell()]
        if not isinstance(entry, list) or _packed(entry) != raw:
            raise InputError(f"{path}: not in its one encoding at byte {at}")
        yield raw, entry
        at = unpacker.tell()


class Recorder:
    """Writes the transcript of a phase while it is trained; process 0 does, the others nothing.

    A phase that resumes goes on with its transcript, from which what comes after is dropped: it
    will be written again, the same. Where steps are missing there is no transcript from then on.
    """

    def __init__(
        self, path: Path, head: Mapping[str, Any], done: int, environment: Mapping[str, Any]
    ) -> None:
        self._file: IO[bytes] | None = None
        self._chain = Chain()
        self._pending: tuple[int, str, Mapping[str, jax.Array]] | None = None
        if jax.process_index():
            return
        kept = _kept(path, head, done)
        if kept is None:
            say(f"{head['phase']}: {path} lacks steps before step {done}: no transcript is kept")
            path.unlink(missing_ok=True)
            return
        last = [entry[2] for _, entry in kept if entry[0] == "environment"][-1:]
        raws = [raw for raw, _ in kept] or [_packed([FORMAT, VERSION, dict(head)])]
        if last != [dict(environment)]:
            raws.append(_packed(["environment", done, dict(environment)]))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, b"".join(raws))
        for raw in raws:
            self._chain.extend(raw)
        self._file = path.open("ab", buffering=0)

    def put(self, step: int, receipt: str, metrics: Mapping[str, jax.Array]) -> None:
        """Queue a step, and write the one before: the device never waits for the host."""
        self.flush()
        self._pending = step, receipt, metrics

    def flush(self) -> None:
        """Write the step that was put last."""
        if self._pending and self._file:
            step, receipt, metrics = self._pending
            told = Step.of(receipt, metrics)
            self._write(["step", step, told.receipt, told.loss, told.grad_norm, told.skipped])
        self._pending = None

    def state(self, done: int, found: State) -> None:
        """What so many steps have left."""
        self.flush()
        self._write(["state", done, found.gradient, found.state])

    def end(self, done: int, params_sha256: str) -> str | None:
        """The parameters the phase ends with; the root of the transcript, if there is one."""
        self.flush()
        if self._file is None:
            return None
        self._write(["end", done, bytes.fromhex(params_sha256)])
        self.sync()
        return self._chain.value.hex()

    def sync(self) -> None:
        """What was written survives a loss of power."""
        self.flush()
        if self._file:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Nothing is written any more."""
        if self._file:
            self._file.close()
        self._file = None

    def _write(self, entry: list[Any]) -> None:
        if self._file is None:
            return
        raw = rest = _packed(entry)
        try:
            while rest:  # a disk that is nearly full takes a part of it, and that is no error yet
                rest = rest[self._file.write(rest) :]
        except OSError as e:
            raise OSError(e.errno, e.strerror, self._file.name) from None
        self._chain.extend(raw)


def _kept(path: Path, head: Mapping[str, Any], done: int) -> list[tuple[bytes, Any]] | None:
    """The entries of the first ``done`` steps; None if they are not all there."""
    if done == 0:
        return []
    later = [["step", done], ["environment", done], ["end", done]]
    try:
        entries = _entries(path, path.read_bytes(), whole=False)
        kept = list(takewhile(lambda pair: pair[1][:2] not in later, entries))
        told = _told(path, kept)
    except (OSError, InputError):
        return None
    whole = len(told.steps) == done and (done in told.states or not due(head, done))
    return kept if whole and told.head == head else None
