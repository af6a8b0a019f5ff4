from pathlib import Path

import pytest
from tiny import write_inputs

from s7jax import s7l


@pytest.fixture(scope="session")
def pristine(tmp_path_factory) -> Path:
    """A folder with ``weights/``, ``vocab.json`` and ``moe.s7l``; never change it."""
    root = write_inputs(tmp_path_factory.mktemp("model"))
    s7l.seal(root / "weights", root / "vocab.json", root / "moe.s7l")
    return root


@pytest.fixture
def model(tmp_path) -> Path:
    """The same inputs, unsealed, to be changed at will."""
    return write_inputs(tmp_path)
