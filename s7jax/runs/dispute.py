"""Two transcripts of one phase that disagree: the first step they differ in, and who is right."""

from dataclasses import dataclass

from s7jax.errors import InputError
from s7jax.runs.audit import again, newest_save
from s7jax.train import transcript
from s7jax.train.checkpoint import state_sha256
from s7jax.train.phase import phase_of
from s7jax.train.run import Run, inputs_record, load_trunk
from s7jax.train.transcript import Transcript


@dataclass(frozen=True)
class Difference:
    """What two transcripts say first that is not the same.

    Attributes:
        done: steps on which both agree.
        what: receipt, loss, grad_norm or skipped of the next step; the state after it; or end.
        values: what each says.
    """

    done: int
    what: str
    values: tuple[str, str]


def first_difference(a: Transcript, b: Transcript) -> Difference | None:
    """The first place in the order of training; None if what was trained is the same.

    Raises:
        InputError: they are not of one training: its phase, configuration, data or length.
    """
    for name in a.head.keys() | b.head.keys():
        if a.head.get(name) != b.head.get(name):
            raise InputError(
                f"not transcripts of one training: {name} is {a.head.get(name)} in the first, "
                f"{b.head.get(name)} in the second"
            )
    for i, (one, other) in enumerate(zip(a.steps, b.steps, strict=False)):
        if what := one.difference(other):
            return Difference(i, what, (one.shown(what), other.shown(what)))
        states = a.states.get(i + 1, b""), b.states.get(i + 1, b"")
        if states[0] != states[1]:
            return Difference(i, "state", (states[0].hex(), states[1].hex()))
    if len(a.steps) != len(b.steps) or a.end != b.end:
        told = tuple(one.end.hex() if one.end else f"{len(one.steps)} steps" for one in (a, b))
        return Difference(min(len(a.steps), len(b.steps)), "end", (told[0], told[1]))
    return None


def settle(run: Run, a: Transcript, b: Transcript) -> tuple[Difference, str, str]:
    """Train the first step that differs again: the difference, who is right, what is right.

    Args:
        run: a folder with the configuration, the data and, if they are to be spared, checkpoints.
        a: one transcript.
        b: the other.

    Returns:
        The difference; ``a``, ``b`` or ``neither``; and what training gives there.

    Raises:
        InputError: they do not differ, are not of this run, or one of them has not ended.
    """
    phase = phase_of(run.config, a.head["phase"])
    inputs = inputs_record(run, phase.name, None if phase.expert is None else load_trunk(run))
    if (found := first_difference(a, b)) is None:
        raise InputError("the transcripts agree in every step")
    if dict(a.head) != transcript.head(phase, inputs):
        raise InputError(f"{run.folder.path}: another training than the transcripts tell of")
    if found.what == "end" and found.done < phase.steps:
        raise InputError(
            f"one ends after {found.done} steps, and agrees with the other until there"
        )
    done = min(found.done, phase.steps - 1)
    start = newest_save(run, phase, done)
    right = ""
    for trained in again(run, phase, start, done + 1, a):
        if trained.step == done:
            if found.what == "state":
                right = state_sha256(trained.state)
            elif found.what == "end":
                right = trained.params_sha256()
            else:
                right = trained.told.shown(found.what)
    who = [name for name, value in zip("ab", found.values, strict=True) if value == right]
    return found, (who or ["neither"])[0], right
