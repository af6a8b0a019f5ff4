"""Programs hardly optimised, for tests of what happens around them: compiled in half the time.

Integers are the same bits however a program was optimised; of floats only what was compiled alike
is compared. What the compiler does in full is asked elsewhere: of integers by
``tests/integer/test_program.py``, of training by ``test_elastic.py``, ``test_phase.py`` and
``test_step.py``.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import jax
import pytest


@contextmanager
def hardly_optimised() -> Iterator[None]:
    """In this process and in the commands it runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        jax.config.update("jax_disable_most_optimizations", True)
        try:
            yield
        finally:
            jax.config.update("jax_disable_most_optimizations", False)
