"""Per-row INT8 quantisation (§5), exactly by the specification's formula.

``scale[j] = max|W[:, j]| / 127``, ``W_int8[:, j] = round(W[:, j] / scale[j])``: one scale per
output channel. What the specification leaves open: rounding is half to even, arithmetic is
float64 on the float32 weights, a zero column has scale 0. −128 never occurs.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from s7jax.errors import InputError


def check_finite(name: str, tensor: np.ndarray) -> None:
    """Refuse a tensor with NaN or infinity in it.

    Raises:
        InputError: with its name, and how many values are not finite.
    """
    if wrong := np.count_nonzero(~np.isfinite(tensor)):
        raise InputError(
            f"{name}: {wrong} of {tensor.size} values are NaN or infinite; expected finite ones. "
            "Training has diverged or the checkpoint is damaged: quantise an earlier one"
        )


def per_row_int8(weight: np.ndarray, axis: int) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """Quantise a matrix with one scale per index of ``axis``, its output channels.

    Returns:
        int8 of the same shape, float64 scales ``[weight.shape[axis]]``.
    """
    wide = weight.astype(np.float64)
    largest = np.abs(wide).max(axis=1 - axis, keepdims=True)
    scale = largest / 127.0
    # A zero column's scale of 0 leaves the shared exponent of all scales to the others.
    quantised = np.clip(np.round(wide / np.where(scale > 0, scale, 1.0)), -128, 127).astype(np.int8)
    return quantised, scale.ravel()


def fixed_point(values: np.ndarray) -> tuple[NDArray[np.int32], int]:
    """Real numbers as Q31 mantissas against one power of two: value ≈ m · 2^(exponent − 31).

    The exponent is the smallest with which every magnitude fits, so the relative error of the
    largest value is at most 2⁻³¹.
    """
    wide = values.astype(np.float64)
    _, exponent = np.frexp(np.abs(wide).max())
    mantissa = np.round(np.ldexp(wide, 31 - int(exponent)))
    top = float(2**31 - 1)
    return np.clip(mantissa, -top, top).astype(np.int32), int(exponent)


def round_tensor(name: str, tensor: np.ndarray) -> dict[str, tuple[np.ndarray, dict[str, Any]]]:
    """One smoothed tensor as the integer tensors that are sealed for it.

    A matrix ``X.weight`` becomes int8 ``X.weight`` and int32 ``X.scale``; a vector (gain, bias)
    becomes int32 fixed point under its own name; ``X.residual`` stays the integer it is.

    Returns:
        Name → (array, attributes): ``axis`` and ``scale`` of a matrix, ``exponent`` of fixed
        point.

    Raises:
        InputError: it holds NaN or infinity.
    """
    check_finite(name, tensor)
    if name.endswith(".residual"):
        return {name: (tensor.astype(np.int32), {"exponent": 31})}
    if tensor.ndim == 1:
        mantissa, exponent = fixed_point(tensor)
        return {name: (mantissa, {"exponent": exponent})}
    # The embedding is the transposed LM head: its output channels are the tokens, axis 0.
    axis = 0 if name == "embedding.weight" else 1
    scale_name = name.removesuffix("weight") + "scale"
    quantised, scale = per_row_int8(tensor, axis)
    mantissa, exponent = fixed_point(scale)
    return {
        name: (quantised, {"axis": axis, "scale": scale_name}),
        scale_name: (mantissa, {"exponent": exponent}),
    }
