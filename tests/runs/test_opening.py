import argparse

import jax
import pytest

from s7jax.runs import opening as experiment


@pytest.mark.parametrize(
    ("backend", "flags", "expected"),
    [
        ("cpu", [], ("s7-nano", "fp32")),
        ("gpu", [], ("s7-140m", "bf16")),
        ("cpu", ["--precision", "bf16"], ("s7-nano", "bf16")),
        ("tpu", ["--preset", "s7-mini", "--precision", "fp32"], ("s7-mini", "fp32")),
        ("gpu", ["--set", 'compute.precision="fp32"'], ("s7-140m", "fp32")),
    ],
)
def test_a_run_starts_with_the_precision_of_its_flag_or_its_backend(
    monkeypatch, tmp_path, backend, flags, expected
):
    started = []
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(experiment, "start", lambda _, config, *__: started.append(config))
    monkeypatch.setattr(experiment, "_open", lambda *_: None)
    parser = argparse.ArgumentParser()
    experiment.add_run_flags(parser)
    experiment.add_start_flags(parser)
    run = ["--run", str(tmp_path / "r"), "--mesh", "1x1"]
    experiment.begin(parser.parse_args([*run, *flags]))
    (config,) = started
    assert (config.preset, config.compute.precision) == expected
