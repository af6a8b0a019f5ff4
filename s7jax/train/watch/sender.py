"""Sending scalars to a tracker from a thread of its own: training neither waits for it nor fails.

A tracker may be far away, slow or gone. The first error ends what goes to it, with one warning;
``metrics.jsonl`` has everything all the same.
"""

import threading
from collections.abc import Mapping
from queue import SimpleQueue

from s7jax.terminal.processes import say
from s7jax.train.watch.trackers import TRACKERS, Row, Subject

PATIENCE = 60.0  # seconds that the end of a phase waits for what is on its way
_silent = set[str]()  # trackers that did not answer: the next phases wait for them no more


class Sender:
    """One tracker of a phase."""

    def __init__(self, name: str, subject: Subject) -> None:
        self._name, self._subject = name, subject
        self._rows: SimpleQueue[Row | None] = SimpleQueue()  # None: no more
        self._finished = self._failed = False
        self._thread = threading.Thread(target=self._work, name=f"log to {name}", daemon=True)
        self._thread.start()

    def put(self, step: int, scalars: Mapping[str, float]) -> None:
        """Have the scalars of a step written some time."""
        if not self._failed:
            self._rows.put((step, scalars))

    def close(self, finished: bool) -> None:
        """Wait until all is written, but not for ever; ``finished`` is the phase's own end."""
        self._finished = finished
        self._rows.put(None)
        patience = 0.0 if self._name in _silent else PATIENCE
        self._thread.join(patience)
        if self._thread.is_alive():
            _silent.add(self._name)
            self._warn(f"does not answer; after {patience:.0f} s its last steps are left out")

    def _work(self) -> None:
        try:
            tracker = TRACKERS[self._name](self._subject)
            more = True
            while more:
                rows = [self._rows.get()]
                while not self._rows.empty():
                    rows.append(self._rows.get())
                more = rows[-1] is not None
                tracker.write([row for row in rows if row is not None])
            tracker.close(self._finished)
            _silent.discard(self._name)
        except Exception as e:  # of a library, or a network: whatever it is, training goes on
            self._failed = True
            text = str(e).strip().partition("\n")[0]
            self._warn(f"failed, metrics.jsonl has what it lacks: {type(e).__name__}: {text}")

    def _warn(self, what: str) -> None:
        say(f"{self._subject.phase}: warning: --log-to {self._name} {what}")
