"""Interrupt a trunk's training from inside, before a given step."""

import pytest

from s7jax.train import run as runs
from s7jax.train.run import Run
from tests.train.training import train_trunk


class Stopped(Exception):
    pass


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch, x: Run) -> None:
    class Stopping(runs.TrainingBatches):
        def batch(self, at):
            if at == step:
                raise Stopped
            return super().batch(at)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "TrainingBatches", Stopping)
        train_trunk(x)
