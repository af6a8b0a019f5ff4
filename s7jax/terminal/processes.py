"""Working as several processes: print once, one after another."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax
from jax.experimental import multihost_utils


def say(text: str) -> None:
    """Print once, however many processes there are."""
    if jax.process_index() == 0:
        print(text, flush=True)


@contextmanager
def one_after_another() -> Iterator[None]:
    """Process 0 goes first and the others follow when it is done.

    For work that leaves files behind: the others find them there.
    """
    several = jax.process_count() > 1
    if several and jax.process_index() > 0:
        multihost_utils.sync_global_devices("first")
    try:
        yield
    finally:
        if several and jax.process_index() == 0:
            multihost_utils.sync_global_devices("first")
