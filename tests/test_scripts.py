"""The commands a user types, as real processes, from raw text to a verified seal."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import s7jax
from s7jax import s7l
from s7jax.config import PRESETS
from s7jax.data.prepared import Prepared
from s7jax.s7l import note
from s7jax.train import transcript
from tests import compiling

pytestmark = pytest.mark.usefixtures("compiled_alike")

DOMAINS = PRESETS["s7-nano"].model.domains

ROOT = Path(__file__).parent.parent
HANGS = 1800  # seconds after which something hangs: nothing here is asked to be fast
SIZE = """
model.vocab=320 model.context=32 model.routing_window=8 router_sequences=12 eval_sequences=6
model.trunk.layers=1 model.trunk.hidden=32 model.trunk.ffn=64
model.expert.layers=1 model.expert.hidden=16 model.expert.ffn=32
trunk.tokens=5120 trunk.batch=8 trunk.microbatch=2
domains.*.tokens=2560 experts.batch=8 experts.microbatch=2
""".split()
INTEGERS = set("pred s8 s16 s32 s64 u8 u16 u32".split())
WORDS = {
    "code": "def return import class for if else self print lambda",
    "math": "1 2 3 4 5 + - = x y",
    "reason": "therefore because all some no if then but implies so",
    "general": "the a river old house walked green morning quiet said",
}


def script(name: str, *args: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in compiling.environment().items() if k != "JAX_PLATFORMS"}
    command = [sys.executable, "-W", "error::DeprecationWarning:s7jax", str(ROOT / name)]
    command += map(str, args)
    return subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=HANGS, check=False
    )


def good(name: str, *args: object, cwd: Path) -> str:
    result = script(name, *args, cwd=cwd)
    assert result.returncode == 0, result.stderr + result.stdout
    return result.stdout


@pytest.fixture
def script_here(monkeypatch, capsys, tmp_path):
    """Run a script in this process, where JAX is loaded: for what computes nothing."""
    jax.devices()  # as many as there are: no script decides it any more

    def run(name: str, *args: object, cwd: Path = tmp_path) -> tuple[int, str, str]:
        if "--mesh" in args:  # which would
            done = script(name, *args, cwd=cwd)
            return done.returncode, done.stdout, done.stderr
        monkeypatch.chdir(cwd)
        monkeypatch.syspath_prepend(ROOT / Path(name).parent)  # as Python does for a script
        monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / name), run_name="__main__")
        return end.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture
def good_here(script_here):
    def run(name: str, *args: object, cwd: Path) -> str:
        code, out, err = script_here(name, *args, cwd=cwd)
        assert code == 0, err + out
        return out

    return run


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    for domain, words in WORDS.items():
        lines = [json.dumps({"text": " ".join(rng.choice(words.split(), 60))}) for _ in range(120)]
        (folder / f"{domain}.jsonl").write_text("\n".join(lines) + "\n")
    return [f"{domain}={folder / domain}.jsonl" for domain in DOMAINS]


@pytest.fixture(scope="module")
def work(tmp_path_factory, corpus) -> Path:
    """A folder in which the pipeline has run once, as ``runs/tiny``."""
    folder = tmp_path_factory.mktemp("work")
    out = good(
        "experiments/pipeline.py",
        *("--preset", "s7-nano", "--run", "tiny", "--data", *corpus, "--set", *SIZE),
        cwd=folder,
    )
    assert "Bits per byte on held-out text" in out
    return folder


def test_the_pipeline_leaves_everything_behind(work: Path):
    run = work / "runs/tiny"
    for name in ("trunk", *(f"expert{e}" for e in range(4)), "router"):
        assert (run / "checkpoints" / f"{name}_final").is_dir(), name
    for name in ("config.json", "metrics.jsonl", "evaluation.json", "data/tokenizer.json"):
        assert (run / name).is_file(), name
    report = json.loads((run / "report.json").read_text())
    assert set(report) == {"quality", "artifacts", "seconds", "proof", "sealed"}
    assert len(report["proof"]["samples"]) == 10
    assert {rule["verdict"].split(" (")[0] for rule in report["proof"]["rules"]} == {"PASS"}
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    spent = [sum(line["spent"].values()) for line in lines if line["phase"] == "trunk"]
    assert sum(spent) == pytest.approx(report["seconds"]["trunk"], rel=0.01)
    for form in ("report.html", "report.md"):
        assert report["artifacts"][-1][2] in (run / form).read_text()
    assert report["artifacts"][-1][2] == s7l.open(run / "model/moe.s7l").root.hex()
    assert not (run / "model/moe.s7l").stat().st_mode & 0o222


def test_the_seal_chains_back_to_data_and_checkpoints(work: Path):
    provenance = s7l.open(work / "runs/tiny/model/moe.s7l").manifest.provenance
    data = Prepared.load(work / "runs/tiny/data")
    checkpoints = provenance["checkpoints"]
    assert set(checkpoints) == {"trunk", "expert0", "expert1", "expert2", "expert3", "router"}
    for name, made in checkpoints.items():
        own = data.domains if name in ("trunk", "router") else [data.domains[int(name[6:])]]
        assert made["inputs"]["data_sha256"] == data.digest_of(own)
    frozen = {c["inputs"]["trunk_sha256"] for n, c in checkpoints.items() if n != "trunk"}
    assert frozen == {checkpoints["trunk"]["params_sha256"]}
    for name in checkpoints.keys() - {"router"}:
        assert len(bytes.fromhex(checkpoints[name]["environment"]["stablehlo_sha256"])) == 32
        assert len(bytes.fromhex(checkpoints[name]["receipt"]["chain"])) == 32
        told = transcript.read(work / f"runs/tiny/transcript/{name}.s7t")
        assert checkpoints[name]["transcript_sha256"] == told.root.hex()
    assert provenance["quality"]["bits_per_byte"]["code"]["trunk"] > 0


@pytest.mark.long(minutes=1)
def test_an_audit_seals_it_again_and_notices_another_seal(work: Path, tmp_path: Path):
    key, report = tmp_path / "me.pem", tmp_path / "a.s7a"
    public = note.new_key(key)
    signing = ("--report", str(report), "--sign", str(key))
    segment = ("--segments", "1", "--mesh", "1x1")
    found = json.loads(good("tools/audit.py", *segment, "--json", *signing, cwd=work))
    assert found["root"] == s7l.open(work / "runs/tiny/model/moe.s7l").root.hex()
    reading = ("tools/audit.py", "--read", str(report), "--trust", str(public))
    assert json.loads(good(*reading, "--json", cwd=tmp_path)) == found
    assert f"{report}: as told\n" in good(*reading, cwd=tmp_path)
    report.write_text(report.read_text().replace('"seed":"', '"seed":"0'))
    forged = script(*reading, cwd=tmp_path)
    assert (forged.returncode, "does not verify" in forged.stderr) == (1, True)
    for flags in (signing[:2], ("--read", str(report))):
        assert "goes with" in script("tools/audit.py", *flags, cwd=tmp_path).stderr
    copy = tmp_path / "runs/tiny"
    shutil.copytree(work / "runs/tiny", copy)
    told = copy / "transcript/trunk.s7t"
    shutil.copy(copy / "transcript/expert0.s7t", told)
    existing = script("tools/audit.py", *signing, cwd=work)
    assert (existing.returncode, "nothing is overwritten" in existing.stderr) == (2, True)
    report.unlink()
    for failed in (
        script("tools/audit.py", "--run", str(copy), *signing, cwd=tmp_path),
        script(*reading, cwd=tmp_path),
    ):
        assert failed.returncode == 1
        assert "not as told: " in failed.stderr
        assert "trunk.s7t: phase is 'expert0', the run's is 'trunk'" in failed.stderr


def test_the_pipeline_again_skips_everything_and_changes_no_byte(work: Path, good_here):
    sealed = work / "runs/tiny/model/moe.s7l"
    kept = [sealed, *(work / "runs/tiny" / name for name in ("metrics.jsonl", "report.json"))]
    before = [path.read_bytes() for path in kept]
    out = good_here("experiments/pipeline.py", "--run", "tiny", cwd=work)
    assert out.count("already trained") == 5
    for phrase in ("already fitted", "evaluation: already done", "quantize: already done"):
        assert phrase in out
    assert "already there" in out
    assert before == [path.read_bytes() for path in kept]


@pytest.mark.long(minutes=2)
def test_by_way_of_the_hub_a_run_gives_the_same_seal(work: Path, tmp_path: Path):
    run = work / "runs/tiny"
    good("tools/convert.py", run, "tiny-hf", cwd=tmp_path)
    said = good("tools/convert.py", "tiny-hf", "runs/again", cwd=tmp_path)
    report = json.loads((run / "report.json").read_text())
    assert {line.split()[-1] for line in said.splitlines()[:6]} <= set(
        re.findall(r"[0-9a-f]{64}", json.dumps(report["artifacts"]))
    )
    good("tools/quantize.py", "--run", "again", "--prepared", run / "data", cwd=tmp_path)
    good("tools/pack.py", "--run", "again", cwd=tmp_path)
    sealed = tmp_path / "runs/again/model/moe.s7l"
    assert sealed.read_bytes() == (run / "model/moe.s7l").read_bytes()


@pytest.mark.long(minutes=1)
def test_the_same_run_elsewhere_gives_the_same_seal(
    work: Path, corpus, script_here, tmp_path: Path
):
    """Phase by phase with the single scripts, from another folder: the same bytes."""
    arguments = ("--run", "again", "--data", *corpus, "--set", *SIZE)
    good("experiments/trunk.py", "--preset", "s7-nano", *arguments, cwd=tmp_path)
    good("experiments/router.py", cwd=tmp_path)
    good("experiments/experts.py", "--domain", "general", "code", cwd=tmp_path)
    good("experiments/experts.py", "--mesh", "2x1x1", "--save-every", "2steps", cwd=tmp_path)
    quality = json.loads(good("experiments/evaluate.py", "--json", cwd=tmp_path))
    assert quality == json.loads((work / "runs/tiny/evaluation.json").read_text())["quality"]
    good("tools/quantize.py", cwd=tmp_path)
    good("tools/pack.py", cwd=tmp_path)
    again = tmp_path / "runs/again/model/moe.s7l"
    assert again.read_bytes() == (work / "runs/tiny/model/moe.s7l").read_bytes()
    trunks = (
        folder / "checkpoints/trunk_final" for folder in (work / "runs/tiny", again.parents[1])
    )
    code, out, _ = script_here("tools/inspect_checkpoint.py", "--diff", *trunks)
    assert (code, "identical" in out) == (0, True), out
    final = tmp_path / "runs/again/checkpoints/expert1_final"
    code, out, _ = script_here("tools/inspect_checkpoint.py", final, "--verify-data")
    assert code == 0
    assert out.startswith("data verified: Receipt(sequences=(0, ")


@pytest.mark.long(minutes=1)
def test_from_python_it_is_the_same_seal(work: Path, corpus, tmp_path: Path, monkeypatch):
    """What a notebook does, with data prepared apart: the bytes of the command."""
    monkeypatch.chdir(tmp_path)
    sizes = {name: json.loads(value) for name, value in (item.split("=") for item in SIZE)}
    text = dict(item.split("=") for item in corpus)
    data = s7jax.prepare("data", preset="s7-nano", data=text, set=sizes)
    run = s7jax.pretrain("python", preset="s7-nano", prepared=data, set=sizes)
    sealed = work / "runs/tiny/model/moe.s7l"
    assert run.seal().read_bytes() == sealed.read_bytes()
    lines = [json.loads(x) for x in (work / "runs/tiny/metrics.jsonl").read_text().splitlines()]
    key = ("phase", "step", "loss", "tokens")
    assert [[x[k] for k in key] for x in run.metrics()] == [[x[k] for k in key] for x in lines]
    report = json.loads((run.folder / "report.json").read_text())
    assert list(report["seconds"])[:3] == ["trunk", "experts", "router"]
    assert report["seconds"]["trunk"] > 0.1, "the seconds of training, not of finding it done"


@pytest.mark.long(minutes=1)
def test_the_sealed_model_beside_the_float_one(work: Path):
    """Integer logits are the same bits on one device and with experts on meshes of their own."""
    sealed, reports = work / "runs/tiny/model/moe.s7l", []
    for mesh in ("1x1", "2x1x2"):
        flags = ("--sealed", sealed, "--mesh", mesh, "--json")
        reports.append(json.loads(good("experiments/evaluate.py", *flags, cwd=work)))
    first, second = reports
    assert first["root"] == s7l.open(sealed).root.hex()
    for domain in DOMAINS:
        for model, row in first["sealed"][domain].items():
            assert abs(row["perplexity_ratio"] - 1) < 0.02
            assert row["agreement"] > 0.9
            again = second["sealed"][domain][model]
            assert again["sealed_bits_per_byte"] == row["sealed_bits_per_byte"]
    assert (work / "runs/tiny/sealed.json").exists()
    refused = script("experiments/evaluate.py", "--sealed", "none.s7l", cwd=work)
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: none.s7l: cannot be opened")


def test_a_sealed_model_answers_and_proves_it(work: Path, good_here, tmp_path: Path):
    """The first answer and a mesh in processes of their own, the others in this one."""
    sealed, proof = work / "runs/tiny/model/moe.s7l", tmp_path / "out.s7p"
    flags = ("--prompt", "def return", "--max-tokens", 6)
    text = good("tools/generate.py", sealed, *flags, "--proof", proof, cwd=work)
    report = json.loads(good_here("tools/generate.py", *flags, "--json", cwd=work))
    assert text == report["text"], "standard output is the text, to the byte"
    assert report["root"] == s7l.open(sealed).root.hex()
    assert sum(part["tokens"] for part in report["route"]) == report["tokens"] == 6
    for how in ((), ("--engine", "auto"), ("--engine", "xla", "--mesh", "1x2")):
        out = good_here("tools/verify.py", sealed, "--replay", proof, *how, cwd=work)
        assert f"replayed 6 steps, chain {report['proof']}" in out
    (tmp_path / "prompt.txt").write_text("def return")
    drawn = ("--file", tmp_path / "prompt.txt", "--max-tokens", 6, "--temperature", 1, "--top-k", 9)
    run = ("tools/generate.py", sealed, *drawn, "--seed", 4)
    assert good_here(*run, cwd=work) == good(*run, cwd=work)
    with s7jax.open(sealed) as model:
        first, second = model.generate_all(["def return", "x"], max_new_tokens=6)
        assert first.report() == {k: v for k, v in report.items() if k != "seconds"}
        assert second.text == model.generate("x", max_new_tokens=6).text


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("none.s7l", "--prompt", "x"), 1, "none.s7l: cannot be opened"),
        ((), 2, "--prompt TEXT or --file FILE"),
        (("--prompt", "x", "--temperature", -1), 2, "temperature"),
        (("--prompt", "x", "--mesh", "1x3"), 2, "a mesh that works: 1x2"),
        (("--prompt", "x " * 100), 2, "tokens; expected 1 to 31"),
    ],
)
def test_what_cannot_be_generated_is_said(work: Path, script_here, args, code: int, message: str):
    sealed = () if "none.s7l" in args else (work / "runs/tiny/model/moe.s7l",)
    found, _, err = script_here("tools/generate.py", *sealed, *args)
    assert (found, message in err) == (code, True), err


def test_every_rule_is_shown_by_a_run(work: Path):
    out = good("tools/verify.py", "--run", "--json", cwd=work)
    rules = {row["rule"]: row for row in json.loads(out)["rules"]}
    enforced = {name for name, row in rules.items() if row["verdict"] != "PASS"}
    assert enforced == {"V1", "V5", "V7", "FOLD"}
    assert {rules[name]["verdict"] for name in enforced} == {"PASS (enforced by opening)"}
    assert "not checked" not in out
    assert "16 known answers identical" in rules["V6"]["evidence"]
    assert "refused no gate" in rules["CM-1"]["evidence"]
    types = re.search(r"hold ([\w, ]+) alone", rules["INT8"]["evidence"])[1].split(", ")
    assert {"s8", "s32"} <= set(types) <= INTEGERS  # of XLA or of a processor's instructions


def test_every_link_from_the_data_to_a_proof_is_equal_beside_the_run(work: Path, script_here):
    proof = work / "runs/tiny/model/sample.s7p"
    words = ("--provenance", "--run", "tiny", "--proof", proof, "--json")
    code, out, _ = script_here("tools/verify.py", *words, cwd=work)
    links = {one["link"]: one["verdict"] for one in json.loads(out)["provenance"]}
    assert (code, set(links.values())) == (0, {"equal"})
    assert {"trunk transcript", "expert3 data", "router parameters", "proof"} <= set(links)


def test_numpy_computes_on_no_mesh(work: Path, script_here):
    sealed = work / "runs/tiny/model/moe.s7l"
    code, _, err = script_here("tools/selftest.py", sealed, "--mesh", "1x2")
    assert (code, "mesh 1x2 wants engine xla" in err) == (2, True), err
    code, _, err = script_here("tools/verify.py", sealed, "--engine", "native")
    assert (code, "--engine and --mesh go with --replay" in err) == (2, True), err
    code, _, err = script_here("tools/verify.py", sealed, "--mesh=")
    assert (code, "--engine and --mesh go with --replay" in err) == (2, True), err


@pytest.mark.long(minutes=0.5)
def test_selftest_notices_any_changed_bit(work: Path, script_here, tmp_path: Path):
    sealed = work / "runs/tiny/model/moe.s7l"
    assert "16 tokens in 4 domains" in good("tools/selftest.py", sealed, cwd=work)
    assert "as sealed" in good("tools/selftest.py", "--engine", "xla", "--mesh", "1x2", cwd=work)
    data = sealed.read_bytes()
    for at in (9, 5_000, len(data) // 2, len(data) - 1):
        changed = bytearray(data)
        changed[at] ^= 1
        (tmp_path / "changed.s7l").write_bytes(changed)
        code, _, err = script_here("tools/selftest.py", tmp_path / "changed.s7l", cwd=work)
        assert code == 1
        assert "changed.s7l" in err or "FIELD" in err


def test_the_commands_of_the_specification_work_as_written(work: Path, good_here, tmp_path: Path):
    """§5's flags, in a folder laid out as there."""
    shutil.copytree(work / "runs/tiny", tmp_path / "run")
    here = tmp_path / "run"
    shutil.move(here / "model", tmp_path / "before")
    experts = [f"checkpoints/expert{e}_final/" for e in range(4)]
    good(
        *("tools/quantize.py", "--checkpoint", "checkpoints/trunk_final/", "--experts", *experts),
        *("--out", "model/weights/", "--method", "per_row_int8"),
        cwd=here,
    )
    good_here(
        *("tools/pack.py", "--weights-dir", "model/weights/", "--vocab", "model/vocab.json"),
        *("--out", "model/moe.s7l"),
        cwd=here,
    )
    assert "V6" in good_here("tools/verify.py", "model/moe.s7l", cwd=here)
    assert (here / "model/moe.s7l").read_bytes() == (tmp_path / "before/moe.s7l").read_bytes()


@pytest.fixture
def tensor_digests(script_here):
    """SHA-256 of every tensor of a checkpoint or, with ``--weights``, of a sealed file."""

    def told(path: Path, *flags: str) -> dict[str, str]:
        code, out, err = script_here("tools/inspect_checkpoint.py", path, *flags, "--json")
        assert code == 0, err
        return {row["name"]: row["sha256"] for row in json.loads(out)}

    return told


@pytest.mark.long(minutes=1)
def test_a_fifth_domain_is_added_to_a_finished_run(
    work: Path, script_here, tensor_digests, tmp_path: Path
):
    """BUILD.md's recipe: one expert more; trunk and other experts keep their bytes."""
    shutil.copytree(work / "runs/tiny", tmp_path / "runs/tiny")
    run, rng = tmp_path / "runs/tiny", np.random.default_rng(5)
    words = "court shall party herein statute appeal judge ruling".split()
    lines = [json.dumps({"text": " ".join(rng.choice(words, 60))}) for _ in range(120)]
    (tmp_path / "law.jsonl").write_text("\n".join(lines) + "\n")
    kept = [f"{name}_final" for name in ("trunk", *(f"expert{e}" for e in range(4)))]
    checkpoints = run / "checkpoints"
    before = {name: tensor_digests(checkpoints / name) for name in kept}
    sealed_before = tensor_digests(run / "model/moe.s7l", "--weights")
    add = ("--run", "tiny", "--add-domain", "law", "--data", "law=law.jsonl")
    out = good("experiments/pipeline.py", *add, "--expert-tokens", 2560, cwd=tmp_path)
    assert out.count("already trained") == 5
    assert "expert4: 10 steps" in out
    assert "it is fitted again" in out

    assert {name: tensor_digests(checkpoints / name) for name in kept} == before
    second = s7l.open(run / "model/moe-2.s7l")
    assert second.manifest.parent == s7l.open(run / "model/moe.s7l").root
    assert [row["domain"] for row in second.manifest.routing()] == [*DOMAINS, "law"]
    sealed = tensor_digests(run / "model/moe-2.s7l", "--weights")
    changed = {name for name in sealed_before if sealed[name] != sealed_before[name]}
    assert {name.partition(".")[0] for name in changed} == {"router"}
    assert {n.partition(".")[0] for n in sealed.keys() - sealed_before.keys()} == {"expert4"}
    bits = json.loads((run / "evaluation.json").read_text())["quality"]["bits_per_byte"]
    assert bits["law"]["expert4"] < bits["law"]["trunk"]
    quality = json.loads((run / "evaluation.json").read_text())["quality"]
    assert quality["routers"]["router"]["accuracy"] > 0.9

    again = good("experiments/pipeline.py", "--run", "tiny", cwd=tmp_path)
    assert again.count("already trained") == 6
    assert "moe-2.s7l, already there" in again
    assert "PASS" in good("tools/verify.py", run / "model/moe-2.s7l", cwd=tmp_path)
    for flags, message in (
        (("--add-domain", "law", "--data", "law=other.jsonl"), "domain 'law' of this run is made"),
        (("--add-domain", "tax"), "give --data tax=PATH"),
        (("--add-domain", "tax", "--data", "code=x"), "only the domain that is added"),
        (("--add-domain", "Tax", "--data", "Tax=x"), "lower-case"),
        (("--add-domain", "tax", "--data", "tax=law.jsonl", "--seed", "3"), "--add-domain with"),
    ):
        found, _, err = script_here("experiments/pipeline.py", "--run", "tiny", *flags)
        assert (found, message in err) == (2, True), err


def test_pack_again_says_so_and_other_weights_are_refused(
    work: Path, good_here, script_here, tmp_path: Path
):
    assert "already sealed, identical" in good_here("tools/pack.py", cwd=work)
    (tmp_path / "moe.s7l").write_bytes(b"something else")
    code, _, err = script_here("tools/pack.py", "--out", tmp_path / "moe.s7l", cwd=work)
    assert (code, "never overwritten" in err) == (1, True), err
    assert (tmp_path / "moe.s7l").read_bytes() == b"something else"


def test_verify_rejects_one_flipped_weight_bit(work: Path, good_here, tmp_path: Path):
    assert good_here("tools/verify.py", cwd=work).count("PASS") >= 8
    blob = bytearray((work / "runs/tiny/model/moe.s7l").read_bytes())
    field = s7l.open(work / "runs/tiny/model/moe.s7l").head.lanes[1]
    blob[field.offset + 100] ^= 1
    (tmp_path / "bad.s7l").write_bytes(blob)
    result = script("tools/verify.py", tmp_path / "bad.s7l", cwd=work)
    assert result.returncode == 1
    assert "FAIL" in result.stdout
    assert "embedding.scale" in result.stdout


def test_inspect_shows_checkpoints_and_seals(work: Path, script_here):
    def shown(*args: object, code: int = 0) -> str:
        found, out, err = script_here("tools/inspect_checkpoint.py", *args)
        assert found == code, err
        return out

    checkpoints = work / "runs/tiny/checkpoints"
    rows = json.loads(shown(checkpoints / "expert1_final", "--json"))
    by_name = {row["name"]: row for row in rows}
    q_proj = by_name["layers.attn.q_proj.weight"]
    assert (q_proj["shape"], q_proj["dtype"]) == ([1, 16, 16], "float32")
    assert q_proj["sharding"].endswith("x1 (None, None, 'model')")  # as many groups as cores
    moe = work / "runs/tiny/model/moe.s7l"
    listing = json.loads(shown(moe, "--json"))
    names = [row["name"] for row in listing["tensors"]]
    assert {row["dtype"] for row in listing["tensors"]} == {"int8", "int32"}
    assert names == sorted(names)
    assert listing["provenance"]["quality"]["bits_per_byte"]["code"]["trunk"] > 0
    text = shown(moe)
    for phrase in ("Bits per byte on held-out", "⟁COMPUTE_FOLD⟁", "expert2", "config_sha256"):
        assert phrase in text
    sealed = json.loads(shown(moe, "--weights", "--json"))
    assert [row["name"] for row in sealed] == names
    assert {len(row["sha256"]) for row in sealed} == {64}
    pair = (checkpoints / "expert1_final", checkpoints / "expert2_final")
    different = shown("--diff", *pair, code=1)
    assert "tensors differ" in different
    assert "values, by at most" in different


@pytest.mark.long(minutes=0.3)
def test_a_mesh_of_virtual_devices_trains_and_says_so(work: Path, corpus, tmp_path: Path):
    out = good(
        *("experiments/trunk.py", "--preset", "s7-nano", "--mesh", "1x2", "--run", "mesh"),
        *("--data", *corpus, "--set", *SIZE, "trunk.tokens=512"),
        cwd=tmp_path,
    )
    assert "no accelerator: 2 virtual CPU devices" in out
    rows = json.loads(
        good(
            *("tools/inspect_checkpoint.py", "runs/mesh/checkpoints/trunk_final", "--json"),
            cwd=tmp_path,
        )
    )
    shardings = {row["name"]: row["sharding"] for row in rows}
    assert shardings["embedding.weight"] == "1x2 ('model', None)"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--preset", "s7-huge"), 2, "invalid choice: 's7-huge'"),
        (("--mesh", "4by2"), 2, "expected DATAxMODEL"),
        (("--process", "1"), 2, "go together"),
        (("--tokens", "5X"), 2, "--tokens '5X': expected a number of tokens"),
        (("--expert-tokens", "1M", "2M"), 2, "--expert-tokens has 2 entries; expected 1 or 4"),
        (("--save-every", "0steps"), 2, "or of steps, such as 500steps"),
        (("--keep-last", "0"), 2, "--keep-last 0: expected at least 1"),
        (("--data", "code=x"), 2, "math"),
        (("--data", "poetry=x"), 2, "poetry"),
        (("--set", "trunk.tokns=5"), 2, "no field 'trunk.tokns'"),
        (("--prepared", "nowhere"), 1, "nowhere"),
        (("--data", "code=x", "--prepared", "y"), 2, "give one of them"),
    ],
)
def test_wrong_usage_is_one_clear_message(script_here, arguments, code: int, message: str):
    found, _, err = script_here("experiments/trunk.py", *arguments)
    assert found == code, err
    assert message in err
    assert "Traceback" not in err


def test_so_it_is_for_a_process_of_its_own(tmp_path: Path):
    result = script("experiments/trunk.py", "--set", "trunk.tokns=5", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert "no field 'trunk.tokns'" in result.stderr
    assert "Traceback" not in result.stderr


def test_broken_data_is_named_by_file_and_line(corpus, script_here, tmp_path: Path):
    (tmp_path / "broken.jsonl").write_text('{"text": "fine"}\n{"text": oops}\n')
    flags = [f"code={tmp_path / 'broken.jsonl'}", *corpus[1:]]
    code, _, err = script_here("experiments/trunk.py", "--data", *flags)
    assert code == 1
    assert "broken.jsonl" in err
    assert "line 2" in err or ":2" in err
    assert "Traceback" not in err


def test_a_run_of_another_configuration_is_refused(work: Path, script_here):
    code, _, err = script_here("experiments/pipeline.py", "--run", "tiny", "--seed", 1, cwd=work)
    assert code == 2
    assert "another configuration" in err


def test_without_a_run_the_command_that_makes_one_is_named(script_here):
    for name in ("experiments/experts.py", "tools/pack.py", "tools/quantize.py"):
        code, _, err = script_here(name)
        assert code == 2
        assert "experiments/pipeline.py" in err


@pytest.mark.parametrize(
    "path", sorted([*(ROOT / "experiments").glob("*.py"), *(ROOT / "tools").glob("*.py")]), ids=str
)
def test_help_has_examples(path: Path, script_here):
    name = str(path.relative_to(ROOT))
    code, out, _ = script_here(name, "--help")
    assert code == 0
    assert f"  python {name}" in out
