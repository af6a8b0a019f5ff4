"""Trees of parameters: initial values, layout on a mesh, names, digest.

Which tensors there are, of which shape and how they are split says :mod:`s7jax.architecture`.

In memory a stack of layers is one array with a leading layer axis
(``trunk/layers/attn/q_proj/weight``); in files each layer is its own tensor
(``trunk.layer3.attn.q_proj.weight``). :func:`named_tensors` is that boundary.
"""

from collections.abc import Iterator, Mapping
from functools import cache, partial
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from s7jax.architecture import Architecture
from s7jax.digests import named_digest
from s7jax.mesh import single
from s7jax.model.language_model import Params, initialize


@cache
def table(cfg: Architecture) -> Params:
    """Shape, dtype and partition spec of every parameter, as ``jax.ShapeDtypeStruct``.

    Partition specs name mesh axes but no mesh: they hold for every one.
    """
    with jax.set_mesh(single()):
        key = jax.eval_shape(lambda: jax.random.key(0))
        kinds = {name: _kind(name) for name in cfg.components}
        forms = {
            kind: jax.eval_shape(partial(initialize, cfg, kind), key)
            for kind in set(kinds.values())
        }
    return {name: forms[kind] for name, kind in kinds.items()}


def shardings(forms: Params, mesh: Mesh) -> Params:
    """The partition specs of a table, or of what is made from it, on a mesh."""

    def on_mesh(leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        # A scalar, such as a count of steps, has no spec.
        return NamedSharding(mesh, P() if leaf.sharding is None else leaf.sharding.spec)

    return jax.tree.map(on_mesh, forms)


def abstract(tree: Any, mesh: Mesh) -> Any:
    """Shapes and dtypes of a table, or of what is made from it, laid out on a mesh."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings(tree, mesh),
    )


def put_on_mesh(params: Params, forms: Params, mesh: Mesh) -> Params:
    """Lay host or device arrays out on a mesh; bytes are copied, never computed.

    Every process gives the whole arrays and keeps what its devices need.
    """

    def lay_out(leaf: Any, sharding: NamedSharding) -> jax.Array:
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, sharding, lambda at: array[at])

    return jax.tree.map(lay_out, params, shardings(forms, mesh))


def initial(
    cfg: Architecture, seed: int, mesh: Mesh, names: tuple[str, ...] | None = None
) -> Params:
    """Initial parameters of the named components (default: all) on a mesh.

    A pure function of (cfg, seed): each component has its own key, so any of them can be made
    alone, and is computed by a single-device program and then laid out, so that its bytes do
    not depend on the mesh.
    """
    with jax.set_mesh(single()):
        root = jax.random.key(seed, impl="threefry2x32")
        params = {
            # All experts share one compiled program.
            name: _initialize(cfg, _kind(name), jax.random.fold_in(root, _stream(name)))
            for name in names or cfg.components
        }
    return put_on_mesh(params, {name: table(cfg)[name] for name in params}, mesh)


def _kind(component: str) -> str:
    """What all experts have in common, or the component itself."""
    return component.rstrip("0123456789")


def _stream(component: str) -> int:
    """Number of a component's random stream; it does not depend on how many experts there are."""
    if (kind := _kind(component)) != "expert":
        return {"embedding": 0, "router": 5, "trunk": 6}[kind]
    e = int(component.removeprefix("expert"))
    return 1 + e if e < 4 else 3 + e  # 5 and 6 are taken


_initialize = jax.jit(initialize, static_argnums=(0, 1))


def named_tensors(params: Params) -> Iterator[tuple[str, Any]]:
    """``(name, tensor)`` of every tensor in bytewise order of names, stacked layers taken apart.

    Works on arrays and on abstract values alike. Names are those of the sealed file.
    """
    places: dict[str, tuple[Any, int | None]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        keys = [key.key for key in path]
        if "layers" not in keys:
            places[".".join(keys)] = leaf, None
            continue
        at = keys.index("layers")
        for layer in range(leaf.shape[0]):
            name = ".".join([*keys[:at], f"layer{layer}", *keys[at + 1 :]])
            places[name] = leaf, layer
    return ((name, _layer(*places[name])) for name in sorted(places))


def _layer(leaf: Any, layer: int | None) -> Any:
    if layer is None:
        return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
    return leaf[layer]


def from_named(like: Params, tensors: Mapping[str, np.ndarray]) -> Params:
    """Inverse of :func:`named_tensors`, to a tree of the form of ``like``."""

    def gather(path: Any, leaf: Any) -> np.ndarray:
        keys = [key.key for key in path]
        if "layers" not in keys:
            return tensors[".".join(keys)]
        at = keys.index("layers")
        names = (".".join([*keys[:at], f"layer{i}", *keys[at + 1 :]]) for i in range(leaf.shape[0]))
        return np.stack([tensors[name] for name in names])

    return jax.tree_util.tree_map_with_path(gather, like)


def host(params: Params) -> Params:
    """Parameters as whole NumPy arrays, in every process."""

    def fetch(leaf: Any) -> np.ndarray:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_replicated:
            return np.asarray(leaf)
        if not leaf.is_fully_addressable:
            return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
        # A split array that NumPy is given keeps the copy made for it as long as it lives.
        whole = np.empty(leaf.shape, leaf.dtype)
        for shard in leaf.addressable_shards:
            if shard.replica_id == 0:
                whole[shard.index] = shard.data
        return whole

    return jax.tree.map(fetch, params)


def digest(params: Params) -> str:
    """SHA-256 over every tensor in canonical order: name, dtype, shape, little-endian bytes.

    Equal digests mean equal weights, whatever mesh they live on.
    """
    return named_digest(named_tensors(host(params)))
