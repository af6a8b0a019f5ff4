"""Drafts from a row's own text: what followed the last time the same few tokens stood there.

Prompt lookup (Saxena, 2023): text that repeats itself, as code and formulas do, is proposed for
nothing. Whether a proposal is right is decided by the model, so no answer depends on it.
"""

from collections.abc import Sequence

LONGEST, SHORTEST = 4, 2  # tokens that must be the same


class Lookup:
    """Where every n-gram of a growing text ended last."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}
        self._read = 0  # tokens whose n-grams are known

    def draft(self, tokens: Sequence[int], most: int) -> list[int]:
        """Up to ``most`` tokens that may follow; ``tokens`` only grows from call to call."""
        # The n-grams that end at the last token are looked up, not found.
        for end in range(self._read, len(tokens)):
            for n in range(SHORTEST, min(LONGEST, end) + 1):
                self._ends[tuple(tokens[end - n : end])] = end
        self._read = len(tokens)
        for n in range(min(LONGEST, len(tokens)), SHORTEST - 1, -1):
            found = self._ends.get(tuple(tokens[len(tokens) - n :]))
            if found is not None:
                return list(tokens[found : found + most])
        return []
