import dataclasses
import json

import pytest

from s7jax.architecture import Stack
from s7jax.config import PRESETS, Config, Domain, override, preset
from s7jax.errors import UsageError
from s7jax.train.phase import Phase


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
    assert config.trunk.tokens == 50_000_000_000
    budgets = {domain.name: domain.tokens for domain in config.domains}
    assert [n // 10**9 for n in budgets.values()] == [20, 15, 12, 12]
    assert config.shares == {"code": 7, "math": 5, "reason": 4, "general": 4}
    assert Phase(config).steps == 47_684
    assert config.trunk.checkpoint == 5_000_000_000


def test_override_sets_nested_fields_and_spreads_one_value_over_all_experts():
    changes = ["domains.*.tokens=1000", "domains.math.tokens=7", "seed=7", "trunk.peak_lr=1"]
    config = override(preset("s7-nano"), changes)
    assert [domain.tokens for domain in config.domains] == [1_000, 7, 1_000, 1_000]
    assert (config.seed, config.trunk.peak_lr) == (7, 1)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("trunk.token=5", "no field 'trunk.token' .*did you mean 'tokens'"),
        ("model=5", "a field 'model'"),
        ("nothing", "expected FIELD=VALUE"),
        ("domains.law.tokens=5", "no domain 'law'"),
        ("seed=abc", "not a JSON value"),
        ("seed=true", "seed is True; expected a whole number"),
        ("seed=-1", "seed is -1; expected from 0 to 4,294,967,295"),
        ("seed=4294967296", "seed is 4294967296; expected from 0"),
        ("trunk.batch=1.5", "trunk.batch is 1.5; expected a whole number"),
        ("trunk.batch=35", "trunk.batch 35 is not a whole number of microbatches"),
        ("trunk.betas=[0.9]", r"trunk.betas has 1 entries; expected 2"),
        ("trunk.betas=[0.9,1.0]", r"trunk.betas is 1.0; expected from 0"),
        ("trunk.clip=-1", "trunk.clip is -1.0; expected above 0"),
        ("trunk.peak_lr=-0.01", "trunk.peak_lr is -0.01; expected above 0"),
        ("trunk.peak_lr=NaN", "trunk.peak_lr is nan; expected a finite number"),
        ("trunk.tokens=[1000,2000]", r"trunk.tokens is \[1000, 2000\]; expected a whole number"),
        (f"trunk.peak_lr=1{'0' * 400}", r"trunk.peak_lr is 10+; expected a finite number"),
        ("trunk.tokens=5B", "'5B' is not a JSON value; numbers are written out"),
        ("trunk.tokens=[]", r"trunk.tokens is \[\]; expected a whole number"),
        ("trunk.tokens=0", "trunk.tokens is 0; expected from 1"),
        ("trunk.checkpoint=0", "trunk.checkpoint is 0; expected from 1"),
        ("experts.weight_decay=-0.1", "experts.weight_decay is -0.1; expected from 0 to 1"),
        ("model.vocab=100", "model.vocab is 100; expected a multiple of 32"),
        ("model.trunk.heads=0", "model.trunk.heads is 0; expected from 1"),
        ("compute.loss_chunk=-1", "compute.loss_chunk is -1; expected from 0"),
        ('compute.precision="fp16"', "compute.precision is 'fp16'; expected 'fp32' or 'bf16'"),
        ("domains.*.share=0", "every domain has share 0"),
        ("domains.math.tokens=0", r"domains\[1\].tokens is 0; expected from 1"),
        ("domains=[]", "domains has 0 entries"),
        ("domains=3", "domains: expected a list"),
    ],
)
def test_a_wrong_override_is_refused_and_named(assignment: str, message: str):
    with pytest.raises(UsageError, match=message):
        override(preset("s7-nano"), [assignment])


def test_unknown_preset_names_those_there_are():
    with pytest.raises(UsageError, match="s7-140m, s7-mini, s7-nano"):
        preset("s7-huge")


def test_heads_must_divide_hidden_evenly():
    with pytest.raises(UsageError, match="heads is 4 for hidden 30"):
        Stack(layers=1, hidden=30, heads=4, ffn=8)


def test_a_configuration_of_another_version_is_refused():
    tree = preset("s7-nano").to_json()
    del tree["model"]["vocab"]
    with pytest.raises(UsageError, match=r"model.vocab is missing"):
        Config.from_json(tree)
    tree = preset("s7-nano").to_json() | {"sed": 1}
    with pytest.raises(UsageError, match=r"no field 'sed' .*did you mean 'seed'"):
        Config.from_json(tree)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grown(Config):
    """The configuration of a later version: one more field, with a default."""

    dropout: float = 0.0


def test_a_new_field_with_a_default_refuses_no_older_run_and_changes_no_digest():
    older = preset("s7-nano")
    grown = Grown.from_json(older.to_json())
    assert grown.dropout == 0.0
    assert grown.digest() == older.digest()
    for phase in ("trunk", "expert2", "router"):
        assert grown.phase_digest(phase) == older.phase_digest(phase)
    assert dataclasses.replace(grown, dropout=0.1).digest() != older.digest()


def test_a_phase_digest_covers_what_decides_that_phase_alone():
    base = preset("s7-nano")

    def changed(assignment: str) -> set[str]:
        other = override(base, [assignment])
        names = ("trunk", "expert0", "expert1", "router")
        return {n for n in names if other.phase_digest(n) != base.phase_digest(n)}

    assert changed("seed=1") == {"trunk", "expert0", "expert1", "router"}
    assert changed("trunk.peak_lr=0.1") == {"trunk"}
    assert changed("domains.code.share=8") == {"trunk"}
    assert changed("domains.math.tokens=5") == {"expert1"}
    assert changed("experts.peak_lr=0.1") == {"expert0", "expert1"}
    assert changed("model.expert.ffn=128") == {"expert0", "expert1"}
    assert changed("router_sequences=7") == {"router"}
    assert changed("eval_sequences=7") == set()
    assert changed('reduction="psum"') == {"trunk", "expert0", "expert1"}


def test_one_more_domain_changes_the_router_alone():
    base = preset("s7-nano")
    grown = base.with_domain(Domain(name="law", share=0, tokens=5))
    assert grown.model.domains == (*base.model.domains, "law")
    for phase in ("trunk", *(f"expert{e}" for e in range(4))):
        assert grown.phase_digest(phase) == base.phase_digest(phase)
    assert grown.phase_digest("router") != base.phase_digest("router")
    assert grown.with_domain(grown.domains[-1]) is grown
    with pytest.raises(UsageError, match="another domain 'law'"):
        grown.with_domain(Domain(name="law", share=0, tokens=6))
    with pytest.raises(UsageError, match="a domain that is added has share 0"):
        base.with_domain(Domain(name="law", share=1, tokens=5))
    with pytest.raises(UsageError, match="name is 'Law'"):
        Domain(name="Law", share=0, tokens=5)
