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

from s7jax.data.tokenizer import Tokenizer
from s7jax.errors import InputError
from s7jax.runtime.compute import Forward
from s7jax.runtime.proof import Proof, Step
from s7jax.runtime.replay import operator_digests, wanted_step
from s7jax.s7l import Seal


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
    chains = [_chains(proof) for proof in (a, b)]
    shared = min(len(a.steps), len(b.steps))
    at, asked = first_difference(lambda i: chains[0][i] == chains[1][i], shared)
    if at == shared:
        return _ends(a, b, asked)
    verdict = Verdict(step=at, position=a.steps[at].position, comparisons=asked)
    prompt = a.prompt(Tokenizer.from_vocabulary(seal.vocabulary.file_tree()))
    tokens = np.array([*prompt.ids, *a.output[:at]], np.int32)
    right = wanted_step(a.policy, tokens, len(tokens) - 1, forward)
    name = _field(a.steps[at], b.steps[at])
    _judge(verdict, name, *(getattr(s, name) for s in (a.steps[at], b.steps[at], right)))
    if a.head["trace"] and b.head["trace"]:
        _inside(verdict, a.operators[at], b.operators[at], seal, tokens, right)
    return verdict


def _chains(proof: Proof) -> list[bytes]:
    """A chain after each step over all it holds, whether it has a trace or not."""
    chain, found = b"", []
    for step, digests in zip(proof.steps, proof.operators or ((),) * len(proof.steps), strict=True):
        values = [str(getattr(step, n)).encode() for n in ("position", "token_in", "expert")]
        values += [step.router, step.logits, str(step.token_out).encode(), *digests]
        chain = hashlib.sha256(chain + b"\0".join(values)).digest()
        found.append(chain)
    return found


def _field(a: Step, b: Step) -> str:
    """The first field that differs; the trace where all others agree."""
    names = ("position", "token_in", "expert", "router", "logits", "token_out", "trace")
    return next(name for name in names if getattr(a, name) != getattr(b, name))


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
    at, asked = first_difference(lambda i: prefixes[0][i] == prefixes[1][i], shared)
    verdict.comparisons += asked
    if at == shared:
        return
    names, digests = operator_digests(seal, tokens, [right], len(tokens) - 1)
    if at < len(names):
        _judge(verdict, names[at], a[at], b[at], digests[0][at])


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


def _ends(a: Proof, b: Proof, asked: int) -> Verdict:
    """Every step that both have is the same."""
    if a.chain == b.chain or (a.steps == b.steps and (a.end, a.answer) == (b.end, b.answer)):
        raise InputError("no dispute: the proofs say the same")
    verdict = Verdict(comparisons=asked, difference="end")
    verdict.values = {"a": f"{a.end} after {len(a.steps)}", "b": f"{b.end} after {len(b.steps)}"}
    verdict.right = "either may be: they agree as far as both go; replay each"
    return verdict


def _show(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)
