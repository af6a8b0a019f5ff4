"""Proofs: what a sealed model answered, step by step, in a form anyone can compute again.

A proof names the root, the abi, policy and meta hashes, every expert's root, the prompt's bytes
and how they became ids, and the canonical policy; then a step for each token: its position, the
token that went in, the expert, hashes of the router logits and of the logits, the token that came
out; then the answer's bytes and why it ended. A hash chain runs over all of it. docs/proofs.md
says what that proves, and what not.
"""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from s7jax.data.tokenizer import Tokenizer
from s7jax.errors import InputError, UsageError
from s7jax.runtime import prompt as prompts
from s7jax.runtime.policy import CUT, NATURAL, Policy
from s7jax.runtime.prompt import Prompt
from s7jax.s7l import Seal, SealError, merkle
from s7jax.s7l.canonical import decode, encode
from s7jax.s7l.memory import read_regular
from s7jax.s7l.schema import digest, equal, integer, mapping, sequence, text
from s7jax.storage import write_bytes

_HEAD, _STEP, _TAIL, _OPERATOR = b"S7L3PRFH", b"S7L3PRFS", b"S7L3PRFT", b"S7L3PRFO"
MOST_STEPS = 1 << 16  # no sealed context is longer
_MOST_BYTES = 64 << 20
_MOST_OPERATORS = 1 << 13


@dataclass(frozen=True)
class Step:
    """One token: what decided it, and what came out."""

    position: int
    token_in: int
    expert: int
    router: bytes  # hash of the router's logits at this position, int32 little-endian
    logits: bytes  # of the logits
    token_out: int
    trace: bytes | None = None  # Merkle root over the step's operator outputs, with a trace

    def tree(self) -> list[Any]:
        """As it stands in a proof."""
        values = [getattr(self, name) for name in _FIELDS]
        return values if self.trace is None else [*values, self.trace]


_FIELDS = [f.name for f in dataclasses.fields(Step) if f.name != "trace"]


@dataclass(frozen=True)
class Proof:
    """A finished proof."""

    head: dict[str, Any]
    steps: tuple[Step, ...]
    answer: bytes
    end: str
    chain: bytes  # over all of the above
    operators: tuple[tuple[bytes, ...], ...] = ()  # digests of each step's, with a trace

    @property
    def policy(self) -> Policy:
        """How tokens were chosen."""
        return Policy.parse(self.head["policy"], "proof .head.policy")

    def prompt(self, tokenizer: Tokenizer) -> Prompt:
        """What was asked, with its ids."""
        return prompts.resolve(tokenizer, self.head["prompt"], "proof .head.prompt")

    @property
    def output(self) -> list[int]:
        """Token ids that came out."""
        return [step.token_out for step in self.steps]

    def tree(self) -> dict[str, Any]:
        """The content of a ``.s7p``."""
        tree = {
            "format": "s7-proof",
            "version": 2,
            "head": self.head,
            "steps": [step.tree() for step in self.steps],
            "answer": self.answer,
            "end": self.end,
            "chain": self.chain,
        }
        if self.head["trace"]:
            tree["operators"] = [list(digests) for digests in self.operators]
        return tree

    def chains(self) -> list[bytes]:
        """The chain after the head and after each step: equal prefixes, equal chains."""
        growing, found = Growing(self.head), []
        for step in (None, *self.steps):
            if step is not None:
                growing.extend(step)
            found.append(growing.chain)
        return found

    def save(self, path: Path | str) -> None:
        """Write the proof, whole or not at all.

        Raises:
            InputError: it is larger than a proof that is read.
        """
        data = encode(self.tree())
        if len(data) > _MOST_BYTES:
            raise InputError(
                f"{path}: the proof takes {len(data):,} bytes, more than {_MOST_BYTES:,}: "
                "ask for fewer tokens, or without a trace"
            )
        write_bytes(Path(path), data)


@dataclass
class Growing:
    """A proof under way."""

    head: dict[str, Any]
    steps: list[Step] = field(default_factory=list)
    chain: bytes = b""

    def __post_init__(self) -> None:
        self.chain = merkle.leaf(_HEAD, encode(self.head))

    def extend(self, step: Step) -> None:
        """One more step."""
        self.steps.append(step)
        # A list of integers and bytes has one encoding: this is the canonical one.
        self.chain = merkle.leaf(_STEP, self.chain + msgpack.packb(step.tree()))

    def close(self, answer: bytes, end: str, operators: Sequence[Sequence[bytes]] = ()) -> Proof:
        """The finished proof."""
        chain = merkle.leaf(_TAIL, self.chain + encode({"answer": answer, "end": end}))
        told = tuple(tuple(digests) for digests in operators)
        return Proof(self.head, tuple(self.steps), answer, end, chain, told)


def begin(seal: Seal, prompt: Prompt, policy: Policy, trace: bool = False) -> Growing:
    """The proof of nothing yet: everything that the answer will depend on is bound.

    ``policy`` is canonical already.
    """
    names = [name for name in seal.manifest.components if name.startswith("expert")]
    return Growing(
        {
            "root": seal.root,
            "hashes": seal.manifest.hashes(),
            "experts": {name: seal.manifest.component_root(name) for name in names},
            "prompt": prompt.tree(),
            "policy": policy.tree(),
            "trace": trace,
        }
    )


def hashed(values: np.ndarray) -> bytes:
    """SHA-256 of int32 values, little-endian."""
    return hashlib.sha256(np.ascontiguousarray(values, "<i4").tobytes()).digest()


def trace_root(digests: Sequence[bytes]) -> bytes:
    """Merkle root over the digests of a step's operator outputs, in order."""
    return merkle.tree([merkle.leaf(_OPERATOR, value) for value in digests])


def require_place(path: Path, flag: str) -> None:
    """A proof takes an older one's place, or an empty file's, and nothing else's.

    Raises:
        UsageError: naming the flag.
    """
    if not path.parent.is_dir():
        raise UsageError(f"{flag} {path}: there is no folder {path.parent}")
    if os.path.lexists(path) and not (path.is_file() and not path.stat().st_size):
        try:
            load(path)
        except InputError:
            raise UsageError(f"{flag} {path}: is there and no proof; give another name") from None


def load(path: Path) -> Proof:
    """A proof from a file; its form and its own chain are checked, the model is not.

    Raises:
        SealError: the file is no proof of this version, or its chain does not hold.
    """
    return parse(read(path), str(path))


def read(path: Path) -> Any:
    """The decoded tree of a proof's file, of any version.

    Raises:
        SealError: no regular file, too large, or no canonical msgpack.
    """
    return decode(read_regular(path, _MOST_BYTES), f"{path}: proof")


def parse(tree: Any, place: str = "proof") -> Proof:
    """A proof from its decoded tree: its form, what follows from itself, and its own chain.

    Raises:
        SealError: a value does not fit; the field is named.
    """
    place = f"{place} "
    if type(tree) is dict and tree.get("format") == "s7-proof" and tree.get("version") == 1:
        raise SealError(f"{place}.version", f"1: {VERSION_1}")
    traced = type(tree) is dict and "operators" in tree
    keys = ("format", "version", "head", "steps", "answer", "end", "chain")
    mapping(tree, (*keys, "operators") if traced else keys, place)
    equal(tree["format"], "s7-proof", f"{place}.format")
    equal(tree["version"], 2, f"{place}.version")
    growing = Growing(_parse_head(tree["head"], f"{place}.head"))
    equal(tree["head"]["trace"], traced, f"{place}.head.trace")
    steps = sequence(tree["steps"], f"{place}.steps", 0, MOST_STEPS)
    for i, item in enumerate(steps):
        growing.extend(_parse_step(item, traced, f"{place}.steps[{i}]"))
    _check_order(growing.steps, f"{place}.steps")
    operators = _parse_operators(tree["operators"], growing.steps, place) if traced else []
    if type(tree["answer"]) is not bytes:
        raise SealError(f"{place}.answer", "expected bytes")
    end = text(tree["end"], "|".join((*NATURAL, *CUT)), f"{place}.end")
    if end in NATURAL and not steps:
        raise SealError(f"{place}.end", f"{end!r} cannot follow from no step")
    proof = growing.close(tree["answer"], end, operators)
    equal(tree["chain"], proof.chain, f"{place}.chain")
    return proof


VERSION_1 = (
    "a proof of version 1 shows that its steps form one chain. It does not bind the text of "
    "prompt and answer, its end need not follow from its steps, and drawn tokens follow the "
    "unfair draws of scheme s7-int8-1; it cannot be replayed here. Ask for the answer again"
)


def _parse_head(tree: Any, place: str) -> dict[str, Any]:
    mapping(tree, ("root", "hashes", "experts", "prompt", "policy", "trace"), place)
    digest(tree["root"], f"{place}.root")
    hashes = mapping(tree["hashes"], ("abi", "policy", "meta"), f"{place}.hashes")
    if type(tree["experts"]) is not dict or len(tree["experts"]) > 16:
        raise SealError(f"{place}.experts", "expected a map of at most 16 experts")
    for name, value in (*hashes.items(), *tree["experts"].items()):
        digest(value, f"{place}: {name!a}")
    prompts.parse(tree["prompt"], f"{place}.prompt")
    Policy.parse(tree["policy"], f"{place}.policy")
    if type(tree["trace"]) is not bool:
        raise SealError(f"{place}.trace", "expected true or false")
    return dict(tree)


def _parse_step(tree: Any, traced: bool, place: str) -> Step:
    length = 7 if traced else 6
    sequence(tree, place, length, length)
    for i, most in ((0, MOST_STEPS), (1, 1 << 20), (2, 16), (5, 1 << 20)):
        if type(tree[i]) is not int or not 0 <= tree[i] < most:
            integer(tree[i], 0, most - 1, f"{place} {_FIELDS[i]}")
    hashes = {3: "router", 4: "logits"} | ({6: "trace"} if traced else {})
    for i, name in hashes.items():
        digest(tree[i], f"{place} {name}")
    return Step(*tree)


def _check_order(steps: list[Step], place: str) -> None:
    """Each step goes on where the one before ended."""
    for i in range(1, len(steps)):
        before, step = steps[i - 1], steps[i]
        if step.position != before.position + 1:
            wanted = before.position + 1
            raise SealError(f"{place}[{i}] position", f"{step.position}; expected {wanted}")
        if step.token_in != before.token_out:
            raise SealError(
                f"{place}[{i}] token_in",
                f"{step.token_in}; the step before gave {before.token_out}",
            )


def _parse_operators(tree: Any, steps: list[Step], place: str) -> list[list[bytes]]:
    """Digests of every step's operator outputs, whose root each step carries."""
    lists = sequence(tree, f"{place}.operators", len(steps), len(steps))
    for i, (item, step) in enumerate(zip(lists, steps, strict=True)):
        where = f"{place}.operators[{i}]"
        for j, value in enumerate(sequence(item, where, 1, _MOST_OPERATORS)):
            digest(value, f"{where}[{j}]")
        if trace_root(item) != step.trace:
            raise SealError(where, "do not have the root that the step carries")
    return lists
