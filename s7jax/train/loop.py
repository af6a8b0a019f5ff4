"""The loop that runs one phase to its final checkpoint.

What a step does is a pure function of (configuration, data, frozen trunk, step), so a phase that
was stopped resumes from its newest checkpoint and reaches the bytes it would have reached
undisturbed.
"""

import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from typing import Any, NoReturn, Self

import jax
import orbax.checkpoint as ocp

from s7jax.data.mixture import Batch, Receipt, prefetch
from s7jax.devices import of_kind
from s7jax.errors import InputError, Stopped, UsageError
from s7jax.model import parameters
from s7jax.model.flops import flops_per_token
from s7jax.model.language_model import Params
from s7jax.storage import lock
from s7jax.terminal.processes import say
from s7jax.terminal.progress import Progress
from s7jax.train import checkpoint, transcript
from s7jax.train.evaluate import bits_per_byte
from s7jax.train.optimizer import learning_rate
from s7jax.train.phase import Phase
from s7jax.train.provenance import environment, warn_of_changes
from s7jax.train.run import Run, batches, finished, inputs_record, load_trunk, same_inputs
from s7jax.train.step import Stepper, TrainState, initial_state, loss_of
from s7jax.train.watch import signals
from s7jax.train.watch.metrics import Clock, Metrics, Throughput
from s7jax.train.watch.profile import Profile
from s7jax.train.watch.trackers import Subject
from s7jax.train.watch.watchdog import Watchdog

MAX_SKIPPED = 10  # skipped steps after which a phase stops

Asked = Callable[[], int]  # the signal that asked to stop, or 0


def train(
    run: Run,
    phase: Phase,
    frozen: Params,
    resume_from: int | None = None,
    asked: Asked | None = None,
) -> str:
    """Run a phase from its newest checkpoint, or its start, to its final checkpoint.

    Args:
        run: the opened run.
        phase: what to train.
        frozen: embedding and trunk, for an expert; nothing for the trunk.
        resume_from: step of an older checkpoint to resume from; those after it are removed.
        asked: given where somebody else waits for signals (:mod:`s7jax.train.watch.signals`).

    Returns:
        SHA-256 of the trained parameters.

    Raises:
        Stopped: a signal asked to stop; what was done is saved.
        UsageError: ``resume_from`` in a phase that has ended.
        InputError: a checkpoint that does not fit, or too many steps had to be skipped.
    """
    clock, final = Clock(), run.folder.final(phase.name)
    inputs = inputs_record(run, phase.name, frozen)
    if done := finished(final, inputs):
        if resume_from is not None:
            raise UsageError(
                f"--resume-from {resume_from}: {phase.name} has ended; remove {final} to train it "
                "again from a checkpoint"
            )
        say(f"{phase.name}: already trained, parameters sha256 {done}")
        return done
    saves, options = run.folder.checkpoints / phase.name, run.options
    with (
        lock(saves / f".lock{jax.process_index() or ''}"),
        jax.set_mesh(run.mesh),
        checkpoint.manager(saves, options.keep_last, options.keep_steps(phase)) as manager,
        signals.deferred() if asked is None else nullcontext(asked) as stop,
        Training.restore(run, phase, frozen, inputs, manager, resume_from, clock) as training,
    ):
        _loop(training, stop)
        sha256 = training.finish()
        say(f"{phase.name}: {phase.steps} steps, parameters sha256 {sha256}")
        if number := stop():
            _stop(f"{phase.name}: {_signal(number)}: done and saved; stopped here", number)
    return sha256


def _loop(training: "Training", asked: Asked) -> None:
    """Every step that is left of a phase: step, measure, save, stop."""
    phase, options = training.phase, training.run.options
    first, save_steps = training.done, options.save_steps(phase)
    evaluate_steps = options.evaluate_steps(phase)
    traces = training.run.folder.profile / phase.name
    with (
        Progress(
            phase.name, phase.steps, "steps", (phase.tokens_per_step, "tokens"), first, "compiling"
        ) as progress,
        Watchdog(phase.name, options.step_timeout, training.advice) as watchdog,
        Profile(traces, first + 1, options.profile) as profile,
    ):
        for batch in training.batches():
            profile.before(training.done)
            # A step moves its batch and three scalars, and says so: anything else that crossed
            # between host and device each step would be slow, and nobody would see why.
            with jax.transfer_guard("disallow"):
                training.step(batch)
            training.transcribe()
            progress.advance(1, training.log.note)
            last = training.done == phase.steps
            if training.done % evaluate_steps == 0 or last:
                training.measure()
            number, spoilt = asked(), training.log.skipped > MAX_SKIPPED
            if (training.done % save_steps == 0 or number or spoilt) and not last:
                training.save()
                if spoilt:
                    raise InputError(training.spoilt())
                if number:
                    done = f"saved at step {training.done}; the same command resumes"
                    _stop(f"{phase.name}: {_signal(number)}: {done}", number)
            watchdog.beat()


class Training:
    """A phase under way: restored once, then step, measure and save until it is finished.

    Attributes:
        run, phase: what is trained, in which run.
        done: steps that are done.
        log: its metrics.
    """

    def __init__(
        self,
        run: Run,
        phase: Phase,
        frozen: Params,
        inputs: dict[str, Any],
        manager: ocp.CheckpointManager,
        stepper: Stepper,
        done: int,
        receipt: Receipt,
        clock: Clock,
    ) -> None:
        self.run, self.phase, self.done, self._first = run, phase, done, done
        self._frozen, self._inputs, self._manager = frozen, inputs, manager
        self._stepper, self._receipt, self._saved = stepper, receipt, done
        self.environment = environment(run.mesh, stepper.program_digest(run.config.model.context))
        subject = Subject(
            run=run.folder.path.absolute().name,
            phase=phase.name,
            first=done,
            config=run.config.to_json(),
            inputs=inputs,
            events=run.folder.tensorboard / phase.name,
            folder=run.folder.trackers,
        )
        speed = throughput(run, phase)
        self.log = Metrics(run.folder.metrics, subject, run.options.log_to, speed, clock)
        self._clock = clock
        path, self._head = run.folder.transcript(phase.name), transcript.head(phase, inputs)
        self._transcript = transcript.Recorder(path, self._head, done, self.environment)
        clock.mark("compile")

    @classmethod
    def restore(
        cls,
        run: Run,
        phase: Phase,
        frozen: Params,
        inputs: dict[str, Any],
        manager: ocp.CheckpointManager,
        resume_from: int | None,
        clock: Clock,
    ) -> Self:
        """The phase as its newest checkpoint left it, or the one asked for, or at its start.

        Checkpoints after the one asked for are removed once that one has been read and checked.
        """
        done, receipt, before = 0, Receipt.start(len(run.config.domains)), None
        if (step := _step_to_resume(manager, resume_from)) is None:
            state = first_state(run, phase)
        else:
            state, record = checkpoint.restore_step(manager, step, state_form(run, phase))
            same_inputs(manager.directory / str(step), record, inputs)
            done, receipt = step, Receipt.from_json(record["receipt"])
            before = record["environment"]
            checkpoint.remove_after(manager, step)
            say(f"{phase.name}: resumes from step {step}")
        stepper = stepper_of(run, phase, state, frozen)
        made = cls(run, phase, frozen, inputs, manager, stepper, done, receipt, clock)
        if before is not None:
            warn_of_changes(phase.name, before, made.environment)
        return made

    def batches(self) -> Iterator[Batch]:
        """The batches that are left."""
        data = batches(self.run.prepared, self.phase)
        return prefetch(data.batch, self.done, self.phase.steps)

    def step(self, batch: Batch) -> None:
        """One optimizer step; the first waits for its end, for only then it is compiled."""
        self._clock.mark("stall")  # the batch was waited for
        recipe, step = self.phase.recipe, self.done
        rate = learning_rate(recipe, step, self.phase.steps)
        metrics = self._stepper.step(
            batch.tokens, rate, step not in recipe.skip_steps, transcript.due(self._head, step + 1)
        )
        self._receipt, self.done = self._receipt.extend(batch), step + 1
        self._transcript.put(step, self._receipt.chain, metrics)
        tokens = self.done * self.phase.tokens_per_step
        self.log.put({"step": step, "tokens": tokens, "learning_rate": rate}, metrics)
        if step == self._first:
            self.log.start_clock()
        self._clock.mark("compile" if step == self._first else "step")

    def transcribe(self) -> None:
        """The digests of gradient and training state, where they are due."""
        if transcript.due(self._head, self.done):
            jax.block_until_ready(self._stepper.state)
            self._clock.mark("step")
            self._transcript.state(self.done, transcript.State.of(self._stepper))
            self._clock.mark("save")

    def measure(self) -> None:
        """Bits per byte on held-out text, into the metrics."""
        params = self._stepper.state.params
        self.log.held_out(lambda: bits_per_byte(self.run, self.phase, params, self._frozen))

    def save(self) -> None:
        """A resumable checkpoint, written in the background."""
        self.log.flush()  # no step that is saved lacks its line
        self._transcript.sync()
        self._clock.mark("step")
        checkpoint.save_step(self._manager, self.done, self._stepper.state, self._record())
        self._clock.mark("save")
        self.log.start_clock()
        self._saved = self.done

    def finish(self) -> str:
        """The final checkpoint; returns the SHA-256 of its parameters."""
        self.log.settle()
        self._clock.mark("step")
        checkpoint.wait(self._manager)
        final, params = self.run.folder.final(self.phase.name), self._stepper.state.params
        root = self._transcript.end(self.done, parameters.digest(params))
        record = self._record() | ({"transcript_sha256": root} if root else {})
        sha256 = checkpoint.save_final(final, params, record)
        self._clock.mark("save")
        return sha256

    def advice(self) -> str:
        """What to do after a stop."""
        return f"the same command resumes from step {self._saved}"

    def spoilt(self) -> str:
        """Why a phase with too many skipped steps stops."""
        return (
            f"{self.phase.name}: {self.log.skipped} steps skipped, the last at step "
            f"{self.log.last_skipped} (loss not finite, or far above its running mean); "
            f"stopped, saved at step {self.done}. Lower the peak learning rate"
        )

    def _record(self) -> dict[str, Any]:
        return {
            "phase": self.phase.name,
            "step": self.done,
            "tokens": self.done * self.phase.tokens_per_step,
            "config": self.run.config.to_json(),
            "inputs": self._inputs,
            "receipt": self._receipt.to_json(),
            "environment": self.environment,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self.log.close(finished=error is None or self.done == self.phase.steps)
        self._transcript.close()


def first_state(run: Run, phase: Phase) -> TrainState:
    """The state that a phase starts from, on the mesh."""
    config = run.config
    params = parameters.initial(config.model, config.seed, run.mesh, phase.trained)
    return initial_state(phase.recipe, params if phase.expert is None else params[phase.name])


def state_form(run: Run, phase: Phase) -> TrainState:
    """Shapes, dtypes and layout of a phase's state, for a checkpoint to be restored to."""
    table = parameters.table(run.config.model)
    params = parameters.abstract({name: table[name] for name in phase.trained}, run.mesh)
    form = jax.eval_shape(
        partial(initial_state, phase.recipe),
        params if phase.expert is None else params[phase.name],
    )
    return parameters.abstract(form, run.mesh)


def stepper_of(run: Run, phase: Phase, state: TrainState, frozen: Params) -> Stepper:
    """What steps a phase on from a state."""
    config, recipe, loss = run.config, phase.recipe, loss_of(phase)
    how = config.reduction, config.compute
    return Stepper(config.model, recipe, loss, run.mesh, state, frozen, *how)


def train_experts(
    run: Run, indices: Sequence[int], resume_from: int | None = None
) -> dict[int, str]:
    """Phase 2 of several experts, as many at once as there are pools (§4); their digests.

    The n-th expert goes to pool n modulo their number; each pool trains its own, one after
    another. What an expert becomes does not depend on it.

    Raises:
        UsageError: several pools in several processes.
    """
    if len(run.pools) > 1 and jax.process_count() > 1:
        raise UsageError(
            f"--mesh with {len(run.pools)} pools in {jax.process_count()} processes: give each "
            "expert a job of its own with --domain, all on the same --run"
        )

    def train_on(pool: int, asked: Asked) -> dict[int, str]:
        mine = run.on_pool(pool)
        try:
            trunk = load_trunk(mine)
            return {
                index: train(mine, Phase(run.config, index), trunk, resume_from, asked)
                for index in indices[pool :: len(run.pools)]
            }
        except InputError as e:
            if len(run.pools) > 1:
                say(f"pool {pool} stopped, the others continue: {e}")
            raise

    found: dict[int, str] = {}
    with signals.deferred() as asked, ThreadPoolExecutor(len(run.pools), "pool") as threads:
        pools = [threads.submit(train_on, pool, asked) for pool in range(len(run.pools))]
        for pool in pools:
            found |= pool.result()
    return found


def throughput(run: Run, phase: Phase) -> Throughput:
    """What turns seconds per step into tokens per second and utilisation."""
    flops = flops_per_token(run.config.model, phase.expert is None, causal=False)
    # The table has no peaks but those of bfloat16.
    device = of_kind(run.mesh.devices.flat[0].device_kind)
    device = device if run.config.compute.precision == "bf16" else None
    return Throughput(phase.tokens_per_step, flops, device, run.mesh.size)


def _step_to_resume(manager: ocp.CheckpointManager, wanted: int | None) -> int | None:
    if wanted is None:
        return manager.latest_step()
    if wanted not in (steps := manager.all_steps()):
        raise InputError(f"--resume-from {wanted}: {manager.directory} has steps {sorted(steps)}")
    return wanted


def _signal(number: int) -> str:
    return signal.Signals(number).name


def _stop(message: str, number: int) -> NoReturn:
    say(message)  # once, however many processes there are
    raise Stopped(message, number)
