"""Draws over a whole vocabulary against float64 shares: every id as often as it should be."""

import math
from fractions import Fraction

import numpy as np
import pytest

from s7jax.integer.sampling import (
    FARTHEST,
    ONE,
    Sampling,
    _below,
    _likely,
    choose,
    minus_ln,
    noise,
    shares,
)

VOCAB = 24_576  # of s7-140m
RANKS = np.arange(1, VOCAB + 1)


def zipf(exponent):
    return -exponent * np.log(RANKS)


ROWS = {
    "equal": np.zeros(VOCAB),
    "zipf 0.8": zipf(0.8),
    "zipf 1.0": zipf(1.0),
    "zipf 1.2": zipf(1.2),
    "as a model's": np.random.default_rng(3).normal(0, 2.5, VOCAB),
}


def drawn(row, temperature, count, seed):
    logits = np.round(row * ONE).astype(np.int32)
    how = Sampling(temperature_q16=round(temperature * ONE), seed=seed)
    return np.array([choose(logits, position, how) for position in range(count)])


def softmax(row, temperature=1.0):
    p = np.exp((row - row.max()) / temperature)
    return p / p.sum()


def z_of_chi_square(found, p, count):
    """χ² over ids in order of p, taken together until 10 are expected; in standard deviations."""
    order = np.argsort(-p, kind="stable")
    expected = np.cumsum(p[order]) * count
    group = (expected / 10).astype(int)
    seen = np.bincount(group, np.bincount(found, minlength=VOCAB)[order])
    wanted = np.bincount(group, p[order] * count)
    used = wanted > 0
    k = used.sum() - 1
    return ((seen - wanted)[used] ** 2 / wanted[used]).sum() / np.sqrt(2 * k) - np.sqrt(k / 2)


def test_equal_logits_are_drawn_equally():
    """2,000 draws: the older noise gave a mean id of 4,041 and 64 % below 4,096."""
    found = drawn(ROWS["equal"], 1.0, 2_000, 5)
    assert abs(found.mean() - (VOCAB - 1) / 2) < 4 * VOCAB / np.sqrt(12 * 2_000)
    assert abs((found < 4_096).mean() - 1 / 6) < 4 * np.sqrt(5 / 36 / 2_000)


@pytest.mark.long(minutes=0.2)
def test_rare_tokens_get_their_share():
    """Zipf: the older noise gave tokens below 5e-5 a tenth of what is theirs."""
    p = softmax(ROWS["zipf 1.0"])
    found, share = drawn(ROWS["zipf 1.0"], 1.0, 2_000, 6), p[p < 5e-5].sum()
    assert abs((p[found] < 5e-5).mean() - share) < 4 * np.sqrt(share / 2_000)


@pytest.mark.parametrize("temperature", [1_024, 45_875, ONE, 3 * ONE // 2, 1 << 24])
def test_logits_over_the_temperature_are_exact(temperature):
    """To half a unit; at temperature 1 they are the logits themselves, all 16 bits."""
    logits = np.array([7, 6, 5, 4, 3, -(1 << 30), (1 << 30) - 1, 0], np.int32)
    exact = [Fraction((1 << 30) - 1 - int(x)) * ONE / temperature for x in logits]
    assert _below(logits, temperature).tolist() == [math.floor(x + Fraction(1, 2)) for x in exact]


@pytest.mark.parametrize("asked", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("name", ROWS)
def test_top_p_keeps_what_is_asked(name, asked):
    logits = np.round(ROWS[name] * ONE).astype(np.int32)
    p = softmax(logits / ONE)
    how = Sampling(temperature_q16=ONE, top_p_q16=round(asked * ONE))
    kept = _likely(logits, _below(logits, ONE), how)
    assert asked - 1e-4 < p[kept].sum() < asked + p[kept].min() + 1e-4


@pytest.mark.long(minutes=6)
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
@pytest.mark.parametrize("name", ROWS)
def test_all_ids_by_chi_square(name, temperature):
    found = drawn(ROWS[name], temperature, 8_000, 7)
    assert abs(z_of_chi_square(found, softmax(ROWS[name], temperature), 8_000)) < 4.5


def test_chi_square_would_find_the_older_draws():
    rng = np.random.default_rng(0)
    false = rng.integers(0, VOCAB, 2_000) // 3
    assert z_of_chi_square(false, softmax(ROWS["equal"]), 2_000) > 50


def test_logarithms_over_their_whole_range():
    rng = np.random.default_rng(1)
    x = rng.integers(1, 2**64, 20_000, dtype=np.uint64) >> rng.integers(0, 64, 20_000).astype(
        np.uint64
    )
    x = np.maximum(x, np.uint64(1))
    assert np.abs(minus_ln(x) / 2**31 + np.log(x.astype(np.longdouble) / 2**64)).max() < 2**-26


def test_noise_beyond_the_vocabulary():
    """Of 4.9 million draws the largest is about ln of their number: no step of a table caps it."""
    largest = max(noise(1, position, VOCAB).max() for position in range(200)) / ONE
    assert abs(largest - np.log(200 * VOCAB)) < 4


def test_shares_are_exact_to_the_bound():
    below = np.arange(0, FARTHEST + 1, 11, dtype=np.int32)
    exact = np.exp(-below.astype(np.longdouble) / ONE)
    assert (np.abs(shares(below) / 2.0**42 - exact) <= exact * 2.0**-29 + 2.0**-43).all()
