"""The integer model: trunk, experts, head and router on int8 weights, as pure functions.

What runs on a device is ordinary single-device code plus integer collectives over the axis
``model`` (sum and maximum alone): one text for one device, under ``shard_map``, jitted or not.
Every row of a batch and every token stands alone, so a token's result is the same bits whatever
its batch, padding, chunking, cache size or mesh.

Shape suffixes as in :mod:`s7jax.model.layers`; S is cache slots, L layers. Residual streams are
int32 in the fraction bits that calibration gave their segment.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from s7jax.architecture import Architecture, Stack
from s7jax.integer import fixed
from s7jax.integer import operators as op
from s7jax.integer.fixed import Fixed, saturating_add
from s7jax.integer.loading import MAX_CONTRACTION, VALUE_BITS, Params
from s7jax.integer.sealed import LIMIT, LOGIT_BITS, NARROW
from s7jax.mesh import MODEL

Array = jax.Array
Activations = fixed.Activations[Array]
Real = Fixed[Array]
Sums = fixed.Sums[Array]
Cache = tuple[Array, Array]  # keys and values of every layer, int8[L, B, H, S, K]
_MASKED = -(1 << 30)


@dataclass(frozen=True)
class Shards:
    """How the functions below reach the other shards of the model axis; None: there are none."""

    axis: str | None = None

    def sum(self, x: Array) -> Array:
        """Sum over shards."""
        return x if self.axis is None else jax.lax.psum(x, self.axis)

    def max(self, x: Array) -> Array:
        """Maximum over shards."""
        return x if self.axis is None else jax.lax.pmax(x, self.axis)

    @property
    def index(self) -> Array | int:
        """This shard's number."""
        return 0 if self.axis is None else jax.lax.axis_index(self.axis)


ALONE, SPLIT = Shards(), Shards(MODEL)


def embed(embedding: Params, bits: Array, tokens_BT: Array, shards: Shards) -> Real:
    """int32 [B, T] → residual stream [B, T, D]; rows of other shards come by a sum."""
    rows = embedding["weight"].shape[0]
    local = tokens_BT - rows * shards.index
    mine = (local >= 0) & (local < rows)
    local = jnp.clip(local, 0, rows - 1)
    scale: Real = embedding["scale"]
    # 127 << 22 is below 2^29: a weight with all the fraction bits that fit.
    weight = Fixed(embedding["weight"][local].astype(jnp.int32) << 22, 22)
    x = fixed.rescale(fixed.product(weight, Fixed(scale.m[local][..., None], scale.bits)), bits)
    return Fixed(shards.sum(jnp.where(mine[..., None], x.m, 0)), bits)


def contract(a: Array, w: Array, form: str) -> Array:
    """int8 einsum into int32, the contracted axis (last of ``a``) in runs of at most 1,024."""
    left, right = form.split("->", maxsplit=1)[0].split(",")
    axis = right.index(left[-1])
    runs = [slice(at, at + MAX_CONTRACTION) for at in range(0, a.shape[-1], MAX_CONTRACTION)]
    parts = [
        jnp.einsum(
            form,
            a[..., run].astype(jnp.int8),
            w[(slice(None),) * axis + (run,)],
            preferred_element_type=jnp.int32,
        )
        for run in runs
    ]
    return sum(parts[1:], start=parts[0])


def pair(high: Array, low: Array, axis: int) -> Array:
    """Two arrays of int8 values, one after the other along an axis, as int8.

    A choice for each element, not a concatenation: XLA would compute what leads to a concatenated
    array element by element, 50 times slower (measured on a CPU).
    """
    which = jnp.arange(2, dtype=jnp.int32).reshape(2, *[1] * (high.ndim - axis))
    chosen = jnp.where(which == 0, jnp.expand_dims(high, axis), jnp.expand_dims(low, axis))
    shape = (*high.shape[:axis], 2 * high.shape[axis], *high.shape[axis + 1 :])
    return chosen.astype(jnp.int8).reshape(shape)


def accumulate(
    a_BTD: Array, w: Array, total: int, shards: Shards = ALONE, form: str = "md,df->mf"
) -> Sums:
    """15-bit activations times int8 weights, before any scale: two int8 products in one.

    The halves' rows stand one below the other, so that a single token is two rows: CPUs are slow
    with one. ``total`` is the whole input width, over all shards; ``shards`` those that hold
    parts of it.

    Returns:
        Sums [B, T, F] of a/128 · w.
    """
    B, T, D = a_BTD.shape
    halves = pair(*op.split(a_BTD.reshape(B * T, D)), axis=0)
    high, low = jnp.split(shards.sum(contract(halves, w, form)), 2)
    bound = NARROW * NARROW * total  # of either half's sum
    spare = op.spare_bits(bound)
    acc = op.join(high, low, spare).reshape(B, T, -1)
    # high counts whole units of a/128, so its spare bits are fraction bits; low adds half at most.
    return Sums(acc, (bound << spare) + (bound >> 1), spare)


def linear(
    x: Activations,
    matrix: Params,
    out_bits: Array | int,
    total: int,
    shards: Shards = ALONE,
    form: str = "md,df->mf",
) -> Real:
    """Activations [B, T, D] times a matrix; arguments as of :func:`accumulate`."""
    acc = accumulate(x.a, matrix["weight"], total, shards, form)
    return op.requantize(acc, matrix["scale"], x.unit, out_bits)


@dataclass(frozen=True)
class Positions:
    """Where the tokens of a chunk stand: the same for every layer."""

    positions_BT: Array  # of each token in its row's sequence
    visible_BTS: Array  # which cache slots each token sees: itself and those before it
    cosine_BTK: Array
    sine_BTK: Array

    @classmethod
    def at(cls, start_B: Array, length: int, slots: int, rope: tuple[Array, Array]) -> "Positions":
        """``length`` tokens from ``start_B`` on, in a cache of ``slots``."""
        positions_BT = start_B[:, None] + jnp.arange(length, dtype=jnp.int32)[None]
        visible_BTS = jnp.arange(slots, dtype=jnp.int32)[None, None] <= positions_BT[..., None]
        turns = (jnp.take(table, positions_BT, axis=0, mode="clip")[:, :, None] for table in rope)
        return cls(positions_BT, visible_BTS, *turns)


def attention(
    p: Params,
    cfg: Architecture,
    stack: Stack,
    x: Activations,
    layer: Array,
    cache: Cache,
    at: Positions,
    out_bits: Array,
    shards: Shards,
) -> tuple[Real, Cache]:
    """Attention over the cache of a layer, which takes up the chunk's keys and values first."""
    B, T, D = x.a.shape
    K, width = stack.head_dim, stack.hidden

    def turned(matrix: Params) -> Real:
        acc = accumulate(x.a, matrix["weight"], D)
        x_BTHK = op.direction(acc, matrix["scale"].m).reshape(B, T, -1, K)
        return op.rope(op.rms_heads(x_BTHK), at.cosine_BTK, at.sine_BTK)

    q, k = turned(p["q_proj"]), turned(p["k_proj"])
    q_gain, k_gain = (
        Fixed(p[name]["gain"].m.reshape(-1, K), p[name]["gain"].bits) for name in "qk"
    )
    k_BTHK = op.static_quantize(k, k_gain)
    v_BTD = jnp.clip(linear(x, p["v_proj"], 0, D).m, -NARROW, NARROW)
    cache = (
        _store(cache[0], layer, k_BTHK, at.positions_BT),
        _store(cache[1], layer, v_BTD.reshape(B, T, -1, K), at.positions_BT),
    )
    keys, values = (jax.lax.dynamic_index_in_dim(held, layer, keepdims=False) for held in cache)

    q_BTHK, q_unit = op.quantize(q, q_gain, top=NARROW)
    q_BHTK = q_BTHK.transpose(0, 2, 1, 3)
    if T == 1:
        q_BHTK = jnp.concatenate([q_BHTK, jnp.zeros_like(q_BHTK)], axis=2)
    acc_BHTS = contract(q_BHTK, keys, "bhtk,bhsk->bhts")[:, :, :T]
    m, e = op.score_scale(q_unit, K)
    unit_BHT1 = fixed.Scale(m.transpose(0, 2, 1, 3), jnp.transpose(e, (0, 2, 1, 3)))
    z_BHTS = op.scores(Sums(acc_BHTS, NARROW * NARROW * K, 0), unit_BHT1)
    visible_B1TS = at.visible_BTS[:, None]
    top_BHT1 = jnp.max(jnp.where(visible_B1TS, z_BHTS.m, _MASKED), axis=-1, keepdims=True)
    below_BHTS = Fixed(jnp.maximum(top_BHT1 - z_BHTS.m, 0), z_BHTS.bits)
    weight_BHTS = jnp.where(visible_B1TS, op.exp2(below_BHTS), 0)

    total_BHT1 = jnp.sum(weight_BHTS, axis=-1, keepdims=True, dtype=jnp.int32)
    halves = pair(weight_BHTS >> 7, weight_BHTS & 127, axis=2)
    high, low = jnp.split(contract(halves, values, "bhts,bhsk->bhtk"), 2, axis=2)
    # The longest row there can be decides the format, not the cache at hand.
    spare = op.spare_bits(NARROW * NARROW * cfg.context)
    # high counts weights in 128s and has 7 bits fewer than whole ones; it keeps the spare ones.
    sums_BHTK = Fixed(op.join(high, low, spare), spare - 7)
    y_BHTK = op.divide(sums_BHTK, total_BHT1, VALUE_BITS)
    y_BTD = Fixed(y_BHTK.m.transpose(0, 2, 1, 3).reshape(B, T, -1), y_BHTK.bits)

    y = op.quantize(y_BTD, p["o_proj"]["gain"], shards.max)
    return linear(y, p["o_proj"], out_bits, width, shards), cache


def _store(held: Array, layer: Array, new_BTHK: Array, positions_BT: Array) -> Array:
    """The cache with a chunk's keys or values at their positions; those beyond it are dropped."""
    row = jnp.arange(held.shape[1], dtype=jnp.int32)[:, None]
    return held.at[layer, row, :, positions_BT].set(new_BTHK.astype(jnp.int8), mode="drop")


def feed_forward(p: Params, stack: Stack, x: Activations, out_bits: Array, shards: Shards) -> Real:
    """fc1, GELU, fc2."""
    u = linear(x, p["fc1"], op.GELU_IN_BITS, stack.hidden)
    edge = 64 << op.GELU_IN_BITS  # far beyond where GELU is a straight line
    y = op.gelu(Fixed(jnp.clip(u.m, -edge, edge), u.bits))
    return linear(
        op.quantize(y, p["fc2"]["gain"], shards.max), p["fc2"], out_bits, stack.ffn, shards
    )


def layers(
    p: Params,
    cfg: Architecture,
    stack: Stack,
    x: Real,
    start_B: Array,
    cache: Cache,
    shards: Shards,
) -> tuple[Real, Cache]:
    """The blocks of a segment on its residual stream [B, T, D], compiled once for all of them.

    Tokens past a row's end compute, are never seen and never kept.
    """
    at = Positions.at(start_B, x.m.shape[1], cache[0].shape[3], p["rope"])
    bits = p["residual"]

    # The caches go from layer to layer whole: what is written into them is written in place.
    def block(carried: tuple[Array, Cache], one: tuple[Array, Params]) -> Any:
        x, (i, layer) = Fixed(carried[0], bits), one
        a = op.rms_quantize(x.m, layer["attn_norm"]["gain"])
        y, cache = attention(layer["attn"], cfg, stack, a, i, carried[1], at, bits, shards)
        x = saturating_add(x, y)
        a = op.rms_quantize(x.m, layer["ffn_norm"]["gain"])
        x = saturating_add(x, feed_forward(layer["ffn"], stack, a, bits, shards))
        return (x.m, cache), None

    numbered = jnp.arange(stack.layers, dtype=jnp.int32), p["layers"]
    (m, cache), _ = jax.lax.scan(block, (x.m, cache), numbered)
    return Fixed(m, bits), cache


def trunk(
    cfg: Architecture,
    params: Params,
    tokens_BT: Array,
    start_B: Array,
    cache: Cache,
    shards: Shards,
) -> tuple[Real, Cache]:
    """A chunk of tokens from ``start_B`` on → residual stream h [B, T, D], and the cache."""
    p = params["trunk"]
    x = embed(params["embedding"], p["residual"], tokens_BT, shards)
    return layers(p, cfg, cfg.trunk, x, start_B, cache, shards)


def expert(
    cfg: Architecture, p: Params, h: Real, start_B: Array, cache: Cache, shards: Shards
) -> tuple[Real, Cache]:
    """One expert's refinement of h [B, T, D], in the trunk's format as h is, and its cache."""
    a = op.rms_quantize(h.m, p["in_norm"]["gain"])
    x = linear(a, p["in_proj"], p["residual"], cfg.trunk.hidden)
    x, cache = layers(p, cfg, cfg.expert, x, start_B, cache, shards)
    a = op.rms_quantize(x.m, p["out_norm"]["gain"])
    return saturating_add(h, linear(a, p["out_proj"], h.bits, cfg.expert.hidden)), cache


def normalized(params: Params, h_BTD: Array) -> Activations:
    """The shared final norm in 15 bits, of h in any format; what head and router read."""
    return op.rms_quantize(h_BTD, params["trunk"]["final_norm"]["gain"])


def head(params: Params, h_BTD: Array) -> Real:
    """h of trunk or expert → logits int32[B, T, V], 16 fraction bits; V split over the shards."""
    width, form = h_BTD.shape[-1], "md,vd->mv"
    return linear(normalized(params, h_BTD), params["embedding"], LOGIT_BITS, width, form=form)


def router(cfg: Architecture, params: Params, h_BTD: Array) -> Real:
    """h of the trunk → router logits int32[B, T, E], 16 fraction bits, small enough to sum."""
    x = normalized(params, h_BTD)
    logits = linear(x, params["router"], LOGIT_BITS, h_BTD.shape[-1])
    bias: Real = params["router"]["bias"]
    # 30 bits are what a shift takes.
    halved = Fixed(fixed.along(bias.m >> 1, logits.m), bias.bits - 1)
    sums = saturating_add(logits, fixed.rescale(halved, LOGIT_BITS))
    bound = LIMIT // cfg.routing_window
    return Fixed(jnp.clip(sums.m, -bound, bound), LOGIT_BITS)
