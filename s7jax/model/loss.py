"""The next-token loss: head and cross-entropy in chunks of the sequence, forward and backward.

Logits of the whole, [B, T, V], never exist, and a chunk's logits are made once: the forward
pass already leaves the gradient with respect to what the head read, and the sum over chunks of
the gradient of the table; the backward pass only scales them.
Shape suffixes: B batch, T time, D hidden, V vocabulary, C chunks.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from s7jax.architecture import Architecture
from s7jax.config import ComputeConfig
from s7jax.mesh import MODEL
from s7jax.model.language_model import Params, normalize, table_products
from s7jax.model.layers import ACTIVATIONS

TABLE = P(MODEL, None)


def cross_entropy(logits_BTV: jax.Array, labels_BT: jax.Array) -> jax.Array:
    """Negative log-likelihood per position in nats, float32 [B, T].

    Written as sums over the vocabulary, so that logits split over ``model`` stay split.
    """
    at_label_BTV = _at_label(logits_BTV, labels_BT)
    label_logit_BT = jnp.sum(jnp.where(at_label_BTV, logits_BTV, 0.0), axis=-1)
    return jax.nn.logsumexp(logits_BTV, axis=-1) - label_logit_BT


def mean_loss(
    cfg: Architecture,
    compute: ComputeConfig,
    params: Params,
    h_BTD: jax.Array,
    labels_BT: jax.Array,
) -> jax.Array:
    """Mean next-token loss of what trunk or expert gave, float32, in nats."""
    x_BTD = normalize(cfg, params, h_BTD)
    chunk = compute.loss_chunk or labels_BT.shape[1]
    return _total(chunk)(x_BTD, params["embedding"]["weight"], labels_BT) / labels_BT.size


def losses(
    cfg: Architecture,
    compute: ComputeConfig,
    params: Params,
    h_BTD: jax.Array,
    labels_BT: jax.Array,
) -> jax.Array:
    """Next-token loss of every position of what trunk or expert gave, float32 [B, T], in nats."""

    def add(nothing: None, piece: Any) -> tuple[None, jax.Array]:
        x, labels = piece
        return nothing, cross_entropy(table_products(x, params["embedding"]["weight"]), labels)

    x_BTD = normalize(cfg, params, h_BTD)
    chunk = compute.loss_chunk or labels_BT.shape[1]
    return _over_chunks(add, None, (x_BTD, labels_BT), chunk)[1]


@cache
def _total(chunk: int) -> Callable[..., jax.Array]:
    """``(x_BTD, weight_VD, labels_BT) → `` sum over all positions of the loss, float32."""

    @jax.custom_vjp
    def total_loss(x_BTD: jax.Array, weight_VD: jax.Array, labels_BT: jax.Array) -> jax.Array:
        def add(total: jax.Array, piece: Any) -> tuple[jax.Array, None]:
            x, labels = piece
            return total + jnp.sum(cross_entropy(table_products(x, weight_VD), labels)), None

        return _over_chunks(add, jnp.float32(0), (x_BTD, labels_BT), chunk)[0]

    def forward(x: Any, weight: Any, labels: Any) -> tuple[jax.Array, Any]:
        """The total, and its gradients with respect to x and, where it is trained, the table."""
        weight_VD, trained = weight.value, weight.perturbed
        factor_VD = weight_VD.astype(x.value.dtype)

        def add(sums: Any, piece: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
            (total, table_VD), (x_BTD, labels_BT) = sums, piece
            logits_BTV = table_products(x_BTD, weight_VD)
            total += jnp.sum(cross_entropy(logits_BTV, labels_BT))
            weight_BTV = jax.nn.softmax(logits_BTV)
            gradient_BTV = weight_BTV - _at_label(logits_BTV, labels_BT).astype(jnp.float32)
            gradient_BTV = gradient_BTV.astype(x_BTD.dtype)
            x_gradient = jnp.einsum(
                "BTV,VD->BTD", gradient_BTV, factor_VD, out_sharding=ACTIVATIONS
            )
            if trained:
                table_VD += jnp.einsum(
                    "BTV,BTD->VD",
                    gradient_BTV,
                    x_BTD,
                    preferred_element_type=jnp.float32,
                    out_sharding=TABLE,
                )
            return (total, table_VD), x_gradient

        sums = jnp.float32(0), jnp.zeros_like(weight_VD) if trained else None
        sums, x_gradient = _over_chunks(add, sums, (x.value, labels.value), chunk)
        return sums[0], (x_gradient, sums[1])

    def backward(saved: Any, cotangent: jax.Array) -> tuple[jax.Array, Any, None]:
        x_gradient, table_VD = saved
        scaled = None if table_VD is None else cotangent * table_VD
        x_scaled = cotangent * x_gradient.astype(jnp.float32)
        return x_scaled.astype(x_gradient.dtype), scaled, None

    total_loss.defvjp(forward, backward, symbolic_zeros=True)
    return total_loss


def _over_chunks(add: Any, start: Any, inputs: Any, chunk: int) -> tuple[Any, Any]:
    """Scan ``add`` over chunks of the time axis; what is left over comes last, alone.

    Like :func:`jax.lax.scan` it returns the carry and the outputs, here joined over time.
    """
    B, T = inputs[1].shape
    count, outputs = T // chunk, []

    def cut(x: jax.Array) -> jax.Array:
        whole = x[:, : count * chunk]
        return jnp.moveaxis(whole.reshape(B, count, chunk, *x.shape[2:]), 1, 0)

    def joined(x_CBTD: jax.Array) -> jax.Array:
        return jnp.moveaxis(x_CBTD, 0, 1).reshape(B, count * chunk, *x_CBTD.shape[3:])

    if chunk < T:
        start, ys = jax.lax.scan(add, start, jax.tree.map(cut, inputs))
        outputs.append(jax.tree.map(joined, ys))
        inputs = jax.tree.map(lambda x: x[:, count * chunk :], inputs)
    if inputs[1].size:
        start, y = add(start, inputs)
        outputs.append(y)
    return start, jax.tree.map(lambda *ys: jnp.concatenate(ys, axis=1), *outputs)


def _at_label(logits_BTV: jax.Array, labels_BT: jax.Array) -> jax.Array:
    token_BTV = jax.lax.broadcasted_iota(
        jnp.int32, logits_BTV.shape, 2, out_sharding=jax.typeof(logits_BTV).sharding
    )
    return token_BTV == labels_BT[..., None]
