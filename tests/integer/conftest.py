"""The synthetic model, sealed."""

import numpy as np
import pytest
from synthetic import MODEL, write_model

from s7jax import s7l


@pytest.fixture(scope="session")
def sealed(tmp_path_factory):
    """Path of the sealed synthetic model."""
    root = tmp_path_factory.mktemp("integer")
    write_model(root)
    s7l.seal(root / "weights", root / "vocab.json", root / "model.s7l")
    return root / "model.s7l"


@pytest.fixture(scope="session")
def seal(sealed):
    return s7l.open(sealed)


@pytest.fixture(scope="session")
def tokens():
    """512 ids, int32."""
    return np.random.default_rng(7).integers(0, MODEL["vocab"], 512).astype(np.int32)
