"""The architecture: its dimensions, and every tensor of a model, once.

The table below (:func:`parameters`) is the only place where a tensor's shape, initial spread,
split over devices and quantisation stand. The float modules read their parameters from it, and
shardings, counts, the quantisation plan, sealed names, budgets and mesh checks are derived from
it. The executable specification (:mod:`s7jax.integer.specification`) and the second verifier
(``tools/s7l_verify.py``) say the same again on purpose: they are the proof.

No JAX here: sealed files are read with it. Section numbers (§) are of the sizing specification.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

from s7jax.errors import UsageError
from s7jax.fields import Checked, identifier, number

DTYPE_BYTES = {"int8": 1, "int16": 2, "int32": 4, "float32": 4}
SEALED_DTYPES = ("int8", "int16", "int32")  # little-endian; there is no float in a sealed file


@dataclass(frozen=True, kw_only=True)
class Stack(Checked):
    """A stack of pre-norm transformer layers."""

    layers: int = number(1, 64)
    hidden: int = number(1, 1 << 16, "channels")
    heads: int = number(1, 1 << 12)
    ffn: int = number(1, 1 << 20, "channels between fc1 and fc2")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads

    def cache_shape(self, rows: int, slots: int) -> tuple[int, int, int, int, int]:
        """Of keys, and of values: [layers, rows, heads, positions, head width]."""
        return (self.layers, rows, self.heads, slots, self.head_dim)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden % (2 * self.heads):
            raise UsageError(
                f"heads is {self.heads} for hidden {self.hidden}: expected an even head width "
                "(rotary embedding turns pairs of channels)"
            )


@dataclass(frozen=True, kw_only=True)
class Architecture(Checked):
    """Embedding, shared trunk, one expert per domain, router (§2, §8)."""

    vocab: int = number(32, 1 << 20, "tokens")
    context: int = number(2, 1 << 16, "tokens of a sequence; what sums of 30 bits hold")
    trunk: Stack
    expert: Stack
    domains: tuple[str, ...] = identifier()  # of expert 0, 1, …
    routing_window: int = number(1, 1 << 16, "positions summed to choose the expert", default=64)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vocab % 32:
            raise UsageError(f"vocab is {self.vocab}; expected a multiple of 32 (§8 alignment)")
        if not 1 <= len(self.domains) <= 16:
            raise UsageError(f"domains has {len(self.domains)} entries; expected 1 to 16")
        for domain in self.domains:
            if self.domains.count(domain) > 1:
                raise UsageError(f"domains names {domain!r} twice")

    @property
    def segments(self) -> dict[str, Stack]:
        """The trunk and every expert, by component name."""
        experts = {f"expert{e}": self.expert for e in range(len(self.domains))}
        return {"trunk": self.trunk} | experts

    @property
    def components(self) -> tuple[str, ...]:
        """Embedding, experts, router, trunk: in bytewise order, as they are sealed."""
        return tuple(sorted(("embedding", "router", *self.segments)))


class Split(NamedTuple):
    """How a tensor is divided over model-parallel devices (Megatron, arXiv 1909.08053)."""

    axis: int
    what: str  # that is counted, such as "heads"
    parts: int  # that must not be cut


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One tensor of the float model, or (not ``trained``) one that quantisation adds.

    Matrices are W[in, out] and quantised per output channel; the embedding is the transposed LM
    head, so its channels are its rows.
    """

    name: str
    shape: tuple[int, ...]
    split: Split | None = None  # None: every device holds the whole
    std: float | None = None  # of the initial normal distribution
    start: float = 0.0  # initial value where there is no ``std``
    channels: int = 1  # axis of a matrix's output channels
    trained: bool = True

    @property
    def is_matrix(self) -> bool:
        """Whether it becomes int8 with one scale per output channel; vectors become int32."""
        return len(self.shape) == 2

    @property
    def size(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)

    @property
    def component(self) -> str:
        """First segment of the name."""
        return self.name.partition(".")[0]


def layer(s: Stack) -> Iterator[Parameter]:
    """One layer of a stack. q, k, v, fc1 are split by output, o and fc2 by input."""
    D, F = s.hidden, s.ffn
    heads, ffn = ("heads", s.heads), ("FFN width", s.ffn)
    small = (2 * s.layers) ** -0.5  # residual branches: depth does not change the sum's scale
    yield _vector("attn_norm.gain", D, start=1.0)
    for projection in "qkv":
        yield _matrix(f"attn.{projection}_proj", (D, D), Split(1, *heads))
    yield _matrix("attn.o_proj", (D, D), Split(0, *heads), spread=small)
    yield _vector("ffn_norm.gain", D, start=1.0)
    yield _matrix("ffn.fc1", (D, F), Split(1, *ffn))
    yield _matrix("ffn.fc2", (F, D), Split(0, *ffn), spread=small)
    # Static scales of q and k, and of what o_proj and fc2 read: quantisation makes them.
    for gained in ("attn.q", "attn.k", "attn.o_proj"):
        yield _vector(f"{gained}.gain", D, Split(0, *heads), trained=False)
    yield _vector("ffn.fc2.gain", F, Split(0, *ffn), trained=False)


def trunk(a: Architecture) -> Iterator[Parameter]:
    """What the trunk holds beside its layers."""
    yield _vector("final_norm.gain", a.trunk.hidden, start=1.0)
    yield _vector("residual", 1, trained=False)  # fraction bits of the residual stream


def expert(a: Architecture) -> Iterator[Parameter]:
    """What an expert holds beside its layers; ``out_proj`` starts at zero."""
    yield _vector("in_norm.gain", a.trunk.hidden, start=1.0)
    yield _matrix("in_proj", (a.trunk.hidden, a.expert.hidden))
    yield _vector("out_norm.gain", a.expert.hidden, start=1.0)
    yield _matrix("out_proj", (a.expert.hidden, a.trunk.hidden), spread=0.0)
    yield _vector("residual", 1, trained=False)


def embedding(a: Architecture) -> Iterator[Parameter]:
    """The token table, tied with the LM head; split over the vocabulary."""
    yield Parameter(
        name="weight",
        shape=(a.vocab, a.trunk.hidden),
        split=Split(0, "vocabulary", a.vocab),
        std=a.trunk.hidden**-0.5,
        channels=0,
    )


def router(a: Architecture) -> Iterator[Parameter]:
    """One logit per expert; fitted in closed form, so it starts at zero."""
    yield Parameter(name="weight", shape=(a.trunk.hidden, len(a.domains)))
    yield _vector("bias", len(a.domains))


def component(a: Architecture, which: str) -> Iterator[Parameter]:
    """Every tensor of a component; layers come apart (``layer3.attn.q_proj.weight``)."""
    kinds = {"embedding": embedding, "trunk": trunk, "expert": expert, "router": router}
    yield from kinds[which.rstrip("0123456789")](a)
    stack = a.segments.get(which)
    if stack is not None:
        one = list(layer(stack))
        for i in range(stack.layers):
            yield from (replace(p, name=f"layer{i}.{p.name}") for p in one)


@cache
def parameters(a: Architecture) -> tuple[Parameter, ...]:
    """Every tensor of a model under its full name, in bytewise order of names."""
    found = [
        replace(p, name=f"{which}.{p.name}") for which in a.components for p in component(a, which)
    ]
    return tuple(sorted(found, key=lambda p: p.name.encode()))


def counts(a: Architecture) -> dict[str, int]:
    """Trained numbers of every component."""
    found = dict.fromkeys(a.components, 0)
    for p in parameters(a):
        found[p.component] += p.size if p.trained else 0
    return found


def divisors(a: Architecture) -> dict[str, int]:
    """What model-parallel devices must divide: its name → how many there are."""
    owners = {"": embedding(a), "trunk ": layer(a.trunk), "expert ": layer(a.expert)}
    return {
        f"{owner}{p.split.what}": p.split.parts
        for owner, tensors in owners.items()
        for p in tensors
        if p.split
    }


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One tensor of the sealed file.

    A quantised matrix has ``axis`` and ``scale``; a fixed-point vector (scale, gain, bias)
    has neither and carries an exponent: real value = mantissa · 2^(exponent − 31).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    axis: int | None = None  # of the output channels
    scale: str | None = None  # name of the int32 vector with one scale per output channel
    split: int | None = None  # axis divided over model-parallel devices

    @property
    def component(self) -> str:
        """First segment of the name."""
        return self.name.partition(".")[0]

    @property
    def size(self) -> int:
        """Bytes of the data, without padding."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]

    @property
    def is_fixed_point(self) -> bool:
        """Whether the tensor carries an exponent of its own."""
        return self.axis is None


def sealed_as(p: Parameter) -> Iterator[TensorSpec]:
    """The sealed tensors of a parameter: a matrix and its scales, or one vector."""
    split = p.split.axis if p.split else None
    if not p.is_matrix:
        yield TensorSpec(name=p.name, shape=p.shape, dtype="int32", split=split)
        return
    scale = f"{p.name.removesuffix('weight')}scale"
    yield TensorSpec(
        name=p.name, shape=p.shape, dtype="int8", axis=p.channels, scale=scale, split=split
    )
    width = (p.shape[p.channels],)
    # Scales are divided as the channels they belong to.
    divided = 0 if split == p.channels else None
    yield TensorSpec(name=scale, shape=width, dtype="int32", split=divided)


@cache
def sealed_tensors(a: Architecture) -> tuple[TensorSpec, ...]:
    """Every tensor of a sealed model, in bytewise order of names."""
    found = (tensor for p in parameters(a) for tensor in sealed_as(p))
    return tuple(sorted(found, key=lambda tensor: tensor.name.encode()))


def sealed_count(a: Architecture) -> int:
    """Length of :func:`sealed_tensors` without making it: to claim many layers costs nothing."""
    shallow = replace(a, trunk=replace(a.trunk, layers=1), expert=replace(a.expert, layers=1))
    repeated = {
        which: sum(len(list(sealed_as(p))) for p in layer(stack))
        for which, stack in shallow.segments.items()
    }
    deeper = sum(repeated[which] * (s.layers - 1) for which, s in a.segments.items())
    return len(sealed_tensors(shallow)) + deeper


def _matrix(
    prefix: str, shape: tuple[int, int], split: Split | None = None, spread: float = 1.0
) -> Parameter:
    """``spread`` is of the initial standard deviation, against 1/√in."""
    std = spread * shape[0] ** -0.5
    return Parameter(name=f"{prefix}.weight", shape=shape, split=split, std=std)


def _vector(
    label: str, width: int, split: Split | None = None, start: float = 0.0, trained: bool = True
) -> Parameter:
    return Parameter(name=label, shape=(width,), split=split, start=start, trained=trained)
