"""Training metrics as JSON lines, one step behind the device."""

import json
import math
import os
import time
from pathlib import Path
from typing import Any, Self

import jax

from s7jax.processes import say


class MetricsFile:
    """Appends one line per step to ``metrics.jsonl``.

    A step's metrics are read from the device only when the next step has been dispatched, so
    that the device never waits for the host. What is not finite is written as null.
    """

    def __init__(self, path: Path, phase: str) -> None:
        # Only process 0 writes reports.
        target = path if jax.process_index() == 0 else Path(os.devnull)
        self._file = target.open("a", buffering=1)
        self._phase = phase
        self._pending: tuple[dict[str, Any], dict[str, jax.Array]] | None = None
        self._began = time.monotonic()
        self.note, self.skipped, self.last_skipped = "", 0, -1

    def put(self, step: dict[str, Any], metrics: dict[str, jax.Array]) -> None:
        """Queue a step's metrics (device scalars) and write those of the step before."""
        self._flush()
        self._pending = step, metrics

    def _flush(self) -> None:
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        values = {name: float(value) for name, value in metrics.items()}
        seconds = round(time.monotonic() - self._began, 3)
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = {"phase": self._phase, **step, **finite, "seconds": seconds}
        self._file.write(json.dumps(line) + "\n")
        self.note = f"loss {values['loss']:.3f}"
        if values["skipped"]:
            self.skipped, self.last_skipped = self.skipped + 1, step["step"]
            reason = f"loss {values['loss']:g}, gradient norm {values['grad_norm']:g}"
            say(f"{self._phase}: step {step['step']} skipped: {reason}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._file.close()
