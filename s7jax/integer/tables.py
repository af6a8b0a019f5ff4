"""The constant tables of numeric scheme ``s7-int8-2``, made with integers alone.

``decimal`` is exact integer arithmetic with correct rounding, so these are the same numbers on
every machine; the SHA-256 of those that no model changes stand in the compute contract that
every sealed file carries (:mod:`s7jax.s7l.contract`). All tables are int32.
"""

import hashlib
import threading
from collections.abc import Iterable
from decimal import Context, Decimal, localcontext
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

EXP2_INTERVALS = 64
PROBABILITY_ONE = 16_383  # 14 bits: what the largest score of a row becomes
GELU_RANGE = 8  # the table covers −8 … 8; beyond, GELU is 0 or its argument
GELU_STEP = 32  # intervals in one unit
GELU_BITS = 14  # fraction bits of the result
ROPE_BITS = 14  # fraction bits of sine and cosine
ROPE_BASE = 10_000
LN_INTERVALS = 4_096
LN_BITS = 31  # fraction bits of the logarithm table
EXP_COARSE, EXP_FINE = 40 * 32 + 1, 2_048
NOISE_BITS = 16  # fraction bits of the sampling noise, as of the logits

_CONTEXT = Context(prec=50)
_ANGLE = 80  # fraction bits while turns are multiplied

Table = NDArray[np.int32]


@cache
def exp2() -> Table:
    """``2^(−j/64)``, with 5 more bits than a probability has: int32[65]."""
    with localcontext(_CONTEXT):
        step = Decimal(2).ln() / EXP2_INTERVALS
        return _table(PROBABILITY_ONE * 32 * (-step * j).exp() for j in range(EXP2_INTERVALS + 1))


@cache
def rsqrt() -> Table:
    """``1/√y`` in the middle of 384 intervals of y from 1/4 to 1, 14 fraction bits: int32[384]."""
    with localcontext(_CONTEXT):
        return _table((1 << 14) / (Decimal(2 * j + 257) / 1024).sqrt() for j in range(384))


@cache
def gelu() -> Table:
    """GELU in the tanh form (arXiv 1606.08415) at −8, −8 + 1/32, … 8: int32[513]."""
    half = GELU_RANGE * GELU_STEP
    with localcontext(_CONTEXT):
        root = (2 / (4 * _arctan_of_one())).sqrt()

        def value(x: Decimal) -> Decimal:
            e = (2 * root * (x + Decimal("0.044715") * x**3)).exp()
            return x * e / (e + 1)  # x (1 + tanh a) / 2

        return _table(
            value(Decimal(j - half) / GELU_STEP) * (1 << GELU_BITS) for j in range(2 * half + 1)
        )


@cache
def ln() -> Table:
    """``ln(1 + j/4096)``, 31 fraction bits: int32[4097]."""
    with localcontext(_CONTEXT):
        return _table(
            (1 + Decimal(j) / LN_INTERVALS).ln() * (1 << LN_BITS) for j in range(LN_INTERVALS + 1)
        )


@cache
def exp() -> Table:
    """Factors of ``e^-x`` for x up to 40: int32[1281 + 2048].

    First ``e^(-i/32)`` for i = 0 … 1280 with :func:`exp_bits` fraction bits, then
    ``e^(-j/65536)`` for j = 0 … 2047 with 30.
    """
    with localcontext(_CONTEXT):
        coarse = [(-Decimal(i) / 32).exp() * (1 << exp_bits(i)) for i in range(EXP_COARSE)]
        fine = [(-Decimal(j) / (1 << 16)).exp() * (1 << 30) for j in range(EXP_FINE)]
        return _table([*coarse, *fine])


def exp_bits(i: Any) -> Any:
    """Fraction bits of ``e^(-i/32)`` in :func:`exp`: 30 and about i/32 · log2(e)."""
    return 30 + ((i * 1_477) >> 15)


def rope(context: int, width: int) -> tuple[Table, Table]:
    """Cosine and sine of ``t · 10000^(−2i/width)``: int32[context, width/2] each.

    The turn of one position is exact to 80 bits; the others are its powers.
    """
    return _turns(width).first(context)


@cache
def _turns(width: int) -> "_Turns":
    return _Turns(width)


class _Turns:
    """Positions turned so far by every angle of a head: what is asked for grows from there."""

    def __init__(self, width: int) -> None:
        with localcontext(_CONTEXT):
            step = -2 * Decimal(ROPE_BASE).ln() / width
            self._steps = [_cos_sin((step * i).exp()) for i in range(width // 2)]
        self._at = [(1 << _ANGLE, 0)] * (width // 2)  # of the next position
        self._tables = np.empty((2, 0, width // 2), np.int32)
        self._turn = threading.Lock()

    def first(self, context: int) -> tuple[Table, Table]:
        """Cosine and sine of so many positions."""
        with self._turn:
            if context > len(self._tables[0]):
                self._grow(context - len(self._tables[0]))
            cosine, sine = self._tables[:, :context]
        return cosine, sine

    def _grow(self, count: int) -> None:
        new = np.empty((2, count, len(self._steps)), np.int32)
        for i, (c, s) in enumerate(self._steps):
            x, y = self._at[i]
            for t in range(count):
                new[0, t, i], new[1, t, i] = (_round(v, _ANGLE - ROPE_BITS) for v in (x, y))
                x, y = _round(x * c - y * s, _ANGLE), _round(x * s + y * c, _ANGLE)
            self._at[i] = x, y
        self._tables = np.concatenate([self._tables, new], axis=1)
        self._tables.setflags(write=False)


def digests() -> dict[str, str]:
    """SHA-256 of the little-endian bytes of the tables that no model changes, hexadecimal."""
    named = {"exp": exp(), "exp2": exp2(), "gelu": gelu(), "ln": ln(), "rsqrt": rsqrt()}
    return {
        name: hashlib.sha256(t.astype("<i4").tobytes()).hexdigest() for name, t in named.items()
    }


def _table(values: Iterable[Decimal]) -> Table:
    table = np.array([int(value.to_integral_value()) for value in values], np.int32)
    table.setflags(write=False)
    return table


def _round(value: int, bits: int) -> int:
    return (value + (1 << (bits - 1))) >> bits


def _arctan_of_one() -> Decimal:
    """π/4 by Machin's formula."""

    def arctan_of_inverse(n: int) -> Decimal:
        power, total, k = Decimal(1) / n, Decimal(0), 0
        while power > Decimal("1e-48"):
            total += power / (2 * k + 1) * (-1) ** k
            power, k = power / (n * n), k + 1
        return total

    return 4 * arctan_of_inverse(5) - arctan_of_inverse(239)


def _cos_sin(angle: Decimal) -> tuple[int, int]:
    """Of an angle from 0 to 1, by the power series; 80 fraction bits."""
    cosine, sine, term = Decimal(0), Decimal(0), Decimal(1)
    for k in range(0, 40, 2):
        cosine += term
        term *= angle / (k + 1)
        sine += term
        term *= -angle / (k + 2)
    return int((cosine * (1 << _ANGLE)).to_integral_value()), int(
        (sine * (1 << _ANGLE)).to_integral_value()
    )
