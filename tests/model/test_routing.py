import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from s7jax.model.routing import route, windowed_evidence


@given(
    window=st.integers(1, 12),
    seed=st.integers(0, 2**32 - 1),
    length=st.sampled_from([1, 5, 9]),
)
def test_evidence_is_the_sum_of_the_last_window_positions(window, seed, length):
    # Integers, so that sums are exact in any order.
    evidence = np.random.default_rng(seed).integers(-5, 6, (2, length, 3)).astype(np.float32)
    got = np.asarray(windowed_evidence(jnp.asarray(evidence), window))
    for t in range(length):
        expected = evidence[:, max(0, t - window + 1) : t + 1].sum(axis=1)
        np.testing.assert_array_equal(got[:, t], expected)
    routes = np.asarray(route(jnp.asarray(evidence), window))
    np.testing.assert_array_equal(routes, got.argmax(axis=-1))  # NumPy: ties to the lowest
    assert routes.dtype == np.int32


def test_the_route_depends_on_the_prefix_alone():
    evidence = np.random.default_rng(0).normal(size=(1, 40, 4)).astype(np.float32)
    whole = np.asarray(route(jnp.asarray(evidence), 16))
    for t in (1, 15, 16, 33):
        part = np.asarray(route(jnp.asarray(evidence[:, :t]), 16))
        np.testing.assert_array_equal(part, whole[:, :t])
