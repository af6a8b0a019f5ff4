"""Which token comes next, in integers: greedy, or sampled by the Gumbel-max rule.

A token is drawn by adding noise −ln(−ln u) to each logit over the temperature and taking the
largest (Gumbel-max; arXiv 1411.0030). The noise of a token at a position is a pure function of
(seed, position, token id): Threefry-2x32 with 20 rounds (Salmon et al., SC 2011), and a table of
logarithms. Everything is NumPy on integers of up to 64 bits; nothing here depends on how the
logits were computed. A token whose share is below e^-40 of the largest is never drawn.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from s7jax.errors import UsageError
from s7jax.integer import tables
from s7jax.integer.fixed import rsr
from s7jax.integer.sealed import LIMIT, LOGIT_BITS

ONE = 1 << 16  # temperature, top-p and biases count in 1/65,536
MOST_BIASES = 256  # fewer than any vocabulary has, so that no bias of all tokens alike is one
BIAS_LIMIT = 100 * ONE
FARTHEST = 40 << LOGIT_BITS  # tokens more than 40 (after temperature) below the first never win
SHARE_BITS = 42  # fraction bits of a token's share
LN_BITS = tables.LN_BITS
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen; the defaults are greedy."""

    temperature_q16: int = 0  # in 1/65,536; 0 is greedy
    top_k: int = 0  # only the k most likely tokens; 0: all
    top_p_q16: int = ONE  # only the most likely tokens that hold this share together
    seed: int = 0
    logit_bias: tuple[tuple[int, int], ...] = ()  # (id, what is added to its logit, in 1/65,536)

    def __post_init__(self) -> None:
        limits = {
            "temperature_q16": (0, 1 << 24),
            "top_k": (0, 1 << 20),
            "top_p_q16": (1, ONE),
            "seed": (0, (1 << 32) - 1),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise UsageError(f"{name} is {value!r}; expected an integer in {low}..{high}")
        if len(self.logit_bias) > MOST_BIASES:
            raise UsageError(f"logit_bias has {len(self.logit_bias)} ids; at most {MOST_BIASES}")
        if any(not -BIAS_LIMIT <= bias <= BIAS_LIMIT for _, bias in self.logit_bias):
            raise UsageError("logit_bias: expected values from -100 to 100")


def choose(logits_V: np.ndarray, position: int, how: Sampling) -> int:
    """The token that follows ``position``: of logits int32 [V], 16 fraction bits.

    Ties go to the lowest id.
    """
    logits_V = _biased(logits_V, how.logit_bias)
    if how.temperature_q16 == 0:
        return int(logits_V.argmax())
    below_V = _below(logits_V, how.temperature_q16)
    kept_V = below_V <= FARTHEST
    if how.top_k or how.top_p_q16 < ONE:
        kept_V &= _likely(logits_V, below_V, how)
    noisy_V = noise(how.seed, position, len(logits_V)) - np.minimum(below_V, FARTHEST)
    return int(np.where(kept_V, noisy_V, np.iinfo(np.int32).min).argmax())


def noise(seed: int, position: int, count: int) -> NDArray[np.int32]:
    """−ln(−ln u) for tokens 0 … count − 1, 16 fraction bits: int32 [count].

    u has 64 random bits, taken as its distance v = 1 − u from 1, so the right tail is that of
    −ln v down to 2^-64: of 24,576 equal tokens each wins as often as any other. Error ≤ 2^-16
    (half a unit from rounding; the logarithms add less than 2^-19).
    """
    x, y = threefry((seed, 0), np.full(count, position, np.uint32), np.arange(count))
    v = x.astype(np.uint64) << np.uint64(32) | y.astype(np.uint64) | np.uint64(1)
    # −ln(1 − v) = v (1 + v/2 + …): for v < 2^-12 the rest is below 2^-26.
    tail = minus_ln(v) - (v >> np.uint64(65 - LN_BITS)).astype(np.int64)
    exponential = minus_ln(-v)  # −ln u, 31 fraction bits
    ln_2 = int(tables.ln()[-1])
    body = minus_ln(exponential.astype(np.uint64)) - (64 - LN_BITS) * ln_2
    fine = np.where(v < 1 << 52, tail, body)
    return rsr(fine, LN_BITS - tables.NOISE_BITS).astype(np.int32)


def minus_ln(x: NDArray[np.uint64]) -> NDArray[np.int64]:
    """−ln(x / 2^64) of each x ≥ 1, 31 fraction bits; error ≤ 2^-26.

    Leading zeros give the whole octaves, a table of 4,096 intervals the rest, linear in between.
    """
    zeros = np.zeros(len(x), np.uint64)
    for step in map(np.uint64, (32, 16, 8, 4, 2, 1)):
        free = x >> (np.uint64(64) - step) == 0
        x, zeros = np.where(free, x << step, x), np.where(free, zeros + step, zeros)
    entry = (x >> np.uint64(51)).astype(np.int64) - tables.LN_INTERVALS
    between = (x >> np.uint64(20)).astype(np.int64) & ((1 << LN_BITS) - 1)
    table = tables.ln().astype(np.int64)
    ln_x = table[entry] + rsr((table[entry + 1] - table[entry]) * between, LN_BITS)
    return (zeros.astype(np.int64) + 1) * table[-1] - ln_x


def shares(below: NDArray[np.int64]) -> NDArray[np.int64]:
    """``e^-below`` of values from 0 to :data:`FARTHEST`, 42 fraction bits: int64.

    Relative error ≤ 2^-29, absolute ≤ 2^-43: a sum over 24,576 tokens is exact to 2^-27 of its
    value, which is at least the largest share, 1.
    """
    table, x = tables.exp().astype(np.int64), below.astype(np.int64)
    coarse, fine = x >> 11, x & (tables.EXP_FINE - 1)
    product = table[coarse] * table[tables.EXP_COARSE + fine]  # below 2^61
    return rsr(product, np.minimum(tables.exp_bits(coarse) + 30 - SHARE_BITS, 62))


def threefry(key: tuple[int, int], x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Threefry-2x32, 20 rounds: uint32 arrays in, uint32 arrays out."""
    first, second = np.uint32(key[0]), np.uint32(key[1])
    keys = (first, second, first ^ second ^ np.uint32(0x1BD11BDA))
    x, y = x.astype(np.uint32), y.astype(np.uint32)
    with np.errstate(over="ignore"):  # additions are modulo 2^32
        x, y = x + keys[0], y + keys[1]
        for block in range(5):
            for r in _ROTATIONS[block % 2]:
                x = x + y
                y = ((y << np.uint32(r)) | (y >> np.uint32(32 - r))) ^ x
            x = x + keys[(block + 1) % 3]
            y = y + keys[(block + 2) % 3] + np.uint32(block + 1)
    return x, y


def _biased(logits_V: np.ndarray, bias: tuple[tuple[int, int], ...]) -> np.ndarray:
    """The logits int32 [V] with what is added to some, within ±(2^30 − 1)."""
    if not bias:
        return logits_V
    ids, values = zip(*bias, strict=True)
    logits_V = logits_V.copy()
    logits_V[list(ids)] += np.array(values, np.int32)
    return np.clip(logits_V, -LIMIT, LIMIT)


def _below(logits_V: np.ndarray, temperature_q16: int) -> NDArray[np.int64]:
    """How far each logit is below the largest, over the temperature: 16 bits, rounded half up."""
    down_V = logits_V.max() - logits_V.astype(np.int64)
    return (down_V * ONE + temperature_q16 // 2) // temperature_q16


def _likely(logits_V: np.ndarray, below_V: np.ndarray, how: Sampling) -> np.ndarray:
    """Mask of the top-k and of the top-p tokens, in order of logits, then ids: bool [V]."""
    order = np.argsort(-logits_V, kind="stable")
    count = min(how.top_k or len(order), len(order))
    share_V = shares(np.minimum(below_V, FARTHEST))[order[:count]]
    # total < 2^62 for the largest vocabulary: Python's integers take the product.
    wanted = -(-int(share_V.sum()) * how.top_p_q16 // ONE)
    reached = int(np.searchsorted(np.cumsum(share_V), wanted)) + 1
    mask = np.zeros(len(logits_V), np.bool_)
    mask[order[: min(count, reached)]] = True
    return mask
