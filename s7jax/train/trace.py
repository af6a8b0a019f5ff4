"""The trace of a step: every tensor it began with, every gradient, every tensor it left, by digest.

Whoever trained the step writes one. Two that disagree are led to the first microbatch, and in it
to the first tensor, that is not the same. Form of the file: ``docs/transcript.md``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import jax
import msgpack
import numpy as np

from s7jax.digests import tree_digest
from s7jax.errors import InputError
from s7jax.storage import read_regular, write_bytes
from s7jax.train.checkpoint import tensor_sha256
from s7jax.train.step import Stepper
from s7jax.train.transcript import MAX_BYTES, State, Step, Transcript

FORMAT, VERSION = "s7-trace", 1
Digests = Mapping[str, bytes]  # SHA-256 of a tensor, by its path


@dataclass(frozen=True)
class Trace:
    """What a step did.

    Attributes:
        head: head of the transcript that the step is of.
        step: its number, from 0.
        told: what the transcript says of it.
        parts: in the order of computing: ``before``, the training state it began with;
            ``microbatch 0``, ``microbatch 1`` …, their losses and gradients; ``gradient``, the sum
            of the gradients; ``after``, the training state it left.
    """

    head: Mapping[str, Any]
    step: int
    told: Step
    parts: Mapping[str, Digests]

    def difference(self, other: Self) -> tuple[str, str] | None:
        """The first part, and the first tensor in it, that is not the same in another trace."""
        for part in [*self.parts, *other.parts]:
            mine, theirs = self.parts.get(part, {}), other.parts.get(part, {})
            for name in [*mine, *theirs]:
                if mine.get(name) != theirs.get(name):
                    return part, name
        return None

    def require(self, path: Path, told: Transcript, whose: Path) -> None:
        """This must be a trace of a step of a transcript.

        Raises:
            InputError: what the transcript says of the step is something else.
        """
        done = self.step + 1
        left = told.states.get(done)
        found = State(*(tree_digest(self.parts[name]) for name in ("gradient", "after")))
        if (
            dict(self.head) != dict(told.head)
            or not 0 <= self.step < len(told.steps)
            or self.told != told.steps[self.step]
            or (left is not None and left != found)
        ):
            raise InputError(f"{path}: not a trace of step {self.step} as {whose} tells of it")

    def write(self, path: Path) -> None:
        """One msgpack array, in its shortest encoding."""
        told = self.told
        step = [self.step, told.receipt, told.loss, told.grad_norm, told.skipped]
        parts = [[name, list(map(list, digests.items()))] for name, digests in self.parts.items()]
        entry = [FORMAT, VERSION, dict(self.head), step, parts]
        write_bytes(path, msgpack.packb(entry, use_bin_type=True))


class Tracer:
    """Watches one step: ask it before the step, then for the trace after it."""

    def __init__(self, stepper: Stepper, tokens: np.ndarray) -> None:
        """Before the step: the state, and every microbatch's gradient."""
        self._stepper = stepper
        self._parts = {"before": tensor_sha256(stepper.state)}
        for i, (loss, gradient) in enumerate(stepper.microbatches(tokens)):
            found = {"loss": loss, "gradient": gradient}
            self._parts[f"microbatch {i}"] = tensor_sha256(jax.device_get(found))

    def trace(self, head: Mapping[str, Any], step: int, told: Step) -> Trace:
        """After the step, which must have kept its gradient."""
        after = {
            "gradient": tensor_sha256(self._stepper.gradient_sum),
            "after": tensor_sha256(self._stepper.state),
        }
        return Trace(head, step, told, self._parts | after)


def read(path: Path) -> Trace:
    """A trace from its file.

    Raises:
        InputError: missing, or not one.
    """
    data = read_regular(path, MAX_BYTES)
    try:
        entry = msgpack.unpackb(data, raw=False)
        entry = entry if msgpack.packb(entry, use_bin_type=True) == data else None
    except (ValueError, msgpack.UnpackException):
        entry = None
    match entry:
        case [
            str(name),
            int(version),
            dict(head),
            [int(step), bytes(receipt), bytes(loss), bytes(norm), bool(skipped)],
            list(parts),
        ] if (name, version) == (FORMAT, VERSION) and bool not in (type(version), type(step)):
            told = Step(receipt, loss, norm, skipped)
            found = {part: digests for part, digests in map(_part, parts) if digests}
            wanted = ("before", *(f"microbatch {i}" for i in range(len(parts) - 3)))
            if tuple(found) == (*wanted, "gradient", "after"):
                return Trace(head, step, told, found)
    raise InputError(f"{path}: not a trace of version {VERSION}, or damaged")


def _part(entry: Any) -> tuple[str, Digests]:
    match entry:
        case [str(part), list(pairs)]:
            found = {}
            for pair in pairs:
                match pair:
                    case [str(name), bytes(sha256)] if len(sha256) == 32:
                        found[name] = sha256
            return part, found if len(found) == len(pairs) else {}
    return "", {}
