"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

import time
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bar

_EVERY = 10.0  # seconds between plain lines


class Progress:
    """Bytes done, of a total if it is known, on standard error."""

    def __init__(self, label: str, total: int | None = None) -> None:
        self._label = label
        self._total = total
        self._done = 0
        self._console = Console(stderr=True)
        self._started = self._printed = time.monotonic()
        self._bar = Bar(
            TextColumn("{task.description:<9}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(label, total=total)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, size: int) -> None:
        """Count ``size`` more bytes as done."""
        self._done += size
        self._bar.advance(self._task, size)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._printed > _EVERY:
            self._printed = now
            rate = self._done / (now - self._started)
            line = f"{self._label}: {self._done / 1e6:.1f} MB, {rate / 1e6:.1f} MB/s"
            if self._total:
                left = max(0, self._total - self._done)
                line += f", {left / 1e6:.1f} MB in {left / rate:.0f} s left"
            self._console.print(line, highlight=False)
