"""Parameters, bytes and the sealed layout, derived from the tables that everything is made of."""

from dataclasses import dataclass

from s7jax.architecture import Architecture, TensorSpec, sealed_tensors
from s7jax.s7l.layout import place_tensors

FP32, BF16 = 4, 2


@dataclass(frozen=True)
class Layout:
    """Bytes of sealed tensors of one component."""

    int8: int  # matrices, without padding
    padded: int  # matrices, each rounded up to 32 bytes (§8)
    constants: int  # scales, gains, biases, formats: what the integer runtime needs besides
    end: int  # where the component ends in FIELD, gaps included


def sealed(cfg: Architecture) -> dict[str, Layout]:
    """The sealed layout of every component, as the writer would place it."""
    specs = sealed_tensors(cfg)
    placed = place_tensors((spec.name, spec.size) for spec in specs)
    found: dict[str, Layout] = {}
    for spec, (offset, stored) in zip(specs, placed, strict=True):
        before = found.get(spec.component, Layout(0, 0, 0, 0))
        matrix = spec.dtype == "int8"
        found[spec.component] = Layout(
            before.int8 + (spec.size if matrix else 0),
            before.padded + (stored if matrix else 0),
            before.constants + (0 if matrix else stored),
            offset + stored,
        )
    return found


def layer(cfg: Architecture, segment: str = "expert0") -> list[tuple[TensorSpec, int]]:
    """The matrices of one layer and their stored bytes: §8's table."""
    specs = sealed_tensors(cfg)
    placed = place_tensors((spec.name, spec.size) for spec in specs)
    prefix = f"{segment}.layer0."
    return [
        (spec, stored)
        for spec, (_, stored) in zip(specs, placed, strict=True)
        if spec.name.startswith(prefix) and spec.dtype == "int8"
    ]
