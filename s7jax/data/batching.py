"""Rows in batches of one size, the last one filled up."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

POSITIONS = 2_048  # of one forward pass in each data-parallel group


def full_batches(rows: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, NDArray[np.bool_]]]:
    """Batches of exactly ``size`` rows, in order, and which of their rows count: bool [size].

    The last batch is filled up with copies of its first row, which do not count.
    """
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        missing = size - len(batch)
        yield (
            np.concatenate([batch, np.repeat(batch[:1], missing, axis=0)]),
            (np.arange(size) < len(batch)),
        )


def group_rows(context: int, rows: int, groups: int) -> int:
    """Sequences of one forward pass in each of the data groups that share ``rows`` of them.

    :data:`POSITIONS` in all, so that memory does not grow with the preset; at least one sequence,
    and no more than there are.
    """
    return min(max(1, POSITIONS // context), -(-rows // groups))
