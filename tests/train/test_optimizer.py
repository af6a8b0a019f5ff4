import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from s7jax import mesh
from s7jax.config import preset
from s7jax.train.optimizer import learning_rate, optimizer, orthogonal

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


@pytest.mark.usefixtures("quick_compiling")
def test_adamw_by_hand_decays_matrices_alone_and_clips():
    """Two steps against the textbook formulas in float64."""
    recipe = dataclasses.replace(RECIPE, clip=1.0)
    params = {"a": {"weight": np.full((2, 2), 3.0)}, "b": {"gain": np.full((2, 3), 2.0)}}
    gradients = [
        {"a": {"weight": np.full((2, 2), 4.0)}, "b": {"gain": np.zeros((2, 3))}},
        {"a": {"weight": np.full((2, 2), 0.1)}, "b": {"gain": np.full((2, 3), 0.2)}},
    ]
    rule = optimizer(recipe)
    as_jax = {k: {n: jnp.asarray(x, jnp.float32) for n, x in v.items()} for k, v in params.items()}
    state = rule.init(as_jax)
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
            update, state = rule.update(jax_gradient, state, as_jax)
        np.testing.assert_allclose(update["a"]["weight"], expected, rtol=1e-5)
        if t == 1:
            assert not np.asarray(update["b"]["gain"]).any()


def newton_schulz(matrix: np.ndarray) -> np.ndarray:
    """Five steps in float64, as its author wrote them (github.com/KellerJordan/Muon)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / np.linalg.norm(x)
    for _ in range(5):
        y = x @ x.T
        x = a * x + (b * y + c * y @ y) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 32), (2, 32, 8)])
@pytest.mark.parametrize("split", [None, 1, 2])
def test_each_layer_is_made_orthogonal_alone_wherever_it_is_split(shape, split):
    made = mesh.make(mesh.parse("1x2"))
    update = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    at = NamedSharding(made, P(*("model" if i == split else None for i in range(3))))
    with jax.set_mesh(made), jax.numpy_dtype_promotion("standard"):
        found = jax.jit(orthogonal)(jax.device_put(update, at))
    assert found.sharding == at
    scale = max(1, shape[2] / shape[1]) ** 0.5
    expected = scale * np.stack([newton_schulz(layer) for layer in update.astype(np.float64)])
    np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.usefixtures("quick_compiling")
def test_muon_moves_hidden_matrices_and_adamw_the_rest():
    recipe = dataclasses.replace(RECIPE, optimizer="muon", muon_rate=3.0, clip=1e6)
    numbers = np.random.default_rng(1)
    matrices = [jnp.asarray(numbers.normal(size=(1, 8, 4)), jnp.float32) for _ in range(2)]
    table, gain = jnp.full((4, 4), 3.0), jnp.full((4,), 2.0)

    def tree(table, matrix, gain):
        return {
            "embedding": {"weight": table},
            "trunk": {"layers": {"fc1": {"weight": matrix}, "norm": {"gain": gain}}},
        }

    params = tree(table, jnp.ones((1, 8, 4)), gain)
    with jax.set_mesh(mesh.single()), jax.numpy_dtype_promotion("standard"):
        rule = optimizer(recipe)
        state, momentum = rule.init(params), np.zeros((8, 4))
        for matrix in matrices:
            gradient = tree(jnp.full((4, 4), 0.5), matrix, jnp.full((4,), -0.5))
            change, state = rule.update(gradient, state, params)
            g = np.asarray(matrix[0], np.float64)
            momentum = 0.95 * momentum + g
            expected = 3.0 * (newton_schulz(g + 0.95 * momentum) + 0.1)
            found = change["trunk"]["layers"]["fc1"]["weight"][0]
            np.testing.assert_allclose(found, expected, atol=2e-3)
            # Adam's first steps along a constant gradient have length one.
            np.testing.assert_allclose(change["embedding"]["weight"], 1.0 + 0.3, rtol=1e-5)
            np.testing.assert_allclose(change["trunk"]["layers"]["norm"]["gain"], -1.0, rtol=1e-5)
