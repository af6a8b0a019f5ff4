"""Fixed-point numbers: a value and its fraction bits, or a mantissa and its power of two, together.

Everything works on NumPy and JAX arrays alike, one text for both; a function takes arrays of one
library, never of both. Arrays are int32 (where said int8), and nothing here makes another type.
"""

from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from s7jax.integer.sealed import LIMIT

if TYPE_CHECKING:
    import jax  # what works on NumPy arrays alone needs none of it

Array = TypeVar("Array", "jax.Array", NDArray[Any])


class Fixed(NamedTuple, Generic[Array]):
    """The real numbers m · 2^-bits."""

    m: Array
    bits: Array | int  # fraction bits; may be negative


class Scale(NamedTuple, Generic[Array]):
    """The real numbers m · 2^e, with 2^29 ≤ m < 2^30, or m = 0."""

    m: Array
    e: Array | int


class Activations(NamedTuple, Generic[Array]):
    """Quantised: a within ±127 stands for a · unit, a within ±127 · 128 for a/128 · unit."""

    a: Array
    unit: Scale[Array]


class Sums(NamedTuple, Generic[Array]):
    """Sums of products, before any scale: the real numbers m · 2^-bits, |m| ≤ bound < 2^30."""

    m: Array
    bound: int  # computed from dimensions, not from values
    bits: int  # fraction bits


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


def shift(x: Array, k: Array | int) -> Array:
    """``x · 2^k``, rounded where k < 0, saturating at ±(2^30 − 1) where k > 0; |x| ≤ 2^30."""
    xp = x.__array_namespace__()
    left = xp.clip(k, 0, 30)
    bound = LIMIT >> left
    return rsr(xp.clip(x, -bound, bound) << left, xp.clip(-k, 0, 30))


def bit_length(x: Array) -> Array:
    """Bit length of each x ≥ 0."""
    xp = x.__array_namespace__()
    if xp is not np:
        from jax.lax import clz  # noqa: PLC0415 it is here, or there were no such array

        return 32 - clz(x)  # type: ignore[return-value]  # the same number in one instruction
    count = xp.zeros_like(x)
    for step in (16, 8, 4, 2, 1):
        high = (x >> step) > 0
        count, x = xp.where(high, count + step, count), xp.where(high, x >> step, x)
    return count + x


def along(m: Array, x: Array) -> Array:
    """``m`` of the last axes of ``x`` with as many axes as ``x``."""
    return m.reshape((1,) * (x.ndim - m.ndim) + m.shape)


def product(a: Fixed[Array], b: Fixed[Array]) -> Fixed[Array]:
    """a · b, of which the high 32 of 64 bits are kept: so many fraction bits are lost."""
    return Fixed(mulhi(a.m, b.m), a.bits + b.bits - 32)


def widened(x: Sums[Array]) -> Fixed[Array]:
    """The same numbers in all of the 30 bits that their bound leaves them."""
    spare = 30 - x.bound.bit_length()
    return Fixed(x.m << spare, x.bits + spare)


def rescale(x: Fixed[Array], bits: Array | int) -> Fixed[Array]:
    """The same numbers in other fraction bits: rounded, or saturating; |x.m| ≤ 2^30."""
    return Fixed(shift(x.m, bits - x.bits), bits)


def saturating_add(a: Fixed[Array], b: Fixed[Array]) -> Fixed[Array]:
    """a + b within ±(2^30 − 1), for mantissas below 2^30 in one and the same format."""
    assert a.bits is b.bits, "not in the same fraction bits"
    xp = a.m.__array_namespace__()
    return Fixed(xp.clip(a.m + b.m, -LIMIT, LIMIT), a.bits)


def scale(m: Array, e: Array | int) -> Scale[Array]:
    """The scale m · 2^e of any m from 0 to 2^31 − 1; exact below 2^30."""
    n = bit_length(m) - 30
    xp = m.__array_namespace__()
    return Scale(xp.where(n > 0, m >> 1, m << xp.clip(-n, 0, 30)), e + n)


def scale_product(a: Scale[Array], b: Scale[Array]) -> Scale[Array]:
    """Product of two scales; relative error ≤ 2^-28."""
    # Both doubled, so that nothing of 31 bits is lost: (2a · 2b) >> 32 is a · b · 2^-30.
    return scale(mulhi(a.m << 1, b.m << 1), a.e + b.e + 30)


def constant(numerator: int, fraction_bits: int, like: Array) -> Scale[Array]:
    """``numerator · 2^-fraction_bits`` as a scale, from an integer of any size."""
    xp, excess = like.__array_namespace__(), numerator.bit_length() - 30
    m = numerator >> excess if excess > 0 else numerator << -excess
    return Scale(xp.asarray(m, dtype=xp.int32), xp.asarray(excess - fraction_bits, dtype=xp.int32))


def as_fixed(x: Scale[Array]) -> Fixed[Array]:
    """A scale as a factor of :func:`product`: doubled to 31 bits, of which 30 were used."""
    return Fixed(x.m << 1, 1 - x.e)
