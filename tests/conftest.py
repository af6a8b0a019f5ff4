"""Eight virtual CPU devices for every test, the tiny model and the tiny seal they share."""

import dataclasses
from pathlib import Path

import jax
import pytest
from hypothesis import settings
from tiny import write_inputs

from s7jax import s7l
from s7jax.config import ComputeConfig, Config, ModelConfig, RecipeConfig, StackConfig
from s7jax.train import determinism

jax.config.update("jax_num_cpu_devices", 8)
# What is broadcast or converted is said in the code, never guessed.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
determinism.enforce()

# Tests are as deterministic as the code; machines are too noisy for deadlines.
settings.register_profile("s7jax", deadline=None, derandomize=True)
settings.load_profile("s7jax")

TINY_RECIPE = RecipeConfig(
    tokens=(2_560,),
    batch=8,
    microbatch=1,
    peak_lr=1e-2,
    warmup=2,
    checkpoint=768,
)

TINY = Config(
    preset="tiny",
    model=ModelConfig(
        vocab=320,
        context=32,
        trunk=StackConfig(layers=2, hidden=32, heads=2, ffn=64),
        expert=StackConfig(layers=2, hidden=16, heads=2, ffn=32),
        routing_window=8,
    ),
    trunk=TINY_RECIPE,
    experts=dataclasses.replace(TINY_RECIPE, tokens=(1_280,) * 4),
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
