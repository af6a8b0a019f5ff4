"""Parameters, bytes and the sealed layout, derived from the tables that everything is made of."""

import dataclasses
from dataclasses import dataclass

import jax

from s7jax.config import ModelConfig
from s7jax.model.language_model import components
from s7jax.model.parameters import table
from s7jax.s7l.dimensions import Dimensions, TensorSpec, tensor_table
from s7jax.s7l.layout import place_tensors

FP32, BF16 = 4, 2


@dataclass(frozen=True)
class Layout:
    """Bytes of sealed tensors of one component."""

    int8: int  # matrices, without padding
    padded: int  # matrices, each rounded up to 32 bytes (§8)
    constants: int  # scales, gains, biases, formats: what the integer runtime needs besides
    end: int  # where the component ends in FIELD, gaps included


def parameters(cfg: ModelConfig) -> dict[str, int]:
    """Trained numbers of every component: embedding, expert0 …, router, trunk."""
    return {
        name: sum(leaf.size for leaf in jax.tree.leaves(table(cfg)[name]))
        for name in components(cfg)
    }


def sealed(cfg: ModelConfig) -> dict[str, Layout]:
    """The sealed layout of every component, as the writer would place it."""
    specs = tensor_table(dimensions(cfg))
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


def layer(cfg: ModelConfig, segment: str = "expert0") -> list[tuple[TensorSpec, int]]:
    """The matrices of one layer and their stored bytes: §8's table."""
    specs = tensor_table(dimensions(cfg))
    placed = place_tensors((spec.name, spec.size) for spec in specs)
    prefix = f"{segment}.layer0."
    return [
        (spec, stored)
        for spec, (_, stored) in zip(specs, placed, strict=True)
        if spec.name.startswith(prefix) and spec.dtype == "int8"
    ]


def dimensions(cfg: ModelConfig) -> Dimensions:
    """A configuration as a sealed file describes it."""
    return Dimensions.parse({**dataclasses.asdict(cfg), "domains": list(cfg.domains)}, "model")
