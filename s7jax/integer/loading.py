"""A sealed model as arrays on a mesh: integers alone, no number computed but by shifts.

The tree follows the tensor names: ``params["trunk"]["layer0"]["attn"]["q_proj"]["weight"]`` is
int8; fixed-point vectors are :class:`s7jax.integer.fixed.Fixed`, their fraction bits an int32
scalar. Weights are views of the sealed file where the device can use them in place.
"""

from functools import cache
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from s7jax.architecture import Architecture, sealed_tensors
from s7jax.errors import InputError
from s7jax.integer.fixed import LIMIT, Fixed
from s7jax.integer.operators import NARROW, SHORT
from s7jax.integer.tables import PROBABILITY_ONE, rope
from s7jax.mesh import partition

Params = dict[str, Any]

LOGIT_BITS = 16  # fraction bits of logits and of router logits
VALUE_BITS = 8  # fraction bits of attention's result, in units of the value cache
MAX_CONTRACTION = 1_024  # longest sum of int8 products in one go: below 2^24


class Tensors(Protocol):
    """Where sealed tensors come from; an open seal is one."""

    def tensor(self, name: str) -> np.ndarray[Any, Any]:
        """The verified tensor of that name."""

    def exponent(self, name: str) -> int | None:
        """Of a fixed-point vector."""


@cache
def specs(cfg: Architecture) -> dict[str, P]:
    """Partition spec of every sealed tensor, by name."""
    return {tensor.name: partition(tensor) for tensor in sealed_tensors(cfg)}


def load(
    cfg: Architecture, tensors: Tensors, component: str, names: list[str], mesh: Mesh
) -> Params:
    """One component's tensors on a mesh, verified as they are touched.

    Raises:
        InputError: a value is outside the bounds that exact arithmetic needs.
    """
    tree: Params = {}
    for name in names:
        *path, leaf = name.split(".")[1:]
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        array, exponent = tensors.tensor(name), tensors.exponent(name)
        if exponent is None:
            node[leaf] = _place(array, specs(cfg)[name], mesh)
        elif leaf == "gain":  # 15 bits are all that its product can hold: 16 of 31 are rounded off
            short = np.clip(((array >> 1) + (1 << 14)) >> 15, -SHORT, SHORT).astype(np.int32)
            node[leaf] = Fixed(_place(short, specs(cfg)[name], mesh), _scalar(15 - exponent, mesh))
        elif leaf == "residual":
            node[leaf] = _scalar(_fraction_bits(name, array, exponent), mesh)
        else:
            # m · 2^(exponent − 31), as it is sealed
            node[leaf] = Fixed(_place(array, specs(cfg)[name], mesh), _scalar(31 - exponent, mesh))
    stack = cfg.segments.get(component)
    if stack is not None:
        tree["rope"] = tuple(_place(t, P(), mesh) for t in rope(cfg.context, stack.head_dim))
    return tree


def _fraction_bits(name: str, array: np.ndarray[Any, Any], exponent: int) -> int:
    if exponent != 31 or not -16 <= int(array[0]) <= 29:
        raise InputError(
            f"{name}: {int(array[0])} with exponent {exponent}; expected −16..29 and 31"
        )
    return int(array[0])


def _place(array: np.ndarray[Any, Any], where: P, mesh: Mesh) -> jax.Array:
    return jax.device_put(array, NamedSharding(mesh, where))


def _scalar(value: int, mesh: Mesh) -> jax.Array:
    return _place(np.array(value, np.int32), P(), mesh)


def check_bounds(cfg: Architecture) -> None:
    """Refuse dimensions with which a sum of products could leave 31 bits.

    Raises:
        InputError: with the sum and its bound.
    """
    sums = {
        "probabilities of a row": PROBABILITY_ONE * cfg.context,
        "weighted values of a row": NARROW * NARROW * cfg.context,
        "squares of a token": cfg.trunk.hidden << 10,
    }
    for name, stack in (("trunk", cfg.trunk), ("expert", cfg.expert)):
        for what, size in (("hidden", stack.hidden), ("ffn", stack.ffn)):
            sums[f"products over {name} {what}"] = NARROW * NARROW * size * 3 // 2
    for what, bound in sums.items():
        if bound > LIMIT:
            raise InputError(
                f"{what} can reach {bound}, beyond {LIMIT}: the dimensions are too large"
            )
