"""Settings that make a program's result a pure function of its inputs."""

import os

import jax

GPU_FLAGS = "--xla_gpu_deterministic_ops=true"


def enforce() -> None:
    """Pin the random generator and forbid run-dependent kernels; call before using JAX.

    Threefry is counter-based: the same key gives the same bits on every backend. On GPUs XLA
    must not choose kernels by timing or add in the order threads finish.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if GPU_FLAGS not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {GPU_FLAGS}".strip()
    jax.config.update("jax_default_prng_impl", "threefry2x32")
    jax.config.update("jax_threefry_partitionable", True)
