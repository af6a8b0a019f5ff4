"""Programs hardly optimised, for tests of what happens around them: compiled three times as fast.

Integers are the same bits however a program was optimised; of floats only what was compiled alike
is compared. What the compiler does in full is asked elsewhere: of integers by
``tests/integer/test_program.py``, of training by ``test_elastic.py``, ``test_watch.py`` and the
golden curve of ``test_step.py``, of commands by the long tests of ``test_elastic.py``.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import pytest
from jax._src import compiler

from s7jax.train import compilation

# Taking a program apart, to compile it on many cores, costs more than it gives. XLA's newer way of
# writing kernels makes faster ones, and where nothing is optimised takes most of the time.
WHOLE = {"xla_cpu_parallel_codegen_split_count": 1}
EMITTERS = "xla_cpu_use_fusion_emitters"
PLAIN = WHOLE | {EMITTERS: False}

# For programs whose HLO is read and that never run: its text is final before LLVM begins.
READ_ALONE = WHOLE | {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    EMITTERS: True,
}
FLAGS = " ".join(f"--{name}={value}" for name, value in PLAIN.items())  # for a process


def environment() -> dict[str, str]:
    """Of a process that chooses its own number of devices: what it runs is compiled as here."""
    flags = FLAGS if FLAGS in os.environ.get("XLA_FLAGS", "") else ""
    return os.environ | {"XLA_FLAGS": flags}


def full() -> dict[str, str]:
    """Of a process whose programs are compiled as users' are."""
    flags = os.environ.get("XLA_FLAGS", "").replace(FLAGS, "")
    gone = "JAX_DISABLE_MOST_OPTIMIZATIONS"
    return {k: v for k, v in os.environ.items() if k != gone} | {"XLA_FLAGS": flags}


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
    options = compiler.get_compile_options

    def plainly(*args: Any, **named: Any) -> Any:
        asked = named.pop("env_options_overrides", None) or {}
        return options(*args, env_options_overrides=PLAIN | asked, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "get_compile_options", plainly)
        patch.setenv("XLA_FLAGS", f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}")
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        jax.config.update("jax_disable_most_optimizations", True)
        try:
            yield
        finally:
            jax.config.update("jax_disable_most_optimizations", False)
