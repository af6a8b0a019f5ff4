"""Where a seal comes from: exports that say what it says, and a walk that names what is broken."""

import base64
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from attacker import Forgery
from tiny import write_weights

from s7jax import commands, runtime, s7l, sample
from s7jax.data.prepared import Prepared
from s7jax.errors import InputError
from s7jax.fields import plain
from s7jax.mesh import single
from s7jax.model import parameters
from s7jax.quantize.export import _provenance
from s7jax.runs import attestation, audit, lineage
from s7jax.runtime.proof import Growing
from s7jax.s7l.note import new_key
from s7jax.train import checkpoint, transcript
from s7jax.train.folder import RunFolder, remembered
from s7jax.train.phase import ROUTERS, TRUNK, Phase, phases
from s7jax.train.run import batches, inputs_record
from tests.train.conftest import open_run, prepared  # noqa: F401 fixtures

pytestmark = pytest.mark.usefixtures("compiled_alike")

ENVIRONMENT = {"device": "cpu", "model_axis": 1, "stablehlo_sha256": "0" * 64, "jax": "0.10.2"}
QUALITY = {"bits_per_byte": {"code": {"trunk": 2.5, "routed": 2.25}}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, open_run) -> RunFolder:  # noqa: F811
    """A run as the pipeline leaves it, with weights that nothing had to train."""
    run = open_run(tmp_path_factory.mktemp("provenance") / "run")
    return finish(run, run.folder, 0)


def finish(run, folder: RunFolder, seed: int) -> RunFolder:
    params = parameters.host(parameters.initial(run.config.model, seed, single()))
    trunk = {name: params[name] for name in TRUNK}
    records = {}
    for phase in phases(run.config):
        inputs = inputs_record(run, phase.name, None if phase.expert is None else trunk)
        tree = trunk if phase.expert is None else params[phase.name]
        root = tell(folder.transcript(phase.name), phase, inputs, parameters.digest(tree))
        record = {"environment": ENVIRONMENT, "step": phase.steps, "transcript_sha256": root}
        save(folder, records, phase.name, tree, {**record, "inputs": inputs}, run.config)
    inputs = inputs_record(run, "router", trunk)
    tree = dict.fromkeys(ROUTERS, params["router"])
    save(folder, records, "router", tree, {"inputs": inputs}, run.config)
    provenance = _provenance(run.config, records, QUALITY)
    seal(folder.model, run, folder.sealed, provenance)
    return folder


def tell(path: Path, phase, inputs: dict, sha256: str, loss: float = 1.0) -> str:
    told = transcript.Recorder(path, transcript.head(phase, inputs), 0, ENVIRONMENT)
    for step in range(phase.steps):
        metrics = {"loss": np.float32(loss), "grad_norm": np.float32(1), "skipped": False}
        told.put(step, "11" * 32, metrics)
        told.state(step + 1, transcript.State(bytes(32), bytes(32)))
    root = told.end(phase.steps, sha256)
    told.close()
    return root


def save(folder: RunFolder, records: dict, name: str, tree, record: dict, config) -> None:
    record |= {"phase": name, "config": config.to_json()}
    sha256 = checkpoint.save_final(folder.final(name), tree, record)
    records[name] = record | {"params_sha256": sha256}


def seal(folder: Path, run, out: Path, provenance: dict) -> None:
    write_weights(folder / "weights", plain(run.config.model))
    manifest = folder / "weights/manifest.json"
    tree = json.loads(manifest.read_text()) | {"provenance": provenance}
    manifest.write_text(json.dumps(tree))
    (folder / "vocab.json").write_text(json.dumps(run.prepared.tokenizer.to_vocabulary()))
    s7l.seal(folder / "weights", folder / "vocab.json", out)


def test_an_audit_reads_the_run_that_was_sealed_and_no_other(whole, open_run):  # noqa: F811
    run = open_run(whole.path)
    assert list(audit.read(run, phases(run.config))) == [p.name for p in phases(run.config)]
    other = dataclasses.replace(run.config, eval_sequences=run.config.eval_sequences + 1)
    run = dataclasses.replace(run, config=other)
    assert audit.read(run, phases(other)[1:])
    with pytest.raises(InputError, match=r"moe\.s7l: sealed with configuration"):
        audit.read(run, phases(other))


@pytest.fixture
def copied(whole, tmp_path) -> RunFolder:
    """The same with data of its own, to be damaged; the seal stays in ``whole``."""
    folder = RunFolder(Path(shutil.copytree(whole.path, tmp_path / "run")))
    data = shutil.copytree(whole.prepared, tmp_path / "data")
    settings = folder.read() | {"prepared": str(data)}
    folder.config_file.write_text(json.dumps(settings))
    return folder


def links(path: Path, run: RunFolder | None = None, proof: Path | None = None) -> list:
    return lineage.walk(s7l.open(path), path, run, proof)


def verdicts(found: list) -> dict[str, str]:
    return {link.name: link.verdict for link in found}


def s7(capsys, *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        commands.run(str(words[0]), [*map(str, words[1:])])
    return end.value.code or 0, *capsys.readouterr()


def test_the_seal_alone_shows_what_has_both_ends_in_it(whole):
    found = verdicts(links(whole.sealed))
    both = {"configuration", "tokenizer", "seal", "router recipe", "router trunk"}
    assert {name for name, verdict in found.items() if verdict == "equal"} >= both
    stated = {name for name, verdict in found.items() if verdict == "stated"}
    assert {name.split()[1] for name in stated} == {"data", "parameters", "transcript"}
    assert len(stated) == 6 + 6 + 5
    assert set(found.values()) == {"equal", "stated"}


def test_beside_its_run_every_link_is_equal(whole, tmp_path):
    with runtime.open(whole.sealed) as model:
        model.generate("a", max_new_tokens=2).proof.save(tmp_path / "a.s7p")
    found = verdicts(links(whole.sealed, whole, tmp_path / "a.s7p"))
    assert set(found.values()) == {"equal"}
    assert list(found)[-2:] == ["seal", "proof"]


def other_text(run, change) -> None:
    """Another word of one document, with a manifest that owns up to it."""
    shard = change(next((run.prepared / "math").glob("*train*")))
    manifest = json.loads((run.prepared / "manifest.json").read_text())
    for domain in manifest["domains"]:
        for entry in domain["train"]["shards"]:
            if domain["name"] == "math" and entry["name"] == shard.name:
                entry["sha256"] = hashlib.sha256(shard.read_bytes()).hexdigest()
    from s7jax.data.prepared import manifest_digest

    manifest["digest"] = manifest_digest(manifest)
    (run.prepared / "manifest.json").write_text(json.dumps(manifest))


def flipped(path: Path) -> Path:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    return path


MATH = {"trunk data", "expert1 data", "router data"}
EVERY = {f"{name} data" for name in ("trunk", "router", *(f"expert{e}" for e in range(4)))}


def change_data(run, whole, tmp_path, open_run):  # noqa: F811
    other_text(run, flipped)
    return MATH


def damage_data(run, whole, tmp_path, open_run):  # noqa: F811
    flipped(next((run.prepared / "math").glob("*train*")))
    return EVERY


def change_tokenizer(run, whole, tmp_path, open_run):  # noqa: F811
    path = run.prepared / "tokenizer.json"
    tree = json.loads(path.read_text())
    tree["model"]["merges"][-1], tree["model"]["merges"][-2] = tree["model"]["merges"][-2:]
    path.write_text(json.dumps(tree))
    return {"tokenizer", *EVERY}


def take_another_runs_checkpoint(run, whole, tmp_path, open_run):  # noqa: F811
    other = open_run(tmp_path / "other")
    finish(other, other.folder, 1)
    shutil.rmtree(run.final("expert2"))
    shutil.copytree(other.folder.final("expert2"), run.final("expert2"))
    return {"expert2 parameters"}


def take_another_runs_tensors(run, whole, tmp_path, open_run):  # noqa: F811
    other = open_run(tmp_path / "other")
    finish(other, other.folder, 1)
    shutil.rmtree(run.final("expert2") / "params")
    shutil.copytree(other.folder.final("expert2") / "params", run.final("expert2") / "params")
    return {"expert2 parameters"}


def lose_a_checkpoint(run, whole, tmp_path, open_run):  # noqa: F811
    shutil.rmtree(run.final("router"))
    return {"router parameters"}


def forge_a_transcript(run, whole, tmp_path, open_run):  # noqa: F811
    path, (trunk, *_) = run.transcript("trunk"), phases(run.config())
    told = transcript.read(path)
    path.unlink()
    root = tell(path, trunk, dict(told.head["inputs"]), told.end.hex(), loss=0.5)
    assert root != told.root.hex()
    return {"trunk transcript"}


def exchange_transcripts(run, whole, tmp_path, open_run):  # noqa: F811
    shutil.copy(run.transcript("expert0"), run.transcript("expert1"))
    return {"expert1 transcript"}


def change_the_configuration(run, whole, tmp_path, open_run):  # noqa: F811
    settings = run.read()
    settings["config"]["experts"]["peak_lr"] *= 2
    run.config_file.write_text(json.dumps(settings))
    return {"configuration", *(f"expert{e} recipe" for e in range(4))}


BREAKS = [
    change_data,
    damage_data,
    change_tokenizer,
    take_another_runs_checkpoint,
    take_another_runs_tensors,
    lose_a_checkpoint,
    forge_a_transcript,
    exchange_transcripts,
    change_the_configuration,
]


@pytest.mark.parametrize("damage", BREAKS, ids=lambda f: f.__name__)
def test_a_broken_link_is_named(whole, copied, tmp_path, open_run, damage, capsys):  # noqa: F811
    wanted = damage(copied, whole, tmp_path, open_run)
    assert set(lineage.broken(links(whole.sealed, copied))) == wanted
    code, out, _ = s7(capsys, "verify", whole.sealed, "--provenance", "--run", copied.path)
    assert code == 1
    assert all(f"\n{name}: sealed " in out for name in wanted)


def test_a_proof_of_another_model_is_named(whole, tmp_path, capsys):
    with runtime.open(sample.SEALED) as model:
        model.generate("a", max_new_tokens=2).proof.save(tmp_path / "a.s7p")
    found = links(whole.sealed, None, tmp_path / "a.s7p")
    assert lineage.broken(found) == ["proof"]
    words = ("verify", whole.sealed, "--provenance", "--proof", tmp_path / "a.s7p", "--json")
    code, out, _ = s7(capsys, *words)
    told = json.loads(out)
    assert (code, told["passed"]) == (1, False)
    assert [one["link"] for one in told["provenance"] if one["verdict"] == "differs"] == ["proof"]


def test_a_proof_whose_end_does_not_follow_from_its_steps_is_named(whole, tmp_path):
    with runtime.open(whole.sealed) as model:
        honest = model.generate("a", max_new_tokens=2).proof
    growing = Growing(honest.head)
    for step in honest.steps:
        growing.extend(step)
    growing.close(honest.answer + b"!", honest.end).save(tmp_path / "a.s7p")
    assert lineage.broken(links(whole.sealed, None, tmp_path / "a.s7p")) == ["proof"]


def test_the_walk_is_one_screen(whole, monkeypatch, capsys):
    monkeypatch.chdir(whole.path.parent.parent)
    where = whole.path.relative_to(Path.cwd())
    code, out, err = s7(capsys, "verify", "--provenance", "--run", where)
    assert (code, err) == (0, "")
    lines = out.splitlines()[1:]  # after the line with file and root, which are never cut
    assert len(lines) <= 23
    assert max(map(len, lines)) <= 80


CONTRADICTIONS = {
    "configuration": lambda p: p.update(config_sha256="0" * 64),
    "tokenizer": lambda p: p["checkpoints"]["router"]["inputs"].update(tokenizer_sha256="0" * 64),
    "expert0 recipe": lambda p: p["checkpoints"]["expert0"]["inputs"].update(
        config_sha256="0" * 64
    ),
    "expert1 trunk": lambda p: p["checkpoints"]["expert1"]["inputs"].update(trunk_sha256="0" * 64),
}


def forged(whole: RunFolder, folder: Path, change) -> Path:
    """The model sealed by somebody whose provenance is otherwise; every hash is right."""
    forgery, path = Forgery(whole.sealed.read_bytes()), folder / "forged.s7l"
    change(forgery.edge["provenance"])
    path.write_bytes(forgery.build())
    return path


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_seal_that_contradicts_itself_is_named_and_not_exported(whole, tmp_path, name):
    path = forged(whole, tmp_path, CONTRADICTIONS[name])
    assert lineage.broken(links(path)) == [name]
    with pytest.raises(InputError, match=f"contradicts itself: {name}; "):
        attestation.origin_of(path)


@pytest.mark.parametrize("what", ["inputs", "parameters"])
def test_a_sealed_transcript_of_something_else_is_named(whole, copied, tmp_path, what):
    """Its root is the sealed one, as whoever sealed it wanted; it tells of another training."""
    path, phase = copied.transcript("expert1"), phases(copied.config())[2]
    told = transcript.read(path)
    path.unlink()
    inputs, end = dict(told.head["inputs"]), told.end.hex()
    if what == "inputs":
        inputs["data_sha256"] = "33" * 32
    else:
        end = "33" * 32
    root = tell(path, phase, inputs, end)

    def change(provenance):
        provenance["checkpoints"]["expert1"]["transcript_sha256"] = root

    found = links(forged(whole, tmp_path, change), copied)
    assert lineage.broken(found) == ["expert1 transcript"]


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda p: p.pop("checkpoints"), r"\.checkpoints: missing"),
        (lambda p: p.update(checkpoints=3), r"\.checkpoints: found 3; expected a map"),
        (lambda p: p["checkpoints"].pop("trunk"), r"\.checkpoints: .* expected trunk, expert0"),
        (lambda p: p["checkpoints"].update(expert1=[]), r"\.checkpoints\.expert1: found a list"),
        (lambda p: p["checkpoints"]["trunk"].pop("inputs"), r"\.trunk\.inputs: found None"),
        (
            lambda p: p["checkpoints"]["trunk"].update(params_sha256="\x1b[2J"),
            r"\.params_sha256: found '\\x1b\[2J'",
        ),
        (lambda p: p["checkpoints"]["trunk"].update(environment=1), r"\.environment: found 1"),
        (lambda p: p["config"].update(seed="x"), r"\.config: seed is 'x'"),
        (lambda p: p["config"]["model"].update(context=64), "not the architecture that is sealed"),
        (lambda p: p.update(config_sha256="x"), r"\.config_sha256: found 'x'"),
    ],
)
def test_a_provenance_of_another_form_is_refused_by_its_place(whole, tmp_path, change, place):
    path = forged(whole, tmp_path, change)
    for use in (links, attestation.origin_of):
        with pytest.raises(InputError, match=place):
            use(path)


def test_a_seal_without_a_record_of_training_says_so(pristine, capsys):
    for words in (
        ("provenance", pristine / "moe.s7l"),
        ("verify", "--provenance", pristine / "moe.s7l"),
    ):
        code, out, err = s7(capsys, *words)
        assert (code, out) == (1, "")
        assert "sealed without a record of their training" in err


def test_a_bundle_has_no_provenance(whole, tmp_path, capsys):
    s7l.extract(s7l.open(whole.sealed), "expert0", tmp_path / "b.s7b")
    assert s7(capsys, "verify", "--provenance", tmp_path / "b.s7b")[0] == 2


@pytest.mark.parametrize("form", ["slsa", "cyclonedx"])
def test_two_exports_are_one_to_the_byte(whole, tmp_path, form):
    """Of the same content: under any name, at any time, in any process."""
    made = []
    for i, name in enumerate(("a.s7l", "b.s7l")):
        shutil.copy(whole.sealed, tmp_path / name)
        words = ["-m", "s7jax", "provenance", name, "--format", form, "-o", f"{i}.json"]
        environment = os.environ | {
            "PYTHONHASHSEED": str(i),
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        subprocess.run([sys.executable, *words], cwd=tmp_path, env=environment, check=True)
        made.append((tmp_path / f"{i}.json").read_bytes())
    assert made[0] == made[1]
    assert made[0].decode() == json.dumps(json.loads(made[0]), sort_keys=True, indent=1) + "\n"


def test_the_statement_says_what_is_sealed_and_claims_no_level(capsys):
    code, out, _ = s7(capsys, "provenance", sample.SEALED)
    told, seal = json.loads(out), s7l.open(sample.SEALED)
    sealed = json.loads(json.dumps(dict(seal.manifest.provenance)))
    assert (code, told["_type"]) == (0, "https://in-toto.io/Statement/v1")
    assert told["predicateType"] == "https://slsa.dev/provenance/v1"
    (subject,) = told["subject"]
    whole = hashlib.sha256(sample.SEALED.read_bytes()).hexdigest()
    assert subject["digest"] == {"sha256": whole, "s7lRoot": seal.root.hex()}
    made = told["predicate"]["buildDefinition"]
    assert made["externalParameters"] == {"config": sealed["config"]}
    found = {one["name"]: one.get("digest") or one["uri"] for one in made["resolvedDependencies"]}
    trunk, expert = sealed["checkpoints"]["trunk"], sealed["checkpoints"]["expert0"]
    assert found["data of code"] == {"sha256": expert["inputs"]["data_sha256"]}
    assert found["tokenizer"] == {"sha256": trunk["inputs"]["tokenizer_sha256"]}
    assert found["frozen trunk"] == {"sha256": trunk["params_sha256"]}
    assert found["jax"] == f"pkg:pypi/jax@{trunk['environment']['jax']}"
    made_of = {one["name"]: one["digest"] for one in told["predicate"]["runDetails"]["byproducts"]}
    assert made_of["expert0 parameters"] == {"sha256": expert["params_sha256"]}
    assert made_of["expert0 transcript"] == {"s7tRoot": expert["transcript_sha256"]}
    assert "level" not in out.lower()


def test_the_bill_of_materials_names_each_part_once_and_what_it_was_made_from(capsys):
    told = json.loads(s7(capsys, "provenance", sample.SEALED, "--format", "cyclonedx")[1])
    assert (told["bomFormat"], told["specVersion"]) == ("CycloneDX", "1.6")
    model = told["metadata"]["component"]
    parts = {one["bom-ref"]: one for one in [model, *told["components"]]}
    assert len(parts) == 1 + len(told["components"]) == len(told["dependencies"])
    assert {one["ref"] for one in told["dependencies"]} == set(parts)
    needs = {one["ref"]: one["dependsOn"] for one in told["dependencies"]}
    assert all(ref in parts for refs in needs.values() for ref in refs)
    assert "parameters:trunk" in needs["parameters:expert3"]
    assert "parameters:trunk" not in needs["parameters:trunk"]
    assert {one["ref"] for one in model["modelCard"]["modelParameters"]["datasets"]} <= set(parts)
    quality = s7l.open(sample.SEALED).manifest.provenance["quality"]["bits_per_byte"]
    metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    values = {one["slice"]: float(one["value"]) for one in metrics}
    assert values == {f"{domain}, routed": row["routed"] for domain, row in quality.items()}


@pytest.mark.parametrize("at", [9, 5_000, 0.5, -1])
def test_a_tampered_file_is_not_exported(tmp_path, capsys, at):
    data = bytearray(sample.SEALED.read_bytes())
    data[int(at * len(data)) if isinstance(at, float) else at] ^= 1
    (tmp_path / "x.s7l").write_bytes(data)
    code, out, err = s7(capsys, "provenance", tmp_path / "x.s7l", "-o", tmp_path / "x.json")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert not (tmp_path / "x.json").exists()


def test_a_signed_statement_is_an_envelope_that_its_key_opens(whole, tmp_path, capsys):
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    public, out = new_key(tmp_path / "key.pem"), tmp_path / "a.json"
    words = ("provenance", whole.sealed, "--sign", tmp_path / "key.pem", "-o", out)
    assert s7(capsys, *words)[0] == 0
    told = json.loads(out.read_text())
    payload, (signed,) = base64.b64decode(told["payload"]), told["signatures"]
    assert told["payloadType"] == "application/vnd.in-toto+json"
    assert payload.decode() == s7(capsys, "provenance", whole.sealed)[1]
    key, sig = load_pem_public_key(public.read_bytes()), base64.b64decode(signed["sig"])
    key.verify(sig, b"DSSEv1 28 application/vnd.in-toto+json %d " % len(payload) + payload)
    with pytest.raises(InvalidSignature):
        key.verify(sig, payload)


def test_what_is_there_is_not_overwritten_and_other_forms_are_not_signed(tmp_path, capsys):
    (tmp_path / "there").write_text("mine")
    code, _, err = s7(capsys, "provenance", sample.SEALED, "-o", tmp_path / "there")
    assert (code, (tmp_path / "there").read_text()) == (2, "mine")
    assert "nothing is overwritten" in err
    words = ("--format", "cyclonedx", "--sign", tmp_path / "there")
    assert s7(capsys, "provenance", sample.SEALED, *words)[0] == 2


def test_run_without_provenance_is_of_a_running_model_as_before(whole, capsys):
    assert s7(capsys, "verify", whole.sealed, "--run", whole.path)[0] == 2
    assert s7(capsys, "verify", whole.sealed, "--proof", whole.path)[0] == 2


@pytest.mark.long(minutes=1)
def test_the_official_schemas_take_the_exports(whole):
    """CycloneDX's own JSON schema, strictly; the messages of in-toto and SLSA, no field unknown."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator
    from google.protobuf.json_format import ParseDict
    from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
    from in_toto_attestation.v1 import statement_pb2
    from in_toto_attestation.v1.statement import Statement

    for path in (sample.SEALED, whole.sealed):
        origin = attestation.origin_of(path)
        bill = attestation.encoded(attestation.bill_of_materials(origin, path)).decode()
        validator = JsonStrictValidator(SchemaVersion.V1_6)
        assert validator.validate_str(bill) is None
        assert validator.validate_str(bill.replace('"SHA-256"', '"SHA-257"')) is not None
        statement = attestation.statement(origin, path)
        Statement.copy_from_pb(ParseDict(statement, statement_pb2.Statement())).validate()
        predicate = ParseDict(statement["predicate"], provenance_pb2.Provenance())
        assert predicate.build_definition.build_type.startswith("urn:")
        assert predicate.run_details.builder.id
        for one in (
            *predicate.build_definition.resolved_dependencies,
            *predicate.run_details.byproducts,
        ):
            assert one.uri or one.digest


def flip(path: Path, places: int = 1) -> None:
    data = bytearray(path.read_bytes())
    filled = [i for i, byte in enumerate(data) if byte]
    for i in filled[len(filled) // 2 :: max(1, len(filled) // (2 * places))]:
        data[i] ^= 0x5A
    path.write_bytes(data)


def test_shared_shards_that_are_not_the_prepared_ones_are_trained_on_by_nobody(copied, capsys):
    shard = next((copied.prepared / "math").glob("train-*"))
    flip(shard, 20)
    code, _, err = s7(capsys, "evaluate", "--run", f"{copied.path}/", "--mesh", "1x1")
    assert (code, err.count("\n")) == (1, 1)
    assert f"{shard}: SHA-256 differs from manifest.json; prepare it again" in err
    with pytest.raises(InputError, match=r"data/math: a shard is damaged or gone: "):
        batches(Prepared.load(copied.prepared), Phase(copied.config())).batch(0)


@pytest.mark.parametrize("record", ["null", "[1]", "", '{"params_sha256": "00"}'])
def test_a_checkpoint_that_is_not_what_its_record_says_is_converted_by_nobody(
    whole, tmp_path, capsys, record
):
    checkpoint = Path(shutil.copytree(whole.final("trunk"), tmp_path / "trunk_final"))
    (checkpoint / "record/metadata").write_text(record)
    for words in (("inspect", checkpoint), ("convert", checkpoint, tmp_path / "t.safetensors")):
        code, _, err = s7(capsys, *words)
        assert (code, err.count("\n")) == (1, 1)
        assert "trunk_final" in err
    assert not (tmp_path / "t.safetensors").exists()


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", "[" * 5_000])
def test_what_a_part_left_and_is_damaged_is_made_anew(tmp_path, content):
    (tmp_path / "left.json").write_text(content)
    assert remembered(tmp_path / "left.json") == {}
    assert remembered(tmp_path) == {}
    (tmp_path / "left.json").write_text('{"root": 1}')
    assert remembered(tmp_path / "left.json") == {"root": 1}
