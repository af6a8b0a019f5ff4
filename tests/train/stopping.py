"""Interrupt a trunk's training from inside, before a given step."""

import pytest

from s7jax.train import loop, phase


class Stopped(Exception):
    pass


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch, x: phase.Experiment) -> None:
    class Stopping(phase.TrainingBatches):
        def batch(self, at):
            if at == step:
                raise Stopped
            return super().batch(at)

    with monkeypatch.context() as patch:
        patch.setattr(phase, "TrainingBatches", Stopping)
        loop.train_trunk(x)
