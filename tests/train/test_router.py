import numpy as np
import pytest

from s7jax.config import Config
from s7jax.model import parameters
from s7jax.train import router
from s7jax.train.phase import TRUNK

pytestmark = pytest.mark.usefixtures("compiled_alike")


def sums_of(x, y):
    ones = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    return router.Sums(ones.T @ ones, ones.T @ y)


def test_ridge_is_the_minimiser_of_the_penalised_squares():
    """Its gradient vanishes: Xᵀ(XW − Y) + λW = 0, in float64 by hand."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 5)), np.eye(3)[rng.integers(0, 3, 200)]
    fitted = router.ridge(sums_of(x, y))
    ones = np.concatenate([x, np.ones((200, 1))], axis=1)
    w = np.concatenate([fitted["weight"], fitted["bias"][None]]).astype(np.float64)
    gradient = ones.T @ (ones @ w - y) + router.RIDGE * w
    assert np.abs(gradient).max() < 1e-4
    assert np.abs(ones.T @ (ones @ w * 1.01 - y)).max() > 1e-2


def test_nearest_centroid_is_the_nearest_mean():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 300)
    x = rng.normal(size=(300, 4)) + 2 * np.eye(3, 4)[labels]
    means = np.stack([x[labels == e].mean(axis=0) for e in range(3)])
    nearest = np.square(x[:, None] - means).sum(-1).argmin(-1)
    linear = router.nearest_centroid(sums_of(x, np.eye(3)[labels]))
    np.testing.assert_array_equal((x @ linear["weight"] + linear["bias"]).argmax(-1), nearest)


@pytest.fixture(scope="module")
def trunk(tiny: Config, single):
    return parameters.initial(tiny.model, 0, single, TRUNK)


def test_the_fit_is_deterministic_and_counts_every_position(tiny: Config, trunk, new_run):
    first, second = (router.accumulate(new_run("r"), trunk) for _ in range(2))
    np.testing.assert_array_equal(first.xx, second.xx)
    np.testing.assert_array_equal(first.xy, second.xy)
    assert first.xy[-1].tolist() == [12 * tiny.model.context] * 4
    np.testing.assert_allclose(first.xx, first.xx.T)
