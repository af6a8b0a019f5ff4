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


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny: Config, prepared: Prepared, single):
    """A run through both phases."""
    from s7jax.run import Run, start

    run = start(Run(tmp_path_factory.mktemp("runs") / "a"), tiny, None, str(prepared.path))
    digests = {"trunk": loop.train_trunk(run, tiny, prepared, single)}
    trunk = phase.load_trunk(run, tiny, single)
    before = parameters.digest(trunk)
    for e in range(4):
        digests[f"expert{e}"] = loop.train_expert(run, tiny, e, prepared, trunk, single)
    assert parameters.digest(trunk) == before == digests["trunk"]
    return run, digests


def test_equal_seeds_give_equal_bytes_and_other_seeds_others(
    finished, new_run, tiny: Config, prepared: Prepared, single
):
    _, digests = finished
    assert loop.train_trunk(new_run("again"), tiny, prepared, single) == digests["trunk"]
    other = dataclasses.replace(tiny, seed=1)
    assert loop.train_trunk(new_run("b", other), other, prepared, single) != digests["trunk"]


def test_an_expert_alone_is_the_expert_beside_the_others(
    finished, new_run, tiny: Config, prepared: Prepared, single
):
    run, digests = finished
    alone = new_run("alone")
    shutil.copytree(run.checkpoints / "trunk_final", alone.checkpoints / "trunk_final")
    trunk = phase.load_trunk(alone, tiny, single)
    assert loop.train_expert(alone, tiny, 2, prepared, trunk, single) == digests["expert2"]
    assert len(set(digests.values())) == 5


def test_a_stopped_run_goes_on_to_the_same_bytes(
    finished, new_run, tiny: Config, prepared: Prepared, single, monkeypatch
):
    run, digests = finished
    stopped = new_run("stopped")

    class Stop(Exception):
        pass

    class Stopping(phase.TrainingBatches):
        def batch(self, step):
            if step == 7:
                raise Stop
            return super().batch(step)

    monkeypatch.setattr(phase, "TrainingBatches", Stopping)
    with pytest.raises(Stop):
        loop.train_trunk(stopped, tiny, prepared, single)
    monkeypatch.undo()
    assert not phase.final_folder(stopped, "trunk").exists()
    assert loop.train_trunk(stopped, tiny, prepared, single) == digests["trunk"]
    steps = [json.loads(line)["step"] for line in stopped.metrics.read_text().splitlines()]
    assert steps == [*range(7), *range(6, 10)]  # it went on from the checkpoint at step 6
    records = [checkpoint.read_record(phase.final_folder(r, "trunk")) for r in (run, stopped)]
    assert records[0] == records[1]  # the mixture receipt too


def test_a_checkpoint_restores_on_any_mesh(finished, tiny: Config):
    run, digests = finished
    for shape in ("1x1", "8x1", "1x2", "4x2"):
        trunk = phase.load_trunk(run, tiny, mesh.make(mesh.parse(shape)))
        assert parameters.digest(trunk) == digests["trunk"]
        assert dict(trunk["embedding"]["weight"].sharding.mesh.shape) == dict(
            mesh.make(mesh.parse(shape)).shape
        )


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


def test_going_on_with_other_versions_warns(
    finished, tmp_path, tiny: Config, prepared: Prepared, single, monkeypatch, capsys
):
    from s7jax.run import Run

    run, digests = finished
    copy = Run(tmp_path / "copy")
    shutil.copytree(run.path, copy.path)
    shutil.rmtree(phase.final_folder(copy, "trunk"))
    monkeypatch.setattr(loop, "version", lambda name: "0.0.1" if name == "jax" else "?")
    assert loop.train_trunk(copy, tiny, prepared, single) == digests["trunk"]
    out = capsys.readouterr().out
    assert "warning: jax was" in out
    assert "is 0.0.1" in out


def test_training_on_a_mesh_is_repeatable(new_run, tiny: Config, prepared: Prepared):
    made = mesh.make(mesh.parse("4x2"))
    digests = {loop.train_trunk(new_run(name), tiny, prepared, made) for name in ("m", "n")}
    assert len(digests) == 1


def test_a_finished_phase_is_skipped_and_says_so(
    finished, tiny: Config, prepared: Prepared, single, capsys
):
    run, digests = finished
    before = run.metrics.read_bytes()
    assert loop.train_trunk(run, tiny, prepared, single) == digests["trunk"]
    assert "already trained" in capsys.readouterr().out
    assert run.metrics.read_bytes() == before


def test_a_phase_of_other_inputs_is_refused(finished, tiny: Config, prepared: Prepared, single):
    run, _ = finished
    trunk = parameters.initial(tiny.model, 5, single, phase.TRUNK)
    with pytest.raises(InputError, match="expert1_final was made with trunk_sha256"):
        loop.train_expert(run, tiny, 1, prepared, trunk, single)


def test_a_damaged_checkpoint_is_named_and_refused(finished, tmp_path, tiny: Config, single):
    run, _ = finished
    from s7jax.run import Run

    copy = Run(tmp_path / "copy")
    shutil.copytree(run.path, copy.path)
    params = phase.load_trunk(run, tiny, single)
    weight = np.array(params["embedding"]["weight"])
    weight[0, 0] += 1
    params["embedding"]["weight"] = jax.device_put(weight)
    record = checkpoint.read_record(phase.final_folder(copy, "trunk"))
    shutil.rmtree(phase.final_folder(copy, "trunk"))
    checkpoint.save_final(phase.final_folder(copy, "trunk"), params, record)
    forged = phase.final_folder(copy, "trunk") / "record" / "metadata"
    assert forged.exists()
    tree = json.loads(forged.read_text())
    tree["params_sha256"] = record["params_sha256"]
    forged.write_text(json.dumps(tree))
    with pytest.raises(InputError, match="trunk_final: parameters have SHA-256"):
        phase.load_trunk(copy, tiny, single)


def test_a_missing_phase_says_which_command_makes_it(new_run, tiny: Config, single):
    with pytest.raises(InputError, match=r"experiments/trunk\.py"):
        phase.load_trunk(new_run("empty"), tiny, single)


def test_metrics_have_one_line_a_step(finished, tiny: Config):
    run, _ = finished
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    trunk = [line for line in lines if line["phase"] == "trunk"]
    assert [line["step"] for line in trunk] == list(range(10))
    assert trunk[-1]["tokens"] == 2_560
    assert {"loss", "grad_norm", "learning_rate", "seconds"} <= set(trunk[0])
    assert trunk[-1]["loss"] < trunk[0]["loss"]


def test_the_record_chains_data_tokenizer_config_and_trunk(
    finished, tiny: Config, prepared: Prepared
):
    run, digests = finished
    record = checkpoint.read_record(phase.final_folder(run, "expert3"))
    assert record["inputs"] == {
        "config_sha256": tiny.digest(),
        "data_sha256": prepared.digest,
        "tokenizer_sha256": prepared.tokenizer.digest,
        "trunk_sha256": digests["trunk"],
    }
    assert record["receipt"]["sequences"] == [0, 0, 0, 40]
    trunk = checkpoint.read_record(phase.final_folder(run, "trunk"))
    assert trunk["receipt"]["sequences"] == [28, 20, 16, 16]
