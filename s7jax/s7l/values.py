"""Element types and the values a sealed tensor may hold."""

from typing import Any

import numpy as np

from s7jax.architecture import TensorSpec
from s7jax.s7l.schema import SealError


def little_endian(dtype: str) -> np.dtype[Any]:
    """The NumPy dtype of a sealed tensor, whatever the machine's own byte order."""
    return np.dtype(dtype).newbyteorder("<")


def check_values(array: np.ndarray[Any, Any], spec: TensorSpec, place: str) -> None:
    """Require |w| ≤ 127 in int8, no negative scale, and a residual format of −16..29 bits.

    Raises:
        SealError: the tensor holds a value that the integer runtime's bounds exclude.
    """
    lowest = int(array.min())
    if spec.dtype == "int8" and lowest == -128:
        raise SealError(place, f"value {int(np.argmin(array))} is -128; expected -127..127")
    if spec.name.endswith(".residual") and not -16 <= lowest <= 29:
        raise SealError(place, f"{lowest} fraction bits; expected -16..29")
    if spec.name.endswith(".scale") and lowest < 0:
        raise SealError(place, f"scale {int(np.argmin(array))} is {lowest}; expected none below 0")
