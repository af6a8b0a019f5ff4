"""The thread that runs an engine, and answers as an event loop sees them.

Nothing that a request holds can end the thread: what is wrong with one is that one's error. If
the engine itself fails, every answer and every later request fails at once.
"""

import asyncio
import contextlib
import math
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

from s7jax.runtime.engine import Completion, Engine, Request
from s7jax.runtime.model import Model
from s7jax.server.fair import Fair
from s7jax.server.limits import Limits
from s7jax.server.shares import Shares


class Full(Exception):
    """The queue has no room, for anybody or for this client."""


class Stopped(Exception):
    """The engine runs no more."""


class Running:
    """An answer on its way, as the event loop sees it."""

    def __init__(self, request: Request, client: str, seconds: float) -> None:
        self.request, self.client = request, client
        self.completion: Completion | None = None
        self.error: BaseException | None = None
        self.arrived = time.monotonic()
        self.deadline = self.arrived + seconds
        self._count, self._reason = 0, ""
        self._loop, self._news = asyncio.get_running_loop(), asyncio.Event()

    def tell(self, error: BaseException | None = None) -> None:
        """Called by the engine's thread after every change."""
        if self.completion is not None:
            self._count = len(self.completion.output)
            self._reason = self.completion.reason or ""
        self.error = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._news.set)

    async def news(self) -> tuple[int, str]:
        """After the next change: how many tokens there are, and why it has ended (or "").

        Raises:
            Stopped: the engine failed, or could not take this request.
        """
        await self._news.wait()
        self._news.clear()
        if self.error is not None:
            raise Stopped from self.error
        # The reason first: tokens never follow it.
        reason = self._reason
        return self._count, reason


class Worker:
    """The thread that runs the engine; everything else only talks to it."""

    def __init__(self, model: Model, limits: Limits) -> None:
        # One more than a client may have: another finds a place, however long the answers are.
        rows = -(-(limits.rows + 1) // model.compute.groups) * model.compute.groups
        self._engine = Engine(model.compute, rows)
        self._limits = limits
        self._inbox: queue.SimpleQueue[tuple[Running, str] | None] = queue.SimpleQueue()
        self._queue: Fair[Running] = Fair()
        self._active: set[Running] = set()
        self._shares: Shares[Running] = Shares()
        self._open: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._latest = math.inf
        self.ready = False
        self.failure: BaseException | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._guarded, name="engine", daemon=True)
        self._thread.start()

    @property
    def open(self) -> int:
        """Answers that have not ended."""
        return self._open.total()

    @property
    def alive(self) -> bool:
        """Whether the engine still runs."""
        return self._thread.is_alive() and self.failure is None

    def submit(self, requests: Sequence[Request], client: str) -> list[Running]:
        """Hand requests to the engine, all or none, from a running event loop.

        Raises:
            Full: too many wait already.
            UsageError: a prompt or policy is not one of this model.
            Stopped: the engine failed.
        """
        for request in requests:
            self._engine.check(request)
        with self._lock:
            if self.failure is not None:
                raise Stopped from self.failure
            room = min(self._limits.answers - self.open, self._limits.share - self._open[client])
            if len(requests) > room:
                raise Full
            self._open[client] += len(requests)
            found = [Running(request, client, self._limits.seconds) for request in requests]
            for running in found:
                self._inbox.put((running, ""))
        return found

    def cut(self, running: Running) -> None:
        """Nobody wants this answer any more: its place is free after the step under way."""
        self._inbox.put((running, "client"))

    def hurry(self, seconds: float) -> None:
        """Cut every answer off that is not there in so many seconds."""
        self._latest = time.monotonic() + seconds

    def stop(self, seconds: float) -> None:
        """End every answer, and the thread if its step ends in time."""
        self._inbox.put(None)
        self._thread.join(seconds)

    def _guarded(self) -> None:
        try:
            self._engine.warm()
            self.ready = True
            self._run()
        except BaseException as e:  # whatever it is, nobody may wait for ever
            with self._lock:
                self.failure = e
            left = {*self._active, *self._queue}
            while not self._inbox.empty():
                if letter := self._inbox.get():
                    left.add(letter[0])
            for running in left:
                running.tell(e)
            self._open.clear()
            self.on_failure()

    def _run(self) -> None:
        while True:
            block = not self._engine.busy and not self._queue
            while block or not self._inbox.empty():
                block = False
                if not self._receive():
                    return
            now = time.monotonic()
            late = now > self._latest
            for running in [r for r in (*self._active, *self._queue) if late or now > r.deadline]:
                self._end(running, "time")
            while self._engine.free and (found := self._queue.take(self._may_begin)):
                self._begin(found)
            if self._engine.busy:
                self._step()

    def _step(self) -> None:
        """One step of the answers whose turn it is."""
        chosen = self._shares.choose([(running, running.client) for running in self._active])
        for running in self._active:
            assert running.completion is not None
            running.completion.held = running not in chosen
        began = time.monotonic()
        self._engine.step()
        self._shares.took(len(chosen), time.monotonic() - began)

    def _may_begin(self, client: str) -> bool:
        return sum(running.client == client for running in self._active) < self._limits.rows

    def _receive(self) -> bool:
        """The next letter; whether it is not the last."""
        letter = self._inbox.get()
        if letter is None:
            return False
        running, end = letter
        if end:
            self._end(running, end)
        else:
            self._queue.put(running.client, running)
        return True

    def _begin(self, running: Running) -> None:
        def watch(completion: Completion) -> None:
            running.completion = completion
            if completion.reason:
                self._close(running)
            running.tell()

        self._active.add(running)
        try:
            running.completion = self._engine.submit(running.request, watch)
        except Exception as e:  # this request's own fault
            self._close(running)
            running.tell(e)

    def _end(self, running: Running, end: str) -> None:
        """Cut an answer; one that has not begun has no steps."""
        if self._queue.remove(running.client, running):
            self._begin(running)
        if running in self._active and running.completion is not None:
            self._engine.cut(running.completion, end)

    def _close(self, running: Running) -> None:
        self._active.discard(running)
        with self._lock:
            self._open[running.client] -= 1
            if not self._open[running.client]:
                del self._open[running.client]
