"""Causal attention: one function, computed in the way that suits the devices of the mesh.

Plain attention goes over the queries in pieces, each against the keys it can see: half the
products of the whole square, and scores of [T, T] never exist. On NVIDIA GPUs in bfloat16
cuDNN's flash attention is used, on TPUs the Pallas kernel; both keep scores in fast memory.
Shape suffixes: B batch, T query time, S key time, H heads, K head width.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from s7jax.mesh import DATA, MODEL

HEADS = P(DATA, None, MODEL, None)
PIECES = 4  # that the queries of a sequence are cut into
SMALLEST = 32  # queries in a piece; below, more products cost more than they save
TPU_BLOCK = 128  # positions; the TPU kernel takes whole blocks


def causal_attention(q_BTHK: jax.Array, k_BSHK: jax.Array, v_BSHK: jax.Array) -> jax.Array:
    """Softmax attention of each position over itself and those before it; float32 scores.

    Runs under an explicit mesh, whose devices decide how (:func:`kernel`).
    """
    match kernel(q_BTHK.dtype, q_BTHK.shape[1]):
        case "cudnn":
            return _on_each_device(_cudnn, q_BTHK, k_BSHK, v_BSHK)
        case "tpu":
            return _on_each_device(_tpu, q_BTHK, k_BSHK, v_BSHK)
    return plain_attention(q_BTHK, k_BSHK, v_BSHK)


def kernel(dtype: jnp.dtype, length: int) -> str:
    """``cudnn``, ``tpu`` or ``plain``: what the devices of the ambient mesh have for it."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None or dtype != jnp.bfloat16:
        return "plain"
    if device.platform == "tpu" and length % TPU_BLOCK == 0:
        return "tpu"
    return "cudnn" if "NVIDIA" in device.device_kind else "plain"


def plain_attention(q_BTHK: jax.Array, k_BSHK: jax.Array, v_BSHK: jax.Array) -> jax.Array:
    """Attention as two products and a softmax, for one piece of the queries after another."""
    T = q_BTHK.shape[1]
    piece = max(-(-T // PIECES), min(SMALLEST, T))
    parts = [
        _piece(q_BTHK[:, at : at + piece], k_BSHK[:, : at + piece], v_BSHK[:, : at + piece])
        for at in range(0, T, piece)
    ]
    return jnp.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]


def _piece(q_BTHK: jax.Array, k_BSHK: jax.Array, v_BSHK: jax.Array) -> jax.Array:
    """The last T of S positions as queries."""
    T, S, K = q_BTHK.shape[1], k_BSHK.shape[1], q_BTHK.shape[3]
    score_BHTS = scores(q_BTHK, k_BSHK)
    visible_TS = jnp.tril(jnp.ones((T, S), jnp.bool_), S - T)
    score_BHTS = jnp.where(visible_TS[None, None], score_BHTS * K**-0.5, jnp.finfo(jnp.float32).min)
    weight_BHTS = jax.nn.softmax(score_BHTS).astype(v_BSHK.dtype)
    return jnp.einsum("BHTS,BSHK->BTHK", weight_BHTS, v_BSHK)


@jax.custom_vjp
def scores(q_BTHK: jax.Array, k_BSHK: jax.Array) -> jax.Array:
    """Inner products of queries and keys, float32 [B, H, T, S].

    Their gradients are written so that no thread count changes their bits, as those of
    :func:`s7jax.model.layers.product` are.
    """
    return jnp.einsum("BTHK,BSHK->BHTS", q_BTHK, k_BSHK, preferred_element_type=jnp.float32)


def _scores(q_BTHK: jax.Array, k_BSHK: jax.Array) -> tuple[jax.Array, Any]:
    return scores(q_BTHK, k_BSHK), (q_BTHK, k_BSHK)


def _gradients(factors: Any, d_BHTS: jax.Array) -> tuple[jax.Array, jax.Array]:
    q_BTHK, k_BSHK = factors
    # float32 by bfloat16, which einsum would not take
    product = partial(jax.lax.dot_general, preferred_element_type=jnp.float32)
    dq_BHTK = product(d_BHTS, k_BSHK, (((3,), (1,)), ((0, 1), (0, 2))))
    dk_BHKS = product(q_BTHK, d_BHTS, (((1,), (2,)), ((0, 2), (0, 1))))
    return (
        jnp.transpose(dq_BHTK, (0, 2, 1, 3)).astype(q_BTHK.dtype),
        jnp.transpose(dk_BHKS, (0, 3, 1, 2)).astype(k_BSHK.dtype),
    )


scores.defvjp(_scores, _gradients)


def _on_each_device(attend: Callable[..., jax.Array], *qkv: jax.Array) -> jax.Array:
    """A kernel on the sequences and heads that each device holds: no partitioner cuts kernels."""
    return jax.shard_map(attend, in_specs=(HEADS,) * 3, out_specs=HEADS, check_vma=False)(*qkv)


def _cudnn(q_BTHK: jax.Array, k_BSHK: jax.Array, v_BSHK: jax.Array) -> jax.Array:
    return jax.nn.dot_product_attention(
        q_BTHK, k_BSHK, v_BSHK, is_causal=True, implementation="cudnn"
    )


def _tpu(q_BTHK: jax.Array, k_BSHK: jax.Array, v_BSHK: jax.Array) -> jax.Array:
    # Half a second of imports that no other device needs.
    from jax.experimental.pallas.ops.tpu import flash_attention as tpu  # noqa: PLC0415

    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q_BTHK, k_BSHK, v_BSHK))
    scale = q_BTHK.shape[3] ** -0.5
    return jnp.swapaxes(tpu.flash_attention(q, k, v, causal=True, sm_scale=scale), 1, 2)
