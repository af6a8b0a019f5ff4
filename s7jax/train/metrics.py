"""Training metrics as JSON lines, one step behind the device."""

import json
import time
from pathlib import Path
from typing import Any, Self


class MetricsFile:
    """Appends one line per step to ``metrics.jsonl``.

    A step's metrics are read from the device only when the next step has been dispatched.
    """

    def __init__(self, path: Path, phase: str, tokens_a_step: int) -> None:
        self._file = path.open("a", buffering=1)
        self._phase, self._tokens = phase, tokens_a_step
        self._pending: tuple[int, dict[str, Any]] | None = None
        self._last = time.monotonic()
        self.note = ""

    def put(self, step: int, metrics: dict[str, Any]) -> None:
        """Queue a step's metrics (device scalars) and write those of the step before."""
        self._flush()
        self._pending = step, metrics

    def _flush(self) -> None:
        if self._pending is None:
            return
        step, metrics = self._pending
        values = {name: float(value) for name, value in metrics.items()}
        now = time.monotonic()
        line = {
            "phase": self._phase,
            "step": step,
            "tokens": (step + 1) * self._tokens,
            **values,
            "tokens_per_second": self._tokens / (now - self._last),
        }
        self._last, self._pending = now, None
        self._file.write(json.dumps(line) + "\n")
        self.note = f"loss {values['loss']:.3f}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._file.close()
