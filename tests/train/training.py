"""Both phases in one word, for tests."""

from s7jax.train import loop
from s7jax.train.phase import Phase
from s7jax.train.run import Run


def train_trunk(run: Run, resume_from: int | None = None) -> str:
    return loop.train(run, Phase(run.config), {}, resume_from)


def train_expert(run: Run, index: int, trunk) -> str:
    return loop.train(run, Phase(run.config, index), trunk)
