"""A sealed model as arrays on a mesh: integers alone, no number computed but by shifts.

The tree follows the tensor names, the layers of a segment stacked:
``params["trunk"]["layers"]["attn"]["q_proj"]["weight"]`` is int8 [L, D, D]. Fixed-point vectors are
:class:`s7jax.integer.fixed.Fixed`, their fraction bits an int32 scalar, or int32 [L].
"""

import re
from functools import cache
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from s7jax.architecture import Architecture, sealed_tensors
from s7jax.integer.fixed import Fixed
from s7jax.integer.sealed import fraction_bits, short_gain
from s7jax.integer.tables import rope
from s7jax.mesh import partition

Params = dict[str, Any]

VALUE_BITS = 8  # fraction bits of attention's result, in units of the value cache
MAX_CONTRACTION = 1_024  # longest sum of int8 products in one go: below 2^24
_LAYER = re.compile(r"\.layer(\d+)\.")


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
    layered: dict[str, dict[int, str]] = {}  # name without its layer → layer → name
    for name in names:
        if found := _LAYER.search(name):
            layered.setdefault(_LAYER.sub(".layers.", name), {})[int(found[1])] = name
        else:
            _insert(tree, name, *_read(tensors, name), specs(cfg)[name], mesh)
    for name, members in layered.items():
        arrays, bits = zip(*(_read(tensors, members[i]) for i in range(len(members))), strict=True)
        where = P(None, *specs(cfg)[members[0]])
        _insert(tree, name, np.stack(arrays), None if None in bits else bits, where, mesh)
    stack = cfg.segments.get(component)
    if stack is not None:
        tree["rope"] = tuple(_place(t, P(), mesh) for t in rope(cfg.context, stack.head_dim))
    return tree


def _read(tensors: Tensors, name: str) -> tuple[np.ndarray[Any, Any], int | None]:
    """A tensor as it is computed with, and its fraction bits where it is fixed-point."""
    array, exponent = tensors.tensor(name), tensors.exponent(name)
    if exponent is None:
        return array, None
    if name.endswith(".gain"):
        return short_gain(array), 15 - exponent
    if name.endswith(".residual"):
        return np.array(fraction_bits(name, array, exponent), np.int32), None
    return array, 31 - exponent  # m · 2^(exponent − 31), as it is sealed


def _insert(
    tree: Params,
    name: str,
    array: np.ndarray[Any, Any],
    bits: int | tuple[int, ...] | None,
    where: P,
    mesh: Mesh,
) -> None:
    """Put an array, fixed-point if it has fraction bits, in the tree by its name."""
    *path, leaf = name.split(".")[1:]
    for key in path:
        tree = tree.setdefault(key, {})
    m = _place(array, where if array.ndim else P(), mesh)
    tree[leaf] = m if bits is None else Fixed(m, _place(np.array(bits, np.int32), P(), mesh))


def _place(array: np.ndarray[Any, Any], where: P, mesh: Mesh) -> jax.Array:
    return jax.device_put(array, NamedSharding(mesh, where))
