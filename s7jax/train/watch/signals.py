"""Stopping in good order: a signal asks, the loop answers when it is between two steps."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def deferred() -> Iterator[Callable[[], int]]:
    """Within the block SIGTERM and SIGINT only set a mark; yields a function that reads it.

    The function returns the signal's number, or 0. With several processes it must be called by
    all alike and all get the same answer. A second signal acts at once. Outside the main
    thread, where Python handles no signals, the mark stays 0.
    """
    asked = 0

    def ask(number: int, _: FrameType | None) -> None:
        nonlocal asked
        asked = number
        restore()

    previous = {}
    if threading.current_thread() is threading.main_thread():
        previous = {number: signal.signal(number, ask) for number in SIGNALS}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def answer() -> int:
        if jax.process_count() == 1:
            return asked
        return int(np.max(multihost_utils.process_allgather(np.int32(asked))))

    try:
        yield answer
    finally:
        restore()
