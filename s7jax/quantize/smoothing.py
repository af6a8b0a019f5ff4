"""Folds: what calibration found, worked into the weights before they are quantised.

Everything here keeps the float function as it is and only moves factors between neighbours:

- *smoothing* (SmoothQuant, arXiv 2211.10438, α = ½): a channel that is large on the way into a
  matrix is divided by σ, and the matrix row multiplied by it. The division is part of the gain
  in front: a norm's own gain, or one that exists for this (``attn.o_proj.gain``,
  ``ffn.fc2.gain``);
- *static keys and values*: one scale per channel, from calibration. The keys' stands in
  ``attn.k.gain`` and its inverse in ``attn.q.gain``; the values' is divided out of ``v_proj``
  and comes back in ``attn.o_proj.gain``.
"""

import math

import numpy as np

from s7jax.architecture import Architecture
from s7jax.integer.operators import NARROW
from s7jax.quantize.calibrate import Ranges

HEADROOM = 8  # times what calibration saw fits into a residual stream

Tensors = dict[str, np.ndarray]


def fold(cfg: Architecture, tensors: Tensors, ranges: Ranges) -> Tensors:
    """The tensors to quantise, float64, by sealed name; ``residual`` ones are fraction bits.

    Args:
        cfg: the model.
        tensors: every parameter by name, layers apart.
        ranges: what calibration found.
    """
    folded = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    segments = {"trunk": cfg.trunk} | {f"expert{e}": cfg.expert for e in range(len(cfg.domains))}
    for segment, stack in segments.items():
        for layer in (f"{segment}.layer{i}" for i in range(stack.layers)):
            _fold_layer(folded, layer, ranges)
        if segment != "trunk":
            _smooth(folded, f"{segment}.in_norm", [f"{segment}.in_proj"], ranges)
            _smooth(folded, f"{segment}.out_norm", [f"{segment}.out_proj"], ranges)
        peak = float(ranges.largest[f"{segment}.residual"].max())
        folded[f"{segment}.residual"] = np.array([_fraction_bits(peak)])
    return folded


def _fold_layer(folded: Tensors, layer: str, ranges: Ranges) -> None:
    attn, ffn = f"{layer}.attn", f"{layer}.ffn"
    key = _nonzero(ranges.usual[f"{attn}.k"]) / NARROW
    value = _nonzero(ranges.usual[f"{attn}.v"]) / NARROW
    folded[f"{attn}.q.gain"], folded[f"{attn}.k.gain"] = key, 1 / key
    folded[f"{attn}.v_proj.weight"] /= value
    folded[f"{attn}.o_proj.gain"] = value
    folded[f"{ffn}.fc2.gain"] = np.ones(len(folded[f"{ffn}.fc2.weight"]))
    _smooth(folded, f"{layer}.attn_norm", [f"{attn}.{p}_proj" for p in "qkv"], ranges)
    _smooth(folded, f"{attn}.o_proj", [f"{attn}.o_proj"], ranges)
    _smooth(folded, f"{layer}.ffn_norm", [f"{ffn}.fc1"], ranges)
    _smooth(folded, f"{ffn}.fc2", [f"{ffn}.fc2"], ranges)


def _smooth(folded: Tensors, place: str, matrices: list[str], ranges: Ranges) -> None:
    """Divide the gain of ``place`` by σ and multiply the matrices' rows by it."""
    weights = [folded[f"{name}.weight"] for name in matrices]
    rows = np.max([np.abs(w).max(axis=1) for w in weights], axis=0)
    sigma = np.sqrt(_nonzero(ranges.largest[place]) / _nonzero(rows))
    sigma /= math.exp(np.log(sigma).mean())  # in the middle around 1: only ratios matter
    folded[f"{place}.gain"] = folded[f"{place}.gain"] / sigma
    for name, weight in zip(matrices, weights, strict=True):
        folded[f"{name}.weight"] = weight * sigma[:, None]


def _nonzero(values: np.ndarray) -> np.ndarray:
    """Values with what is zero (a dead channel) raised to a millionth of the largest."""
    return np.maximum(values, max(float(values.max()) * 1e-6, 1e-30))


def _fraction_bits(peak: float) -> int:
    """Of a residual stream: ``peak · HEADROOM`` stays below 2^30."""
    return min(26, 29 - math.frexp(max(peak, 1e-6) * HEADROOM)[1])
