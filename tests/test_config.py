import dataclasses
import json

import pytest

from s7jax.config import PRESETS, Config, StackConfig, override, preset
from s7jax.errors import UsageError


@pytest.mark.parametrize("config", PRESETS.values(), ids=PRESETS)
def test_json_round_trip_keeps_the_configuration_and_its_digest(config: Config):
    again = Config.from_json(json.loads(json.dumps(config.to_json())))
    assert again == config
    assert again.digest() == config.digest()


def test_digest_changes_with_any_field():
    base = preset("s7-nano")
    assert dataclasses.replace(base, seed=1).digest() != base.digest()
    assert override(base, ["trunk.peak_lr=0.1"]).digest() != base.digest()
    assert override(base, ["compute.remat=false"]).digest() != base.digest()


def test_spec_figures_of_s7_140m():
    """§3 and §4: tokens, batches, warmup; 50 B tokens at 512 × 2,048 are 47,684 steps."""
    config = preset("s7-140m")
    assert config.trunk.batch == 512
    assert config.experts.batch == 256
    assert config.model.context == 2_048
    assert config.trunk.warmup == config.experts.warmup == 2_000
    assert sum(config.trunk.tokens) == 50_000_000_000
    assert sum(config.experts.tokens) == 59_000_000_000
    assert config.trunk.steps(config.model.context) == 47_684
    assert config.trunk.checkpoint == 5_000_000_000


def test_override_sets_nested_fields_and_spreads_one_value_over_all_experts():
    config = override(preset("s7-nano"), ["experts.tokens=1000", "seed=7", "trunk.peak_lr=1"])
    assert config.experts.tokens == (1_000,) * 4
    assert (config.seed, config.trunk.peak_lr) == (7, 1)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("trunk.token=5", "no field 'trunk.token'"),
        ("model=5", "no field 'model'"),
        ("nothing", "no field 'nothing'"),
        ("seed=abc", "not a JSON value"),
        ("seed=true", "expected a value like 0"),
        ("trunk.batch=1.5", "expected a value like 40"),
        ("trunk.batch=33", "whole number of microbatches"),
        ("model.vocab=100", "divisible by 32"),
        ("trunk.tokens=0", "at least 1"),
        ("compute.loss_chunk=-1", "loss_chunk -1: expected at least 0"),
        ('compute.precision="fp16"', "expected 'fp32' or 'bf16'"),
    ],
)
def test_a_wrong_override_is_refused_and_named(assignment: str, message: str):
    with pytest.raises(UsageError, match=message):
        override(preset("s7-nano"), [assignment])


def test_unknown_preset_names_those_there_are():
    with pytest.raises(UsageError, match="s7-140m, s7-mini, s7-nano"):
        preset("s7-huge")


def test_heads_must_divide_hidden_evenly():
    with pytest.raises(UsageError, match="hidden 30 over 4 heads"):
        StackConfig(layers=1, hidden=30, heads=4, ffn=8)


def test_a_configuration_of_another_version_is_refused():
    tree = preset("s7-nano").to_json()
    del tree["model"]["vocab"]
    with pytest.raises(UsageError, match="does not fit"):
        Config.from_json(tree)
