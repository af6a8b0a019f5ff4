"""Rows in batches of one size, so that one compiled program serves all of them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray


def filled_batches(rows: NDArray[Any], size: int) -> Iterator[tuple[NDArray[Any], int]]:
    """Batches of exactly ``size`` rows, the last filled up with copies; and how many are real."""
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        copies = np.repeat(batch[:1], size - len(batch), axis=0)
        yield np.concatenate([batch, copies]), len(batch)
