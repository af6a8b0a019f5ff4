"""The synthetic model, sealed; nothing here runs where the library was not compiled."""

from synthetic import seal, sealed, tokens  # noqa: F401 fixtures

from s7jax.native import library

collect_ignore_glob = [] if library.available() else ["test_*.py"]
