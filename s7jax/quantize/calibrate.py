"""Calibration: how large activations get, channel by channel, on held-out text.

Runs the float model and keeps, for every place where activations become integers, the largest
magnitude of each channel and its 99.99th percentile. Both come from exact counts (magnitudes in
eighths of an octave), so the order of the sequences does not matter.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from s7jax.architecture import Architecture, Stack
from s7jax.mesh import single
from s7jax.model.attention import causal_attention
from s7jax.model.language_model import Embedding, Expert, Params, Trunk
from s7jax.model.layers import rms_normalize, rope
from s7jax.terminal.progress import Progress

PERCENTILE = 0.9999
ROWS = 4  # sequences in one forward pass

_OCTAVE_BITS = 3  # bins of an eighth of an octave: the top bits of a float32 as an integer
_LOWEST = (127 - 20) << _OCTAVE_BITS  # magnitudes below 2^-20 share a bin
_BINS = 40 << _OCTAVE_BITS


@dataclass(frozen=True)
class Ranges:
    """What calibration found; every array is float64."""

    largest: dict[str, np.ndarray]  # place → [channels]
    usual: dict[str, np.ndarray]  # place → [channels]: the 99.99th percentile, never over largest
    sequences: dict[str, int]  # per domain


def calibrate(cfg: Architecture, params: Params, tokens: dict[str, np.ndarray]) -> Ranges:
    """Ranges over sequences int32 [N, context + 1] of every domain, each seen by every expert.

    Places carry the names of what reads them: ``trunk.layer0.attn_norm``, ``….attn.k`` (rotated
    keys), ``….attn.v``, ``….attn.o_proj``, ``….ffn.fc2``, ``expert0.in_norm``,
    ``trunk.residual``.
    """
    counts: dict[str, np.ndarray] = {}
    largest: dict[str, np.ndarray] = {}
    total = sum(len(rows) for rows in tokens.values())
    with Progress("calibrate", total, "sequences") as progress:
        for rows in tokens.values():
            for start in range(0, len(rows), ROWS):
                batch = rows[start : start + ROWS]
                filled = np.concatenate([batch, np.repeat(batch[:1], ROWS - len(batch), axis=0)])
                with jax.set_mesh(single()):
                    seen = _observe(cfg, params, filled[:, :-1])
                # Counting scatters; off the mesh that is plain.
                found = _count_all(jax.tree.map(np.asarray, seen), len(batch))
                for place, (bins, peak) in jax.tree.map(np.asarray, found).items():
                    counts[place] = counts.get(place, 0) + bins.astype(np.int64)
                    largest[place] = np.maximum(largest.get(place, 0.0), peak.astype(np.float64))
                progress.advance(len(batch))
    ranges = Ranges({}, {}, {domain: len(rows) for domain, rows in tokens.items()})
    for place, bins in counts.items():
        usual = np.minimum(_percentile(bins), largest[place])
        for name, at in _names(place, bins.ndim == 3, len(bins)):
            ranges.largest[name], ranges.usual[name] = largest[place][at], usual[at]
    return ranges


@partial(jax.jit, static_argnums=0)
def _observe(cfg: Architecture, params: Params, tokens_BT: jax.Array) -> dict[str, jax.Array]:
    """Place → what stands there, float32 [L, B, T, C] or [B, T, C]."""
    x_BTD = Embedding(cfg).apply({"params": params["embedding"]}, tokens_BT)
    capture: dict[str, Any] = {"capture_intermediates": _wanted, "mutable": ["intermediates"]}
    h_BTD, seen = Trunk(cfg).apply({"params": params["trunk"]}, x_BTD, **capture)
    found = _places("trunk", cfg.trunk, seen["intermediates"], [x_BTD, h_BTD])
    for e in range(len(cfg.domains)):
        name = f"expert{e}"
        _, seen = Expert(cfg).apply({"params": params[name]}, h_BTD, **capture)
        inner = seen["intermediates"]
        found |= _places(name, cfg.expert, inner, [_output(inner["in_proj"])])
        for norm in ("in_norm", "out_norm"):
            found[f"{name}.{norm}"] = _output(inner[norm])
    return found


@jax.jit
def _count_all(found: dict[str, jax.Array], used: int) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Place → bins and maxima per channel, over the first ``used`` rows."""
    return {place: _count(x, jnp.arange(x.shape[-3]) < used) for place, x in found.items()}


def _wanted(module: nn.Module, _: str) -> bool:
    return module.name is not None and module.name.endswith(("_norm", "_proj", "fc1", "layers"))


def _output(captured: Any) -> jax.Array:
    (value,) = captured["__call__"]
    return value


def _places(name: str, stack: Stack, seen: Any, streams: list[jax.Array]) -> dict[str, jax.Array]:
    """Captured outputs of a stack [L, B, T, C] → what is to become integers, by place."""
    layers = seen["layers"]
    attn = {key: _output(layers["attn"][f"{key}_proj"]) for key in "qkvo"}

    def heads(x_BTD: jax.Array) -> jax.Array:
        return x_BTD.reshape(*x_BTD.shape[:-1], stack.heads, stack.head_dim)

    q, k = (jax.vmap(rope)(rms_normalize(heads(attn[key]))) for key in "qk")
    y = jax.vmap(causal_attention)(q, k, heads(attn["v"]))
    flat = attn["v"].shape
    block = layers["__call__"][0][0]  # the residual stream behind each layer
    before = jnp.concatenate([streams[0][None], block[:-1]])
    streams = [*streams, block, before + attn["o"]]
    prefix = f"{name}.layers"
    return {
        f"{prefix}.attn_norm": _output(layers["attn_norm"]),
        f"{prefix}.attn.k": k.reshape(flat),
        f"{prefix}.attn.v": attn["v"],
        f"{prefix}.attn.o_proj": y.reshape(flat),
        f"{prefix}.ffn_norm": _output(layers["ffn_norm"]),
        f"{prefix}.ffn.fc2": jax.nn.gelu(_output(layers["ffn"]["fc1"])),
        f"{name}.residual": _peaks(streams),
    }


def _peaks(streams: list[jax.Array]) -> jax.Array:
    """The largest magnitude over layers and channels of each token: [B, T, 1]."""
    tops = [jnp.abs(s).max(axis=-1, keepdims=True) for s in streams]
    return jnp.stack([t.max(axis=0) if t.ndim == 4 else t for t in tops]).max(axis=0)


def _count(x: jax.Array, counted_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Bins and maxima per channel of x [L, B, T, C] or [B, T, C]; rows not counted left out."""
    if x.ndim == 4:
        return jax.vmap(lambda layer: _count(layer, counted_B))(x)
    size = jnp.where(counted_B[:, None, None], jnp.abs(x.astype(jnp.float32)), 0)
    size = size.reshape(-1, x.shape[-1])
    top = jax.lax.bitcast_convert_type(size, jnp.int32) >> (23 - _OCTAVE_BITS)
    index = jnp.clip(top - _LOWEST, 0, _BINS - 1)
    channel = jnp.arange(x.shape[-1]) * _BINS
    weight = (
        jnp.broadcast_to(counted_B[:, None, None], x.shape).reshape(size.shape).astype(jnp.int32)
    )
    bins = jnp.zeros(x.shape[-1] * _BINS, jnp.int32).at[index + channel].add(weight)
    return bins.reshape(-1, _BINS), size.max(axis=0)


def _percentile(bins: np.ndarray) -> np.ndarray:
    """Upper edge of the bin that holds the percentile: [..., channels]."""
    running = np.cumsum(bins, axis=-1)
    at = (running < PERCENTILE * running[..., -1:]).sum(axis=-1) + 1 + _LOWEST
    return (at << (23 - _OCTAVE_BITS)).astype(np.int32).view(np.float32).astype(np.float64)


def _names(place: str, layered: bool, layers: int) -> list[tuple[str, Any]]:
    if not layered:
        return [(place, slice(None))]
    return [(place.replace(".layers.", f".layer{i}.", 1), i) for i in range(layers)]
