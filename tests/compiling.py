"""Programs hardly optimised, for tests of what happens around them: compiled in half the time.

Integers are the same bits however a program was optimised; of floats only what was compiled alike
is compared. What the compiler does in full is asked elsewhere: of integers by
``tests/integer/test_program.py``, of training by ``test_elastic.py``, ``test_phase.py``,
``test_step.py`` and ``test_watch.py``, of commands by the long tests of ``test_elastic.py``.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import jax
import pytest

from s7jax.train import compilation

# For programs whose HLO is read and that never run: its text is final before LLVM begins.
READ_ALONE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@contextmanager
def hardly_optimised() -> Iterator[None]:
    """In this process and in the commands it runs.

    What JAX holds compiled does not tell how: none of it is shared with the tests before or after.
    """
    _forget()
    try:
        with quick():
            yield
    finally:
        _forget()


def _forget() -> None:
    jax.clear_caches()
    compilation.compiled.cache_clear()


@contextmanager
def quick() -> Iterator[None]:
    """As :func:`hardly_optimised`, for integers: programs compiled before and after are as good."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        jax.config.update("jax_disable_most_optimizations", True)
        try:
            yield
        finally:
            jax.config.update("jax_disable_most_optimizations", False)
