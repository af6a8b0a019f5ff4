"""Sampling in integers: the right shares, the same everywhere, exact rules for ties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from s7jax.errors import UsageError
from s7jax.integer.sampling import ONE, Sampling, choose, noise, threefry

logits = hnp.arrays(np.int32, st.integers(2, 40), elements=st.integers(-(1 << 20), 1 << 20))


def test_threefry_is_the_published_one():
    """Known answers of Random123's kat_vectors for threefry2x32 with 20 rounds."""
    x, y = threefry((0, 0), np.zeros(1), np.zeros(1))
    assert (hex(x[0]), hex(y[0])) == ("0x6b200159", "0x99ba4efe")
    ones = np.full(1, 0xFFFFFFFF, np.uint32)
    x, y = threefry((0xFFFFFFFF, 0xFFFFFFFF), ones, ones)
    assert (hex(x[0]), hex(y[0])) == ("0x1cb996fc", "0xbb002be7")
    digits = (np.array([0x243F6A88], np.uint32), np.array([0x85A308D3], np.uint32))
    x, y = threefry((0x13198A2E, 0x03707344), *digits)
    assert (hex(x[0]), hex(y[0])) == ("0xc4923a9c", "0x483df7a0")


def test_noise_has_the_gumbel_distribution():
    found = np.concatenate([noise(3, t, 1_000) for t in range(200)]) / ONE
    assert abs(found.mean() - 0.5772) < 0.01  # Euler's constant
    assert abs(found.std() - np.pi / np.sqrt(6)) < 0.02


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_shares_are_those_of_the_softmax(temperature):
    values = np.array([0.0, 1.0, -0.5, 2.0, 0.3])
    row = np.round(values * ONE).astype(np.int32)
    how = Sampling(temperature_q16=int(temperature * ONE), seed=11)
    n = 5_000
    found = np.bincount([choose(row, t, how) for t in range(n)], minlength=5) / n
    exact = np.exp(values / temperature) / np.exp(values / temperature).sum()
    assert np.abs(found - exact).max() < 4 * np.sqrt(0.25 / n)


@given(logits, st.integers(0, 2**31 - 1))
def test_greedy_is_the_first_of_the_largest(row, position):
    assert choose(row, position, Sampling()) == row.tolist().index(max(row))


@given(logits, st.integers(0, 100), st.integers(1, 5))
def test_top_k_keeps_k_and_prefers_low_ids(row, seed, k):
    how = Sampling(temperature_q16=1 << 20, top_k=k, seed=seed)
    best = sorted(range(len(row)), key=lambda i: (-int(row[i]), i))[:k]
    assert all(choose(row, t, how) in best for t in range(10))
    assert choose(row, 0, Sampling(temperature_q16=ONE, top_k=1, seed=seed)) == best[0]


def test_top_p_keeps_the_fewest_that_reach_the_share():
    probabilities = np.array([0.1, 0.5, 0.05, 0.3, 0.05])
    row = np.round(np.log(probabilities) * ONE).astype(np.int32)
    for p, kept in ((0.4, {1}), (0.55, {1, 3}), (0.85, {1, 3, 0})):
        how = Sampling(temperature_q16=ONE, top_p_q16=int(p * ONE), seed=5)
        assert {choose(row, t, how) for t in range(500)} == kept


def test_the_seed_and_the_position_decide():
    row = np.zeros(100, np.int32)
    draws = [
        [choose(row, t, Sampling(temperature_q16=ONE, seed=s)) for t in range(20)]
        for s in (0, 0, 1)
    ]
    assert draws[0] == draws[1] != draws[2]
    assert len(set(draws[0])) > 10


@pytest.mark.parametrize(
    "bad", [{"seed": -1}, {"top_p_q16": 0}, {"temperature_q16": 0.5}, {"top_k": True}]
)
def test_impossible_settings_are_refused(bad):
    with pytest.raises(UsageError, match=next(iter(bad))):
        Sampling(**bad)
