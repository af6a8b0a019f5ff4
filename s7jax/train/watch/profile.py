"""A trace of some training steps, for TensorBoard's profiler, XProf or Perfetto."""

from pathlib import Path
from typing import Self

import jax

from s7jax.terminal.processes import say


class Profile:
    """Traces the steps ``first`` to ``first + count - 1``; use as a context manager."""

    def __init__(self, folder: Path, first: int, count: int) -> None:
        self._folder, self._first, self._count = folder, first, count
        self._running = False

    def before(self, step: int) -> None:
        """Called before each step."""
        if self._count and step == self._first:
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        elif self._running and step == self._first + self._count:
            self._stop()

    def _stop(self) -> None:
        if self._running:
            self._running = False
            jax.effects_barrier()
            jax.profiler.stop_trace()
            say(f"profile: {self._folder}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
