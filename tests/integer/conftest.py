"""The synthetic model, sealed."""

from synthetic import seal, sealed, tokens  # noqa: F401 fixtures
