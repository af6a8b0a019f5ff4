"""Smoothing and static scales: what calibration found, worked into the weights before rounding.

Everything here keeps the float function as it is and only moves factors between neighbours:

- *smoothing* (SmoothQuant, arXiv 2211.10438, α = ½): a channel that is large on the way into a
  matrix is divided by σ, and the matrix row multiplied by it. The division is part of the gain
  before the matrix: a norm's own gain, or one that exists for this (``attn.o_proj.gain``,
  ``ffn.fc2.gain``);
- *static keys and values*: one scale per channel, from calibration. The keys' stands in
  ``attn.k.gain`` and its inverse in ``attn.q.gain``; the values' is divided out of ``v_proj``
  and comes back in ``attn.o_proj.gain``.

A channel that is zero throughout takes no part: it must not cost the others bits of a shared
exponent.
"""

import math
from collections.abc import Iterable

import numpy as np

from s7jax.integer.sealed import NARROW
from s7jax.quantize.calibrate import Ranges

HEADROOM = 8  # times what calibration saw fits into a residual stream

Tensors = dict[str, np.ndarray]


def group_of(name: str) -> str:
    """What is smoothed together with a tensor: its layer, or the component outside of layers."""
    component, _, rest = name.partition(".")
    layer = rest.partition(".")[0]
    return f"{component}.{layer}" if layer.startswith("layer") else component


def smoothed(group: str, tensors: Iterable[tuple[str, np.ndarray]], ranges: Ranges) -> Tensors:
    """The tensors to round for one group's, float64 by sealed name; ``residual`` is fraction bits.

    Args:
        group: as :func:`group_of` names it.
        tensors: all parameters of the group by sealed name.
        ranges: what calibration found.
    """
    result = {name: tensor.astype(np.float64) for name, tensor in tensors}
    if "." in group:
        _smooth_layer(result, group, ranges)
    elif f"{group}.in_proj.weight" in result:
        _smooth(result, f"{group}.in_norm", [f"{group}.in_proj"], ranges)
        _smooth(result, f"{group}.out_norm", [f"{group}.out_proj"], ranges)
    if group in ranges.streams:
        result[f"{group}.residual"] = np.array([_fraction_bits(ranges.streams[group])])
    return result


def _smooth_layer(tensors: Tensors, layer: str, ranges: Ranges) -> None:
    attn, ffn = f"{layer}.attn", f"{layer}.ffn"
    key = _static_scale(ranges.usual[f"{attn}.k"])
    value = _static_scale(ranges.usual[f"{attn}.v"])
    tensors[f"{attn}.q.gain"], tensors[f"{attn}.k.gain"] = key, 1 / key
    tensors[f"{attn}.v_proj.weight"] /= value
    tensors[f"{attn}.o_proj.gain"] = value
    tensors[f"{ffn}.fc2.gain"] = np.ones(len(tensors[f"{ffn}.fc2.weight"]))
    _smooth(tensors, f"{layer}.attn_norm", [f"{attn}.{p}_proj" for p in "qkv"], ranges)
    _smooth(tensors, f"{attn}.o_proj", [f"{attn}.o_proj"], ranges)
    _smooth(tensors, f"{layer}.ffn_norm", [f"{ffn}.fc1"], ranges)
    _smooth(tensors, f"{ffn}.fc2", [f"{ffn}.fc2"], ranges)


def _smooth(tensors: Tensors, gained: str, matrices: list[str], ranges: Ranges) -> None:
    """Divide the gain of ``gained`` by σ and multiply the rows of the matrices it feeds by σ."""
    weights = [tensors[f"{name}.weight"] for name in matrices]
    rows = np.max([np.abs(w).max(axis=1) for w in weights], axis=0)
    sigma = _sigma(ranges.largest[matrices[0]], rows)
    tensors[f"{gained}.gain"] = tensors[f"{gained}.gain"] / sigma
    for name, weight in zip(matrices, weights, strict=True):
        tensors[f"{name}.weight"] = weight * sigma[:, None]


def _sigma(activations: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """√(largest activation / largest weight) of each channel, their middle moved to 1.

    1 for a channel that is zero on either side: it needs no room, and gets none from the others.
    """
    used = (activations > 0) & (rows > 0)
    if not used.any():
        return np.ones(len(rows))
    sigma = np.sqrt(_floored(activations) / _floored(rows))
    sigma /= math.exp(np.log(sigma[used]).mean())  # only ratios matter
    return np.where(used, sigma, 1.0)


def _static_scale(usual: np.ndarray) -> np.ndarray:
    """The scale of int8 per channel; a channel that was always zero takes the largest."""
    return np.where(usual > 0, _floored(usual), usual.max() or 1.0) / NARROW


def _floored(values: np.ndarray) -> np.ndarray:
    """Values with none below a millionth of the largest: ratios stay within a gain's reach."""
    return np.maximum(values, float(values.max()) * 1e-6)


def _fraction_bits(peak: float) -> int:
    """Of a residual stream: ``peak · HEADROOM`` stays below 2^29."""
    return min(26, 29 - math.frexp(max(peak, 1e-6) * HEADROOM)[1])
