"""Configuration files: flags over the file over the preset."""

import jax
import pytest

from s7jax import commands
from s7jax.config import Config, preset
from s7jax.config_file import dump, load


@pytest.fixture
def config(capsys, tmp_path):
    """``s7jax config`` in this process, what it prints read back."""
    jax.devices()

    def run(*words: str) -> Config:
        with pytest.raises(SystemExit) as end:
            commands.run("config", words)
        out, err = capsys.readouterr()
        if end.value.code:
            raise ValueError(f"{end.value.code}: {err}")
        (tmp_path / "printed.toml").write_text(out)
        return load(tmp_path / "printed.toml", lambda label: preset(label or "s7-nano"))

    return run


@pytest.mark.parametrize("label", ["s7-nano", "s7-mini", "s7-140m"])
def test_what_is_printed_is_the_whole_configuration(config, label):
    assert config("--preset", label) == preset(label)
    assert "seed = 0 # from 0 to 4,294,967,295" in dump(preset(label))


FILE = """
preset = "s7-mini"
seed = 5
[trunk]
tokens = 7000
peak_lr = 1
[[domains]]
name = "law"
share = 1
tokens = 9
[[domains]]
name = "math"
tokens = 3
"""


def test_flags_are_over_the_file_and_the_file_over_the_preset(config, tmp_path):
    (tmp_path / "run.toml").write_text(FILE)
    flags = ("--seed", "6", "--set", "trunk.tokens=8000", "--precision", "bf16")
    found, mini = config("--config", str(tmp_path / "run.toml"), *flags), preset("s7-mini")
    assert (found.preset, found.seed, found.trunk.tokens) == ("s7-mini", 6, 8_000)
    assert (found.trunk.peak_lr, found.trunk.batch) == (1.0, mini.trunk.batch)
    assert found.model.domains == ("law", "math")
    assert (found.domain("math").tokens, found.domain("math").share) == (3, 5)
    assert found.compute.precision == "bf16"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[trunk]\ntokns = 5",
            "no field 'trunk.tokns' in the configuration; did you mean 'tokens'",
        ),
        ("sed = 5", "no field 'sed' in the configuration; did you mean 'seed'"),
        ("seed = -1", "seed is -1; expected from 0"),
        ("preset = ['s7-nano']", "unknown preset"),
        ("[[domains]]\nname = ['code']", "model.domains is ['code']; expected text"),
        (f"x = {'[' * 10_000}", "recursion"),
        ("[trunk]\npeak_lr = nan", "trunk.peak_lr is nan; expected a finite number"),
        ("[trunk]\nbetas = [0.9]", "trunk.betas has 1 entries; expected 2"),
        ("trunk = 5", "trunk is 5; expected an object"),
        ("model = 5", "a field 'model'"),
        ("domains = 5", "domains: expected a list"),
        ("domains = [5]", "domains: expected a list of domains"),
        ("[[domains]]\nshare = 5", "domains"),
        ('[model]\ndomains = ["a"]', "model.domains: the domains are those of [[domains]]"),
        ('preset = "s7-huge"', "unknown preset 's7-huge'"),
        ("preset = 5", "unknown preset 5"),
        ('preset = ""', "unknown preset ''"),
        ("preset = []", "unknown preset []"),
        ("seed = ", "Invalid value (at "),
        ("seed = 1\nseed = 2", "Cannot overwrite a value"),
        ("seed = 1979-05-27", "expected a whole number"),
    ],
)
def test_what_is_wrong_is_named_with_the_file(config, tmp_path, text, message):
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(ValueError, match=r"^2: error: --config .*run\.toml") as refused:
        config("--config", str(tmp_path / "run.toml"))
    assert message in str(refused.value)


def test_a_mark_before_a_file_is_none_of_it(config, tmp_path):
    (tmp_path / "run.toml").write_bytes(b"\xef\xbb\xbfseed = 5\n")
    assert config("--config", str(tmp_path / "run.toml")).seed == 5


def test_two_presets_are_one_too_many(config, tmp_path):
    (tmp_path / "run.toml").write_text('preset = "s7-mini"')
    with pytest.raises(ValueError, match="preset is 's7-mini', --preset says 's7-nano'"):
        config("--config", str(tmp_path / "run.toml"), "--preset", "s7-nano")


def test_a_file_that_is_not_there(config, tmp_path):
    with pytest.raises(ValueError, match=r"2: error: --config .*none\.toml"):
        config("--config", str(tmp_path / "none.toml"))
