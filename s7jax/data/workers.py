"""Tasks on many processes: each a pure function of its argument, so it may be computed again."""

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from types import ModuleType
from typing import Any, Protocol, TypeVar

from s7jax.errors import InputError, UsageError
from s7jax.extras import how_to_install

_TRIES = 3  # of a task whose process dies

Task = TypeVar("Task")
Result = TypeVar("Result")


class Workers(Protocol):
    """Something that runs tasks."""

    count: int

    def run(
        self, function: Callable[[Task], Result], tasks: Sequence[Task]
    ) -> Iterator[tuple[int, Result]]:
        """Results with the number of their task, as they come."""


@contextlib.contextmanager
def workers(count: int, cluster: str | None = None) -> Iterator[Workers]:
    """This process itself (1), local processes, or a Ray cluster by its address.

    Raises:
        UsageError: Ray is not installed.
    """
    if cluster is not None:
        with _ray(cluster) as remote:
            yield remote
    elif count == 1:
        yield Here()
    else:
        local = Processes(count)
        try:
            yield local
        finally:
            local.close()


class Here:
    """One task after another, in this process."""

    count = 1

    def run(
        self, function: Callable[[Task], Result], tasks: Sequence[Task]
    ) -> Iterator[tuple[int, Result]]:
        """Results with the number of their task."""
        for i, task in enumerate(tasks):
            yield i, function(task)


class Processes:
    """Local processes; a task whose process is killed is computed again by another one."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool: ProcessPoolExecutor | None = None

    def run(
        self, function: Callable[[Task], Result], tasks: Sequence[Task]
    ) -> Iterator[tuple[int, Result]]:
        """Results with the number of their task, as they come.

        Raises:
            InputError: a process died again and again on the same task.
        """
        todo, tries = list(range(len(tasks))), [0] * len(tasks)
        pending: dict[Future[Result], int] = {}
        while todo or pending:
            try:
                while todo and len(pending) < 2 * self.count:
                    with _no_script():
                        future = self._started().submit(function, tasks[todo[0]])
                    pending[future] = todo.pop(0)
                done, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    result = future.result()
                    yield pending.pop(future), result
            except BrokenProcessPool:
                self.close()
                for number in pending.values():
                    tries[number] += 1
                if max(tries) > _TRIES:
                    raise InputError(
                        "a worker process was killed again and again: most likely there is too "
                        "little memory; give fewer --workers or less --memory"
                    ) from None
                todo = [*pending.values(), *todo]
                pending = {}

    def close(self) -> None:
        """End the processes."""
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _started(self) -> ProcessPoolExecutor:
        # Not fork: the tokenizer library has threads, and a forked copy of them would hang.
        self._pool = self._pool or ProcessPoolExecutor(
            self.count,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
        )
        return self._pool


class _Ray:
    """Tasks on a Ray cluster; it computes a task again whose machine or process is gone."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self.count = max(1, int(ray.cluster_resources().get("CPU", 1)))

    def run(
        self, function: Callable[[Task], Result], tasks: Sequence[Task]
    ) -> Iterator[tuple[int, Result]]:
        remote = self._ray.remote(max_retries=_TRIES)(function)
        todo, pending = list(range(len(tasks))), dict[Any, int]()
        while todo or pending:
            while todo and len(pending) < 2 * self.count:
                pending[remote.remote(tasks[todo[0]])] = todo[0]
                del todo[0]
            done, _ = self._ray.wait(list(pending))
            for reference in done:
                number = pending.pop(reference)
                try:
                    yield number, self._ray.get(reference)
                except self._ray.exceptions.RayTaskError as e:
                    raise e.cause from None


@contextlib.contextmanager
def _ray(address: str) -> Iterator[_Ray]:
    try:
        import ray  # noqa: PLC0415 (an optional package)
    except ModuleNotFoundError:
        raise UsageError(f"--cluster needs Ray: {how_to_install('cluster')}") from None
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as e:
        raise InputError(f"--cluster {address}: {e}") from e
    try:
        yield _Ray(ray)
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _no_script() -> Iterator[None]:
    """Processes that start meanwhile do not run the script that this one runs.

    They need none of it, and a script of a few lines, without a guard, would begin again in each.
    """
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism


def _end_with_parent() -> None:
    """Leave no process behind when the parent is killed."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
