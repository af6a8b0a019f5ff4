"""Tokenising on many processes, in order."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from s7jax.data.tokenizer import Tokenizer

_worker_tokenizer: Tokenizer  # each worker process loads its own


@contextlib.contextmanager
def encoder(path: Path, workers: int) -> Iterator["Encoder"]:
    """An encoder with the tokenizer at ``path``; one worker is this process itself."""
    if workers == 1:
        yield Encoder(Tokenizer.load(path), None, 1)
        return
    with ProcessPoolExecutor(
        workers,
        # Not fork: the tokenizer library has threads, and a forked copy of them would hang.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(path,),
    ) as pool:
        yield Encoder(Tokenizer.load(path), pool, workers)


class Encoder:
    """Encodes batches of texts ahead of their use, and yields the results in order."""

    def __init__(
        self, tokenizer: Tokenizer, pool: ProcessPoolExecutor | None, workers: int
    ) -> None:
        self.tokenizer = tokenizer
        self._pool = pool
        self._ahead = 2 * workers  # bounds what is in memory

    def __call__(self, batches: Iterable[list[str]]) -> Iterator[list[NDArray[np.int32]]]:
        """Token ids of each text of each batch, without end-of-document tokens."""
        if self._pool is None:
            yield from map(self.tokenizer.encode_batch, batches)
            return
        waiting: deque[Future[list[NDArray[np.int32]]]] = deque()
        for batch in batches:
            waiting.append(self._pool.submit(_encode, batch))
            if len(waiting) >= self._ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _start_worker(path: Path) -> None:
    global _worker_tokenizer  # noqa: PLW0603 (a process pool offers no other place)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _worker_tokenizer = Tokenizer.load(path)


def _end_with_parent() -> None:
    """Leave no process behind when the parent is killed."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _encode(batch: list[str]) -> list[NDArray[np.int32]]:
    return _worker_tokenizer.encode_batch(batch)
