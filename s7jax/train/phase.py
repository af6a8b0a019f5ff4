"""The phases of training and the loop that runs one of them to its final checkpoint.

Phase 1 is ``trunk``; Phase 2 is ``expert0`` … ``expert3``, each independent of the others.
A phase is resumable: what a step does is a pure function of (configuration, data, frozen
trunk, step), so a run that was stopped goes on from its newest checkpoint to the bytes it
would have reached undisturbed, on the same mesh.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from s7jax.config import Config, RecipeConfig
from s7jax.data.mixture import Receipt, TrainingBatches, prefetch
from s7jax.data.prepared import Prepared
from s7jax.errors import InputError
from s7jax.model import parameters
from s7jax.model.model import Params
from s7jax.processes import say
from s7jax.progress import Progress
from s7jax.run import Run
from s7jax.train import checkpoint
from s7jax.train.metrics import MetricsFile
from s7jax.train.optimizer import learning_rate
from s7jax.train.step import (
    Loss,
    Stepper,
    TrainState,
    expert_loss,
    initial_state,
    trunk_loss,
)

TRUNK = ("embedding", "trunk")  # the components Phase 1 trains and Phase 2 freezes


@dataclass(frozen=True)
class Phase:
    """What one phase trains, on what, for how long."""

    name: str
    recipe: RecipeConfig
    loss: Loss
    steps: int
    domain: str | None  # None: the mixture

    def batches(self, config: Config, prepared: Prepared) -> TrainingBatches:
        """The phase's training data."""
        mixture: Any = config.mixture if self.domain is None else self.domain
        return TrainingBatches(prepared, mixture=mixture, batch=self.recipe.batch, seed=config.seed)


def trunk_phase(config: Config) -> Phase:
    """Phase 1."""
    steps = config.trunk.steps(config.model.context)
    return Phase("trunk", config.trunk, trunk_loss, steps, None)


def expert_phase(config: Config, index: int) -> Phase:
    """Phase 2 of one expert."""
    steps = config.experts.steps(config.model.context, index)
    domain = config.model.domains[index]
    return Phase(f"expert{index}", config.experts, expert_loss, steps, domain)


def final_folder(run: Run, name: str) -> Path:
    """Where a phase's final checkpoint is."""
    return run.checkpoints / f"{name}_final"


def load_trunk(run: Run, config: Config, mesh: Mesh) -> Params:
    """Embedding and trunk as Phase 1 left them, verified, on a mesh.

    Raises:
        InputError: Phase 1 has not ended, or its checkpoint is damaged.
    """
    folder = final_folder(run, "trunk")
    if not folder.is_dir():
        raise InputError(f"{folder} is not there: run `python experiments/trunk.py` first")
    table = parameters.table(config.model)
    like = checkpoint.abstract({name: table[name] for name in TRUNK}, mesh)
    return checkpoint.restore_final(folder, like)


def load_expert(run: Run, config: Config, index: int, mesh: Mesh) -> Params:
    """One expert as Phase 2 left it, verified, on a mesh.

    Raises:
        InputError: its Phase 2 has not ended, or its checkpoint is damaged.
    """
    folder = final_folder(run, f"expert{index}")
    if not folder.is_dir():
        domain = config.model.domains[index]
        raise InputError(
            f"{folder} is not there: run `python experiments/experts.py --domain {domain}` first"
        )
    like = checkpoint.abstract(parameters.table(config.model)[f"expert{index}"], mesh)
    return checkpoint.restore_final(folder, like)


def train_trunk(run: Run, config: Config, prepared: Prepared, mesh: Mesh) -> str:
    """Phase 1: train embedding and trunk; returns the SHA-256 of their parameters."""

    def start() -> Params:
        return parameters.initial(config.model, config.seed, mesh, TRUNK)

    return _train(run, config, trunk_phase(config), prepared, mesh, start, {})


def train_expert(
    run: Run, config: Config, index: int, prepared: Prepared, trunk: Params, mesh: Mesh
) -> str:
    """Phase 2: train one expert on the frozen trunk; returns the SHA-256 of its parameters."""

    def start() -> Params:
        name = f"expert{index}"
        return parameters.initial(config.model, config.seed, mesh, (name,))[name]

    return _train(run, config, expert_phase(config, index), prepared, mesh, start, trunk)


def inputs_record(
    config: Config, prepared: Prepared, trunk: Params | None
) -> dict[str, str | None]:
    """Digests of everything that decides the bytes a phase ends with, beside the mesh."""
    return {
        "config_sha256": config.digest(),
        "data_sha256": prepared.digest,
        "tokenizer_sha256": prepared.tokenizer.digest,
        "trunk_sha256": parameters.digest(trunk) if trunk else None,
    }


def finished(folder: Path, inputs: dict[str, Any]) -> str | None:
    """SHA-256 of a final checkpoint that was made from these inputs; None if there is none.

    Raises:
        InputError: there is one, made from something else.
    """
    if not folder.is_dir():
        return None
    record = checkpoint.read_record(folder)
    _same_inputs(folder, record, inputs)
    return str(record["params_sha256"])


def _same_inputs(where: Path, record: dict[str, Any], inputs: dict[str, Any]) -> None:
    for name, wanted in inputs.items():
        if (found := record.get("inputs", {}).get(name)) != wanted:
            raise InputError(
                f"{where} was made with {name} {found}, now it is {wanted}: "
                "remove it to make it again, or choose another --run"
            )


def _train(
    run: Run,
    config: Config,
    phase: Phase,
    prepared: Prepared,
    mesh: Mesh,
    start: Callable[[], Params],
    frozen: Params,
) -> str:
    """Run a phase from its newest checkpoint, or its start, to its final checkpoint."""
    folder = final_folder(run, phase.name)
    inputs = inputs_record(config, prepared, frozen)
    if done := finished(folder, inputs):
        say(f"{phase.name}: already trained, parameters sha256 {done}")
        return done

    def record(step: int, receipt: Receipt) -> dict[str, Any]:
        return {
            "phase": phase.name,
            "step": step,
            "tokens": step * phase.recipe.batch * config.model.context,
            "config": config.to_json(),
            "inputs": inputs,
            "receipt": receipt.to_json(),
            "environment": _environment(mesh),
        }

    saves = run.checkpoints / phase.name
    with jax.set_mesh(mesh), checkpoint.manager(saves) as manager:
        first, state = 0, initial_state(phase.recipe, start())
        receipt = Receipt.start(len(config.model.domains))
        if manager.latest_step() is not None:
            state, saved = checkpoint.restore_step(manager, state)
            _same_inputs(saves / str(manager.latest_step()), saved, inputs)
            first, receipt = int(saved["step"]), Receipt.from_json(saved["receipt"])
            say(f"{phase.name}: going on from step {first}")

        def save(step: int, state: TrainState, receipt: Receipt) -> None:
            checkpoint.save_step(manager, step, state, record(step, receipt))

        stepper = Stepper(
            config.model,
            phase.recipe,
            phase.loss,
            mesh,
            state,
            frozen,
            config.reduction,
            config.compute,
        )
        data = phase.batches(config, prepared)
        with MetricsFile(run.metrics, phase.name) as log:
            receipt = _loop(config, phase, data, stepper, (first, receipt), log, save)
        manager.wait_until_finished()
        params = stepper.state.params
        sha256 = checkpoint.save_final(folder, params, record(phase.steps, receipt))
    say(f"{phase.name}: {phase.steps} steps, parameters sha256 {sha256}")
    return sha256


def _loop(
    config: Config,
    phase: Phase,
    data: TrainingBatches,
    stepper: Stepper,
    at: tuple[int, Receipt],
    log: MetricsFile,
    save: Callable[[int, TrainState, Receipt], None],
) -> Receipt:
    """Every step from ``at`` to the end of the phase."""
    first, receipt = at
    tokens_a_step = phase.recipe.batch * config.model.context
    checkpoint_steps = max(1, phase.recipe.checkpoint // tokens_a_step)
    with Progress(phase.name, phase.steps, "steps", (tokens_a_step, "tokens")) as progress:
        progress.advance(first)
        for step, batch in enumerate(prefetch(data.batch, first, phase.steps), first):
            rate = learning_rate(phase.recipe, step, phase.steps)
            metrics = stepper.step(batch.tokens, rate)
            receipt = receipt.extend(batch)
            seen = (step + 1) * tokens_a_step
            log.put({"step": step, "tokens": seen, "learning_rate": rate}, metrics)
            progress.advance(1, log.note)
            if step == first:
                jax.block_until_ready(metrics)
                progress.restart_clock()
            if (step + 1) % checkpoint_steps == 0 and step + 1 < phase.steps:
                save(step + 1, stepper.state, receipt)
    return receipt


def _environment(mesh: Mesh) -> dict[str, Any]:
    """What equal bits also depend on while training."""
    return {
        "mesh": "x".join(str(size) for size in mesh.devices.shape),
        "device": mesh.devices.flat[0].device_kind,
        "jax": jax.__version__,
    }
