"""Settings that make a program's result a pure function of its inputs."""

import os

import jax
from jax._src import xla_bridge

from s7jax.devices import processors
from s7jax.errors import UsageError

GPU_FLAGS = "--xla_gpu_deterministic_ops=true"
CPU_THREADS = 8


def cores() -> int:
    """Data groups for the cores of this machine: a power of two, at most :data:`CPU_THREADS`."""
    return min(1 << processors().bit_length() - 1, CPU_THREADS)


def enforce() -> None:
    """Pin the random generator and forbid run-dependent kernels; call before using JAX.

    Threefry is counter-based: the same key gives the same bits on every backend. On GPUs XLA
    must not choose kernels by timing or add in the order threads finish. On CPUs the blocks in
    which a matrix product is summed depend on the size of XLA's thread pool, by default the
    number of cores or of virtual devices, whichever is larger: pinned, training gives the same
    bits on any number of cores and on up to :data:`CPU_THREADS` virtual devices per process. A
    larger pool costs time where there are fewer cores.

    Raises:
        UsageError: this process has used JAX already, with settings of its own.
    """
    if xla_bridge.backends_are_initialized() and os.environ.get("PJRT_NPROC") != str(CPU_THREADS):
        raise UsageError(
            "this process has used JAX before, so training would not give the bits it promises: "
            "start a new one (in a notebook restart the kernel) and train first"
        )
    os.environ["PJRT_NPROC"] = str(CPU_THREADS)
    flags = os.environ.get("XLA_FLAGS", "")
    if GPU_FLAGS not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {GPU_FLAGS}".strip()
    jax.config.update("jax_default_prng_impl", "threefry2x32")
    jax.config.update("jax_threefry_partitionable", True)
