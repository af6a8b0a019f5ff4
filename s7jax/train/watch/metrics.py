"""Training metrics as JSON lines and for trackers, read a step after the device made them."""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from s7jax.devices import Device
from s7jax.terminal.processes import say
from s7jax.train.watch.journal import Journal
from s7jax.train.watch.sender import Sender
from s7jax.train.watch.trackers import Subject


class Throughput:
    """Tokens a second, and the share of the devices' peak they amount to (MFU).

    Utilisation counts matrix products alone and attention over the whole square (PaLM, arXiv
    2204.02311, appendix B). There is none without a peak with a source; more than all of it is
    refused.
    """

    def __init__(
        self, tokens_per_step: int, flops_per_token: int, device: Device | None, devices: int
    ) -> None:
        self._tokens, self._flops = tokens_per_step, flops_per_token
        self._device, self._devices = device, devices
        self._last: float | None = None
        self._warned = False

    def step(self) -> dict[str, float]:
        """The figures of the step that has ended now; none before the clock was started."""
        now = time.monotonic()
        last, self._last = self._last, now
        if last is None:
            return {}
        rate = self._tokens / max(now - last, 1e-9)
        device, flops, devices = self._device, self._flops, self._devices
        mfu = device.utilisation(rate, flops, devices) if device else None
        if mfu is None:
            return {"tokens_per_second": round(rate, 1)}
        if mfu > 1:
            if not self._warned:
                say(f"warning: {mfu:.0%} of the devices' peak is impossible; no MFU is shown")
            self._warned = True
            return {"tokens_per_second": round(rate, 1)}
        return {"tokens_per_second": round(rate, 1), "mfu": round(mfu, 4)}

    def start(self) -> None:
        """What came before now is not speed: compiling, a save, an evaluation."""
        self._last = time.monotonic()


class Clock:
    """Seconds by what they went into: from its making on, each into exactly one thing."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._spent: dict[str, float] = {}

    def mark(self, what: str) -> None:
        """What came since the last mark went into ``what``."""
        now = time.monotonic()
        self.add(what, now - self._last)
        self._last = now

    def add(self, what: str, seconds: float) -> None:
        """As many more went into ``what``."""
        self._spent[what] = self._spent.get(what, 0.0) + seconds

    def take(self) -> dict[str, float]:
        """Seconds by kind since they were last taken."""
        spent = {what: round(seconds, 4) for what, seconds in self._spent.items()}
        self._spent = {}
        return spent


class Metrics:
    """One line per step in ``metrics.jsonl``, and the same as scalars for trackers.

    A step's metrics are read from the device only when the next step has been dispatched, so
    that the device never waits for the host. What is not finite is written as null.
    """

    def __init__(
        self,
        path: Path,
        subject: Subject,
        log_to: Sequence[str],
        throughput: Throughput,
        clock: Clock,
    ) -> None:
        # Only process 0 writes reports.
        reports = jax.process_index() == 0
        self._journal = Journal(path, subject.phase, subject.first) if reports else None
        self._clock = clock
        if self._journal and self._journal.lost:
            clock.add("lost", self._journal.lost)
        self._senders = [Sender(name, subject) for name in log_to] if reports else []
        self._phase, self._throughput = subject.phase, throughput
        self._pending: tuple[dict[str, Any], dict[str, jax.Array]] | None = None
        self._line: dict[str, Any] | None = None
        self._began = time.monotonic()
        self.note, self.skipped, self.last_skipped = "", 0, -1

    def put(self, step: dict[str, Any], metrics: dict[str, jax.Array]) -> None:
        """Queue a step's metrics (device scalars) and write those of the step before."""
        self.flush()
        self._pending = step, metrics

    def held_out(self, measure: Callable[[], dict[str, float]]) -> None:
        """Add bits per byte on held-out text, measured now, to the step that was put last."""
        self.settle()
        assert self._line is not None
        self._clock.mark("step")
        self._line["held_out"] = measure()
        self._clock.mark("evaluate")
        bits = ", ".join(
            f"{domain} {value:.4f}" for domain, value in self._line["held_out"].items()
        )
        say(f"{self._phase}: step {self._line['step'] + 1}: held-out bits per byte: {bits}")
        self.start_clock()

    def start_clock(self) -> None:
        """What came since the end of the step that was put last does not count as speed."""
        self.settle()
        self._throughput.start()

    def flush(self) -> None:
        """Write the step that was put last."""
        self.settle()
        if self._line is not None:
            if self._journal:
                self._journal.append({**self._line, "spent": self._clock.take()})
            self._track(self._line)
        self._line = None

    def settle(self) -> None:
        """Wait for the step that was put last."""
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        rates = self._throughput.step()
        seconds = round(time.monotonic() - self._began, 3)
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._line = {"phase": self._phase, **step, **finite, **rates, "seconds": seconds}
        mfu = f", MFU {rates['mfu']:.1%}" if "mfu" in rates else ""
        self.note = f"loss {values['loss']:.3f}{mfu}"
        if values["skipped"]:
            self.skipped, self.last_skipped = self.skipped + 1, step["step"]
            reason = f"loss {values['loss']:g}, gradient norm {values['grad_norm']:g}"
            say(f"{self._phase}: step {step['step']} skipped: {reason}")

    def _track(self, line: dict[str, Any]) -> None:
        scalars = {key: value for key, value in line.items() if isinstance(value, float)}
        held_out = line.get("held_out", {})
        scalars |= {f"held_out/{domain}": value for domain, value in held_out.items()}
        for sender in self._senders:
            sender.put(line["step"], scalars)

    def close(self, finished: bool) -> None:
        """Write what is pending and close everything; whether the phase has come to its end."""
        self.flush()
        for sender in self._senders:
            sender.close(finished)
