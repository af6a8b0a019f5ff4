"""The model's dimensions and the tensor table they demand.

The table is a pure function of the dimensions: a sealed file has exactly these tensors, with
these shapes and types, or it is refused.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from s7jax.s7l.schema import SealError, integer, mapping, sequence, text

DTYPES: Final = {"int8": 1, "int16": 2, "int32": 4}
"""Types a tensor may have, and their bytes; all little-endian."""

NAME: Final = r"[a-z0-9_]{1,64}(\.[a-z0-9_]{1,64}){0,15}"
"""Form of a tensor name; its first segment is the component."""

_STACK_LIMITS = {"layers": 256, "hidden": 1 << 16, "heads": 1 << 12, "ffn": 1 << 20}
_KEYS = ("vocab", "context", "trunk", "expert", "domains", "routing_window")


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A stack of transformer layers."""

    layers: int
    hidden: int
    heads: int
    ffn: int

    @classmethod
    def parse(cls, tree: Any, place: str) -> "Stack":
        """From a decoded map; raises SealError for anything impossible."""
        mapping(tree, tuple(_STACK_LIMITS), place)
        stack = cls(**{k: integer(tree[k], 1, m, f"{place}.{k}") for k, m in _STACK_LIMITS.items()})
        if stack.hidden % (2 * stack.heads):
            raise SealError(
                f"{place}.heads", f"{stack.heads} heads do not give hidden {stack.hidden} even ones"
            )
        return stack


@dataclass(frozen=True, kw_only=True)
class Dimensions:
    """What decides the tensor table; the counterpart of the model configuration."""

    vocab: int
    context: int
    trunk: Stack
    expert: Stack
    domains: tuple[str, ...]
    routing_window: int

    @classmethod
    def parse(cls, tree: Any, place: str) -> "Dimensions":
        """From a decoded map; raises SealError for anything impossible."""
        mapping(tree, _KEYS, place)
        vocab = integer(tree["vocab"], 32, 1 << 20, f"{place}.vocab")
        if vocab % 32:
            raise SealError(f"{place}.vocab", f"{vocab} is not divisible by 32")
        domains = sequence(tree["domains"], f"{place}.domains", 1, 16)
        for i, domain in enumerate(domains):
            text(domain, r"[a-z0-9_]{1,64}", f"{place}.domains[{i}]")
            if domain in domains[:i]:
                raise SealError(f"{place}.domains[{i}]", f"{domain} is named twice")
        return cls(
            vocab=vocab,
            context=integer(tree["context"], 2, 1 << 24, f"{place}.context"),
            trunk=Stack.parse(tree["trunk"], f"{place}.trunk"),
            expert=Stack.parse(tree["expert"], f"{place}.expert"),
            domains=tuple(domains),
            routing_window=integer(tree["routing_window"], 1, 1 << 24, f"{place}.routing_window"),
        )

    def tree(self) -> dict[str, Any]:
        """Inverse of :meth:`parse`."""
        return {
            **vars(self),
            "trunk": dict(vars(self.trunk)),
            "expert": dict(vars(self.expert)),
            "domains": list(self.domains),
        }


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One tensor that the dimensions demand.

    A quantised matrix has ``axis`` and ``scale``; a fixed-point vector (scale, gain, bias)
    has neither and carries an exponent: real value = mantissa · 2^(exponent − 31).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    axis: int | None = None  # of the output channels
    scale: str | None = None  # name of the int32 vector with one scale per output channel

    @property
    def component(self) -> str:
        """First segment of the name."""
        return self.name.partition(".")[0]

    @property
    def size(self) -> int:
        """Bytes of the data, without padding."""
        return math.prod(self.shape) * DTYPES[self.dtype]

    @property
    def is_fixed_point(self) -> bool:
        """Whether the tensor carries an exponent of its own."""
        return self.axis is None

    def tree(self) -> dict[str, Any]:
        """The keys of a table entry that the dimensions determine."""
        entry = {"name": self.name, "shape": list(self.shape), "dtype": self.dtype}
        return entry if self.is_fixed_point else {**entry, "axis": self.axis, "scale": self.scale}


def tensor_count(d: Dimensions) -> int:
    """Length of the table, without making it: a claim of a million layers costs nothing."""
    experts = len(d.domains)
    return 7 + 7 * experts + 18 * (d.trunk.layers + experts * d.expert.layers)


def tensor_table(d: Dimensions) -> tuple[TensorSpec, ...]:
    """Every tensor of a model with these dimensions, in bytewise order of names.

    Weights are W[in, out] and quantised per output channel; the embedding is the transposed
    LM head, so its channels are its rows.
    """
    specs = [
        *_matrix("embedding", (d.vocab, d.trunk.hidden), axis=0),
        *_stack("trunk", d.trunk),
        _vector("trunk.final_norm.gain", d.trunk.hidden),
        *_matrix("router", (d.trunk.hidden, len(d.domains))),
        _vector("router.bias", len(d.domains)),
    ]
    for e in range(len(d.domains)):
        specs += [
            _vector(f"expert{e}.in_norm.gain", d.trunk.hidden),
            *_matrix(f"expert{e}.in_proj", (d.trunk.hidden, d.expert.hidden)),
            *_stack(f"expert{e}", d.expert),
            _vector(f"expert{e}.out_norm.gain", d.expert.hidden),
            *_matrix(f"expert{e}.out_proj", (d.expert.hidden, d.trunk.hidden)),
        ]
    return tuple(sorted(specs, key=lambda spec: spec.name.encode()))


def _stack(prefix: str, s: Stack) -> Iterator[TensorSpec]:
    yield _vector(f"{prefix}.residual", 1)  # fraction bits of the residual stream
    for i in range(s.layers):
        layer = f"{prefix}.layer{i}"
        for gained in ("attn_norm", "attn.q", "attn.k", "attn.o_proj", "ffn_norm"):
            yield _vector(f"{layer}.{gained}.gain", s.hidden)
        for projection in "qkvo":
            yield from _matrix(f"{layer}.attn.{projection}_proj", (s.hidden, s.hidden))
        yield _vector(f"{layer}.ffn.fc2.gain", s.ffn)
        yield from _matrix(f"{layer}.ffn.fc1", (s.hidden, s.ffn))
        yield from _matrix(f"{layer}.ffn.fc2", (s.ffn, s.hidden))


def _matrix(prefix: str, shape: tuple[int, int], axis: int = 1) -> Iterator[TensorSpec]:
    scale = f"{prefix}.scale"
    yield TensorSpec(name=f"{prefix}.weight", shape=shape, dtype="int8", axis=axis, scale=scale)
    yield _vector(scale, shape[axis])


def _vector(name: str, width: int) -> TensorSpec:
    return TensorSpec(name=name, shape=(width,), dtype="int32")
