"""Progress on the terminal: a bar with rate and ETA; plain lines when there is no terminal."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

PLAIN_INTERVAL = 10.0  # seconds between plain lines


@dataclass
class Bar:
    """One piece of long work, counted in ``unit``."""

    name: str
    total: int
    unit: str
    scale: int = 1  # units of the rate in one count: tokens in a step
    _progress: Progress | None = None
    _task: TaskID | None = None
    _done: int = 0
    _first: int = 0
    _began: float = field(default_factory=time.monotonic)
    _printed: float = field(default_factory=time.monotonic)

    def restart_clock(self, done: int) -> None:
        """Count the rate from here: what was resumed, or took compiling, is not speed."""
        self._first = self._done = done
        self._began = time.monotonic()

    def update(self, done: int, note: str = "") -> None:
        """``done`` of ``total`` are done; ``note`` says what a user watches, such as the loss."""
        self._done = done
        now = time.monotonic()
        if self._progress is not None and self._task is not None:
            text = f"{note} {self._rate(now)}".strip()
            self._progress.update(self._task, completed=done, note=text)
        elif now - self._printed >= PLAIN_INTERVAL or done == self.total:
            self._printed = now
            rate = self._per_second(now)
            left = (self.total - done) * self.scale / rate if rate else 0
            print(
                f"{self.name}: {done}/{self.total} {note} {self._rate(now)}, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    def _per_second(self, now: float) -> float:
        return (self._done - self._first) * self.scale / max(now - self._began, 1e-9)

    def _rate(self, now: float) -> str:
        return f"{self._per_second(now):,.0f} {self.unit}/s"


@contextmanager
def bar(name: str, total: int, unit: str, scale: int = 1) -> Iterator[Bar]:
    """A progress bar on standard error for the length of the block."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Bar(name, total, unit, scale)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(name, total=total, note="")
        yield Bar(name, total, unit, scale, progress, task)
