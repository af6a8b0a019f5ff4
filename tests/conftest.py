"""Eight virtual CPU devices for every test, the tiny model and the tiny seal they share."""

from pathlib import Path

import jax
import pytest
from hypothesis import settings
from tiny import write_inputs

from s7jax import s7l
from s7jax.architecture import Architecture, Stack
from s7jax.config import ComputeConfig, Config, Domain, Recipe, TrunkRecipe
from s7jax.train import determinism

jax.config.update("jax_num_cpu_devices", 8)
determinism.enforce()

# Tests are as deterministic as the code; machines are too noisy for deadlines.
settings.register_profile("s7jax", deadline=None, derandomize=True)
settings.load_profile("s7jax")

TINY_RECIPE = {"batch": 8, "microbatch": 1, "peak_lr": 1e-2, "warmup": 2, "checkpoint": 768}
TINY_SHARES = {"code": 7, "math": 5, "reason": 4, "general": 4}

TINY = Config(
    preset="tiny",
    model=Architecture(
        vocab=320,
        context=32,
        trunk=Stack(layers=2, hidden=32, heads=2, ffn=64),
        expert=Stack(layers=2, hidden=16, heads=2, ffn=32),
        domains=tuple(TINY_SHARES),
        routing_window=8,
    ),
    domains=tuple(
        Domain(name=name, share=share, tokens=1_280, builtin=name)
        for name, share in TINY_SHARES.items()
    ),
    trunk=TrunkRecipe(tokens=2_560, **TINY_RECIPE),
    experts=Recipe(**TINY_RECIPE),
    compute=ComputeConfig(loss_chunk=8),
    router_sequences=12,
    eval_sequences=6,
)


@pytest.fixture(scope="session")
def tiny() -> Config:
    return TINY


@pytest.fixture(scope="session")
def pristine(tmp_path_factory) -> Path:
    """A folder with ``weights/``, ``vocab.json`` and ``moe.s7l``; never change it."""
    root = write_inputs(tmp_path_factory.mktemp("model"))
    s7l.seal(root / "weights", root / "vocab.json", root / "moe.s7l")
    return root


@pytest.fixture
def model(tmp_path) -> Path:
    """The same inputs, unsealed, to be changed at will."""
    return write_inputs(tmp_path)
