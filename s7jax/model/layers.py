"""The layers of trunk and experts: pre-RMSNorm transformer blocks with rotary attention.

Shape suffixes: B batch, T time, S key time, D hidden, F FFN width, H heads, K head width.
Every matrix is W[in, out] (§5). Each parameter's partition spec stands beside its shape:
q, k, v, fc1 are split over ``model`` on the output axis, o and fc2 on the input axis
(Megatron, arXiv 1909.08053). All modules expect to run under an explicit mesh with the axes
``data`` and ``model`` (:mod:`s7jax.mesh`).
Parameters are float32; a module computes in its input's dtype, float32 or bfloat16, except that
norms, rotation, scores and softmax are always float32.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn import initializers
from jax.sharding import PartitionSpec as P

from s7jax.config import StackConfig
from s7jax.mesh import DATA, MODEL
from s7jax.model.attention import HEADS, causal_attention

NORM_EPSILON = 1e-6
ROPE_BASE = 10_000.0

ACTIVATIONS = P(DATA, None, None)
SPLIT_ACTIVATIONS = P(DATA, None, MODEL)


def rms_normalize(x: jax.Array) -> jax.Array:
    """Divide by the root mean square over the last axis, in float32 (arXiv 1910.07467)."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + NORM_EPSILON)


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


class RMSNorm(nn.Module):
    """RMS normalisation with a gain, no bias."""

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """[B, T, D] → [B, T, D]."""
        gain_D = self.param("gain", initializers.ones, x_BTD.shape[-1:], jnp.float32, P(None))
        return (rms_normalize(x_BTD) * gain_D[None, None]).astype(x_BTD.dtype)


class Linear(nn.Module):
    """x @ W, the one matrix product of the model: no bias."""

    features: int
    spec: P  # of W[in, out]
    out: P  # of the result
    scale: float = 1.0  # of the initial standard deviation, against 1/√in; 0 starts at zero

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """[B, T, in] → [B, T, features]."""
        fan_in = x_BTD.shape[-1]
        weight = self.param(
            "weight",
            initializers.normal(self.scale * fan_in**-0.5),
            (fan_in, self.features),
            jnp.float32,
            self.spec,
        )
        return jnp.einsum("BTD,DF->BTF", x_BTD, weight.astype(x_BTD.dtype), out_sharding=self.out)


def _column(features: int, name: str) -> Linear:
    return Linear(features, spec=P(None, MODEL), out=SPLIT_ACTIVATIONS, name=name)


def _row(features: int, scale: float, name: str) -> Linear:
    return Linear(features, spec=P(MODEL, None), out=ACTIVATIONS, scale=scale, name=name)


class Attention(nn.Module):
    """Multi-head causal self-attention with rotary positions and RMS-normalised q and k."""

    cfg: StackConfig
    out_scale: float

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """[B, T, D] → [B, T, D]."""
        B, T, D = x_BTD.shape
        heads = (B, T, self.cfg.heads, self.cfg.head_dim)
        q, k, v = (
            jnp.reshape(_column(D, f"{name}_proj")(x_BTD), heads, out_sharding=HEADS)
            for name in "qkv"
        )
        q, k = (rope(rms_normalize(x)).astype(v.dtype) for x in (q, k))
        y_BTHK = causal_attention(q, k, v)
        y_BTD = jnp.reshape(y_BTHK, (B, T, D), out_sharding=SPLIT_ACTIVATIONS)
        return _row(D, self.out_scale, "o_proj")(y_BTD)


class FeedForward(nn.Module):
    """fc1, GELU (tanh form, arXiv 1606.08415), fc2."""

    cfg: StackConfig
    out_scale: float

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """[B, T, D] → [B, T, D]."""
        y_BTF = jax.nn.gelu(_column(self.cfg.ffn, "fc1")(x_BTD))
        return _row(x_BTD.shape[-1], self.out_scale, "fc2")(y_BTF)


class Block(nn.Module):
    """One pre-norm layer: x + attention(norm(x)), then x + FFN(norm(x))."""

    cfg: StackConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array, _: None) -> tuple[jax.Array, None]:
        """[B, T, D] → [B, T, D], in the carry form that scanning wants."""
        # Residual branches start small, so that depth does not change the scale of the sum.
        out_scale = (2 * self.cfg.layers) ** -0.5
        x_BTD += Attention(self.cfg, out_scale, name="attn")(RMSNorm(name="attn_norm")(x_BTD))
        x_BTD += FeedForward(self.cfg, out_scale, name="ffn")(RMSNorm(name="ffn_norm")(x_BTD))
        return x_BTD, None


def stack(cfg: StackConfig, name: str, remat: bool = False) -> nn.Module:
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
        variable_axes={"params": 0, "intermediates": 0},  # captured by calibration alone
        split_rngs={"params": True},
        length=cfg.layers,
    )
    return scanned(cfg, name=name)
