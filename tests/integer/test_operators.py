"""Operators against real arithmetic, and NumPy against JAX, over whole domains."""

from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s7jax.integer import fixed, tables
from s7jax.integer import operators as op
from s7jax.integer.fixed import Fixed
from s7jax.s7l import contract

int32 = st.integers(-(2**31), 2**31 - 1)
SIXTEEN = np.arange(-(2**15), 2**15, dtype=np.int32)


def real(scale):
    m, e = scale
    return np.asarray(m, np.float64) * 2.0 ** np.asarray(e, np.float64)


@given(st.lists(st.tuples(int32, int32), min_size=1, max_size=20))
def test_mulhi_is_the_high_half_of_the_exact_product(pairs):
    a, b = (np.array(side, np.int32) for side in zip(*pairs, strict=True))
    exact = [(x * y) >> 32 for x, y in pairs]
    assert fixed.mulhi(a, b).tolist() == exact
    many = fixed.mulhi(*(jnp.asarray(np.resize(x, 20)) for x in (a, b)))  # one shape is compiled
    assert np.asarray(many)[: len(exact)].tolist() == exact


@given(st.integers(-(2**30), 2**30), st.integers(-40, 40))
def test_shift_rounds_and_saturates(x, k):
    wanted = x << k if k >= 0 else (x + (1 << (min(-k, 30) - 1))) >> min(-k, 30)
    limit = fixed.LIMIT >> min(max(k, 0), 30) << min(max(k, 0), 30)
    wanted = max(-limit, min(limit, wanted))
    found = fixed.shift(np.array([x], np.int32), np.array([k], np.int32))
    assert found.tolist() == [wanted]


@given(st.integers(0, 2**31 - 1))
def test_bit_length_is_pythons(x):
    assert fixed.bit_length(np.array([x], np.int32)).tolist() == [x.bit_length()]
    assert fixed.bit_length(jnp.array([x], jnp.int32)).tolist() == [x.bit_length()]


def test_exp2_over_its_16_bits():
    x = np.arange(1 << 16, dtype=np.int32)
    exact = tables.PROBABILITY_ONE * 32 * np.exp2(-x / 65_536)
    found = op.exp2_fraction(x)
    assert np.abs(found / exact - 1).max() <= 1e-4
    assert np.array_equal(op.exp2_fraction(jnp.asarray(x)), found)
    assert op.exp2(Fixed(np.array([0, 1 << 16, 40 << 16], np.int32), 16)).tolist() == [
        16_383,
        8_192,
        0,
    ]


def test_gelu_over_its_16_bits():
    x = SIXTEEN / 4096
    exact = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    found = op.gelu(Fixed(SIXTEEN, 12)).m
    assert np.abs(found / 16_384 - exact).max() <= 2e-4
    assert np.array_equal(op.gelu(Fixed(jnp.asarray(SIXTEEN), 12)).m, found)
    assert op.gelu(Fixed(np.array([1 << 16, -(1 << 16)], np.int32), 12)).m.tolist() == [1 << 18, 0]


def test_rsqrt_over_16_bits_and_beyond():
    x = np.concatenate([np.arange(1, 1 << 16), np.geomspace(1 << 16, 2**30 - 1, 50_000)])
    x = x.astype(np.int32)
    found = op.rsqrt(x)
    assert np.abs(real(found) * np.sqrt(x.astype(np.float64)) - 1).max() <= 2e-5
    for a, b in zip(op.rsqrt(jnp.asarray(x)), found, strict=True):
        assert np.array_equal(a, b)


def test_rope_over_its_16_bits():
    cosine, sine = tables.rope(64, 2)
    rng = np.random.default_rng(0)
    a = SIXTEEN[1:]
    b = (rng.uniform(-1, 1, a.shape) * np.sqrt(32_767.0**2 - a.astype(np.float64) ** 2)).astype(
        np.int32
    )
    for t in (0, 1, 7, 63):
        found = op.rope(Fixed(np.stack([a, b], axis=-1), 13), cosine[t], sine[t]).m
        exact = np.stack([a * np.cos(t) - b * np.sin(t), b * np.cos(t) + a * np.sin(t)], axis=-1)
        assert np.abs(found - exact).max() <= 1e-4 * 2**15


@pytest.mark.parametrize("top", [op.NARROW, op.WIDE])
@pytest.mark.parametrize("width", [16, 64, 768])
def test_rms_quantize_is_within_its_bounds_and_looks_at_one_token_alone(width, top):
    rng = np.random.default_rng(width)
    x = (rng.normal(size=(50, width)) * 2.0 ** rng.integers(8, 24, (50, 1))).astype(np.int32)
    gain = rng.integers(1 << 12, 1 << 15, width).astype(np.int32)
    a, unit = op.rms_quantize(x, Fixed(gain, 15), top)
    exact = x / np.sqrt(np.mean(x.astype(np.float64) ** 2, axis=-1, keepdims=True)) * gain / 2**15
    assert np.abs(a).max(axis=-1).tolist() == [top] * 50
    one = real(unit) * op.NARROW / top
    bound = 0.5 * one + 2**-13 * np.abs(exact).max(axis=-1, keepdims=True)
    assert (np.abs(a * one - exact) <= bound).all()
    alone, _ = op.rms_quantize(x[7:8], Fixed(gain, 15), top)
    assert np.array_equal(alone[0], a[7])
    jax_gain = Fixed(jnp.asarray(gain), 15)
    assert np.array_equal(op.rms_quantize(jnp.asarray(x), jax_gain, top).a, a)


def test_a_token_of_zeros_stays_zero():
    zeros, gain = np.zeros((1, 64), np.int32), np.full(64, 1 << 14, np.int32)
    assert not op.rms_quantize(zeros, Fixed(gain, 0)).a.any()
    assert not op.rms_heads(zeros).m.any()


@given(st.integers(-127 * 128, 127 * 128))
def test_split_halves_are_int8_and_give_the_value_back(p):
    high, low = op.split(np.array([p], np.int32))
    assert abs(int(high[0])) <= 127
    assert -64 <= int(low[0]) < 64
    assert op.join(high, low, 7).tolist() == [p]


FORMATS = st.integers(-20, 40)


@given(int32, int32, FORMATS, FORMATS)
def test_a_product_keeps_its_value_and_all_its_fraction_bits_but_32(a, b, a_bits, b_bits):
    x, y = (Fixed(np.array([v], np.int32), n) for v, n in ((a, a_bits), (b, b_bits)))
    found = fixed.product(x, y)
    exact = Fraction(a * b) / Fraction(2) ** (a_bits + b_bits)
    unit = 1 / Fraction(2) ** found.bits
    assert 0 <= exact - int(found.m[0]) * unit < unit


@given(st.integers(-(2**30), 2**30), FORMATS, FORMATS)
def test_a_rescaled_number_is_the_same_number(m, bits, out_bits):
    found = fixed.rescale(Fixed(np.array([m], np.int32), bits), out_bits)
    assert found.bits == out_bits
    exact = m * Fraction(2) ** (out_bits - bits)
    if abs(exact) < 2**28:
        # Shifts go by 30 at most; beyond, a number that is all but nothing may become 1.
        assert abs(int(found.m[0]) - exact) <= (Fraction(1, 2) if bits - out_bits <= 30 else 1)
    else:
        left = min(max(out_bits - bits, 0), 30)
        assert abs(int(found.m[0])) >= min(abs(exact), fixed.LIMIT >> left << left) - 1


def test_adding_across_formats_is_refused():
    one = np.array([1], np.int32)
    assert fixed.saturating_add(Fixed(one, 16), Fixed(one, 16)) == Fixed(one * 2, 16)
    edge = Fixed(one * fixed.LIMIT, 16)
    assert fixed.saturating_add(edge, edge).m.tolist() == [fixed.LIMIT]
    with pytest.raises(AssertionError, match="fraction bits"):
        fixed.saturating_add(Fixed(one, 16), Fixed(one, 15))


def test_tables_have_the_digests_of_the_scheme():
    assert tables.digests() == contract.TABLES
    cosine, sine = tables.rope(2_048, 64)
    angle = np.arange(2_048)[:, None] * 10_000.0 ** (-np.arange(0, 64, 2) / 64)
    assert np.abs(cosine - np.cos(angle) * 2**14).max() <= 0.5001
    assert np.abs(sine - np.sin(angle) * 2**14).max() <= 0.5001
