"""The routing rule: which expert answers at which position (one rule, everywhere)."""

import jax
import jax.numpy as jnp


def windowed_evidence(evidence_BTE: jax.Array, window: int) -> jax.Array:
    """Sum of each position's router logits and those of the ``window - 1`` before it.

    Fewer at the start of a sequence. float32 [B, T, E] → float32 [B, T, E].
    """
    padding = [(0, 0), (window - 1, 0), (0, 0)]
    return jax.lax.reduce_window(
        evidence_BTE, jnp.float32(0), jax.lax.add, (1, window, 1), (1, 1, 1), padding
    )


def route(evidence_BTE: jax.Array, window: int) -> jax.Array:
    """Expert per position, int32 [B, T]: the largest windowed evidence, ties to the lowest."""
    return jnp.argmax(windowed_evidence(evidence_BTE, window), axis=-1).astype(jnp.int32)
