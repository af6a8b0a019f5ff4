"""Eight virtual CPU devices for every test, and the tiny model they share."""

import dataclasses

import jax
import pytest
from hypothesis import settings

from s7jax.config import ComputeConfig, Config, ModelConfig, RecipeConfig, StackConfig
from s7jax.train import determinism

jax.config.update("jax_num_cpu_devices", 8)
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
