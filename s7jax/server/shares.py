"""Who is in a step: every client alike where each row costs time, all rows where they cost none."""

from collections.abc import Collection, Hashable
from typing import Generic, TypeVar

Answer = TypeVar("Answer", bound=Hashable)
SLOWER = 1.25  # a step may take so many times what one of equal shares takes
_KEPT = 0.8  # of the time known so far, when a new one is measured
_AGED = 0.999  # of it, with each step of another number of rows: some day it is tried again


class Shares(Generic[Answer]):
    """Chooses among answers under way; measures what steps of so many rows take."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}  # of a step, by its rows
        self._ticks = 0
        self._stepped: dict[Answer, int] = {}  # when an answer was last in a step

    def choose(self, clients: Collection[tuple[Answer, str]]) -> set[Answer]:
        """The answers that are in the next step, those first that have waited longest.

        Args:
            clients: every answer under way, and whose it is.
        """
        lines: dict[str, list[Answer]] = {}
        for answer, client in clients:
            lines.setdefault(client, []).append(answer)
        self._stepped = {answer: self._stepped.get(answer, 0) for answer, _ in clients}
        for line in lines.values():
            line.sort(key=lambda answer: self._stepped[answer])
        counts = [len(line) for line in lines.values()]
        share = self._share(counts)
        chosen = {answer for line in lines.values() for answer in line[:share]}
        self._ticks += 1
        self._stepped.update(dict.fromkeys(chosen, self._ticks))
        return chosen

    def took(self, rows: int, seconds: float) -> None:
        """A step of so many rows took so long."""
        known = self._seconds.get(rows, seconds)
        self._seconds = {n: _AGED * old for n, old in self._seconds.items()}
        self._seconds[rows] = _KEPT * known + (1 - _KEPT) * seconds

    def _share(self, counts: Collection[int]) -> int:
        """Rows of each client at most: the fewest that one has, or more if that is no slower."""

        def seconds(share: int) -> float | None:
            return self._seconds.get(sum(min(count, share) for count in counts))

        fewest, most = min(counts), max(counts)
        alike = seconds(fewest)
        if alike is None:
            return fewest
        # What was never measured is tried once.
        tried = ((n, seconds(n)) for n in range(most, fewest, -1))
        return next((n for n, took in tried if took is None or took <= SLOWER * alike), fewest)
