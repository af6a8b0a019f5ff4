"""The loop that runs one phase to its final checkpoint.

A phase is resumable: what a step does is a pure function of (configuration, data, frozen
trunk, step), so a run that was stopped goes on from its newest checkpoint to the bytes it
would have reached undisturbed.
"""

import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import jax
import orbax.checkpoint as ocp

from s7jax.data.mixture import Receipt, prefetch
from s7jax.devices import of_kind
from s7jax.errors import InputError, UsageError
from s7jax.model import parameters
from s7jax.model.flops import flops_per_token
from s7jax.model.language_model import Params
from s7jax.storage import lock
from s7jax.terminal.processes import say
from s7jax.terminal.progress import Progress
from s7jax.train import checkpoint
from s7jax.train.evaluate import bits_per_byte
from s7jax.train.optimizer import learning_rate
from s7jax.train.phase import (
    TRUNK,
    Experiment,
    Phase,
    expert_phase,
    finished,
    inputs_record,
    load_trunk,
    same_inputs,
    trunk_phase,
)
from s7jax.train.provenance import environment, warn_of_changes
from s7jax.train.step import Stepper, initial_state
from s7jax.train.watch import signals
from s7jax.train.watch.metrics import Metrics, Throughput
from s7jax.train.watch.profile import Profile
from s7jax.train.watch.watchdog import Watchdog

MAX_SKIPPED = 10  # skipped steps after which a phase stops

Asked = Callable[[], int]  # the signal that asked to stop, or 0


def train_trunk(x: Experiment, resume_from: int | None = None) -> str:
    """Phase 1: train embedding and trunk; returns the SHA-256 of their parameters."""

    def start() -> Params:
        return parameters.initial(x.config.model, x.config.seed, x.mesh, TRUNK)

    return _train(x, trunk_phase(x.config), start, {}, resume_from)


def train_expert(
    x: Experiment,
    index: int,
    trunk: Params,
    resume_from: int | None = None,
    asked: Asked | None = None,
) -> str:
    """Phase 2: train one expert on the frozen trunk; returns the SHA-256 of its parameters.

    ``asked`` is given where somebody else waits for signals (:mod:`s7jax.train.watch.signals`).
    """

    def start() -> Params:
        name = f"expert{index}"
        return parameters.initial(x.config.model, x.config.seed, x.mesh, (name,))[name]

    return _train(x, expert_phase(x.config, index), start, trunk, resume_from, asked)


def train_experts(
    x: Experiment, indices: Sequence[int], resume_from: int | None = None
) -> dict[int, str]:
    """Phase 2 of several experts, as many at once as there are pools (§4); their digests.

    The n-th expert goes to pool n modulo their number; each pool trains its own, one after
    another. What an expert becomes does not depend on it.

    Raises:
        UsageError: several pools in several processes.
    """
    if len(x.pools) > 1 and jax.process_count() > 1:
        raise UsageError(
            f"--mesh with {len(x.pools)} pools in {jax.process_count()} processes: give each "
            "expert a job of its own with --domain, all on the same --run"
        )

    def train(pool: int, asked: Asked) -> dict[int, str]:
        mine = x.on_pool(pool)
        try:
            trunk = load_trunk(mine)
            return {
                index: train_expert(mine, index, trunk, resume_from, asked)
                for index in indices[pool :: len(x.pools)]
            }
        except InputError as e:
            if len(x.pools) > 1:
                say(f"pool {pool} stopped, the others go on: {e}")
            raise

    found: dict[int, str] = {}
    with signals.deferred() as asked, ThreadPoolExecutor(len(x.pools), "pool") as threads:
        pools = [threads.submit(train, pool, asked) for pool in range(len(x.pools))]
        for pool in pools:
            found |= pool.result()
    return found


def _train(
    x: Experiment,
    phase: Phase,
    start: Callable[[], Params],
    frozen: Params,
    resume_from: int | None,
    asked: Asked | None = None,
) -> str:
    """Run a phase from its newest checkpoint, or its start, to its final checkpoint."""
    folder = x.final_folder(phase.name)
    inputs = inputs_record(x, frozen)
    if done := finished(folder, inputs):
        say(f"{phase.name}: already trained, parameters sha256 {done}")
        return done

    saves = x.run.checkpoints / phase.name
    name = f".lock{jax.process_index() or ''}"
    waiting = signals.deferred() if asked is None else nullcontext(asked)
    with (
        lock(saves / name),
        jax.set_mesh(x.mesh),
        checkpoint.manager(saves, x.options.keep_last, _keep_steps(x, phase)) as manager,
        waiting as stop,
    ):
        first, state = 0, initial_state(phase.recipe, start())
        receipt, before = Receipt.start(len(x.config.model.domains)), None
        if (step := _resume_at(manager, resume_from)) is not None:
            state, saved = checkpoint.restore_step(manager, step, state)
            same_inputs(saves / str(step), saved, inputs)
            first, receipt, before = step, Receipt.from_json(saved["receipt"]), saved["environment"]
            say(f"{phase.name}: going on from step {first}")
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
        now = environment(x.mesh, stepper.program_digest(x.config.model.context))
        if before is not None:
            warn_of_changes(phase.name, before, now)

        def record(step: int, receipt: Receipt) -> dict[str, Any]:
            return {
                "phase": phase.name,
                "step": step,
                "tokens": step * phase.tokens_a_step,
                "config": x.config.to_json(),
                "inputs": inputs,
                "receipt": receipt.to_json(),
                "environment": now,
            }

        def save(step: int, receipt: Receipt) -> None:
            checkpoint.save_step(manager, step, stepper.state, record(step, receipt))

        def measure() -> dict[str, float]:
            return bits_per_byte(x, phase, stepper.state.params, frozen)

        events = x.run.tensorboard / phase.name
        with Metrics(x.run.metrics, events, phase.name, first, _throughput(x, phase)) as log:
            receipt = _loop(x, phase, stepper, (first, receipt), log, save, measure, stop)
            checkpoint.wait(manager)
            params = stepper.state.params
            sha256 = checkpoint.save_final(folder, params, record(phase.steps, receipt))
        number = stop()
    say(f"{phase.name}: {phase.steps} steps, parameters sha256 {sha256}")
    if number:
        say(f"{phase.name}: {signal.Signals(number).name}: done and saved; stopped here")
        sys.exit(128 + number)
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


def _save_steps(x: Experiment, phase: Phase) -> int:
    """Steps between two checkpoints."""
    if x.options.save_every:
        return x.options.save_every.in_steps(phase.tokens_a_step)
    return max(1, phase.recipe.checkpoint // phase.tokens_a_step)


def _keep_steps(x: Experiment, phase: Phase) -> int | None:
    """Steps between two checkpoints that stay for ever: a whole number of saves."""
    if x.options.keep_every is None:
        return None
    saves = _save_steps(x, phase)
    return saves * max(1, round(x.options.keep_every.in_steps(phase.tokens_a_step) / saves))


def _throughput(x: Experiment, phase: Phase) -> Throughput:
    kind = "trunk" if phase.domain is None else "experts"
    flops = flops_per_token(x.config.model, kind, causal=False)
    # The table has no peaks but those of bfloat16.
    device = of_kind(x.mesh.devices.flat[0].device_kind)
    device = device if x.config.compute.precision == "bf16" else None
    return Throughput(phase.tokens_a_step, flops, device, x.mesh.size)


def _loop(
    x: Experiment,
    phase: Phase,
    stepper: Stepper,
    at: tuple[int, Receipt],
    log: Metrics,
    save: Callable[[int, Receipt], None],
    measure: Callable[[], dict[str, float]],
    asked: Asked,
) -> Receipt:
    """Every step from ``at`` to the end of the phase.

    Raises:
        SystemExit: a signal asked to stop; what was done is saved.
        InputError: too many steps had to be skipped; likewise.
    """
    first, receipt = at
    tokens_a_step, data = phase.tokens_a_step, phase.batches(x.prepared, x.config)
    save_steps, saved = _save_steps(x, phase), first
    every = x.options.evaluate_every
    evaluate_steps = every.in_steps(tokens_a_step) if every else save_steps
    profile = Profile(x.run.profile / phase.name, first + 1, x.options.profile)

    def advice() -> str:
        return f"the same command goes on from step {saved}"

    with (
        Progress(phase.name, phase.steps, "steps", (tokens_a_step, "tokens")) as progress,
        Watchdog(phase.name, x.options.step_timeout, advice) as watchdog,
        profile,
    ):
        progress.advance(first)
        for step, batch in enumerate(prefetch(data.batch, first, phase.steps), first):
            profile.before(step)
            rate = learning_rate(phase.recipe, step, phase.steps)
            apply = step not in phase.recipe.skip_steps
            receipt, done = receipt.extend(batch), step + 1
            line = {"step": step, "tokens": done * tokens_a_step, "learning_rate": rate}
            # A step moves its batch and three scalars, and says so: anything else that crossed
            # between host and device each step would be slow, and nobody would see why.
            with jax.transfer_guard("disallow"):
                log.put(line, stepper.step(batch.tokens, rate, apply))
            if step == first:
                log.start_clock()
                progress.restart_clock()
            progress.advance(1, log.note)
            if done % evaluate_steps == 0 or done == phase.steps:
                log.held_out(measure)
            number = asked()
            spoilt = log.skipped > MAX_SKIPPED
            if (done % save_steps == 0 or number or spoilt) and done < phase.steps:
                log.settle()
                save(done, receipt)
                log.start_clock()
                saved = done
                if spoilt:
                    raise InputError(
                        f"{phase.name}: {log.skipped} steps skipped, the last at step "
                        f"{log.last_skipped} (loss not finite, or far above its running mean); "
                        f"stopped, saved at step {done}. Lower the peak learning rate"
                    )
                if number:
                    name = signal.Signals(number).name
                    say(f"{phase.name}: {name}: saved at step {done}; the same command goes on")
                    sys.exit(128 + number)
            watchdog.beat()
    return receipt
