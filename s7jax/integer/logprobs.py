"""Log-probabilities of tokens, in integers: what the logits say, before temperature and bias."""

import numpy as np
from numpy.typing import NDArray

from s7jax.integer.sampling import FARTHEST, SHARE_BITS, minus_ln, shares
from s7jax.integer.tables import LN_BITS, NOISE_BITS, ln

BITS = NOISE_BITS  # fraction bits, as of the logits


def logprobs(logits_V: NDArray[np.int32]) -> NDArray[np.int64]:
    """ln softmax of logits int32 [V]: int64 [V], at most 0, 16 fraction bits.

    Error ≤ 2^-16 (half a unit from rounding; shares and logarithm add less than 2^-25).
    """
    below_V = logits_V.max() - logits_V.astype(np.int64)
    total = shares(np.minimum(below_V, FARTHEST).astype(np.int32)).sum()  # 1 to V, 42 bits
    ln_total = (64 - SHARE_BITS) * int(ln()[-1]) - int(minus_ln(total.astype(np.uint64)[None])[0])
    rounded = (ln_total + (1 << (LN_BITS - BITS - 1))) >> (LN_BITS - BITS)
    return -below_V - max(rounded, 0)


def best(logprobs_V: NDArray[np.int64], count: int) -> list[int]:
    """Ids of the ``count`` most likely tokens; ties go to the lowest id."""
    if not 0 < count < len(logprobs_V):
        return np.argsort(-logprobs_V, kind="stable")[:count].tolist()
    least = np.partition(logprobs_V, -count)[-count]
    some = np.flatnonzero(logprobs_V >= least)
    return some[np.argsort(-logprobs_V[some], kind="stable")][:count].tolist()
