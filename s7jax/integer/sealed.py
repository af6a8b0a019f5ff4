"""What sealed tensors mean to the integer model: gains, formats, and bounds of its sums."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from s7jax.architecture import Architecture
from s7jax.errors import InputError
from s7jax.integer.tables import PROBABILITY_ONE

LIMIT = (1 << 30) - 1  # what saturating operators never exceed
NARROW, SHORT = 127, 32_767  # largest int8, and largest value of 15 bits
LOGIT_BITS = 16  # fraction bits of logits and of router logits


def short_gain(mantissa: NDArray[Any]) -> NDArray[np.int32]:
    """15 bits of a gain, which are all that its product can hold: 16 of 31 are rounded off."""
    short = ((mantissa.astype(np.int32) >> 1) + (1 << 14)) >> 15
    return np.clip(short, -SHORT, SHORT).astype(np.int32)


def fraction_bits(name: str, mantissa: NDArray[Any], exponent: int) -> int:
    """Of a residual stream.

    Raises:
        InputError: not a format that the shifts hold.
    """
    if exponent != 31 or not -16 <= int(mantissa[0]) <= 29:
        raise InputError(
            f"{name}: {int(mantissa[0])} with exponent {exponent}; expected −16..29 and 31"
        )
    return int(mantissa[0])


def check_bounds(cfg: Architecture) -> None:
    """Refuse dimensions with which a sum of products could leave 31 bits.

    Raises:
        InputError: with the sum and its bound.
    """
    sums = {
        "probabilities of a row": PROBABILITY_ONE * cfg.context,
        "weighted values of a row": NARROW * NARROW * cfg.context,
        "squares of a token": cfg.trunk.hidden << 10,
    }
    for name, stack in (("trunk", cfg.trunk), ("expert", cfg.expert)):
        for what, size in (("hidden", stack.hidden), ("ffn", stack.ffn)):
            sums[f"products over {name} {what}"] = NARROW * NARROW * size * 3 // 2
    for what, bound in sums.items():
        if bound > LIMIT:
            raise InputError(
                f"{what} can reach {bound}, beyond {LIMIT}: the dimensions are too large"
            )
