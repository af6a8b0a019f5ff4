"""Mutants, re-sealed by an attacker who knows the format: five thousand, or a hundred thousand.

Each must be refused with the one error, or be a seal whose every part is as it says: then it
verifies again by the second verifier, to the same root, and has another root than the
original.
"""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from micro import Judge, Mutants, make

BATCH = 500
FEW, MANY = 10, 200  # batches


@pytest.fixture(scope="module")
def mutants():
    return Mutants(make())


@pytest.fixture(scope="module")
def judge():
    return Judge()


@pytest.mark.parametrize(
    "examples",
    [FEW, pytest.param(MANY, marks=pytest.mark.long(minutes=2))],
    ids="{} batches".format,
)
def test_mutants(mutants, judge, examples):
    @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
    @given(seed=st.integers(0, (1 << 64) - 1))
    def batch(seed):
        rng = random.Random(seed)
        for i in range(BATCH):
            judge.judged(mutants, mutants.draw(rng), both=i % 25 == 0)

    batch()


def test_the_mutants_are_of_every_kind(mutants, judge):
    rng = random.Random(0)
    accepted = sum(judge.judged(mutants, mutants.draw(rng), both=True) for _ in range(2_000))
    assert 0 < accepted < 1_000
