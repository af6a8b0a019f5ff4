"""Sums whose bits do not depend on how the work is spread: one fixed binary tree.

The leaves of the tree are the logical microbatches of a step, in order. With D groups (a power
of two) each holds one complete subtree: pairs are summed inside a group first, then across
groups by recursive doubling. Float addition commutes, so both partners of an exchange get the
same bits, and every addition is a program of its own, so no compiler can merge it with its
neighbours. Loss and gradients are summed alike.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from s7jax.mesh import DATA
from s7jax.train.groups import join, split, submeshes


def tree_sum(leaf: Callable[[int], list[Any]], count: int, groups: tuple[Mesh, ...]) -> list[Any]:
    """Sum of ``leaf(0) … leaf(count - 1)`` in each group, all groups in step.

    ``leaf(i)`` gives one tree per group. The tree halves while the count is even; an odd
    count adds its last leaf to the sum of the others.
    """

    def total(first: int, n: int) -> list[Any]:
        if n == 1:
            return leaf(first)
        half = n // 2 if n % 2 == 0 else n - 1
        return _add_all(total(first, half), total(first + half, n - half), groups)

    return total(0, count)


def across_groups(trees: list[Any], mesh: Mesh) -> list[Any]:
    """The sum over all groups of the mesh, in every group, by recursive doubling."""
    if mesh.shape[DATA] == 1:
        return trees
    # Joined, a tree claims to be equal in all groups; only the exchange makes it so.
    partial_sums = join(trees, mesh)
    specs = jax.tree.map(lambda leaf: leaf.sharding.spec, partial_sums)
    leaves, structure = jax.tree.flatten(specs, is_leaf=lambda x: isinstance(x, P))
    with jax.set_mesh(mesh):
        total = _exchange(mesh, structure, tuple(leaves))(partial_sums)
    return split(total, submeshes(mesh))


@cache
def _exchange(mesh: Mesh, structure: Any, leaves: tuple[P, ...]) -> Callable[[Any], Any]:
    specs, size = jax.tree.unflatten(structure, leaves), mesh.shape[DATA]

    def exchange(tree: Any) -> Any:
        distance = 1
        while distance < size:
            pairs = [(group, group ^ distance) for group in range(size)]
            partner = jax.tree.map(lambda x, p=pairs: jax.lax.ppermute(x, DATA, p), tree)
            tree = jax.tree.map(jnp.add, tree, partner)
            distance *= 2
        return tree

    return jax.jit(
        jax.shard_map(exchange, mesh=mesh, in_specs=(specs,), out_specs=specs, check_vma=False)
    )


def _add_all(a: list[Any], b: list[Any], groups: tuple[Mesh, ...]) -> list[Any]:
    sums = []
    for x, y, group in zip(a, b, groups, strict=True):
        with jax.set_mesh(group):
            sums.append(_add(x, y))
    return sums


_add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b), donate_argnums=0)
