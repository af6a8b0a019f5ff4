"""Two proofs of one question that disagree: where, and who is right (after Verde, 2502.19405).

The first step that differs is found by bisection over the hash chains; with traces the first
operator in it by bisection over the digests of operator outputs. Then that step alone is computed
again: in integers there is one right value, and no tolerance to argue about. Who wants to check
the referee needs the inputs of that one operator.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from s7jax.errors import InputError
from s7jax.runtime.compute import Forward
from s7jax.runtime.proof import Proof, Step
from s7jax.runtime.replay import (
    asked,
    check_end,
    ended_by_itself,
    operator_digests,
    wanted_step,
)
from s7jax.s7l import Seal
from s7jax.s7l.canonical import encode


@dataclass
class Verdict:
    """What a dispute came to, and how it was found."""

    step: int | None = None  # the first that differs; None: only answer or end do
    position: int | None = None
    difference: str = ""  # the field, or the operator, that differs
    values: dict[str, str] = field(default_factory=dict)  # a's, b's and the right one
    right: str = ""  # "a", "b" or "neither"
    comparisons: int = 0

    def tree(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dict(vars(self))


def first_difference(same: Callable[[int], bool], count: int) -> tuple[int, int]:
    """The smallest i in 0 … count with ``same(i)`` false, where all before are true, none after.

    Returns:
        i (``count`` if none is false), and how many comparisons it took.
    """
    low, high, asked = 0, count, 0
    while low < high:
        middle = (low + high) // 2
        asked += 1
        if same(middle):
            low = middle + 1
        else:
            high = middle
    return low, asked


def settle(a: Proof, b: Proof, seal: Seal, forward: Forward) -> Verdict:
    """Where two proofs part, and who is right.

    Raises:
        InputError: they are of different questions or seals, or do not differ.
    """
    for key in a.head:
        if key != "trace" and a.head[key] != b.head.get(key):
            raise InputError(f"no dispute: the proofs differ in their {key}: two questions")
    if a.head["root"] != seal.root:
        raise InputError("no dispute here: the proofs are of another sealed file")
    for name, proof in (("a", a), ("b", b)):
        try:
            prompt, room = asked(proof, seal)
        except InputError as e:
            raise InputError(f"no dispute: {name} cannot be of this sealed file: {e}") from e
    traced = a.head["trace"] and b.head["trace"]
    chains = [_chains(proof, traced) for proof in (a, b)]
    shared = min(len(a.steps), len(b.steps))
    at, compared = first_difference(lambda i: chains[0][i] == chains[1][i], shared)
    if at == shared:
        return _ends(a, b, room, seal, compared)
    tokens = np.array([*prompt.ids, *a.output[:at]], np.int32)
    verdict = Verdict(step=at, position=len(tokens) - 1, comparisons=compared)
    right = wanted_step(a.policy, tokens, len(tokens) - 1, forward)
    for name in _FIELDS:
        values = [getattr(step, name) for step in (a.steps[at], b.steps[at], right)]
        if values[0] != values[1]:
            _judge(verdict, name, *values)
            break
    if traced:
        _inside(verdict, a.operators[at], b.operators[at], seal, tokens, right)
    return verdict


_FIELDS = ("position", "token_in", "expert", "router", "logits", "token_out")


def _chains(proof: Proof, traced: bool) -> list[bytes]:
    """A chain after each step over all it says, and its trace if both proofs have one."""
    chain, found = b"", []
    for step in proof.steps:
        values = [getattr(step, name) for name in _FIELDS] + [step.trace] * traced
        chain = hashlib.sha256(chain + encode(values)).digest()
        found.append(chain)
    return found


def _inside(
    verdict: Verdict,
    a: Sequence[bytes],
    b: Sequence[bytes],
    seal: Seal,
    tokens: Any,
    right: Step,
) -> None:
    """The first operator of the step whose output differs."""
    prefixes = [_prefixes(digests) for digests in (a, b)]
    shared = min(len(a), len(b))
    at, compared = first_difference(lambda i: prefixes[0][i] == prefixes[1][i], shared)
    verdict.comparisons += compared
    if at == len(a) == len(b):
        return
    names, digests = operator_digests(seal, tokens, [right], len(tokens) - 1)
    if at < min(shared, len(names)):
        _judge(verdict, names[at], a[at], b[at], digests[0][at])
    else:
        _judge(verdict, "number of operators", len(a), len(b), len(names))


def _prefixes(digests: Sequence[bytes]) -> list[bytes]:
    chain, found = b"", []
    for value in digests:
        chain = hashlib.sha256(chain + value).digest()
        found.append(chain)
    return found


def _judge(verdict: Verdict, name: str, a: Any, b: Any, right: Any) -> None:
    verdict.difference = name
    verdict.values = {"a": _show(a), "b": _show(b), "right": _show(right)}
    verdict.right = "a" if a == right else "b" if b == right else "neither"


def _ends(a: Proof, b: Proof, room: int, seal: Seal, compared: int) -> Verdict:
    """Every step that both have is the same: what follows from them is right."""
    told = {"a": f"{a.end} after {len(a.steps)}", "b": f"{b.end} after {len(b.steps)}"}
    difference = "end"
    if told["a"] == told["b"]:
        if a.answer == b.answer:
            raise InputError("no dispute: the proofs say the same")
        difference, told = "answer", {"a": _show(a.answer), "b": _show(b.answer)}
    fit = [name for name, proof in (("a", a), ("b", b)) if _fits(proof, room, seal)]
    if len(fit) == 2:  # one or both were cut
        raise InputError(
            f"no dispute: {told['a']} and {told['b']} agree as far as both go; replay each"
        )
    end, count, answer = ended_by_itself(max(a, b, key=lambda p: len(p.steps)), room, seal)
    own = _show(answer) if difference == "answer" else f"{end or 'no end'} after {count}"
    right = fit[0] if fit else "neither"
    return Verdict(None, None, difference, {**told, "right": own}, right, compared)


def _fits(proof: Proof, room: int, seal: Seal) -> bool:
    """Whether end and answer follow from the steps."""
    try:
        check_end(proof, room, seal)
    except InputError:
        return False
    return True


def _show(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)
