"""No bit of a training step depends on how many threads XLA has."""

import json
import subprocess
import sys

import pytest

SUMS = """
import hashlib, json, sys
from s7jax.train import determinism

determinism.cores = lambda: int(sys.argv[1])
determinism.enforce()

import jax
import jax.numpy as jnp
import numpy as np
from s7jax import mesh
from s7jax.model.layers import ACTIVATIONS, product
from s7jax.train.optimizer import orthogonal

numbers = np.random.default_rng(0)
x, w, y = (numbers.normal(size=s).astype("f") for s in ((3, 256, 128), (128, 192), (3, 256, 192)))
terms = numbers.normal(size=(5, 512, 256)).astype("f")
tall = jnp.asarray(numbers.normal(size=(3, 384, 96)), "f")
with jax.set_mesh(mesh.single()):
    weighed = jax.grad(lambda x, w: jnp.sum(product(x, w, ACTIVATIONS) * y), (0, 1))
    found = dict(zip(("dx", "dw"), jax.jit(weighed)(x, w)))
    found["orthogonal"] = jax.jit(orthogonal)(tall)
    found["sum"] = jax.jit(lambda t: jnp.sum(t, (0, 1)))(terms)
exact = {"dx": y @ w.T, "dw": np.einsum("btd,btf->df", x, y), "sum": terms.sum((0, 1))}
digests = {name: hashlib.sha256(np.asarray(x).tobytes()).hexdigest() for name, x in found.items()}
errors = {name: float(np.abs(found[name] - x).max()) for name, x in exact.items()}
print(json.dumps([digests, errors]))
"""


def sums(threads: int) -> dict[str, str]:
    """Digests of gradients, a Muon update and a sum, by a process with a pool of that size."""
    done = subprocess.run(
        [sys.executable, "-c", SUMS, str(threads)], capture_output=True, text=True, check=True
    )
    digests, errors = json.loads(done.stdout)
    assert all(error < 1e-3 for error in errors.values()), errors
    return digests


@pytest.mark.usefixtures("own_programs")
def test_sums_are_the_same_with_any_number_of_threads():
    """At sizes of which JAX's own gradient of weights and XLA's own sum are not with AVX-512, and
    Muon's products of tall matrices, read as columns, are not without it.
    """
    assert sums(1) == sums(2) == sums(16)
