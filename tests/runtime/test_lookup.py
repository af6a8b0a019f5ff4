"""Drafts from a row's own text."""

from hypothesis import given
from hypothesis import strategies as st

from s7jax.runtime.lookup import LONGEST, SHORTEST, Lookup


def slow(tokens, most):
    """The longest n-gram at the end that stood before, and what followed it last."""
    for n in range(min(LONGEST, len(tokens)), SHORTEST - 1, -1):
        for end in range(len(tokens) - 1, n - 1, -1):
            if tokens[end - n : end] == tokens[-n:]:
                return tokens[end : end + most]
    return []


@given(st.lists(st.integers(0, 2), max_size=60), st.integers(1, 5), st.randoms())
def test_it_finds_what_a_slow_search_finds(tokens, most, random):
    lookup, at = Lookup(), 0
    while at < len(tokens):
        at = min(len(tokens), at + random.randint(1, 9))
        assert lookup.draft(tokens[:at], most) == slow(tokens[:at], most)


def test_text_that_repeats_is_proposed():
    assert Lookup().draft([7, 8, 9, 5, 6, 7, 8, 9], 3) == [5, 6, 7]
    assert Lookup().draft([1, 2, 3, 4], 3) == []
