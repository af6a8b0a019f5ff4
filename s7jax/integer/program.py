"""The integer model compiled for a mesh: three programs that every use of a sealed model runs.

``trunk``, ``expert`` and ``head`` are each one compiled program per shape; all experts share one.
Chunks may be of any length, rows may stand at different positions, caches may have any number of
slots: the bits of a token's result depend on the tokens before it in its row and on nothing else.
"""

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from s7jax.architecture import Stack
from s7jax.integer import layers as model
from s7jax.integer.fixed import Fixed
from s7jax.integer.layers import SPLIT, Cache
from s7jax.integer.loading import Params, load
from s7jax.integer.routing import route
from s7jax.integer.sealed import check_bounds
from s7jax.mesh import DATA, MODEL
from s7jax.s7l import Seal

# Every element type of XLA, as it stands in HLO: s8[4,2], f32[], pred[1].
_TYPE = re.compile(r"\b(pred|[suf]\d+|bf16|f8e\w+|c64|c128)\[")
CHUNKS = (1, 16, 128)  # lengths that are compiled; what is shorter is padded
# Slots come in so many: int8 products over an odd number of positions, or over two, come out
# wrong on NVIDIA GPUs (JAX 0.11.2, seen on an H100).
SLOTS = 32
_ROWS = P(DATA, None)
_TOKENS = P(DATA, None, None)
_SLOTS = P(None, DATA, MODEL, None, None)


class Program:
    """A sealed model on one or several meshes of data × model devices.

    Args:
        seal: the open sealed file; tensors are verified as they are loaded.
        pools: rows of a batch are split over ``data``, heads and columns over ``model``; the
            trunk lives on the first mesh, expert e on number e modulo their count.

    Raises:
        InputError: the seal's dimensions or values are beyond what exact arithmetic holds, or a
            tensor is not as sealed.
    """

    def __init__(self, seal: Seal, pools: Sequence[Mesh]) -> None:
        self.cfg = seal.manifest.dimensions
        self.mesh = mesh = pools[0]
        self._seal = seal
        check_bounds(self.cfg)
        self._meshes = [pools[e % len(pools)] for e in range(len(self.cfg.domains))]
        self.shared = {name: self._load(name, mesh) for name in ("embedding", "router", "trunk")}
        self._experts: dict[int, Params] = {}

    @property
    def groups(self) -> int:
        """Data groups: the rows of a batch must be divisible by them."""
        return self.mesh.shape[DATA]

    def chunk(self, length: int) -> int:
        """The compiled length that holds as much of ``length`` tokens as can be."""
        return next((size for size in CHUNKS if size >= length), CHUNKS[-1])

    def drafts(self, _rows: int) -> int:
        """None: a chunk of several tokens takes another program, padded to its length."""
        return 0

    def cache(self, stack: Stack, rows: int, slots: int, mesh: Mesh | None = None) -> Cache:
        """An empty cache for so many rows (divisible by the data groups) and positions or more."""
        where = NamedSharding(mesh or self.mesh, _SLOTS)
        shape = stack.cache_shape(rows, -(-slots // SLOTS) * SLOTS)
        return jnp.zeros(shape, jnp.int8, device=where), jnp.zeros(shape, jnp.int8, device=where)

    def trunk_cache(self, rows: int, slots: int) -> Cache:
        """An empty cache of the trunk."""
        return self.cache(self.cfg.trunk, rows, slots)

    def expert_cache(self, e: int, rows: int, slots: int) -> Cache:
        """An empty cache of one expert, where it lives."""
        return self.cache(self.cfg.expert, rows, slots, self._meshes[e])

    def trunk(
        self,
        tokens_BT: np.ndarray,
        start_B: np.ndarray,
        cache: Cache,
        _counts_B: Sequence[int] | None = None,
    ) -> tuple[jax.Array, jax.Array, Cache]:
        """A chunk of tokens, row b from position ``start_B[b]`` on; the cache is used up.

        How many of them are real does not matter here: padding is computed and never seen.

        Returns:
            h int32 [B, T, D], router logits int32 [B, T, E], the new cache.
        """
        tokens, start = self._put(self.mesh, tokens_BT, start_B)
        h, logits, cache = self._trunk(self.shared, tokens, start, cache)
        return h, logits, cache

    def expert(
        self,
        e: int,
        h_BTD: jax.Array,
        start_B: np.ndarray,
        cache: Cache,
        _counts_B: Sequence[int] | None = None,
    ) -> tuple[jax.Array, Cache]:
        """One expert's refinement of a chunk of h, where the trunk lives; the cache is used up."""
        mesh, params = self._meshes[e], self._enter(e)
        h, start = jax.device_put(h_BTD, NamedSharding(mesh, _TOKENS)), self._put(mesh, start_B)[0]
        residual = jax.device_put(self.shared["trunk"]["residual"], NamedSharding(mesh, P()))
        y, cache = self._expert(mesh)(params, residual, h, start, cache)
        return jax.device_put(y, NamedSharding(self.mesh, _TOKENS)), cache

    def head(self, h_BTD: jax.Array, _wanted_B: Sequence[bool] | None = None) -> jax.Array:
        """h of trunk or expert → logits int32 [B, T, V], 16 fraction bits; of every row."""
        return self._head(self.shared, h_BTD)

    def history(self, rows: int, slots: int) -> jax.Array:
        """Room for the trunk's outputs int32 [B, S, D], which a late expert reads."""
        shape = (rows, slots, self.cfg.trunk.hidden)
        return jnp.zeros(shape, jnp.int32, device=NamedSharding(self.mesh, _TOKENS))

    def remember(self, history: jax.Array, h_BTD: jax.Array, start_B: np.ndarray) -> jax.Array:
        """The history with a chunk of h at its positions; those beyond it are dropped."""
        kept: jax.Array = self._remember(history, h_BTD, self._put(self.mesh, start_B)[0])
        return kept

    def recall(self, x_BTD: jax.Array, start_B: np.ndarray, length: int) -> jax.Array:
        """``length`` positions of x [B, T, D] from ``start_B`` on, clipped to its end."""
        positions = start_B[:, None] + np.arange(length)
        found: jax.Array = self._recall(x_BTD, self._put(self.mesh, positions)[0])
        return found

    def answer(self, tokens_BT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whole sequences by every model: logits int32 [1 + E, B, T, V], trunk first; route [B, T].

        B must be divisible by the mesh's data groups.
        """
        B, T = tokens_BT.shape
        start = np.zeros(B, np.int32)
        h, evidence, _ = self.trunk(tokens_BT, start, self.trunk_cache(B, T))
        outputs = [h]
        for e in range(len(self.cfg.domains)):
            outputs.append(self.expert(e, h, start, self.expert_cache(e, B, T))[0])
        logits = np.stack([np.asarray(self.head(x)) for x in outputs])
        return logits, route(np.asarray(evidence), self.cfg.routing_window)

    @property
    def on_cpu(self) -> bool:
        """Whether this runs on CPUs, as all tests do."""
        return bool(self.mesh.devices.flat[0].platform == "cpu")

    @property
    def engine(self) -> str:
        """Where this runs."""
        device = self.mesh.devices.flat[0]
        return f"xla, {self.mesh.size} × {device.device_kind}"

    def machine(self) -> dict[str, Any]:
        """What this runs on."""
        return {"engine": self.engine, "mesh": dict(self.mesh.shape)}

    def types(self) -> set[str]:
        """Every element type of the programs as compiled for prefill and decode."""
        texts = [
            low.compile().as_text()
            for length in (1, CHUNKS[1])
            for low in self.lowered(self.groups, length, 2 * length).values()
        ]
        return {found for text in texts for found in _TYPE.findall(str(text))}

    def lowered(
        self, rows: int, length: int, slots: int, mesh: Mesh | None = None
    ) -> dict[str, jax.stages.Lowered]:
        """Every program, lowered for a shape: what is to be inspected is what runs.

        With ``mesh`` for other devices in the same arrangement; they need not be there.
        """
        calls = self._calls(rows, length, slots, mesh or self.mesh)
        return {name: run.lower(*args) for name, (run, args) in calls}

    def traced(self, rows: int, length: int, slots: int) -> dict[str, Any]:
        """Every program's closed jaxpr for a shape."""
        calls = self._calls(rows, length, slots, self.mesh)
        return {name: run.trace(*args).jaxpr for name, (run, args) in calls}

    def _calls(self, rows: int, length: int, slots: int, mesh: Mesh) -> list[tuple[str, Any]]:
        """Programs for a mesh and their arguments, as shapes."""
        tokens, start = self._put(self.mesh, np.zeros((rows, length)), np.zeros(rows))
        h = jnp.zeros(
            (rows, length, self.cfg.trunk.hidden),
            jnp.int32,
            device=NamedSharding(self.mesh, _TOKENS),
        )
        self._enter(0)
        residual, cache = self.shared["trunk"]["residual"], self.trunk_cache(rows, slots)
        refined = self._experts[0], residual, h, start, self.expert_cache(0, rows, slots)
        calls = [
            ("trunk", self._trunk_on(mesh), (self.shared, tokens, start, cache)),
            ("expert", self._expert(mesh), refined),
            ("head", self._head_on(mesh), (self.shared, h)),
        ]

        def shape(leaf: jax.Array) -> jax.ShapeDtypeStruct:
            assert isinstance(leaf.sharding, NamedSharding)
            there = NamedSharding(mesh, leaf.sharding.spec)
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=there)

        return [(name, (run, jax.tree.map(shape, args))) for name, run, args in calls]

    def _enter(self, e: int) -> Params:
        """An expert's parameters, loaded and verified the first time."""
        if e not in self._experts:
            self._experts[e] = self._load(f"expert{e}", self._meshes[e])
        return self._experts[e]

    def _load(self, component: str, mesh: Mesh) -> Params:
        names = [tensor.name for tensor in self._seal.manifest.components[component]]
        return load(self.cfg, self._seal, component, names, mesh)

    @staticmethod
    def _put(mesh: Mesh, *arrays: np.ndarray) -> list[jax.Array]:
        def lay_out(array: np.ndarray) -> jax.Array:
            where = NamedSharding(mesh, P(DATA, *[None] * (array.ndim - 1)))
            return jax.device_put(np.asarray(array, np.int32), where)

        return [lay_out(array) for array in arrays]

    @cached_property
    def _trunk(self) -> Any:
        return self._trunk_on(self.mesh)

    def _trunk_on(self, mesh: Mesh) -> Any:
        def run(params: Params, tokens: jax.Array, start: jax.Array, cache: Cache) -> Any:
            h, kept = model.trunk(self.cfg, params, tokens, start, cache, SPLIT)
            return h.m, model.router(self.cfg, params, h.m).m, kept

        shards = (_specs(self.shared), _ROWS, P(DATA), _SLOTS)
        return _compile(run, mesh, shards, (_TOKENS, _TOKENS, _SLOTS), donated=3)

    def _expert(self, mesh: Mesh) -> Any:
        def run(
            params: Params, bits: jax.Array, h: jax.Array, start: jax.Array, cache: Cache
        ) -> Any:
            y, kept = model.expert(self.cfg, params, Fixed(h, bits), start, cache, SPLIT)
            return y.m, kept

        if mesh not in self._compiled:
            some = next(iter(self._experts.values()))
            shards = (_specs(some), P(), _TOKENS, P(DATA), _SLOTS)
            self._compiled[mesh] = _compile(run, mesh, shards, (_TOKENS, _SLOTS), donated=4)
        return self._compiled[mesh]

    @cached_property
    def _compiled(self) -> dict[Mesh, Any]:
        return {}

    @cached_property
    def _remember(self) -> Any:
        def run(history: jax.Array, h: jax.Array, start: jax.Array) -> jax.Array:
            rows = jnp.arange(h.shape[0], dtype=jnp.int32)[:, None]
            at = start[:, None] + jnp.arange(h.shape[1], dtype=jnp.int32)[None]
            return history.at[rows, at].set(h, mode="drop")

        return _compile(run, self.mesh, (_TOKENS, _TOKENS, P(DATA)), _TOKENS, donated=0)

    @cached_property
    def _recall(self) -> Any:
        def run(x: jax.Array, positions: jax.Array) -> jax.Array:
            return jnp.take_along_axis(x, positions[..., None], axis=1, mode="clip")

        return _compile(run, self.mesh, (_TOKENS, _ROWS), _TOKENS)

    @cached_property
    def _head(self) -> Any:
        return self._head_on(self.mesh)

    def _head_on(self, mesh: Mesh) -> Any:
        def run(params: Params, h: jax.Array) -> jax.Array:
            return model.head(params, h).m

        shards = (_specs(self.shared), _TOKENS)
        return _compile(run, mesh, shards, P(DATA, None, MODEL))


def _compile(run: Any, mesh: Mesh, ins: Any, outs: Any, donated: int | None = None) -> Any:
    mapped = jax.shard_map(run, mesh=mesh, in_specs=ins, out_specs=outs, check_vma=False)
    return jax.jit(mapped, donate_argnums=() if donated is None else (donated,))


def _specs(params: Params) -> Any:
    """Partition specs of loaded parameters: as they lie."""
    return jax.tree.map(lambda leaf: leaf.sharding.spec, params)
