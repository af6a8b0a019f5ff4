"""The routing rule on integers: exact windows, ties to the lowest expert, prefixes alone."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from s7jax.integer.routing import route, route_last
from s7jax.integer.sealed import LIMIT

few = hnp.arrays(np.int32, (2, 9, 3), elements=st.integers(-2, 2))  # few values: many ties


@given(few, st.integers(1, 12))
def test_the_expert_is_the_first_with_the_largest_sum_over_the_window(logits_BTE, window):
    found = route(logits_BTE, window)
    assert found.dtype == np.int32
    for b, t in np.ndindex(2, 9):
        sums = logits_BTE[b, max(0, t - window + 1) : t + 1].sum(axis=0).tolist()
        assert found[b, t] == sums.index(max(sums))
        assert route_last(logits_BTE[b, : t + 1], window) == found[b, t]


def test_running_sums_may_wrap():
    """The largest router logits there can be, for longer than 32 bits can count."""
    window, T = 4, 64
    logits_BTE = np.zeros((1, T, 2), np.int32)
    logits_BTE[..., 0] = LIMIT // window
    logits_BTE[:, T // 2 :, 1] = LIMIT // window + 1
    found = route(logits_BTE, window)[0]
    change = T // 2 + window - 1  # all of the window is past the middle
    assert found.tolist() == [0] * change + [1] * (T - change)
