import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from s7jax import mesh
from s7jax.config import Config
from s7jax.data.prepared import Prepared
from s7jax.errors import InputError
from s7jax.model import parameters
from s7jax.train import checkpoint, loop, phase
from s7jax.train.step import initial_state
from tests.train.stopping import Stopped, stop_at


@pytest.fixture(scope="module")
def finished(tmp_path_factory, open_run):
    """A run through both phases, and the digests it ended with."""
    x = open_run(tmp_path_factory.mktemp("runs") / "a")
    digests = {"trunk": loop.train_trunk(x)}
    trunk = phase.load_trunk(x)
    before = parameters.digest(trunk)
    for e in range(4):
        digests[f"expert{e}"] = loop.train_expert(x, e, trunk)
    assert parameters.digest(trunk) == before == digests["trunk"]
    return x, digests


@pytest.fixture
def copied(finished, tmp_path, open_run) -> phase.Experiment:
    """A copy of the finished run that may be spoilt."""
    x, _ = finished
    shutil.copytree(x.run.path, tmp_path / "copy")
    return open_run(tmp_path / "copy")


def test_equal_seeds_give_equal_bytes_and_other_seeds_others(finished, new_run, tiny: Config):
    _, digests = finished
    assert loop.train_trunk(new_run("again")) == digests["trunk"]
    assert loop.train_trunk(new_run("b", dataclasses.replace(tiny, seed=1))) != digests["trunk"]


def test_an_expert_alone_is_the_expert_beside_the_others(finished, new_run):
    x, digests = finished
    alone = new_run("alone")
    shutil.copytree(x.final_folder("trunk"), alone.final_folder("trunk"))
    assert loop.train_expert(alone, 2, phase.load_trunk(alone)) == digests["expert2"]
    assert len(set(digests.values())) == 5


def test_a_stopped_run_goes_on_to_the_same_bytes(finished, new_run, monkeypatch):
    x, digests = finished
    stopped = new_run("stopped")
    with pytest.raises(Stopped):
        stop_at(7, monkeypatch, stopped)
    assert not stopped.final_folder("trunk").exists()
    assert loop.train_trunk(stopped) == digests["trunk"]
    steps = [json.loads(line)["step"] for line in stopped.run.metrics.read_text().splitlines()]
    assert steps == [*range(7), *range(6, 10)]  # it went on from the checkpoint at step 6
    records = [checkpoint.read_record(e.final_folder("trunk")) for e in (x, stopped)]
    assert records[0] == records[1]  # the mixture receipt too


def test_a_checkpoint_restores_on_any_mesh(finished, open_run):
    x, digests = finished
    for shape in ("1x1", "8x1", "1x2", "4x2"):
        elsewhere = open_run(x.run.path, on=shape)
        trunk = phase.load_trunk(elsewhere)
        assert parameters.digest(trunk) == digests["trunk"]
        assert trunk["embedding"]["weight"].sharding.mesh == elsewhere.mesh


@pytest.mark.parametrize("saved_on", ["1x1", "8x1", "1x2", "4x2"])
def test_a_training_state_moves_between_any_two_meshes(tmp_path, tiny: Config, saved_on: str):
    """Parameters and moments, each mesh to the three others: equal bytes."""

    def state_on(shape):
        made = mesh.make(mesh.parse(shape))
        with jax.set_mesh(made):
            return initial_state(tiny.trunk, parameters.initial(tiny.model, 0, made, phase.TRUNK))

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
    shutil.rmtree(copied.final_folder("trunk"))
    monkeypatch.setattr(loop, "version", lambda name: "0.0.1" if name == "jax" else "?")
    assert loop.train_trunk(copied) == digests["trunk"]
    out = capsys.readouterr().out
    assert "warning: jax was" in out
    assert "is 0.0.1" in out


def test_training_on_a_mesh_is_repeatable(new_run):
    assert len({loop.train_trunk(new_run(name, on="4x2")) for name in ("m", "n")}) == 1


def test_a_finished_phase_is_skipped_and_says_so(finished, capsys):
    x, digests = finished
    before = x.run.metrics.read_bytes()
    assert loop.train_trunk(x) == digests["trunk"]
    assert "already trained" in capsys.readouterr().out
    assert x.run.metrics.read_bytes() == before


def test_a_phase_of_other_inputs_is_refused(finished, tiny: Config, single):
    x, _ = finished
    trunk = parameters.initial(tiny.model, 5, single, phase.TRUNK)
    with pytest.raises(InputError, match="expert1_final was made with trunk_sha256"):
        loop.train_expert(x, 1, trunk)


def test_a_damaged_checkpoint_is_named_and_refused(copied):
    params = phase.load_trunk(copied)
    weight = np.array(params["embedding"]["weight"])
    weight[0, 0] += 1
    params["embedding"]["weight"] = jax.device_put(weight)
    folder = copied.final_folder("trunk")
    record = checkpoint.read_record(folder)
    shutil.rmtree(folder)
    checkpoint.save_final(folder, params, record)
    forged = folder / "record" / "metadata"
    tree = json.loads(forged.read_text())
    tree["params_sha256"] = record["params_sha256"]
    forged.write_text(json.dumps(tree))
    with pytest.raises(InputError, match="trunk_final: parameters have SHA-256"):
        phase.load_trunk(copied)


def test_a_missing_phase_says_which_command_makes_it(new_run):
    with pytest.raises(InputError, match=r"experiments/trunk\.py"):
        phase.load_trunk(new_run("empty"))


def test_metrics_have_one_line_a_step(finished, tiny: Config):
    x, _ = finished
    lines = [json.loads(line) for line in x.run.metrics.read_text().splitlines()]
    trunk = [line for line in lines if line["phase"] == "trunk"]
    assert [line["step"] for line in trunk] == list(range(10))
    assert trunk[-1]["tokens"] == 2_560
    assert {"loss", "grad_norm", "learning_rate", "seconds"} <= set(trunk[0])
    assert trunk[-1]["loss"] < trunk[0]["loss"]


def test_the_record_chains_data_tokenizer_config_and_trunk(
    finished, tiny: Config, prepared: Prepared
):
    x, digests = finished
    record = checkpoint.read_record(x.final_folder("expert3"))
    assert record["inputs"] == {
        "config_sha256": tiny.digest(),
        "data_sha256": prepared.digest,
        "tokenizer_sha256": prepared.tokenizer.digest,
        "trunk_sha256": digests["trunk"],
    }
    assert record["receipt"]["sequences"] == [0, 0, 0, 40]
    trunk = checkpoint.read_record(x.final_folder("trunk"))
    assert trunk["receipt"]["sequences"] == [28, 20, 16, 16]
