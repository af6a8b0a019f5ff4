"""Data-parallel groups: each group's own submesh, and moving trees between groups and mesh.

A group is one row of the mesh: the devices that share one copy of the weights. What a group
computes alone is compiled for its own submesh, so it is the same program whatever the number
of groups. Moving between the two views copies nothing.
"""

from functools import cache, partial
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from s7jax.mesh import DATA, on_devices


@cache
def submeshes(mesh: Mesh) -> tuple[Mesh, ...]:
    """One mesh of 1 × model devices per group that this process takes part in."""
    here = jax.process_index()
    rows = [mesh.devices[g : g + 1] for g in range(mesh.shape[DATA])]
    return tuple(
        on_devices(row) for row in rows if any(device.process_index == here for device in row.flat)
    )


def split(tree: Any, groups: tuple[Mesh, ...]) -> list[Any]:
    """A tree replicated over ``data`` as each group's own copy."""
    return [jax.tree.map(partial(_rehome, mesh=group), tree) for group in groups]


def join(trees: list[Any], mesh: Mesh) -> Any:
    """Each group's copy, equal in all, as one tree on the whole mesh; inverse of split."""
    return jax.tree.map(partial(_gather, mesh=mesh), *trees)


def _rehome(leaf: jax.Array, mesh: Mesh) -> jax.Array:
    shards = {shard.device: shard.data for shard in leaf.addressable_shards}
    return jax.make_array_from_single_device_arrays(
        leaf.shape,
        NamedSharding(mesh, _spec(leaf)),
        [shards[device] for device in mesh.devices.flat if device in shards],
    )


def _gather(*leaves: jax.Array, mesh: Mesh) -> jax.Array:
    shards = [shard.data for leaf in leaves for shard in leaf.addressable_shards]
    sharding = NamedSharding(mesh, _spec(leaves[0]))
    return jax.make_array_from_single_device_arrays(leaves[0].shape, sharding, shards)


def _spec(leaf: jax.Array) -> jax.sharding.PartitionSpec:
    assert isinstance(leaf.sharding, NamedSharding)
    return leaf.sharding.spec
