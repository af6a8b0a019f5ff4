"""A hundred thousand mutants, re-sealed by an attacker who knows the format.

Each must be refused with the one error, or be a seal whose every part is as it says: then it
verifies again by the second verifier, to the same root, and has another root than the
original.
"""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from micro import Judge, Mutants, make
from second import second

BATCH = 500
EXAMPLES = 200


@pytest.fixture(scope="module")
def mutants():
    return Mutants(make())


@pytest.fixture(scope="module")
def judge():
    return Judge()


def judged(mutants, judge, rng, *, both):
    """Try one mutant; with ``both`` the second verifier sees it even if it was refused."""
    data = mutants.draw(rng)
    root = judge.library(data)
    if root is None:
        if both:
            with pytest.raises(second.Refused):
                second.verify(judge.path)
        return False
    assert second.verify(judge.path) == root
    assert (root == mutants.data[8:40]) == (data == mutants.data)
    return True


@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, (1 << 64) - 1))
def test_mutants(mutants, judge, seed):
    rng = random.Random(seed)
    for i in range(BATCH):
        judged(mutants, judge, rng, both=i % 25 == 0)


def test_the_mutants_are_of_every_kind(mutants, judge):
    rng = random.Random(0)
    accepted = sum(judged(mutants, judge, rng, both=True) for _ in range(2_000))
    assert 0 < accepted < 1_000
