"""A step that never ends, such as a collective whose partner is gone, ends the process."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Self

POLL = 0.2  # of the limit, between two looks at the clock


class Watchdog:
    """Watches that :meth:`beat` is called often enough; use as a context manager.

    A thread stuck inside a collective cannot be interrupted, so the whole process goes, with
    exit code 1, the stack of every thread and where to resume from: the scheduler can start the
    job again. Nothing is watched before the first beat (compilation may take its time).
    """

    def __init__(self, name: str, limit: float, advice: Callable[[], str]) -> None:
        """Watch ``name`` for silences over ``limit`` seconds (0: never); ``advice`` is printed."""
        self._name, self._limit, self._advice = name, limit, advice
        self._last: float | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self) -> None:
        """A step has ended."""
        self._last = time.monotonic()

    def _watch(self) -> None:
        while not self._ended.wait(self._limit * POLL):
            if self._last is not None and time.monotonic() - self._last > self._limit:
                sys.stdout.flush()
                print(
                    f"error: {self._name}: no step has ended for {self._limit:g} seconds "
                    f"(--step-timeout): a collective or the storage is stuck; {self._advice()}",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback()
                os._exit(1)

    def __enter__(self) -> Self:
        if self._limit:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
