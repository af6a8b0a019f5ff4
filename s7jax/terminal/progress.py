"""Progress of long work on standard error: a bar with rate and ETA, plain lines elsewhere."""

import threading
import time
from typing import Self

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

PLAIN_INTERVAL = 10.0  # seconds between lines where there is no terminal
LEAST = 1.0  # seconds of work that a rate is of


class Progress:
    """Work done, of a total if it is known; use as a context manager.

    Counts are in ``unit``. The rate may be in another one: ``rate=(tokens_per_step, "tokens")``.
    """

    def __init__(
        self,
        name: str,
        total: int | None,
        unit: str,
        rate: tuple[int, str] | None = None,
        done: int = 0,
        first: str = "starting",
    ) -> None:
        """``done`` is there before; ``first`` says what is waited for until there is more."""
        self._name, self._total, self._unit = name, total, unit
        self._scale, self._rate_unit = rate or (1, unit)
        self._done, self._first, self._text_before = done, done, first
        self._began: float | None = None  # when the clock started: what took compiling is no speed
        self._printed = time.monotonic()
        self._bars: RichProgress | None = None

    def __enter__(self) -> Self:
        self._bars = _Display.enter()
        self._task = self._bars.add_task(
            self._name, total=self._total, completed=self._done, text=self._text_before
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._bars is not None
        _Display.leave()

    def advance(self, count: int, note: str = "") -> None:
        """``count`` more are done; ``note`` is what a user watches, such as the loss."""
        self._done += count
        now = time.monotonic()
        if self._began is None:
            self._began, self._first = now, self._done
        text = self._text(now, note)
        assert self._bars is not None
        self._bars.update(self._task, completed=self._done, text=text)
        if self._bars.disable and now - self._printed >= PLAIN_INTERVAL:
            self._printed = now
            self._bars.console.print(f"{self._name}: {text}{self._left(now)}", highlight=False)

    def _text(self, now: float, note: str) -> str:
        done = _amount(self._done, self._unit)
        total = f" of {_amount(self._total, self._unit)}" if self._total else ""
        speed = self._speed(now)
        rate = f"{_amount(self._scale * speed, self._rate_unit)}/s" if speed else ""
        return ", ".join(filter(None, (f"{done}{total}", note, rate)))

    def _left(self, now: float) -> str:
        speed = self._speed(now)
        return f", {(self._total - self._done) / speed:.0f} s left" if self._total and speed else ""

    def _speed(self, now: float) -> float | None:
        """Units a second; None until a second of them was timed."""
        seconds = 0.0 if self._began is None else now - self._began
        return (self._done - self._first) / seconds if seconds >= LEAST else None


class _Display:
    """The one live display of the process: bars of several threads stand below one another."""

    lock = threading.Lock()
    bars: RichProgress | None = None
    users = 0

    @classmethod
    def enter(cls) -> RichProgress:
        """The display, started for its first user."""
        with cls.lock:
            if cls.bars is None:
                console = Console(stderr=True)
                cls.bars = RichProgress(
                    TextColumn("{task.description:<9}"),
                    BarColumn(),
                    TextColumn("{task.fields[text]}"),
                    TimeRemainingColumn(),
                    console=console,
                    disable=not console.is_terminal,
                )
                cls.bars.start()
            cls.users += 1
            return cls.bars

    @classmethod
    def leave(cls) -> None:
        """The last user stops it."""
        with cls.lock:
            cls.users -= 1
            if cls.users == 0 and cls.bars is not None:
                cls.bars.stop()
                cls.bars = None


def _amount(count: float, unit: str) -> str:
    if unit == "bytes":
        return decimal(int(count))
    return f"{count:,.0f} {unit}" if count == int(count) or count >= 10 else f"{count:.2g} {unit}"
