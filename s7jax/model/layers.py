"""The layers of trunk and experts: pre-RMSNorm transformer blocks with rotary attention.

Shape suffixes: B batch, T time, S key time, D hidden, F FFN width, H heads, K head width.
Every matrix is W[in, out] (§5). Shapes, initial values and splits over devices come from the one
table, :mod:`s7jax.architecture`. All modules expect to run under an explicit mesh with the axes
``data`` and ``model`` (:mod:`s7jax.mesh`).
Parameters are float32; a module computes in its input's dtype, float32 or bfloat16, except that
norms, rotation, scores and softmax are always float32.
"""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn import initializers
from jax.sharding import PartitionSpec as P

from s7jax.architecture import Parameter, Stack, layer
from s7jax.mesh import DATA, MODEL, partition
from s7jax.model.attention import HEADS, causal_attention

NORM_EPSILON = 1e-6
ROPE_BASE = 10_000.0

RANGES = "ranges"  # Flax collection of what calibration measures; training never has it

ACTIVATIONS = P(DATA, None, None)
SPLIT_ACTIVATIONS = P(DATA, None, MODEL)


@cache
def layer_table(stack: Stack) -> dict[str, Parameter]:
    """The tensors of one layer by their name within it."""
    return {p.name: p for p in layer(stack)}


def rms_normalize(x: jax.Array) -> jax.Array:
    """Divide by the root mean square over the last axis, in float32 (arXiv 1910.07467)."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + NORM_EPSILON)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x_BTD: jax.Array, weight_DF: jax.Array, out: P) -> jax.Array:
    """x @ W, placed as ``out`` says, with a backward pass whose bits no thread count changes.

    JAX's own gradient of W contracts axes in an order for which XLA on CPUs splits the sum over
    its threads, however many there are. Both gradients, written as products of their own, are
    summed in one order (and up to three times as fast).
    """
    return jnp.einsum("BTD,DF->BTF", x_BTD, weight_DF, out_sharding=out)


def _product(x_BTD: jax.Array, weight_DF: jax.Array, out: P) -> tuple[jax.Array, Any]:
    return product(x_BTD, weight_DF, out), (x_BTD, weight_DF)


def _gradients(out: P, factors: Any, dy_BTF: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_BTD, weight_DF = factors
    at_x, at_weight = (jax.typeof(factor).sharding for factor in factors)
    return (
        jnp.einsum("BTF,DF->BTD", dy_BTF, weight_DF, out_sharding=at_x),
        jnp.einsum("BTD,BTF->DF", x_BTD, dy_BTF, out_sharding=at_weight),
    )


product.defvjp(_product, _gradients)


def rope(x_BTHK: jax.Array) -> jax.Array:
    """Rotary position embedding (arXiv 2104.09864), channel i paired with i + K/2.

    Positions count from 0 along T; angles are float32.
    """
    T, K = x_BTHK.shape[1], x_BTHK.shape[3]
    frequency_K = ROPE_BASE ** (-jnp.arange(0, K, 2, dtype=jnp.float32) / K)
    angle_T1K = (jnp.arange(T, dtype=jnp.float32)[:, None] * frequency_K[None])[:, None, :]
    sin, cos = jnp.sin(angle_T1K), jnp.cos(angle_T1K)
    a, b = jnp.split(x_BTHK, 2, axis=-1)
    return jnp.concatenate([a * cos[None] - b * sin[None], b * cos[None] + a * sin[None]], axis=-1)


def parameter(module: nn.Module, described: Parameter) -> jax.Array:
    """A module's parameter as the table describes it, float32; called by the last of its name."""
    initial = initializers.constant(described.start)
    if described.std is not None:
        initial = initializers.normal(described.std)
    leaf = described.name.rpartition(".")[2]
    value: jax.Array = module.param(
        leaf, initial, described.shape, jnp.float32, partition(described)
    )
    return value


class RMSNorm(nn.Module):
    """RMS normalisation with a gain, no bias."""

    gain: Parameter

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """[B, T, D] → [B, T, D]."""
        gain_D = parameter(self, self.gain)
        return (rms_normalize(x_BTD) * gain_D[None, None]).astype(x_BTD.dtype)


class Linear(nn.Module):
    """x @ W, the one matrix product of the model: no bias."""

    weight: Parameter

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """[B, T, in] → [B, T, out], split over devices where W's outputs are."""
        weight = parameter(self, self.weight).astype(x_BTD.dtype)
        by_output = self.weight.split is not None and self.weight.split.axis == 1
        out = SPLIT_ACTIVATIONS if by_output else ACTIVATIONS
        return product(x_BTD, weight, out)


class Probe(nn.Module):
    """The identity, on an activation that calibration measures at this point and by this name."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """Any array, as it is."""
        return x


class Attention(nn.Module):
    """Multi-head causal self-attention with rotary positions and RMS-normalised q and k."""

    cfg: Stack

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """[B, T, D] → [B, T, D]."""
        B, T, D = x_BTD.shape
        heads = (B, T, self.cfg.heads, self.cfg.head_dim)

        def project(name: str, x: jax.Array) -> jax.Array:
            weight = layer_table(self.cfg)[f"attn.{name}_proj.weight"]
            return Linear(weight, name=f"{name}_proj")(x)

        q, k, v = (jnp.reshape(project(n, x_BTD), heads, out_sharding=HEADS) for n in "qkv")
        q, k = (rope(rms_normalize(x)).astype(v.dtype) for x in (q, k))
        k, v = Probe(name="k")(k), Probe(name="v")(v)
        y_BTHK = causal_attention(q, k, v)
        y_BTD = jnp.reshape(y_BTHK, (B, T, D), out_sharding=SPLIT_ACTIVATIONS)
        return project("o", y_BTD)


class FeedForward(nn.Module):
    """fc1, GELU (tanh form, arXiv 1606.08415), fc2."""

    cfg: Stack

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """[B, T, D] → [B, T, D]."""
        table = layer_table(self.cfg)
        y_BTF = jax.nn.gelu(Linear(table["ffn.fc1.weight"], name="fc1")(x_BTD))
        return Linear(table["ffn.fc2.weight"], name="fc2")(y_BTF)


class Block(nn.Module):
    """One pre-norm layer: x + attention(norm(x)), then x + FFN(norm(x))."""

    cfg: Stack

    @nn.compact
    def __call__(self, x_BTD: jax.Array, _: None) -> tuple[jax.Array, None]:
        """[B, T, D] → [B, T, D], in the carry form that scanning wants."""
        table = layer_table(self.cfg)
        attn_norm, ffn_norm = (
            RMSNorm(table[f"{name}.gain"], name=name) for name in ("attn_norm", "ffn_norm")
        )
        x_BTD += Attention(self.cfg, name="attn")(attn_norm(x_BTD))
        x_BTD += FeedForward(self.cfg, name="ffn")(ffn_norm(x_BTD))
        return x_BTD, None


def stack(cfg: Stack, name: str, remat: bool = False) -> nn.Module:
    """``cfg.layers`` blocks as one scan: parameters stacked on a leading layer axis.

    Compile time does not grow with depth. With ``remat`` the backward pass keeps only what the
    projections gave and recomputes the cheap rest: norms, rotation, attention weights, GELU.
    """
    block: Any = Block
    if remat:
        # A scan's body is optimised alone: nothing could merge the recomputation away.
        keep = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        block = nn.remat(Block, prevent_cse=False, policy=keep)
    scanned = nn.scan(
        block,
        variable_axes={"params": 0, RANGES: 0},
        split_rngs={"params": True},
        length=cfg.layers,
    )
    return scanned(cfg, name=name)
