"""The synthetic sealed model of the integer tests, opened for running."""

import pytest
from synthetic import MODEL, write_model

from s7jax import s7l
from s7jax.runtime.compute import open_compute
from s7jax.runtime.sealing import seal_with_answers


@pytest.fixture(scope="session")
def sealed(tmp_path_factory):
    """Path of a sealed model with known answers."""
    root = tmp_path_factory.mktemp("runtime")
    small = {name: MODEL[name] | {"layers": 1} for name in ("trunk", "expert")}
    write_model(root, MODEL | small | {"context": 64})
    seal_with_answers(root / "weights", root / "vocab.json", root / "model.s7l")
    return root / "model.s7l"


@pytest.fixture(scope="session")
def seal(sealed):
    return s7l.open(sealed)


@pytest.fixture(scope="session")
def compute(seal):
    """On the native engine where it was compiled."""
    return open_compute(seal)
