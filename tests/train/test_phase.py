import dataclasses
import json
import os
import shutil
import signal
import struct
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from s7jax import errors, mesh
from s7jax.config import Config, Domain, override
from s7jax.data.prepared import Prepared
from s7jax.errors import InputError
from s7jax.model import parameters
from s7jax.train import checkpoint, evaluate, loop, provenance
from s7jax.train.options import Every, Options
from s7jax.train.phase import TRUNK, Phase
from s7jax.train.run import Run, batches, load_expert, load_trunk
from s7jax.train.step import Stepper, initial_state, trunk_loss
from tests.train.stopping import Stopped, stop_at
from tests.train.training import train_expert, train_trunk

pytestmark = pytest.mark.usefixtures("compiled_alike")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, open_run):
    """A run through both phases, and the digests it ended with."""
    x = open_run(tmp_path_factory.mktemp("runs") / "a")
    digests = {"trunk": train_trunk(x)}
    trunk = load_trunk(x)
    before = parameters.digest(trunk)
    for e in range(4):
        digests[f"expert{e}"] = train_expert(x, e, trunk)
    assert parameters.digest(trunk) == before == digests["trunk"]
    return x, digests


@pytest.fixture
def copied(finished, tmp_path, open_run) -> Run:
    """A copy of the finished run that may be spoilt."""
    x, _ = finished
    shutil.copytree(x.folder.path, tmp_path / "copy")
    return open_run(tmp_path / "copy")


def test_equal_seeds_give_equal_bytes_and_other_seeds_others(finished, new_run, tiny: Config):
    _, digests = finished
    assert train_trunk(new_run("again")) == digests["trunk"]
    assert train_trunk(new_run("b", dataclasses.replace(tiny, seed=1))) != digests["trunk"]


def test_an_expert_alone_is_the_expert_beside_the_others(finished, new_run):
    x, digests = finished
    alone = new_run("alone")
    shutil.copytree(x.folder.final("trunk"), alone.folder.final("trunk"))
    assert train_expert(alone, 2, load_trunk(alone)) == digests["expert2"]
    assert len(set(digests.values())) == 5


@pytest.mark.parametrize(
    "pools",
    [
        pytest.param("4x1x1", marks=pytest.mark.long(minutes=1)),
        pytest.param("2x2x1", marks=pytest.mark.long(minutes=0.5)),
        pytest.param("3x1x1", marks=pytest.mark.long(minutes=0.6)),
    ],
)
def test_experts_at_once_on_pools_are_the_experts_one_by_one(finished, new_run, pools: str):
    x, digests = finished
    beside = new_run("pools", on=pools)
    shutil.copytree(x.folder.final("trunk"), beside.folder.final("trunk"))
    found = loop.train_experts(beside, (3, 1, 0, 2))
    assert {f"expert{e}": digest for e, digest in found.items()} | {
        "trunk": digests["trunk"]
    } == digests
    for e in range(4):
        record = checkpoint.read_record(beside.folder.final(f"expert{e}"))
        assert record == checkpoint.read_record(x.folder.final(f"expert{e}"))
    lines = [json.loads(line) for line in beside.folder.metrics.read_text().splitlines()]
    assert len(lines) == 4 * 5


@pytest.mark.long(minutes=0.4)
def test_pools_stop_together_and_go_on(finished, new_run, monkeypatch):
    """A signal in the middle: every expert saves, exit code 143, and the rest follows."""
    x, digests = finished
    stopped = new_run("stopped", on="2x1x1")
    shutil.copytree(x.folder.final("trunk"), stopped.folder.final("trunk"))
    step = Stepper.step
    counted = []

    def stepping(self, *args):
        counted.append(self)
        if len(counted) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "step", stepping)
        with pytest.raises(errors.Stopped) as stop:
            loop.train_experts(stopped, range(4))
    assert stop.value.number == signal.SIGTERM
    found = loop.train_experts(stopped, range(4))
    assert [found[e] for e in range(4)] == [digests[f"expert{e}"] for e in range(4)]


def test_a_stopped_run_goes_on_to_the_same_bytes(finished, new_run, monkeypatch):
    x, digests = finished
    stopped = new_run("stopped")
    with pytest.raises(Stopped):
        stop_at(7, monkeypatch, stopped)
    assert not stopped.folder.final("trunk").exists()
    assert train_trunk(stopped) == digests["trunk"]
    lines = [json.loads(line) for line in stopped.folder.metrics.read_text().splitlines()]
    assert [line["step"] for line in lines] == [*range(10)]
    again = [line["step"] for line in lines if "lost" in line["spent"]]
    assert again == [6]  # it went on from the checkpoint at step 6
    records = [checkpoint.read_record(e.folder.final("trunk")) for e in (x, stopped)]
    assert records[0] == records[1]  # the mixture receipt too


def test_a_checkpoint_restores_on_any_mesh(finished, open_run):
    x, digests = finished
    for shape in ("1x1", "8x1", "1x2", "4x2"):
        elsewhere = open_run(x.folder.path, on=shape)
        trunk = load_trunk(elsewhere)
        assert parameters.digest(trunk) == digests["trunk"]
        assert trunk["embedding"]["weight"].sharding.mesh == elsewhere.mesh


@pytest.mark.parametrize("saved_on", ["1x1", "8x1", "1x2", "4x2"])
def test_a_training_state_moves_between_any_two_meshes(tmp_path, tiny: Config, saved_on: str):
    """Parameters and moments, each mesh to the three others: equal bytes."""

    def state_on(shape):
        made = mesh.make(mesh.parse(shape))
        with jax.set_mesh(made):
            return initial_state(tiny.trunk, parameters.initial(tiny.model, 0, made, TRUNK))

    saved = jax.tree.map(lambda x: x + 1, state_on(saved_on))
    with checkpoint.manager(tmp_path / "c") as manager:
        checkpoint.save_step(manager, 1, saved, {})
        manager.wait_until_finished()
        for shape in {"1x1", "8x1", "1x2", "4x2"} - {saved_on}:
            like = state_on(shape)
            restored, _ = checkpoint.restore_step(manager, 1, like)
            assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(
                lambda x: x.sharding, like
            )
            jax.tree.map(np.testing.assert_array_equal, restored, saved)


def test_going_on_with_other_versions_warns(finished, copied, monkeypatch, capsys):
    _, digests = finished
    shutil.rmtree(copied.folder.final("trunk"))
    monkeypatch.setattr(provenance, "version", lambda name: "0.0.1" if name == "jax" else "?")
    assert train_trunk(copied) == digests["trunk"]
    out = capsys.readouterr().out
    assert "warning: jax was" in out
    assert "is 0.0.1" in out


def test_the_program_is_the_same_on_any_number_of_data_groups(finished, tiny: Config):
    """It is the one in the record; and another one if anything in it changes."""
    x, _ = finished
    recorded = checkpoint.read_record(x.folder.final("trunk"))["environment"]["stablehlo_sha256"]

    def program(on: str, *changes: str) -> str:
        cfg, made = override(tiny, list(changes)), mesh.make(mesh.parse(on))
        with jax.set_mesh(made):
            start = parameters.initial(cfg.model, 0, made, TRUNK)
            state = initial_state(cfg.trunk, start)
        stepper = Stepper(cfg.model, cfg.trunk, trunk_loss, made, state, {}, compute=cfg.compute)
        return stepper.program_digest(cfg.model.context)

    assert program("1x1") == program("8x1") == recorded
    assert program("1x1", "trunk.clip=0.5") != recorded
    assert program("1x1", "compute.remat=true") != recorded


@pytest.mark.long(minutes=0.5)
def test_training_on_a_mesh_is_repeatable(new_run):
    assert len({train_trunk(new_run(name, on="4x2")) for name in ("m", "n")}) == 1


def test_a_finished_phase_is_skipped_and_says_so(finished, capsys):
    x, digests = finished
    before = x.folder.metrics.read_bytes()
    assert train_trunk(x) == digests["trunk"]
    assert "already trained" in capsys.readouterr().out
    assert x.folder.metrics.read_bytes() == before


def test_a_phase_of_other_inputs_is_refused(finished, tiny: Config, single):
    x, _ = finished
    trunk = parameters.initial(tiny.model, 5, single, TRUNK)
    with pytest.raises(InputError, match="expert1_final was made with trunk_sha256"):
        train_expert(x, 1, trunk)


def test_a_damaged_checkpoint_is_named_and_refused(copied):
    params = load_trunk(copied)
    weight = np.array(params["embedding"]["weight"])
    weight[0, 0] += 1
    params["embedding"]["weight"] = jax.device_put(weight)
    folder = copied.folder.final("trunk")
    record = checkpoint.read_record(folder)
    shutil.rmtree(folder)
    checkpoint.save_final(folder, params, record)
    forged = folder / "record" / "metadata"
    tree = json.loads(forged.read_text())
    tree["params_sha256"] = record["params_sha256"]
    forged.write_text(json.dumps(tree))
    with pytest.raises(InputError, match="trunk_final: parameters have SHA-256"):
        load_trunk(copied)


def test_a_missing_phase_says_which_command_makes_it(new_run):
    with pytest.raises(InputError, match="s7jax trunk"):
        load_trunk(new_run("empty"))


def test_metrics_have_one_line_a_step(finished, tiny: Config):
    x, _ = finished
    lines = [json.loads(line) for line in x.folder.metrics.read_text().splitlines()]
    trunk = [line for line in lines if line["phase"] == "trunk"]
    assert [line["step"] for line in trunk] == list(range(10))
    assert trunk[-1]["tokens"] == 2_560
    assert {"loss", "grad_norm", "learning_rate", "seconds"} <= set(trunk[0])
    assert trunk[-1]["loss"] < trunk[0]["loss"]
    assert all(line["tokens_per_second"] > 0 for line in trunk[1:])
    assert not any("mfu" in line for line in trunk), "nobody knows the peak of a CPU"
    assert [line["step"] for line in trunk if "held_out" in line] == [2, 5, 8, 9]
    bits = [line["held_out"] for line in trunk if "held_out" in line]
    assert all(bits[-1][domain] < bits[0][domain] for domain in tiny.model.domains)


@pytest.mark.long(minutes=0.4)
def test_held_out_figures_while_training_are_those_of_the_report(finished, tiny: Config):
    x, _ = finished
    lines = [json.loads(line) for line in x.folder.metrics.read_text().splitlines()]
    last = {line["phase"]: line["held_out"] for line in lines if "held_out" in line}
    params = load_trunk(x) | {f"expert{e}": load_expert(x, e) for e in range(4)}
    width = tiny.model.trunk.hidden
    for name in ("router", "nearest_centroid"):
        params[name] = {"weight": np.zeros((width, 4), np.float32), "bias": np.zeros(4, np.float32)}
    for e, domain in enumerate(tiny.model.domains):
        report = evaluate.evaluate(x, params)["bits_per_byte"][domain]
        assert last["trunk"][domain] == pytest.approx(report["trunk"], rel=1e-5)
        assert last[f"expert{e}"] == {domain: pytest.approx(report["oracle"], rel=1e-5)}


def test_the_same_metrics_are_there_for_tensorboard(finished):
    x, _ = finished
    (events,) = (x.folder.tensorboard / "trunk").iterdir()
    tags = {
        (event.step, value.tag): value.simple_value
        for event in read_events(events)
        for value in event.summary.value
    }
    lines = [json.loads(line) for line in x.folder.metrics.read_text().splitlines()]
    for line in (line for line in lines if line["phase"] == "trunk"):
        for name in ("loss", "grad_norm", "learning_rate"):
            assert tags[line["step"], name] == pytest.approx(line[name], rel=1e-6)
        for domain, bits in line.get("held_out", {}).items():
            assert tags[line["step"], f"held_out/{domain}"] == pytest.approx(bits, rel=1e-6)


def read_events(path: Path) -> Iterator[event_pb2.Event]:
    """TFRecords: length, its checksum, payload, its checksum."""
    data, at = path.read_bytes(), 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        event = event_pb2.Event()
        event.ParseFromString(data[at + 12 : at + 12 + length])
        at += length + 16
        yield event


def test_checkpoints_are_kept_as_asked(new_run):
    x = new_run("kept")
    options = Options(save_every=Every(steps=1), keep_last=2, keep_every=Every(tokens=1_024))
    x = dataclasses.replace(x, options=options)
    train_trunk(x)
    with checkpoint.manager(x.folder.checkpoints / "trunk") as manager:
        assert sorted(manager.all_steps()) == [4, 8, 9]


def test_the_data_receipt_can_be_recomputed(finished, prepared: Prepared, tmp_path):
    x, _ = finished
    for name, sequences in (("trunk", (28, 20, 16, 16)), ("expert2", (0, 0, 40, 0))):
        assert provenance.verify_data(x.folder.final(name)).sequences == sequences
    other = shutil.copytree(x.folder.path, tmp_path / "other")
    metadata = other / "checkpoints/trunk_final/record/metadata"
    record = json.loads(metadata.read_text())
    record["receipt"]["chain"] = "00" * 32
    metadata.write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"after 10 steps: .* the checkpoint says"):
        provenance.verify_data(other / "checkpoints/trunk_final")
    record["inputs"]["data_sha256"] = "00" * 32
    metadata.write_text(json.dumps(record))
    with pytest.raises(InputError, match="the checkpoint was made with 0000"):
        provenance.verify_data(other / "checkpoints/trunk_final")
    with pytest.raises(InputError, match="router_final: not a checkpoint"):
        provenance.verify_data(other / "checkpoints/router_final")


def test_an_expert_goes_on_with_its_domain_where_the_trunk_stopped(
    tiny: Config, prepared: Prepared
):
    trunk, expert = Phase(tiny), Phase(tiny, 1)
    assert (trunk.steps * trunk.recipe.batch, expert.first) == (80, 20)
    longer = dataclasses.replace(tiny, trunk=dataclasses.replace(tiny.trunk, tokens=10**5))
    one_stream = batches(prepared, Phase(longer))
    math = [(b.row[b.domain == 1]) for b in map(one_stream.batch, range(30))]
    went_on = batches(prepared, expert).batch(0).row
    np.testing.assert_array_equal(np.concatenate(math)[20 : 20 + len(went_on)], went_on)
    added = tiny.with_domain(Domain(name="law", share=0, tokens=100))
    assert Phase(added, 4).first == 0
    assert Phase(added, 1).first == 20


def test_the_record_chains_data_tokenizer_config_and_trunk(
    finished, tiny: Config, prepared: Prepared
):
    x, digests = finished
    record = checkpoint.read_record(x.folder.final("expert3"))
    assert record["inputs"] == {
        "first_sequence": 16,
        "config_sha256": tiny.phase_digest("expert3"),
        "data_sha256": prepared.digest_of(["general"]),
        "tokenizer_sha256": prepared.tokenizer.digest,
        "trunk_sha256": digests["trunk"],
    }
    environment = record["environment"]
    assert set(environment) > {"stablehlo_sha256", "device", "model_axis", "jax", "jaxlib"}
    assert record["receipt"]["sequences"] == [0, 0, 0, 40]
    trunk = checkpoint.read_record(x.folder.final("trunk"))
    assert trunk["receipt"]["sequences"] == [28, 20, 16, 16]
