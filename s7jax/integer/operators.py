"""The operators of numeric scheme ``s7-int8-1``: int32 in, int32 out, nothing else in between.

Each works on NumPy and JAX arrays alike, one text for both. Every reduction is an integer sum or
maximum, so no result depends on the order of anything; every function but the reductions'
arguments looks at one token alone. Bounds are for inputs within the bounds stated; they are
computed from a model's dimensions and asserted when it is loaded
(:mod:`s7jax.integer.loading`).

Real numbers travel as pairs: a *scale* (m, e) stands for m · 2^e with 2^29 ≤ m < 2^30, or m = 0.
"""

from collections.abc import Callable
from math import isqrt
from typing import Any

import jax

from s7jax.integer import tables
from s7jax.integer.tables import EXP2_INTERVALS, GELU_BITS, GELU_RANGE, GELU_STEP, ROPE_BITS

Array = Any  # numpy.ndarray or jax.Array
Scale = tuple[Array, Array]

LIMIT = (1 << 30) - 1  # what saturating operators never exceed
NARROW, WIDE = 127, 127 * 128  # largest activation: one int8, or two of them (hi · 128 + lo)
SCORE_BITS = 16  # fraction bits of attention scores, in powers of two
GELU_IN_BITS = 12  # fraction bits of what GELU takes
LOG2_E = 1_663_351_252_389_300_929  # log2(e) · 2^60


def _keep(x: Array) -> Array:
    return x


def _along(m: Array, x: Array) -> Array:
    """``m`` of the last axes of ``x`` with as many axes as ``x``."""
    return m.reshape((1,) * (x.ndim - m.ndim) + m.shape)


def rsr(x: Array, k: Array | int) -> Array:
    """The one rounding rule: ``(x + (1 << (k − 1))) >> k`` for k in 1..30, x itself for k = 0."""
    return (x + ((1 << k) >> 1)) >> k


def mulhi(a: Array, b: Array) -> Array:
    """High 32 bits of the 64-bit product of two int32: ``floor(a · b / 2^32)``.

    Made of 16-bit halves (Warren, Hacker's Delight, §8-2), for machines without 64 bits.
    """
    xp = a.__array_namespace__()
    a_low, a_high, b_low, b_high = a & 0xFFFF, a >> 16, b & 0xFFFF, b >> 16
    low = (a_low.astype(xp.uint32) * b_low.astype(xp.uint32)) >> 16
    middle = a_high * b_low + low.astype(xp.int32)
    return a_high * b_high + (middle >> 16) + (((middle & 0xFFFF) + a_low * b_high) >> 16)


def shift(x: Array, k: Array) -> Array:
    """``x · 2^k``, rounded where k < 0, saturating at ±(2^30 − 1) where k > 0; |x| ≤ 2^30."""
    xp = x.__array_namespace__()
    left = xp.clip(k, 0, 30)
    bound = LIMIT >> left
    return rsr(xp.clip(x, -bound, bound) << left, xp.clip(-k, 0, 30))


def bits(x: Array) -> Array:
    """Bit length of each x ≥ 0."""
    if isinstance(x, jax.Array):
        return 32 - jax.lax.clz(x)  # the same number in one instruction
    xp = x.__array_namespace__()
    count = xp.zeros_like(x)
    for step in (16, 8, 4, 2, 1):
        high = (x >> step) > 0
        count, x = xp.where(high, count + step, count), xp.where(high, x >> step, x)
    return count + x


def scale(m: Array, e: Array | int) -> Scale:
    """The scale m · 2^e of any m from 0 to 2^31 − 1; exact below 2^30."""
    n = bits(m) - 30
    xp = m.__array_namespace__()
    return xp.where(n > 0, m >> 1, m << xp.clip(-n, 0, 30)), e + n


def scale_product(a: Scale, b: Scale) -> Scale:
    """Product of two scales; relative error ≤ 2^-28."""
    return scale(mulhi(a[0] << 1, b[0] << 1), a[1] + b[1] + 30)


def constant(numerator: int, bits_of_it: int, like: Array) -> Scale:
    """``numerator · 2^-bits_of_it`` as a scale, from an integer of any size."""
    xp, excess = like.__array_namespace__(), numerator.bit_length() - 30
    m = numerator >> excess if excess > 0 else numerator << -excess
    return xp.asarray(m, dtype=xp.int32), xp.asarray(excess - bits_of_it, dtype=xp.int32)


def normalize(x: Array, across: Callable[[Array], Array] = _keep) -> tuple[Array, Array, Array]:
    """The last axis in 15 bits: x ≈ y · 2^e, |y| ≤ top < 2^15, 2^14 ≤ top unless x = 0.

    Rounding error ≤ 2^-15 of the largest |x|. ``across`` takes the maximum over the shards of
    the axis.

    Returns:
        y like x; top and e [..., 1].
    """
    xp = x.__array_namespace__()
    largest = across(xp.max(xp.abs(x), axis=-1, keepdims=True))
    e = bits(largest) - 15
    y = xp.clip(shift(x, -e), -32_767, 32_767)
    return y, xp.minimum(shift(largest, -e), 32_767), e


def quantize(
    x: Array,
    gain: Array,
    exponent: Array | int,
    across: Callable[[Array], Array] = _keep,
    top: int = WIDE,
) -> tuple[Array, Scale]:
    """Dynamic activations: x · gain, the largest of a token's made ``top``.

    x is int32[..., n] in any format; gain int32[n] below 2^15, standing for gain · 2^exponent.
    Error ≤ ½ of a unit and 2^-14 of the largest value; the scale depends on this token alone.

    Returns:
        int32[..., n] within ±top, and the scale [..., 1] of one unit of ``top / 127``.
    """
    xp = x.__array_namespace__()
    y, _, e = normalize(x, across)
    y, largest, e2 = normalize(y * _along(gain, y), across)
    # The same quotient serves both: 127 << 23 = (127 · 128) << 16.
    inverse = (NARROW << 23) // xp.maximum(largest, 1)
    a = rsr(y * inverse, 23 if top == NARROW else 16)
    per_unit = constant((1 << 60) // NARROW, 60, x)
    return a, scale_product(scale(largest, e + e2 + exponent), per_unit)


def rsqrt(x: Array) -> Scale:
    """1/√x of each x ≥ 1: table and one Newton step; relative error ≤ 1e-5."""
    xp = x.__array_namespace__()
    k = (30 - bits(x)) & ~1  # even, so that its half is whole
    y = x << k  # 2^28 ≤ y < 2^30
    r = xp.take(xp.asarray(tables.rsqrt()), (y >> 21) - 128, mode="clip")  # 14 fraction bits, 1 … 2
    t = 3 * (1 << 26) - mulhi(y, r * r)  # 3 − y r², 26 fraction bits
    return scale(mulhi(r << 15, t << 3), (k >> 1) - 15 - 27)


def rms(x: Array) -> Scale:
    """1 over the root mean square of the last axis of |x| < 2^15; relative error ≤ 2e-5.

    The squares are cut to fit: an axis of 64 keeps 23 bits of each, one of 768 keeps 20.
    """
    xp = x.__array_namespace__()
    n = x.shape[-1]
    cut = n.bit_length()
    total = xp.sum((x * x) >> cut, axis=-1, keepdims=True, dtype=xp.int32)
    root = constant(isqrt(n << (100 - cut)), 50, x)  # √(n / 2^cut)
    return scale_product(rsqrt(xp.maximum(total, 1)), root)


def rms_quantize(
    x: Array, gain: Array, exponent: Array | int, top: int = WIDE
) -> tuple[Array, Scale]:
    """RMSNorm with a gain, and dynamic quantisation, in one: the RMS enters the scale alone.

    Arguments and result as of :func:`quantize` (arXiv 1910.07467).
    """
    y, _, _ = normalize(x)
    a, unit = quantize(y, gain, exponent, top=top)
    return a, scale_product(unit, rms(y))


def direction(acc: Array, bound: int, m: Array) -> Array:
    """Products on one scale per token, for what is normalised next: acc · m, |result| < 2^29.

    |acc| ≤ bound < 2^30; m int32[n]. Error ≤ 2^-28 of the largest product there can be.
    """
    return mulhi(acc << (30 - bound.bit_length()), _along(m, acc))


def requantize(acc: Array, bound: int, m: Array, exponent: Array, unit: Scale, to: Array) -> Array:
    """Epilogue of a matrix product: acc · (m · 2^(exponent − 31)) · unit in ``to`` fraction bits.

    |acc| ≤ bound < 2^30; m int32[n], one mantissa per output channel. Relative error ≤ 2^-20 of
    the bound, then one rounding; saturating.
    """
    spare = 30 - bound.bit_length()
    product = mulhi(direction(acc, bound, m), unit[0] << 1)
    return shift(product, 32 - spare + exponent + unit[1] + to)


def rms_heads(x: Array) -> Array:
    """QK-norm: each head over its root mean square, int32[..., K] in :func:`head_bits` bits.

    |x| ≤ 2^30 in any format. Error ≤ 2^-14 of the head's largest value.
    """
    xp = x.__array_namespace__()
    y, _, _ = normalize(x)
    m, e = rms(y)
    product = y * xp.minimum(rsr(m, 15), 32_767)
    k = e + 15 + head_bits(x.shape[-1])
    return xp.clip(shift(product, xp.minimum(k, 0)), -32_767, 32_767)


def head_bits(width: int) -> int:
    """Fraction bits of a normalised head: its values reach √width, and must stay below 2^15."""
    return 15 - (width - 1).bit_length() // 2 - (width - 1).bit_length() % 2


def rope(x: Array, cosine: Array, sine: Array) -> Array:
    """Rotate channel i with channel i + K/2 (arXiv 2104.09864); error ≤ 2 units of 2^15.

    |x| < 2^15 with every pair within a circle of 2^15; cosine and sine int32[..., K/2], 14 bits.
    """
    xp = x.__array_namespace__()
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    turned = xp.concat([a * cosine - b * sine, b * cosine + a * sine], axis=-1)
    return xp.clip(rsr(turned, ROPE_BITS), -32_767, 32_767)


def static_quantize(x: Array, gain: Array, exponent: Array | int) -> Array:
    """x · gain · 2^exponent as int8 values: static scales, the same for every token.

    |x| and gain below 2^15. Error ≤ ½ unit; saturating at ±127.
    """
    xp = x.__array_namespace__()
    product = x * _along(gain, x)
    return xp.clip(shift(product, xp.asarray(exponent, dtype=xp.int32)), -NARROW, NARROW)


def score_scale(unit: Scale, width: int) -> Scale:
    """What one unit of q · k means as a power of two: ``unit · log2(e) / √width``."""
    like = unit[0]
    return scale_product(unit, constant((LOG2_E << 40) // isqrt(width << 80), 60, like))


def scores(acc: Array, bound: int, unit: Scale) -> Array:
    """Attention scores in powers of two, :data:`SCORE_BITS` fraction bits; |acc| ≤ bound."""
    spare = 30 - bound.bit_length()
    return shift(mulhi(acc << spare, unit[0] << 1), 31 - spare + unit[1] + SCORE_BITS)


def exp2(x: Array) -> Array:
    """``2^-x`` of x ≥ 0 in :data:`SCORE_BITS` bits, as a 14-bit probability: 1 is 16,383.

    Relative error of the value before its last 5 bits are rounded away ≤ 1e-4
    (table of 65, linear in between).
    """
    xp = x.__array_namespace__()
    whole = xp.minimum(x >> SCORE_BITS, 25)
    return rsr(exp2_fraction(x & ((1 << SCORE_BITS) - 1)), 5 + whole)


def exp2_fraction(x: Array) -> Array:
    """``2^-x`` of 0 ≤ x < 1 in 16 bits, times ``16,383 · 32``; relative error ≤ 1e-4."""
    return interpolate(tables.exp2(), x, SCORE_BITS - EXP2_INTERVALS.bit_length() + 1)


def interpolate(table: Array, x: Array, hidden: int) -> Array:
    """Entry ``x >> hidden`` of a table and, in proportion to the hidden bits, of the next."""
    xp = x.__array_namespace__()
    i, entries = x >> hidden, xp.asarray(table)
    low, high = (xp.take(entries, j, mode="clip") for j in (i, i + 1))
    return low + rsr((high - low) * (x & ((1 << hidden) - 1)), hidden)


def split(p: Array) -> tuple[Array, Array]:
    """A value of up to 15 bits as hi · 128 + lo, |hi| ≤ 127, −64 ≤ lo < 64; |p| ≤ 127 · 128."""
    high = (p + 64) >> 7
    return high, p - (high << 7)


def join(high: Array, low: Array, spare: int) -> Array:
    """``(high · 128 + low) · 2^(spare − 7)``: two products of the halves as one sum."""
    return (high << spare) + rsr(low, 7 - spare)


def spare_bits(bound: int) -> int:
    """How many of the seven bits below ``high`` :func:`join` can keep, |high| ≤ bound."""
    return max(0, min(7, 29 - bound.bit_length()))


def divide(x: Array, total: Array, e: int) -> Array:
    """``x / total · 2^e``, one reciprocal per row: |x| ≤ 2^30, 2^13 ≤ total ≤ 2^30.

    Relative error ≤ 2^-14. x is [..., n], total [..., 1].
    """
    n = bits(total) - 15
    reciprocal = (1 << 30) // shift(total, -n)
    return shift(mulhi(x, reciprocal << 14), 32 - 14 - 30 - n + e)


def gelu(x: Array) -> Array:
    """GELU in the tanh form of x in 12 fraction bits, in 14; absolute error ≤ 2e-4.

    Table of 513 from −8 to 8, linear in between; below it 0, above it x.
    """
    xp = x.__array_namespace__()
    edge = GELU_RANGE << GELU_IN_BITS
    hidden = GELU_IN_BITS - (GELU_STEP.bit_length() - 1)
    inner = interpolate(tables.gelu(), xp.clip(x, -edge, edge - 1) + edge, hidden)
    return xp.where(x >= edge, x << (GELU_BITS - GELU_IN_BITS), xp.where(x < -edge, 0, inner))


def saturating_add(a: Array, b: Array) -> Array:
    """a + b within ±(2^30 − 1), for |a|, |b| < 2^30."""
    xp = a.__array_namespace__()
    return xp.clip(a + b, -LIMIT, LIMIT)


def argmax(x: Array) -> Array:
    """Index of the largest of the last axis, ties to the lowest: int32[...]."""
    xp = x.__array_namespace__()
    return xp.argmax(x, axis=-1).astype(xp.int32)
