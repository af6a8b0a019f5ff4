"""Log-probabilities in integers beside float64."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from s7jax.integer.logprobs import BITS, best, logprobs
from s7jax.integer.sampling import Sampling, choose

LIMIT = (1 << 30) - 1
WIDE = hnp.arrays(np.int32, st.integers(2, 400), elements=st.integers(-LIMIT, LIMIT))
NEAR = hnp.arrays(np.int32, st.integers(2, 400), elements=st.integers(-(1 << 19), 1 << 19))


def exact(logits):
    x = logits.astype(np.float64) / 2**16
    x -= x.max()
    return x - np.log(np.exp(x).sum())


@given(st.one_of(WIDE, NEAR))
def test_they_are_float64s_within_the_stated_error(row):
    found = logprobs(row)
    assert found.dtype == np.int64
    assert found.max() <= 0
    assert np.abs(found / 2**BITS - exact(row)).max() <= 2**-16


def test_a_whole_vocabulary_of_equal_tokens():
    found = logprobs(np.zeros(24_576, np.int32)) / 2**BITS
    assert np.abs(found + np.log(24_576)).max() <= 2**-16


@given(NEAR, st.integers(1, 5))
def test_the_best_come_first_and_ties_go_to_the_lowest_id(row, count):
    wanted = sorted(range(len(row)), key=lambda i: (-int(row[i]), i))[:count]
    assert best(logprobs(row), count) == wanted


@given(NEAR, st.data())
def test_a_bias_is_added_to_the_logit(row, data):
    token = data.draw(st.integers(0, len(row) - 1))
    bias = data.draw(st.integers(-(100 << 16), 100 << 16))
    moved = row.copy()
    moved[token] += bias
    for how in ({}, {"temperature_q16": 1 << 16, "seed": 3}):
        biased = choose(row, 4, Sampling(logit_bias=((token, bias),), **how))
        assert biased == choose(moved, 4, Sampling(**how))
