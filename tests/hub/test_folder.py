"""A run becomes a folder for the Hub, the folder a run: bit by bit, or refused with a reason."""

import ast
import json
import shutil
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from s7jax import commands
from s7jax.data.tokenizer import Tokenizer
from s7jax.errors import InputError
from s7jax.hub import export as exporting
from s7jax.hub.export import export
from s7jax.hub.restore import restore
from s7jax.runs.inspection import differences, read
from s7jax.train.checkpoint import read_record
from s7jax.train.folder import RunFolder
from tests.hub.conftest import CONFIGS, QUALITY

pytestmark = pytest.mark.usefixtures("compiled_alike")

NAMES = ("trunk", "expert0", "expert1", "expert2", "router")


@pytest.fixture(scope="module")
def exported(three, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("hub") / "three-hf"
    export(three, out)
    return out


@pytest.fixture
def folder(exported, tmp_path) -> Path:
    """A copy to be changed at will."""
    copy = shutil.copytree(exported, tmp_path / "hf")
    (copy / "model.safetensors").chmod(0o644)
    return copy


def convert(*words: object) -> int:
    with pytest.raises(SystemExit) as end:
        commands.run("convert", [str(word) for word in words])
    return end.value.code or 0


def test_the_folder_has_what_others_look_for_and_every_float_bit_by_bit(three, exported):
    names = "README.md config.json generation_config.json model.safetensors modeling_s7.py"
    names += " s7jax.json tokenizer.json tokenizer_config.json"
    assert sorted(path.name for path in exported.iterdir()) == names.split()
    found = load_file(exported / "model.safetensors")
    trunk = {entry.name: entry.array for entry in read(three.final("trunk"))}
    stacked = trunk["trunk.layers.attn.q_proj.weight"]
    for layer in (0, 1):
        one = found[f"trunk.layer{layer}.attn.q_proj.weight"]
        np.testing.assert_array_equal(one, stacked[layer], strict=True)
    np.testing.assert_array_equal(found["embedding.weight"], trunk["embedding.weight"], strict=True)
    config = json.loads((exported / "config.json").read_text())
    assert config["domains"] == ["domain0", "domain1", "domain2"]
    assert (config["vocab_size"], config["max_position_embeddings"]) == (320, 32)
    again = Tokenizer.load(exported / "tokenizer.json")
    assert again.digest == read_record(three.final("trunk"))["inputs"]["tokenizer_sha256"]


def test_there_and_back_every_checkpoint_is_the_same(three, exported, tmp_path, capsys):
    assert convert(exported, tmp_path / "runs/again") == 0
    run, said = RunFolder(tmp_path / "runs/again"), capsys.readouterr().out
    for name in NAMES:
        assert read_record(run.final(name)) == read_record(three.final(name))
        assert differences(read(run.final(name)), read(three.final(name))) == []
        assert read_record(run.final(name))["params_sha256"] in said
    assert run.config() == three.config()
    assert run.evaluation.read_bytes() == three.evaluation.read_bytes()
    export(run, tmp_path / "twice")
    for name in ("model.safetensors", "s7jax.json", "config.json"):
        assert (tmp_path / "twice" / name).read_bytes() == (exported / name).read_bytes()


def test_what_others_write_comes_back_too(three, folder, tmp_path):
    """In another order, without our padding."""
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors")
    restore(folder, tmp_path / "again")
    for name in NAMES:
        ours, theirs = (read(run.final(name)) for run in (three, RunFolder(tmp_path / "again")))
        assert differences(ours, theirs) == []


def test_the_card_says_to_the_hub_what_it_asks(exported, three):
    card = huggingface_hub.ModelCard.load(exported / "README.md")
    assert card.data.license == "unknown"
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert "s7jax" in card.data.tags
    assert card.data.language is None, "not known of others' text"
    found = {r.dataset_type: r.metric_value for r in card.data.eval_results}
    assert found == {name: row["routed"] for name, row in QUALITY["bits_per_byte"].items()}
    assert "| domain1 | 2.5000 | 2.2500 | 2.1250 |" in card.text
    config = CONFIGS["three experts"]
    inputs = read_record(three.final("trunk"))["inputs"]
    for digest in (config.digest(), inputs["data_sha256"], inputs["tokenizer_sha256"]):
        assert digest in card.text
    for name in NAMES:
        assert read_record(three.final(name))["params_sha256"] in card.text


def test_the_code_needs_torch_and_transformers_alone(exported):
    tree = ast.parse((exported / "modeling_s7.py").read_text())
    found = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    found |= {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    roots = {name.split(".")[0] for name in found}
    assert roots - set(sys.stdlib_module_names) == {"torch", "transformers"}


@pytest.mark.parametrize("name", ["trunk", "expert2", "router"])
def test_an_unfinished_run_is_named_with_what_is_missing(three, tmp_path, capsys, name):
    run = RunFolder(shutil.copytree(three.path, tmp_path / "run"))
    shutil.rmtree(run.final(name))
    assert convert(run.path, tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert f"{run.path} is not finished: {run.final(name)} is not there" in said
    assert f"s7jax pipeline --run {run.path}" in said
    assert not (tmp_path / "out").exists()


def test_what_is_neither_a_run_nor_exported_is_said(three, folder, tmp_path, capsys):
    begun = tmp_path / "begun"
    begun.mkdir()
    shutil.copy(three.config_file, begun)
    assert convert(begun, tmp_path / "out") == 1
    assert f"{begun} is not finished" in capsys.readouterr().err
    (folder / "model.safetensors").unlink()
    assert convert(folder, tmp_path / "out") == 1
    assert "model.safetensors is not there" in capsys.readouterr().err
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(folder / "config.json", other)
    assert convert(other, tmp_path / "out") == 1
    assert f"{other / 'config.json'}: not the configuration of a run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_another_tokenizer_than_the_runs_is_refused(three, tmp_path):
    run = RunFolder(shutil.copytree(three.path, tmp_path / "run"))
    vocabulary = json.loads(run.vocab.read_text())
    vocabulary["merges"].pop()
    run.vocab.write_text(json.dumps(vocabulary))
    with pytest.raises(InputError, match=r"not the tokenizer that .* was trained with"):
        export(run, tmp_path / "out")


@pytest.mark.parametrize("source", ["run", "exported"])
def test_nothing_is_overwritten(three, exported, tmp_path, capsys, source):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine")
    assert convert(three.path if source == "run" else exported, out) == 1
    assert f"{out}: exists; nothing is overwritten" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_what_fails_on_the_way_leaves_nothing(three, tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(exporting, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        export(three, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def changed(folder: Path, name: str, change) -> None:
    tree = json.loads((folder / name).read_text())
    change(tree)
    (folder / name).write_text(json.dumps(tree))


def tensors(folder: Path, change) -> None:
    found = load_file(folder / "model.safetensors")
    change(found)
    save_file(found, folder / "model.safetensors")


GAIN = "expert1.out_norm.gain"


def one_bit(found):
    found[GAIN].view(np.uint32)[0] ^= 1


def cut(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-1])


BROKEN = {
    "expert1 has SHA-256 .*the weights were changed": lambda f: tensors(f, one_bit),
    f"header .{GAIN}: missing": lambda f: tensors(f, lambda t: t.pop(GAIN)),
    "unknown key 'more'": lambda f: tensors(f, lambda t: t.update(more=np.ones(1, np.float32))),
    f"{GAIN}.dtype: found 'F16'": lambda f: tensors(
        f, lambda t: t.update({GAIN: t[GAIN].astype(np.float16)})
    ),
    f"{GAIN}.shape": lambda f: tensors(f, lambda t: t.update({GAIN: t[GAIN][:3]})),
    "not what the header says": cut,
    r"s7jax\.json is not there.*copy s7jax\.json from the export": lambda f: (
        f / "s7jax.json"
    ).unlink(),
    "expected format 's7-hub', version 1": lambda f: changed(
        f, "s7jax.json", lambda t: t.update(version=2)
    ),
    "'records' is missing": lambda f: changed(f, "s7jax.json", lambda t: t.pop("records")),
    "records of expert0, expert1, router, trunk": lambda f: changed(
        f, "s7jax.json", lambda t: t["records"].pop("expert2")
    ),
    "trained on trunk 00, not on": lambda f: changed(
        f, "s7jax.json", lambda t: t["records"]["expert2"]["inputs"].update(trunk_sha256="00")
    ),
    "expert0 was trained with another configuration": lambda f: changed(
        f, "s7jax.json", lambda t: t["records"]["router"]["config"]["experts"].update(clip=0.5)
    ),
    "trunk was trained with another configuration": lambda f: changed(
        f, "s7jax.json", lambda t: t["records"]["router"]["config"]["model"].update(context=16)
    ),
    "what s7jax writes: 'int' object": lambda f: changed(
        f, "s7jax.json", lambda t: t["records"]["trunk"].update(inputs=3)
    ),
    "what s7jax writes: evaluation without quality": lambda f: changed(
        f, "s7jax.json", lambda t: t.update(evaluation={})
    ),
    r"^[^:]*model\.safetensors: header length: 2336927755350992246": lambda f: (
        f / "model.safetensors"
    ).write_text("version https://git-lfs.github.com/spec/v1\n"),
    r"tokenizer\.json: not the tokenizer that": lambda f: changed(
        f, "tokenizer.json", lambda t: t["model"]["merges"].pop()
    ),
}


@pytest.mark.parametrize(("message", "change"), BROKEN.items(), ids=BROKEN)
def test_a_folder_that_is_not_as_exported_is_refused(folder, tmp_path, message, change):
    change(folder)
    with pytest.raises(InputError, match=message) as e:
        restore(folder, tmp_path / "again")
    assert str(folder) in str(e.value)
    assert not (tmp_path / "again").exists()
