"""Settings that make a program's result a pure function of its inputs."""

import os

import jax
from jax._src import xla_bridge

from s7jax.devices import processors
from s7jax.errors import UsageError

FLAGS = (
    "--xla_gpu_deterministic_ops=true",
    # The CPU library that XLA hands whole reductions to splits them by the number of threads.
    "--xla_cpu_experimental_ynn_fusion_type=dot",
)
MOST_GROUPS = 8


def cores() -> int:
    """Data groups for the cores of this machine: a power of two, at most :data:`MOST_GROUPS`."""
    return min(1 << processors().bit_length() - 1, MOST_GROUPS)


def enforce() -> None:
    """Pin the random generator and forbid run-dependent kernels; call before using JAX.

    Threefry is counter-based: the same key gives the same bits on every backend. On GPUs XLA
    must not choose kernels by timing or add in the order threads finish. On CPUs no sum may be
    split by the size of XLA's thread pool, the larger of cores and virtual devices. Its library for
    matrix products sums each in one order but takes only those whose left factor is summed over
    its last axis, so the gradients of :func:`s7jax.model.layers.product` and
    :func:`s7jax.model.attention.scores` and Muon's products are written to be: training gives the
    same bits with pools of 2 to 64 threads. A pool of one sums some products in other blocks, so
    it has two.

    Raises:
        UsageError: this process has used JAX already, with settings of its own.
    """
    flags = os.environ.get("XLA_FLAGS", "").split()
    last = {flag.partition("=")[0]: flag for flag in flags}  # the last of a name holds
    missing = [flag for flag in FLAGS if last.get(flag.partition("=")[0]) != flag]
    if missing and xla_bridge.backends_are_initialized():
        raise UsageError(
            "this process has used JAX before, so training would not give the bits it promises: "
            "start a new one (in a notebook restart the kernel) and train first"
        )
    os.environ["PJRT_NPROC"] = str(max(2, cores()))
    os.environ["XLA_FLAGS"] = " ".join(flags + missing)
    jax.config.update("jax_default_prng_impl", "threefry2x32")
    jax.config.update("jax_threefry_partitionable", True)
