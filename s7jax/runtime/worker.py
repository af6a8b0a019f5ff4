"""The thread that runs an engine, and answers as an event loop sees them."""

import asyncio
import contextlib
import queue
import threading
from dataclasses import dataclass
from typing import Any

from s7jax.runtime.engine import Completion, Engine
from s7jax.runtime.engine import Request as Generation
from s7jax.runtime.model import Model


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a server takes on."""

    rows: int = 8  # answers in one batch
    waiting: int = 64  # requests that may queue for a place in it
    body: int = 1 << 20  # bytes of a request
    seconds: float = 120.0  # until an answer is cut off


class Full(Exception):
    """The queue has no room."""


class Worker:
    """The thread that runs the engine; everything else only talks to it."""

    def __init__(self, model: Model, limits: Limits) -> None:
        rows = -(-limits.rows // model.compute.groups) * model.compute.groups
        self._engine = Engine(model.compute, rows)
        self._limits = limits
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._open = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.failure: BaseException | None = None
        self._thread.start()

    @property
    def open(self) -> int:
        """Requests that have not ended."""
        return self._open

    @property
    def alive(self) -> bool:
        """Whether the engine still runs."""
        return self._thread.is_alive() and self.failure is None

    def submit(self, generation: Generation) -> "Running":
        """Hand a request to the engine, from a running event loop.

        Raises:
            Full: too many requests wait.
            UsageError: the prompt does not fit.
        """
        self._engine.check(generation)
        with self._lock:
            if self._open >= self._limits.rows + self._limits.waiting:
                raise Full
            self._open += 1
        running = Running(asyncio.get_running_loop())
        self._inbox.put((generation, running))
        return running

    def cut(self, running: "Running", end: str) -> None:
        """End a request early, as ``client`` or ``time``."""
        self._inbox.put((running, end))

    def stop(self) -> None:
        """End every request and the thread."""
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        active: dict[int, tuple[Running, Completion]] = {}
        try:
            while True:
                block = not self._engine.busy
                while block or not self._inbox.empty():
                    block = False
                    item = self._inbox.get()
                    if item is None:
                        for _, completion in list(active.values()):
                            self._engine.cut(completion, "client")
                        return
                    if isinstance(item[0], Running):
                        cut, end = item
                        if id(cut) in active:
                            self._engine.cut(active[id(cut)][1], end)
                        continue
                    generation, running = item

                    def watch(completion: Completion, running: Running = running) -> None:
                        running.put(completion)
                        if completion.reason:
                            active.pop(id(running), None)
                            with self._lock:
                                self._open -= 1

                    active[id(running)] = running, self._engine.submit(generation, watch)
                if self._engine.busy:
                    self._engine.step()
        except BaseException as e:
            self.failure = e
            for running, _ in active.values():
                running.fail(e)
            raise


class Running:
    """An answer as the event loop sees it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._news: asyncio.Queue[Any] = asyncio.Queue()

    def put(self, completion: Completion) -> None:
        """Called by the engine's thread."""
        state = (list(completion.output), completion.reason, completion)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._news.put_nowait, state)

    def fail(self, error: BaseException) -> None:
        """Called when the engine broke."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._news.put_nowait, error)

    async def news(self) -> tuple[list[int], str | None, Completion]:
        """The next change: ids so far, reason of the end, and the completion."""
        state = await self._news.get()
        if isinstance(state, BaseException):
            raise RuntimeError("the engine stopped") from state
        found: tuple[list[int], str | None, Completion] = state
        return found
