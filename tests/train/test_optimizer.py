import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s7jax.config import preset
from s7jax.train.optimizer import adamw, learning_rate

RECIPE = preset("s7-140m").trunk


def test_warmup_then_cosine_to_a_tenth():
    steps = 47_684
    rates = [learning_rate(RECIPE, step, steps) for step in range(steps)]
    assert rates[0] == pytest.approx(6e-4 / 2_001)
    assert np.argmax(rates) == 2_000
    assert max(rates) == pytest.approx(6e-4)
    middle = (steps - 2_000) // 2 + 2_000
    assert rates[middle] == pytest.approx(6e-4 * 0.55, rel=1e-3)
    assert rates[-1] == pytest.approx(6e-5, rel=1e-3)
    assert all(a < b for a, b in itertools.pairwise(rates[:2_001]))
    assert all(a > b for a, b in itertools.pairwise(rates[2_000:]))


def test_a_short_run_warms_up_over_a_tenth():
    rates = [learning_rate(RECIPE, step, 100) for step in range(100)]
    assert np.argmax(rates) == 10


def test_adamw_by_hand_decays_matrices_alone_and_clips():
    """Two steps against the textbook formulas in float64."""
    recipe = dataclasses.replace(RECIPE, clip=1.0)
    params = {"a": {"weight": np.full((2, 2), 3.0)}, "b": {"gain": np.full((2, 3), 2.0)}}
    gradients = [
        {"a": {"weight": np.full((2, 2), 4.0)}, "b": {"gain": np.zeros((2, 3))}},
        {"a": {"weight": np.full((2, 2), 0.1)}, "b": {"gain": np.full((2, 3), 0.2)}},
    ]
    optimizer = adamw(recipe)
    as_jax = {k: {n: jnp.asarray(x, jnp.float32) for n, x in v.items()} for k, v in params.items()}
    state = optimizer.init(as_jax)
    m = v = 0.0
    for t, gradient in enumerate(gradients, 1):
        g = gradient["a"]["weight"]
        norm = np.sqrt(sum(np.square(x).sum() for part in gradient.values() for x in part.values()))
        g = g / max(1.0, norm)
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2
        expected = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8) + 0.1 * 3.0
        jax_gradient = {
            k: {n: jnp.asarray(x, jnp.float32) for n, x in part.items()}
            for k, part in gradient.items()
        }
        with jax.numpy_dtype_promotion("standard"):  # Optax raises a float to an integer power
            update, state = optimizer.update(jax_gradient, state, as_jax)
        np.testing.assert_allclose(update["a"]["weight"], expected, rtol=1e-5)
        if t == 1:
            assert not np.asarray(update["b"]["gain"]).any()
