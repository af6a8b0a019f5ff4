"""The integer model: trunk, experts, head and router on int8 weights, as pure functions.

What runs on a device is ordinary single-device code plus integer collectives over the axis
``model`` (sum and maximum alone): one text for one device, under ``shard_map``, jitted or not.
Every row of a batch and every token stands alone, so a token's result is the same bits whatever
its batch, padding, chunking, cache size or mesh.

Shape suffixes as in :mod:`s7jax.model.layers`; S is cache slots. Residual streams are int32 in
the fraction bits that calibration gave their segment.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from s7jax.config import ModelConfig, StackConfig
from s7jax.integer import operators as op
from s7jax.integer.loading import LOGIT_BITS, MAX_CONTRACTION, VALUE_BITS, Params
from s7jax.integer.operators import NARROW, Array, Scale
from s7jax.integer.tables import GELU_BITS
from s7jax.mesh import MODEL

Cache = list[tuple[Array, Array]]  # per layer keys and values, int8[B, H, S, K]
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


def embed(embedding: Params, bits: Array, tokens_BT: Array, shards: Shards) -> Array:
    """int32 [B, T] → residual stream [B, T, D]; rows of other shards come by a sum."""
    rows = embedding["weight"].shape[0]
    local = tokens_BT - rows * shards.index
    mine = (local >= 0) & (local < rows)
    local = jnp.clip(local, 0, rows - 1)
    m, exponent = embedding["scale"]
    product = op.mulhi(embedding["weight"][local].astype(jnp.int32) << 22, m[local][..., None])
    x_BTD = op.shift(product, 10 + exponent - 31 + bits)
    return shards.sum(jnp.where(mine[..., None], x_BTD, 0))


def contract(a: Array, w: Array, form: str) -> Array:
    """int8 einsum into int32, the contracted axis (last of ``a``) in runs of at most 1,024."""
    left, right = form.split("->", maxsplit=1)[0].split(",")
    axis = right.index(left[-1])
    total = None
    for start in range(0, a.shape[-1], MAX_CONTRACTION):
        run = slice(start, start + MAX_CONTRACTION)
        part = jnp.einsum(
            form,
            a[..., run].astype(jnp.int8),
            w[(slice(None),) * axis + (run,)],
            preferred_element_type=jnp.int32,
        )
        total = part if total is None else total + part
    return total


def pair(high: Array, low: Array, axis: int) -> Array:
    """Two arrays of int8 values, one behind the other along an axis, as int8.

    A choice for each element, not a concatenation: XLA would compute what leads to a concatenated
    array element by element, 50 times slower (measured on a CPU).
    """
    which = jnp.arange(2, dtype=jnp.int32).reshape(2, *[1] * (high.ndim - axis))
    chosen = jnp.where(which == 0, jnp.expand_dims(high, axis), jnp.expand_dims(low, axis))
    shape = (*high.shape[:axis], 2 * high.shape[axis], *high.shape[axis + 1 :])
    return chosen.astype(jnp.int8).reshape(shape)


def accumulate(
    a_BTD: Array, w: Array, total: int, shards: Shards = ALONE, form: str = "md,df->mf"
) -> tuple[Array, int, int]:
    """15-bit activations times int8 weights, before any scale: two int8 products in one.

    The halves' rows stand one below the other, so that a single token is two rows: CPUs are slow
    with one. ``total`` is the whole input width, over all shards; ``shards`` those that hold
    parts of it.

    Returns:
        the sums [B, T, F]; what they cannot exceed; their fraction bits.
    """
    B, T, D = a_BTD.shape
    halves = pair(*op.split(a_BTD.reshape(B * T, D)), axis=0)
    high, low = jnp.split(shards.sum(contract(halves, w, form)), 2)
    bound = NARROW * NARROW * total
    spare = op.spare_bits(bound)
    acc = op.join(high, low, spare).reshape(B, T, -1)
    return acc, (bound << spare) + (bound >> 1), spare


def linear(
    a_BTD: Array,
    unit: Scale,
    matrix: Params,
    to: Array | int,
    total: int,
    shards: Shards = ALONE,
    form: str = "md,df->mf",
) -> Array:
    """Quantised activations times a matrix, in ``to`` fraction bits; arguments as above."""
    acc, bound, spare = accumulate(a_BTD, matrix["weight"], total, shards, form)
    m, exponent = matrix["scale"]
    return op.requantize(acc, bound, m, exponent, (unit[0], unit[1] - spare), to)


@dataclass(frozen=True)
class Positions:
    """Where the tokens of a chunk stand: the same for every layer."""

    rows_BT: Array  # position of each token in its row's sequence
    visible_BTS: Array  # which cache slots each token sees: itself and those before it
    cosine_BTK: Array
    sine_BTK: Array

    @classmethod
    def at(cls, start_B: Array, length: int, slots: int, rope: tuple[Array, Array]) -> "Positions":
        """``length`` tokens from ``start_B`` on, in a cache of ``slots``."""
        rows_BT = start_B[:, None] + jnp.arange(length, dtype=jnp.int32)[None]
        visible_BTS = jnp.arange(slots, dtype=jnp.int32)[None, None] <= rows_BT[..., None]
        turns = (jnp.take(table, rows_BT, axis=0, mode="clip")[:, :, None] for table in rope)
        return cls(rows_BT, visible_BTS, *turns)


def attention(
    p: Params,
    cfg: ModelConfig,
    stack: StackConfig,
    a_BTD: Array,
    unit: Scale,
    cache: tuple[Array, Array],
    at: Positions,
    to: Array,
    shards: Shards,
) -> tuple[Array, tuple[Array, Array]]:
    """Attention over the cache, which takes up the chunk's own keys and values first."""
    B, T, D = a_BTD.shape
    K, width = stack.head_dim, stack.hidden

    def turned(matrix: Params) -> Array:
        acc, bound, _ = accumulate(a_BTD, matrix["weight"], D)
        x_BTHK = op.direction(acc, bound, matrix["scale"][0]).reshape(B, T, -1, K)
        return op.rope(op.rms_heads(x_BTHK), at.cosine_BTK, at.sine_BTK)

    q, k = turned(p["q_proj"]), turned(p["k_proj"])
    (q_gain, q_exponent), (k_gain, k_exponent) = (
        (p[n]["gain"][0].reshape(-1, K), p[n]["gain"][1] - op.head_bits(K)) for n in "qk"
    )
    k = op.static_quantize(k, k_gain, k_exponent)
    v = jnp.clip(linear(a_BTD, unit, p["v_proj"], 0, D), -NARROW, NARROW).reshape(B, T, -1, K)
    keys, values = (_store(held, new, at.rows_BT) for held, new in zip(cache, (k, v), strict=True))

    q, q_unit = op.quantize(q, q_gain, q_exponent, top=NARROW)
    q_BHTK = q.transpose(0, 2, 1, 3)
    if T == 1:
        q_BHTK = jnp.concatenate([q_BHTK, jnp.zeros_like(q_BHTK)], axis=2)
    acc_BHTS = contract(q_BHTK, keys, "bhtk,bhsk->bhts")[:, :, :T]
    unit_BHT1 = tuple(x.transpose(0, 2, 1, 3) for x in op.score_scale(q_unit, K))
    z_BHTS = op.scores(acc_BHTS, NARROW * NARROW * K, unit_BHT1)
    visible_B1TS = at.visible_BTS[:, None]
    top_BHT1 = jnp.max(jnp.where(visible_B1TS, z_BHTS, _MASKED), axis=-1, keepdims=True)
    weight_BHTS = jnp.where(visible_B1TS, op.exp2(jnp.maximum(top_BHT1 - z_BHTS, 0)), 0)

    total_BHT1 = jnp.sum(weight_BHTS, axis=-1, keepdims=True, dtype=jnp.int32)
    halves = pair(weight_BHTS >> 7, weight_BHTS & 127, axis=2)
    high, low = jnp.split(contract(halves, values, "bhts,bhsk->bhtk"), 2, axis=2)
    # The longest row there can be decides the format, not the cache at hand.
    spare = op.spare_bits(NARROW * NARROW * cfg.context)
    y_BHTK = op.divide(op.join(high, low, spare), total_BHT1, 7 - spare + VALUE_BITS)
    y_BTD = y_BHTK.transpose(0, 2, 1, 3).reshape(B, T, -1)

    gain, exponent = p["o_proj"]["gain"]
    a, y_unit = op.quantize(y_BTD, gain, exponent - VALUE_BITS, shards.max)
    return linear(a, y_unit, p["o_proj"], to, width, shards), (keys, values)


def _store(held: Array, new_BTHK: Array, rows_BT: Array) -> Array:
    """The cache with a chunk's keys or values at their positions; those beyond it are dropped."""
    row = jnp.arange(held.shape[0], dtype=jnp.int32)[:, None]
    return held.at[row, :, rows_BT].set(new_BTHK.astype(jnp.int8), mode="drop")


def feed_forward(
    p: Params, stack: StackConfig, a_BTD: Array, unit: Scale, to: Array, shards: Shards
) -> Array:
    """fc1, GELU, fc2."""
    x = linear(a_BTD, unit, p["fc1"], op.GELU_IN_BITS, stack.hidden)
    edge = 1 << 18  # ± 64: far beyond where GELU is a straight line
    y = op.gelu(jnp.clip(x, -edge, edge))
    gain, exponent = p["fc2"]["gain"]
    a, y_unit = op.quantize(y, gain, exponent - GELU_BITS, shards.max)
    return linear(a, y_unit, p["fc2"], to, stack.ffn, shards)


def layers(
    p: Params,
    cfg: ModelConfig,
    stack: StackConfig,
    x_BTD: Array,
    start_B: Array,
    cache: Cache,
    shards: Shards,
) -> tuple[Array, Cache]:
    """The blocks of a segment; tokens past a row's end compute, are never seen and never kept."""
    at = Positions.at(start_B, x_BTD.shape[1], cache[0][0].shape[2], p["rope"])
    bits, kept = p["residual"], []
    for i in range(stack.layers):
        layer = p[f"layer{i}"]
        a, unit = op.rms_quantize(x_BTD, *layer["attn_norm"]["gain"])
        y, held = attention(layer["attn"], cfg, stack, a, unit, cache[i], at, bits, shards)
        x_BTD = op.saturating_add(x_BTD, y)
        a, unit = op.rms_quantize(x_BTD, *layer["ffn_norm"]["gain"])
        y = feed_forward(layer["ffn"], stack, a, unit, bits, shards)
        x_BTD = op.saturating_add(x_BTD, y)
        kept.append(held)
    return x_BTD, kept


def trunk(
    cfg: ModelConfig, params: Params, tokens_BT: Array, start_B: Array, cache: Cache, shards: Shards
) -> tuple[Array, Cache]:
    """A chunk of tokens from ``start_B`` on → residual stream h [B, T, D], and the cache."""
    p = params["trunk"]
    x_BTD = embed(params["embedding"], p["residual"], tokens_BT, shards)
    return layers(p, cfg, cfg.trunk, x_BTD, start_B, cache, shards)


def expert(
    cfg: ModelConfig,
    p: Params,
    trunk_bits: Array,
    h_BTD: Array,
    start_B: Array,
    cache: Cache,
    shards: Shards,
) -> tuple[Array, Cache]:
    """One expert's refinement of h [B, T, D], in the trunk's format as h is, and its cache."""
    a, unit = op.rms_quantize(h_BTD, *p["in_norm"]["gain"])
    x = linear(a, unit, p["in_proj"], p["residual"], cfg.trunk.hidden)
    x, cache = layers(p, cfg, cfg.expert, x, start_B, cache, shards)
    a, unit = op.rms_quantize(x, *p["out_norm"]["gain"])
    y = linear(a, unit, p["out_proj"], trunk_bits, cfg.expert.hidden)
    return op.saturating_add(h_BTD, y), cache


def normalized(params: Params, h_BTD: Array) -> tuple[Array, Scale]:
    """The shared final norm in 15 bits; what head and router read."""
    gain, exponent = params["trunk"]["final_norm"]["gain"]
    return op.rms_quantize(h_BTD, gain, exponent)


def head(params: Params, h_BTD: Array) -> Array:
    """h of trunk or expert → logits int32[B, T, V], 16 fraction bits; V split over the shards."""
    a, unit = normalized(params, h_BTD)
    width, form = h_BTD.shape[-1], "md,vd->mv"
    return linear(a, unit, params["embedding"], LOGIT_BITS, width, form=form)


def router(cfg: ModelConfig, params: Params, h_BTD: Array) -> Array:
    """h of the trunk → router logits int32[B, T, E], 16 fraction bits, small enough to sum."""
    a, unit = normalized(params, h_BTD)
    m, exponent = params["router"]["bias"]
    logits = linear(a, unit, params["router"], LOGIT_BITS, h_BTD.shape[-1])
    bias = op.shift(m >> 1, exponent - 30 + LOGIT_BITS)
    bound = op.LIMIT // cfg.routing_window
    return jnp.clip(op.saturating_add(logits, bias[None, None]), -bound, bound)
