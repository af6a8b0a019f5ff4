"""Two transcripts of one phase that disagree: where they first differ, and who is right there."""

from dataclasses import dataclass
from pathlib import Path

from s7jax.errors import InputError
from s7jax.runs.audit import Trained, again, newest_save
from s7jax.train import trace, transcript
from s7jax.train.phase import Phase, phase_of
from s7jax.train.run import Run, inputs_record, load_trunk
from s7jax.train.trace import Trace
from s7jax.train.transcript import State, Told, Transcript


@dataclass(frozen=True)
class Difference:
    """What two transcripts, or two traces of a step, say first that is not the same.

    Attributes:
        done: steps on which both agree.
        what: a field of the next step (receipt, loss, grad_norm, skipped), the gradient or state
            that it left, or end; of traces a part and a tensor.
        values: what each says.
    """

    done: int
    what: str
    values: tuple[str, str]


@dataclass(frozen=True)
class Verdict:
    """A difference, who is right (``a``, ``b`` or ``neither``), and what training gives there."""

    difference: Difference
    right: str
    value: str


@dataclass(frozen=True)
class Side:
    """One who tells: a transcript, perhaps a trace of the step in dispute, and their files."""

    path: Path
    told: Transcript
    trace_path: Path | None = None

    def trace(self, step: int) -> Trace:
        """The trace, which must be of that step.

        Raises:
            InputError: it is not, or not as the transcript tells of it.
        """
        assert self.trace_path is not None
        found = trace.read(self.trace_path)
        if found.step != step:
            raise InputError(
                f"{self.trace_path}: of step {found.step}; the transcripts differ in step {step}"
            )
        found.require(self.trace_path, self.told, self.path)
        return found


def first_difference(a: Transcript, b: Transcript) -> Difference:
    """The first place in the order of training.

    Raises:
        InputError: what was trained is the same, or they are not of one training: its phase,
            configuration, data or length.
    """
    if unlike := transcript.unlike(a.head, b.head):
        name, first, second = unlike
        raise InputError(
            f"not transcripts of one training: {name} is {first} in the first, {second} in the "
            "second"
        )
    for i, pair in enumerate(zip(a.steps, b.steps, strict=False)):
        pairs: list[tuple[Told, Told]] = [pair]
        if i + 1 in a.states and i + 1 in b.states:
            pairs.append((a.states[i + 1], b.states[i + 1]))
        for one, other in pairs:
            if what := one.difference(other):
                return Difference(i, what, (one.shown(what), other.shown(what)))
    done = min(len(a.steps), len(b.steps))
    if len(a.steps) != len(b.steps) or (a.end is None) != (b.end is None):
        raise InputError(f"one ends after {done} steps, and agrees with the other until there")
    if a.end is None or b.end is None or a.end == b.end:
        raise InputError("the transcripts agree in every step")
    return Difference(done, "end", (a.end.hex(), b.end.hex()))


def trace_of(run: Run, a: Transcript, b: Transcript, mine: Transcript) -> Trace:
    """The trace of the first step in which two transcripts differ, as this run trains it.

    Args:
        run: the folder of whoever is asked for it.
        a: one transcript.
        b: the other.
        mine: the run's own, which its checkpoints must be of.

    Raises:
        InputError: as of :func:`settle`; or the step that was trained is not as ``mine`` tells.
    """
    phase, found = _phase(run, a), first_difference(a, b)
    traced = _train(run, phase, found, mine, True).trace
    assert traced is not None
    path = run.folder.transcript(phase.name)
    traced.require(run.folder.path, mine, path)
    return traced


def settle(run: Run, a: Side, b: Side) -> Verdict:
    """Train the first step that differs again, and see who is right.

    Args:
        run: a folder with the configuration, the data and, if they are to be spared, checkpoints.
        a: one side.
        b: the other; if both have traces they are led on to microbatch and tensor.

    Raises:
        InputError: they do not differ, are not of this run, or one of them has not ended.
    """
    phase, found = _phase(run, a.told), first_difference(a.told, b.told)
    traces = a.trace_path is not None and b.trace_path is not None and found.what != "end"
    sides = (a.trace(found.done), b.trace(found.done)) if traces else None
    trained = _train(run, phase, found, a.told, traces)
    where = sides[0].difference(sides[1]) if sides else None
    if sides is None or where is None:  # whoever copies the other's trace is judged by the step
        end = found.what == "end"
        return _verdict(found, trained.params_sha256() if end else _right(trained, found.what))
    part, name = where
    one, other = (side.parts.get(part, {}).get(name, b"").hex() for side in sides)
    assert trained.trace is not None
    right = trained.trace.parts.get(part, {}).get(name, b"").hex()
    return _verdict(Difference(found.done, f"{part}: {name}", (one, other)), right)


def _verdict(found: Difference, right: str) -> Verdict:
    who = [name for name, value in zip("ab", found.values, strict=True) if value == right]
    return Verdict(found, (who or ["neither"])[0], right)


def _right(trained: Trained, what: str) -> str:
    if what in ("gradient", "state"):
        return State.of(trained.stepper).shown(what)
    return trained.told.shown(what)


def _phase(run: Run, told: Transcript) -> Phase:
    """The phase that a transcript is of, which must be one of this very run."""
    phase = phase_of(run.config, told.head["phase"])
    inputs = inputs_record(run, phase.name, None if phase.expert is None else load_trunk(run))
    if dict(told.head) != transcript.head(phase, inputs):
        raise InputError(f"{run.folder.path}: another training than the transcripts tell of")
    return phase


def _train(run: Run, phase: Phase, found: Difference, told: Transcript, traced: bool) -> Trained:
    """Train up to and with the step in dispute, or the last if they differ in the end."""
    step = min(found.done, phase.steps - 1)
    start = newest_save(run, phase, step)
    *_, last = again(run, phase, start, step + 1, told, step if traced else None)
    return last
