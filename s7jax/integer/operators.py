"""The operators of numeric scheme ``s7-int8-2``: int32 in, int32 out, nothing else in between.

Each works on NumPy and JAX arrays alike, one text for both. Every reduction is an integer sum or
maximum, so no result depends on the order of anything; every function but the reductions'
arguments looks at one token alone. Bounds are for inputs within the bounds stated; they are
computed from a model's dimensions and asserted when it is loaded
(:mod:`s7jax.integer.loading`). Real numbers travel as :mod:`s7jax.integer.fixed` has them.
"""

from collections.abc import Callable
from math import isqrt

from s7jax.integer import tables
from s7jax.integer.fixed import (
    Activations,
    Array,
    Fixed,
    Scale,
    Sums,
    along,
    as_fixed,
    bit_length,
    constant,
    mulhi,
    product,
    rescale,
    rsr,
    scale,
    scale_product,
    shift,
    widened,
)
from s7jax.integer.sealed import NARROW, SHORT
from s7jax.integer.tables import EXP2_INTERVALS, GELU_BITS, GELU_RANGE, GELU_STEP, ROPE_BITS

WIDE = NARROW * 128  # largest activation of two int8: hi · 128 + lo
SCORE_BITS = 16  # fraction bits of attention scores, in powers of two
GELU_IN_BITS = 12  # fraction bits of what GELU takes
LOG2_E = 1_663_351_252_389_300_929  # log2(e) · 2^60


def _keep(x: Array) -> Array:
    return x


def normalize(x: Array, across: Callable[[Array], Array] = _keep) -> tuple[Array, Array, Array]:
    """The last axis in 15 bits: x ≈ y · 2^e, |y| ≤ top < 2^15, 2^14 ≤ top unless x = 0.

    Rounding error ≤ 2^-15 of the largest |x|. ``across`` takes the maximum over the shards of
    the axis.

    Returns:
        y like x; top and e [..., 1].
    """
    xp = x.__array_namespace__()
    # Not the maximum of |x|: of max(a, −a, b) ptxas 13.0 to 13.2 makes max(a, a, b) on an H100.
    top, bottom = (f(x, axis=-1, keepdims=True) for f in (xp.max, xp.min))
    largest = across(xp.maximum(top, -bottom))
    e = bit_length(largest) - 15
    y = xp.clip(shift(x, -e), -SHORT, SHORT)
    return y, xp.minimum(shift(largest, -e), SHORT), e


def quantize(
    x: Fixed[Array],
    gain: Fixed[Array],
    across: Callable[[Array], Array] = _keep,
    top: int = WIDE,
) -> Activations[Array]:
    """Dynamic activations: x · gain, the largest of a token's made ``top``.

    x is int32[..., n]; gain int32[n] below 2^15. Error ≤ ½ of a unit and 2^-14 of the largest
    value; the scale depends on this token alone.

    Returns:
        int32[..., n] within ±top, and the scale [..., 1].
    """
    xp = x.m.__array_namespace__()
    y, _, e = normalize(x.m, across)
    y, largest, e2 = normalize(y * along(gain.m, y), across)
    # a = y · 127 · 128 / largest as y · inverse >> 16; the same quotient serves 127 with >> 23.
    inverse = (NARROW << 23) // xp.maximum(largest, 1)
    a = rsr(y * inverse, 23 if top == NARROW else 16)
    # x · gain = y · 2^(e + e2) in the fraction bits of both; a unit is 1/127 of the largest.
    peak = scale(largest, e + e2 - x.bits - gain.bits)
    return Activations(a, scale_product(peak, constant((1 << 60) // NARROW, 60, x.m)))


def rsqrt(x: Array) -> Scale[Array]:
    """1/√x of each x ≥ 1: table and one Newton step; relative error ≤ 1e-5."""
    xp = x.__array_namespace__()
    k = (30 - bit_length(x)) & ~1  # even, so that its half is whole
    y = x << k  # 2^28 ≤ y < 2^30, read as 1/4 ≤ y < 1 in 30 fraction bits
    r = xp.take(xp.asarray(tables.rsqrt()), (y >> 21) - 128, mode="clip")  # 14 fraction bits, 1 … 2
    t = 3 * (1 << 26) - mulhi(y, r * r)  # 3 − y r²: 30 + 28 − 32 = 26 fraction bits
    # r t has 15 + 14 + 3 + 26 − 32 = 26 fraction bits, its half 27; 1/√x = 2^(k/2 − 15) / √y.
    return scale(mulhi(r << 15, t << 3), (k >> 1) - 15 - 27)


def inverse_rms(x: Array) -> Scale[Array]:
    """1 over the root mean square of the last axis of |x| < 2^15; relative error ≤ 2e-5.

    The squares are cut to fit: an axis of 64 keeps 23 bits of each, one of 768 keeps 20.
    """
    xp = x.__array_namespace__()
    n = x.shape[-1]
    cut = n.bit_length()
    total = xp.sum((x * x) >> cut, axis=-1, keepdims=True, dtype=xp.int32)
    root = constant(isqrt(n << (100 - cut)), 50, x)  # √(n / 2^cut): half of 100 fraction bits
    return scale_product(rsqrt(xp.maximum(total, 1)), root)


def rms_quantize(x: Array, gain: Fixed[Array], top: int = WIDE) -> Activations[Array]:
    """RMSNorm with a gain, and dynamic quantisation, in one: the RMS enters the scale alone.

    x may be in any format, which cancels; else as :func:`quantize` (arXiv 1910.07467).
    """
    y, _, _ = normalize(x)
    a, unit = quantize(Fixed(y, 0), gain, top=top)
    return Activations(a, scale_product(unit, inverse_rms(y)))


def direction(acc: Sums[Array], m: Array) -> Array:
    """Products on one scale per token, for what is normalised next: acc · m, |result| < 2^29.

    m int32[n]. Error ≤ 2^-28 of the largest product there can be.
    """
    return mulhi(widened(acc).m, along(m, acc.m))


def requantize(
    acc: Sums[Array], channels: Fixed[Array], unit: Scale[Array], out_bits: Array | int
) -> Fixed[Array]:
    """Epilogue of a matrix product: acc · channels · unit in ``out_bits`` fraction bits.

    channels int32[n], one mantissa per output channel. Relative error ≤ 2^-20 of the bound, then
    one rounding; saturating.
    """
    per_channel = Fixed(along(channels.m, acc.m), channels.bits)
    return rescale(product(product(widened(acc), per_channel), as_fixed(unit)), out_bits)


def rms_heads(x: Array) -> Fixed[Array]:
    """QK-norm: each head over its root mean square, int32[..., K] in :func:`head_bits` bits.

    |x| ≤ 2^30 in any format. Error ≤ 2^-14 of the head's largest value.
    """
    xp = x.__array_namespace__()
    y, _, _ = normalize(x)
    m, e = inverse_rms(y)
    out_bits = head_bits(x.shape[-1])
    short = y * xp.minimum(rsr(m, 15), SHORT)  # y · m · 2^-15, so −e − 15 fraction bits
    k = xp.minimum(out_bits + e + 15, 0)  # never to the left: nothing would come in
    return Fixed(xp.clip(shift(short, k), -SHORT, SHORT), out_bits)


def head_bits(width: int) -> int:
    """Fraction bits of a normalised head: its values reach √width, and must stay below 2^15."""
    return 15 - (width - 1).bit_length() // 2 - (width - 1).bit_length() % 2


def rope(x: Fixed[Array], cosine: Array, sine: Array) -> Fixed[Array]:
    """Rotate channel i with channel i + K/2 (arXiv 2104.09864); error ≤ 2 units of 2^15.

    |x.m| < 2^15 with every pair within a circle of 2^15; cosine and sine int32[..., K/2] with
    :data:`ROPE_BITS` fraction bits.
    """
    xp = x.m.__array_namespace__()
    half = x.m.shape[-1] // 2
    a, b = x.m[..., :half], x.m[..., half:]
    turned = xp.concat([a * cosine - b * sine, b * cosine + a * sine], axis=-1)
    return Fixed(xp.clip(rsr(turned, ROPE_BITS), -SHORT, SHORT), x.bits)


def static_quantize(x: Fixed[Array], gain: Fixed[Array]) -> Array:
    """x · gain as int8 values: static scales, the same for every token.

    Mantissas below 2^15. Error ≤ ½ unit; saturating at ±127.
    """
    xp = x.m.__array_namespace__()
    k = xp.asarray(-x.bits - gain.bits, dtype=xp.int32)  # to whole numbers: no fraction bits
    return xp.clip(shift(x.m * along(gain.m, x.m), k), -NARROW, NARROW)


def score_scale(unit: Scale[Array], width: int) -> Scale[Array]:
    """What one unit of q · k means as a power of two: ``unit · log2(e) / √width``."""
    # √(width · 2^80) has 40 fraction bits; log2(e) · 2^(60 + 40) over it has 60.
    return scale_product(unit, constant((LOG2_E << 40) // isqrt(width << 80), 60, unit.m))


def scores(acc: Sums[Array], unit: Scale[Array]) -> Fixed[Array]:
    """Attention scores in powers of two, :data:`SCORE_BITS` fraction bits."""
    return rescale(product(widened(acc), as_fixed(unit)), SCORE_BITS)


def exp2(x: Fixed[Array]) -> Array:
    """``2^-x`` of x ≥ 0 in :data:`SCORE_BITS` bits, as a 14-bit probability: 1 is 16,383.

    Relative error of the value before its last 5 bits are rounded away ≤ 1e-4
    (table of 65, linear in between).
    """
    assert x.bits == SCORE_BITS
    xp = x.m.__array_namespace__()
    whole = xp.minimum(x.m >> SCORE_BITS, 25)
    # The table's 5 further bits go, and one for every whole power of two.
    return rsr(exp2_fraction(x.m & ((1 << SCORE_BITS) - 1)), 5 + whole)


def exp2_fraction(x: Array) -> Array:
    """``2^-x`` of 0 ≤ x < 1 in 16 bits, times ``16,383 · 32``; relative error ≤ 1e-4."""
    xp = x.__array_namespace__()
    low_bits = SCORE_BITS - (EXP2_INTERVALS.bit_length() - 1)  # 2^16 steps over 2^6 intervals
    return interpolate(xp.asarray(tables.exp2()), x, low_bits)


def interpolate(table: Array, x: Array, low_bits: int) -> Array:
    """Entry ``x >> low_bits`` of a table and, in proportion to the low bits, of the next."""
    xp = x.__array_namespace__()
    i = x >> low_bits
    low, high = (xp.take(table, j, mode="clip") for j in (i, i + 1))
    return low + rsr((high - low) * (x & ((1 << low_bits) - 1)), low_bits)


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


def divide(x: Fixed[Array], total: Array, out_bits: int) -> Fixed[Array]:
    """``x / total``, one reciprocal per row: |x.m| ≤ 2^30, 2^13 ≤ total ≤ 2^30.

    Relative error ≤ 2^-14. x is [..., n], total whole numbers [..., 1].
    """
    n = bit_length(total) - 15
    reciprocal = (1 << 30) // shift(total, -n)  # 30 + n fraction bits; at most 17 bits long
    return rescale(product(x, Fixed(reciprocal << 14, 30 + n + 14)), out_bits)


def gelu(x: Fixed[Array]) -> Fixed[Array]:
    """GELU in the tanh form of x in 12 fraction bits, in 14; absolute error ≤ 2e-4.

    Table of 513 from −8 to 8, linear in between; below it 0, above it x.
    """
    assert x.bits == GELU_IN_BITS
    xp = x.m.__array_namespace__()
    edge = GELU_RANGE << GELU_IN_BITS
    low_bits = GELU_IN_BITS - (GELU_STEP.bit_length() - 1)  # 2^12 steps over 2^5 intervals
    at = xp.clip(x.m, -edge, edge - 1) + edge
    inner = interpolate(xp.asarray(tables.gelu()), at, low_bits)
    above = x.m << (GELU_BITS - GELU_IN_BITS)
    return Fixed(xp.where(x.m >= edge, above, xp.where(x.m < -edge, 0, inner)), GELU_BITS)
