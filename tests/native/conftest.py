"""The synthetic model, sealed; nothing here runs where the library was not compiled."""

import pytest
from synthetic import write_model

from s7jax import s7l
from s7jax.native import library

collect_ignore_glob = [] if library.available() else ["test_*.py"]


@pytest.fixture(scope="session")
def sealed(tmp_path_factory):
    """Path of the sealed synthetic model."""
    root = tmp_path_factory.mktemp("native")
    write_model(root)
    s7l.seal(root / "weights", root / "vocab.json", root / "model.s7l")
    return root / "model.s7l"


@pytest.fixture(scope="session")
def seal(sealed):
    return s7l.open(sealed)
