"""Proofs: what a sealed model answered, step by step, in a form anyone can compute again.

A proof names the root, the abi, policy and meta hashes, every expert's root, the prompt and how
tokens were chosen; then a step for each token: its position, the token that went in, the expert,
hashes of the router logits and of the logits, the token that came out. A hash chain runs over
head, steps and the reason for the end. Replaying computes every step again, here in NumPy or in
JAX, and names the first that differs.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from s7jax.errors import InputError, UsageError
from s7jax.integer.sampling import Sampling, choose
from s7jax.integer.specification import Specification
from s7jax.s7l import Seal, SealError, merkle
from s7jax.s7l.canonical import decode, encode
from s7jax.s7l.schema import digest, equal, integer, mapping, sequence, text
from s7jax.storage import write_bytes

_HEAD, _STEP, _TAIL = b"S7L3PRFH", b"S7L3PRFS", b"S7L3PRFT"
STOPS = ("stop", "length", "context", "abandoned")
_MOST_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How a prompt is continued: sampling, and where it ends."""

    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    max_new_tokens: int = 256
    stop: tuple[int, ...] = ()

    def tree(self) -> dict[str, Any]:
        """As it stands in a proof."""
        return {
            **dataclasses.asdict(self.sampling),
            "max_new_tokens": self.max_new_tokens,
            "stop": list(self.stop),
        }


@dataclass(frozen=True)
class Step:
    """One token: what decided it, and what came out."""

    position: int
    token_in: int
    expert: int
    router: bytes  # hash of the router's logits at this position, int32 little-endian
    logits: bytes  # of the logits
    token_out: int

    def tree(self) -> list[Any]:
        """As it stands in a proof."""
        return list(dataclasses.astuple(self))


@dataclass(frozen=True)
class Proof:
    """A finished or growing proof."""

    head: dict[str, Any]
    steps: tuple[Step, ...]
    end: str | None
    chain: bytes  # over head, steps and end so far

    @property
    def prompt(self) -> list[int]:
        """Token ids that were given."""
        return list(self.head["prompt"])

    @property
    def output(self) -> list[int]:
        """Token ids that came out."""
        return [step.token_out for step in self.steps]

    @property
    def policy(self) -> Policy:
        """How tokens were chosen."""
        tree = dict(self.head["decoding"])
        most, stop = tree.pop("max_new_tokens"), tuple(tree.pop("stop"))
        return Policy(sampling=Sampling(**tree), max_new_tokens=most, stop=stop)

    def extend(self, step: Step) -> "Proof":
        """With one more step."""
        chain = merkle.leaf(_STEP, self.chain + encode(step.tree()))
        return dataclasses.replace(self, steps=(*self.steps, step), chain=chain)

    def close(self, end: str) -> "Proof":
        """With the reason for its end."""
        return dataclasses.replace(
            self, end=end, chain=merkle.leaf(_TAIL, self.chain + end.encode())
        )

    def tree(self) -> dict[str, Any]:
        """The content of a ``.s7p``."""
        return {
            "format": "s7-proof",
            "version": 1,
            "head": self.head,
            "steps": [step.tree() for step in self.steps],
            "end": self.end,
            "chain": self.chain,
        }

    def save(self, path: Path) -> None:
        """Write the proof, whole or not at all."""
        write_bytes(path, encode(self.tree()))


class Forward(Protocol):
    """Whole sequences by some implementation of the model."""

    def __call__(
        self, tokens_T: np.ndarray, first: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of every position from ``first`` on: router logits [N, E], route [N], logits [N, V]."""


def begin(seal: Seal, prompt: Sequence[int], policy: Policy) -> Proof:
    """The proof of nothing yet: everything that the answer will depend on is bound."""
    names = [name for name in seal.manifest.components if name.startswith("expert")]
    return _start(
        {
            "root": seal.root,
            "hashes": seal.manifest.hashes(),
            "experts": {name: seal.manifest.component_root(name) for name in names},
            "prompt": [int(token) for token in prompt],
            "decoding": policy.tree(),
        }
    )


def _start(head: dict[str, Any]) -> Proof:
    return Proof(head, (), None, merkle.leaf(_HEAD, encode(head)))


def hashed(values: np.ndarray) -> bytes:
    """SHA-256 of int32 values, little-endian."""
    return hashlib.sha256(np.ascontiguousarray(values, "<i4").tobytes()).digest()


def load(path: Path) -> Proof:
    """A proof from a file; its form and its own chain are checked, the model is not.

    Raises:
        InputError: the file is no proof, or its chain does not hold.
    """
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    try:
        if len(data) > _MOST_BYTES:
            raise SealError("proof", f"more than {_MOST_BYTES} bytes")
        return parse(decode(data, "proof"))
    except SealError as e:
        raise InputError(f"{path}: {e}") from e


def parse(tree: Any) -> Proof:
    """A proof from its decoded tree, its own chain checked.

    Raises:
        SealError: a value does not fit, or the chain does not hold.
    """
    place = "proof "
    mapping(tree, ("format", "version", "head", "steps", "end", "chain"), place)
    equal(tree["format"], "s7-proof", f"{place}.format")
    equal(tree["version"], 1, f"{place}.version")
    proof = _start(_parse_head(tree["head"], f"{place}.head"))
    for i, item in enumerate(sequence(tree["steps"], f"{place}.steps")):
        proof = proof.extend(_parse_step(item, f"{place}.steps[{i}]"))
    if tree["end"] is not None:
        proof = proof.close(text(tree["end"], "|".join(STOPS), f"{place}.end"))
    equal(tree["chain"], proof.chain, f"{place}.chain")
    return proof


def _parse_head(tree: Any, place: str) -> dict[str, Any]:
    mapping(tree, ("root", "hashes", "experts", "prompt", "decoding"), place)
    digest(tree["root"], f"{place}.root")
    hashes = mapping(tree["hashes"], ("abi", "policy", "meta"), f"{place}.hashes")
    if type(tree["experts"]) is not dict:
        raise SealError(f"{place}.experts", "expected a map")
    for name, value in (*hashes.items(), *tree["experts"].items()):
        digest(value, f"{place}: {name!a}")
    for i, token in enumerate(sequence(tree["prompt"], f"{place}.prompt", 1)):
        integer(token, 0, (1 << 20) - 1, f"{place}.prompt[{i}]")
    keys = [field.name for field in dataclasses.fields(Sampling)]
    where = f"{place}.decoding"
    decoding = mapping(tree["decoding"], (*keys, "max_new_tokens", "stop"), where)
    try:
        Sampling(**{key: decoding[key] for key in keys})
    except UsageError as e:
        raise SealError(where, str(e)) from e
    integer(decoding["max_new_tokens"], 1, 1 << 24, f"{where}.max_new_tokens")
    for i, token in enumerate(sequence(decoding["stop"], f"{where}.stop", 0, 64)):
        integer(token, 0, (1 << 20) - 1, f"{where}.stop[{i}]")
    return dict(tree)


def _parse_step(tree: Any, place: str) -> Step:
    sequence(tree, place, 6, 6)
    position, token_in, expert, router, logits, token_out = tree
    for name, value in (("position", position), ("token in", token_in), ("token out", token_out)):
        integer(value, 0, (1 << 24) - 1, f"{place} {name}")
    integer(expert, 0, 15, f"{place} expert")
    return Step(
        position,
        token_in,
        expert,
        digest(router, f"{place} router"),
        digest(logits, f"{place} logits"),
        token_out,
    )


def replay(proof: Proof, seal: Seal, forward: Forward) -> None:
    """Compute a proof again, step by step.

    Raises:
        InputError: naming what differs first: a field of the head, or a step and its field.
    """
    policy = proof.policy
    head = begin(seal, proof.prompt, policy).head
    for key, value in head.items():
        if proof.head[key] != value:
            raise InputError(f"the proof is not of this seal: its {key} differs")
    if not proof.steps:
        return
    vocab, context = seal.manifest.dimensions.vocab, seal.manifest.dimensions.context
    tokens = np.array([*proof.prompt, *proof.output[:-1]], np.int32)
    if len(tokens) > context or tokens.max() >= vocab:
        raise InputError(f"the proof has tokens beyond {context} positions or {vocab} ids")
    first = len(proof.prompt) - 1
    router, route, logits = forward(tokens, first)
    for i, step in enumerate(proof.steps):
        wanted = Step(
            first + i,
            int(tokens[first + i]),
            int(route[i]),
            hashed(router[i]),
            hashed(logits[i]),
            choose(logits[i], first + i, policy.sampling),
        )
        for field in dataclasses.fields(Step):
            found, right = getattr(step, field.name), getattr(wanted, field.name)
            if found != right:
                raise InputError(
                    f"step {i} (position {first + i}): {field.name} is {_show(found)} in the "
                    f"proof, {_show(right)} when computed again"
                )
        ended = ending(policy, proof.prompt, proof.output[: i + 1], context)
        last = i + 1 == len(proof.steps)
        if ended and not last:
            raise InputError(f"step {i + 1}: the answer had ended ({ended}) before it")
        if last and proof.end not in (ended, "abandoned", None):
            raise InputError(f"the end is {proof.end!r} in the proof; expected {ended!r}")


def ending(
    policy: Policy, prompt: Sequence[int], output: Sequence[int], context: int
) -> str | None:
    """Why an answer ends here, or None if it continues."""
    if output and output[-1] in policy.stop:
        return "stop"
    if len(output) >= policy.max_new_tokens:
        return "length"
    return "context" if len(prompt) + len(output) >= context else None


def by_specification(seal: Seal) -> Forward:
    """The NumPy specification as an implementation to replay with."""
    model = Specification(seal)

    def forward(tokens_T: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        h = model.trunk(tokens_T.astype(np.int64))
        route = model.route(h)[first:]
        logits = np.empty((len(route), seal.manifest.dimensions.vocab), np.int32)
        for e in np.unique(route):
            logits[route == e] = model.head(model.expert(int(e), h)[first:][route == e])
        return model.router(h)[first:], route, logits

    return forward


def _show(value: Any) -> str:
    return value.hex()[:16] + "…" if isinstance(value, bytes) else str(value)
