"""The loop that runs one phase to its final checkpoint.

A phase is resumable: what a step does is a pure function of (configuration, data, frozen
trunk, step), so a run that was stopped goes on from its newest checkpoint to the bytes it
would have reached undisturbed.
"""

import signal
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from s7jax.data.mixture import Receipt, TrainingBatches, prefetch
from s7jax.errors import InputError
from s7jax.mesh import MODEL
from s7jax.model import parameters
from s7jax.model.model import Params
from s7jax.processes import say
from s7jax.progress import Progress
from s7jax.storage import lock
from s7jax.train import checkpoint, signals
from s7jax.train.metrics import MetricsFile
from s7jax.train.optimizer import learning_rate
from s7jax.train.phase import (
    TRUNK,
    Experiment,
    Phase,
    expert_phase,
    finished,
    inputs_record,
    same_inputs,
    trunk_phase,
)
from s7jax.train.step import Stepper, initial_state

MAX_SKIPPED = 10  # skipped steps after which a phase stops


def train_trunk(x: Experiment, resume_from: int | None = None) -> str:
    """Phase 1: train embedding and trunk; returns the SHA-256 of their parameters."""

    def start() -> Params:
        return parameters.initial(x.config.model, x.config.seed, x.mesh, TRUNK)

    return _train(x, trunk_phase(x.config), start, {}, resume_from)


def train_expert(x: Experiment, index: int, trunk: Params, resume_from: int | None = None) -> str:
    """Phase 2: train one expert on the frozen trunk; returns the SHA-256 of its parameters."""

    def start() -> Params:
        name = f"expert{index}"
        return parameters.initial(x.config.model, x.config.seed, x.mesh, (name,))[name]

    return _train(x, expert_phase(x.config, index), start, trunk, resume_from)


def _train(
    x: Experiment,
    phase: Phase,
    start: Callable[[], Params],
    frozen: Params,
    resume_from: int | None,
) -> str:
    """Run a phase from its newest checkpoint, or its start, to its final checkpoint."""
    folder = x.final_folder(phase.name)
    inputs = inputs_record(x, frozen)
    if done := finished(folder, inputs):
        say(f"{phase.name}: already trained, parameters sha256 {done}")
        return done

    def record(step: int, receipt: Receipt) -> dict[str, Any]:
        return {
            "phase": phase.name,
            "step": step,
            "tokens": step * phase.tokens_a_step,
            "config": x.config.to_json(),
            "inputs": inputs,
            "receipt": receipt.to_json(),
            "environment": _environment(x.mesh),
        }

    saves = x.run.checkpoints / phase.name
    name = f".lock{jax.process_index() or ''}"
    with lock(saves / name), jax.set_mesh(x.mesh), checkpoint.manager(saves) as manager:
        first, state = 0, initial_state(phase.recipe, start())
        receipt = Receipt.start(len(x.config.model.domains))
        if (step := _resume_at(manager, resume_from)) is not None:
            state, saved = checkpoint.restore_step(manager, step, state)
            same_inputs(saves / str(step), saved, inputs)
            first, receipt = step, Receipt.from_json(saved["receipt"])
            say(f"{phase.name}: going on from step {first}")
            _warn_of_changes(phase.name, saved["environment"], _environment(x.mesh))

        def save(step: int, receipt: Receipt) -> None:
            checkpoint.save_step(manager, step, stepper.state, record(step, receipt))

        stepper = Stepper(
            x.config.model,
            phase.recipe,
            phase.loss,
            x.mesh,
            state,
            frozen,
            x.config.reduction,
            x.config.compute,
        )
        with MetricsFile(x.run.metrics, phase.name) as log, signals.deferred() as asked:
            receipt = _loop(phase, phase.batches(x), stepper, (first, receipt), log, save, asked)
            manager.wait_until_finished()
            params = stepper.state.params
            sha256 = checkpoint.save_final(folder, params, record(phase.steps, receipt))
    say(f"{phase.name}: {phase.steps} steps, parameters sha256 {sha256}")
    return sha256


def _resume_at(manager: ocp.CheckpointManager, wanted: int | None) -> int | None:
    """The step to go on from: the newest, or the one asked for, dropping those after it."""
    if wanted is None:
        return manager.latest_step()
    steps = manager.all_steps()
    if wanted not in steps:
        raise InputError(f"--resume-from {wanted}: {manager.directory} has steps {sorted(steps)}")
    for later in [step for step in steps if step > wanted]:
        manager.delete(later)
    return wanted


def _loop(
    phase: Phase,
    data: TrainingBatches,
    stepper: Stepper,
    at: tuple[int, Receipt],
    log: MetricsFile,
    save: Callable[[int, Receipt], None],
    asked: Callable[[], int],
) -> Receipt:
    """Every step from ``at`` to the end of the phase.

    Raises:
        SystemExit: a signal asked to stop; what was done is saved.
        InputError: too many steps had to be skipped; likewise.
    """
    first, receipt = at
    tokens_a_step = phase.tokens_a_step
    checkpoint_steps = max(1, phase.recipe.checkpoint // tokens_a_step)
    with Progress(phase.name, phase.steps, "steps", (tokens_a_step, "tokens")) as progress:
        progress.advance(first)
        for step, batch in enumerate(prefetch(data.batch, first, phase.steps), first):
            rate = learning_rate(phase.recipe, step, phase.steps)
            apply = step not in phase.recipe.skip_steps
            metrics = stepper.step(batch.tokens, rate, apply)
            receipt = receipt.extend(batch)
            seen = (step + 1) * tokens_a_step
            log.put({"step": step, "tokens": seen, "learning_rate": rate}, metrics)
            progress.advance(1, log.note)
            if step == first:
                jax.block_until_ready(metrics)
                progress.restart_clock()
            number = asked()
            spoilt = log.skipped > MAX_SKIPPED
            due = (step + 1) % checkpoint_steps == 0 or number or spoilt
            if due and step + 1 < phase.steps:
                save(step + 1, receipt)
                if spoilt:
                    raise InputError(
                        f"{phase.name}: {log.skipped} steps skipped, the last at step "
                        f"{log.last_skipped} (loss not finite, or far above its running mean); "
                        f"stopped, saved at step {step + 1}. Lower the peak learning rate"
                    )
                if number:
                    name = signal.Signals(number).name
                    say(f"{phase.name}: {name}: saved at step {step + 1}; the same command goes on")
                    sys.exit(128 + number)
    return receipt


def _environment(mesh: Mesh) -> dict[str, Any]:
    """What equal bits also depend on while training; the number of data groups is not in it."""
    versions = {name: version(name) for name in ("jax", "jaxlib", "flax", "optax")}
    device = mesh.devices.flat[0].device_kind
    return {"device": device, "model_axis": mesh.shape[MODEL], **versions}


def _warn_of_changes(name: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    for key, value in now.items():
        if before.get(key) != value:
            say(
                f"{name}: warning: {key} was {before.get(key)}, is {value}: the weights may "
                "differ in bits from those of an undisturbed run"
            )
