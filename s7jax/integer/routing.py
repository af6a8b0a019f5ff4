"""The routing rule on integer router logits: one rule for whole sequences and for one position."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def route(logits_BTE: NDArray[np.int32], window: int) -> NDArray[np.int32]:
    """Expert of every position int32 [B, T], from the router logits of whole sequences."""
    # The running sum may wrap; the difference of two of its values is exact all the same.
    evidence = np.cumsum(logits_BTE, axis=1, dtype=np.int32)
    evidence[:, window:] -= evidence[:, :-window].copy()
    return _largest(evidence)


def route_last(logits: Sequence[NDArray[np.int32]], window: int) -> int:
    """Expert of the last position of one sequence, whose positions' logits are int32 [E] each."""
    return int(_largest(np.sum(logits[-window:], axis=0, dtype=np.int32)))


def _largest(evidence: NDArray[np.int32]) -> NDArray[Any]:
    """Ties go to the lowest expert."""
    return evidence.argmax(axis=-1).astype(np.int32)
