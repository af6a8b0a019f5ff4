"""Auditing a run: its transcripts read, its data drawn again, parts of its training done again.

Training is a pure function of configuration, seed and data, so a part that is trained again gives
the bits of the transcript, on any number of data groups; or it was not trained as it is said.
"""

import dataclasses
import hashlib
import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from s7jax import s7l
from s7jax.data.mixture import Receipt, prefetch
from s7jax.digests import tree_digest
from s7jax.errors import InputError, UsageError, show
from s7jax.mesh import single
from s7jax.model import parameters
from s7jax.model.language_model import Params
from s7jax.runs import pipeline
from s7jax.runs.origin import Origin
from s7jax.s7l import note
from s7jax.terminal.progress import Progress
from s7jax.train import checkpoint, transcript
from s7jax.train.folder import RunFolder
from s7jax.train.loop import first_state, state_form, stepper_of
from s7jax.train.optimizer import learning_rate
from s7jax.train.phase import Phase, phases
from s7jax.train.provenance import environment
from s7jax.train.run import Run, batches, finished, inputs_record, load_expert, load_trunk
from s7jax.train.step import Stepper
from s7jax.train.trace import Trace, Tracer
from s7jax.train.transcript import End, State, Step, Told, Transcript

AS_TOLD = "as told"
FORMAT, VERSION = "s7-audit", 1
HEADING = "s7 audit"  # first line of a signed report
TOLD = {"transcripts", "segments", "of", "caught", "seed", "sealed"}  # what one that is as told has
FRACTIONS = (0.01, 0.1, 0.5)  # of a training that may be forged, for which the odds are told


@dataclass(frozen=True)
class Segment:
    """Steps between two digests of the training state, after ``first`` steps up to ``last``."""

    phase: Phase
    first: int
    last: int
    start: int  # steps of the newest checkpoint from which they can be trained again

    @property
    def steps(self) -> int:
        """Steps to train again."""
        return self.last - self.start

    def __str__(self) -> str:
        return f"{self.phase.name}: steps {self.first} to {self.last}"


def read(run: Run, which: Sequence[Phase]) -> dict[str, Transcript]:
    """The transcripts of phases, each that of this run's very data and final parameters.

    Raises:
        InputError: one is missing, of something else, or not the one that was sealed.
    """
    run.prepared.verify()
    found, trunk = {}, load_trunk(run)
    for phase in which:
        inputs = inputs_record(run, phase.name, None if phase.expert is None else trunk)
        path, final = run.folder.transcript(phase.name), run.folder.final(phase.name)
        params = finished(final, inputs)
        if params is None:
            raise InputError(f"{final} is not there: {phase.name} has not ended")
        told = transcript.read(path)
        if other := transcript.unlike(told.head, transcript.head(phase, inputs)):
            raise InputError(f"{path}: {other[0]} is {other[1]}, the run's is {other[2]}")
        if told.end is None or told.end.hex() != params:
            raise InputError(f"{path}: does not end with the parameters of {final}")
        if phase.expert is not None:
            load_expert(run, phase.expert)  # they are the bytes that their record says
        promised = checkpoint.read_record(final).get("transcript_sha256")
        if told.root.hex() != promised:
            raise InputError(f"{path}: root {told.root.hex()}, {final} says {promised}")
        found[phase.name] = told
    if run.folder.sealed.exists():
        _require_sealed(run, found)
    return found


def _require_sealed(run: Run, found: Mapping[str, Transcript]) -> None:
    path = run.folder.sealed
    origin = Origin.of(s7l.open(path), path)
    if len(found) == len(phases(run.config)):  # of some, others may have been added since
        sealed, mine = origin.config.digest(), run.config.digest()
        if sealed != mine:
            raise InputError(f"{path}: sealed with configuration {sealed}, the run's is {mine}")
    for name, told in found.items():
        root = origin.made[name].transcript if name in origin.made else None
        if root != told.root.hex():
            raise InputError(
                f"{path}: sealed with transcript {root} of {name}, not {told.root.hex()}"
            )


def require_receipts(run: Run, phase: Phase, told: Transcript) -> None:
    """Draw every batch of a phase again and compare the receipts.

    Raises:
        InputError: naming the first step that was fed something else.
    """
    receipt, data = Receipt.start(len(run.config.domains)), batches(run.prepared, phase)
    with Progress(f"{phase.name}: data", phase.steps, "steps") as progress:
        for i, batch in enumerate(prefetch(data.batch, 0, phase.steps)):
            receipt = receipt.extend(batch)
            if receipt.chain != told.steps[i].receipt.hex():
                raise InputError(f"{phase.name}: step {i} was fed other sequences than are due")
            progress.advance(1)


def segments(run: Run, told: Mapping[str, Transcript]) -> list[Segment]:
    """All there are, in order."""
    found = []
    for phase in phases(run.config):
        if phase.name not in told:
            continue
        ends = sorted(told[phase.name].states)
        for first, last in zip([0, *ends], ends, strict=False):
            found.append(Segment(phase, first, last, newest_save(run, phase, first)))
    return found


def newest_save(run: Run, phase: Phase, done: int) -> int:
    """Steps of the newest checkpoint of a phase up to ``done``; 0 without one."""
    saves = (run.folder.checkpoints / phase.name).glob("*")
    steps = (int(path.name) for path in saves if path.name.isdecimal())
    return max((step for step in steps if step <= done), default=0)


def draw(every: Sequence[Segment], count: int, seed: str, roots: Sequence[str]) -> list[Segment]:
    """So many of the segments: which, nobody can know before the roots and the seed stand."""

    def place(segment: Segment) -> bytes:
        return hashlib.sha256(json.dumps([seed, *roots, str(segment)]).encode()).digest()

    return sorted(every, key=place)[:count]


def odds(total: int, count: int, fraction: float) -> float:
    """Probability that one of ``count`` segments is among the forged ``fraction`` of them."""
    honest = total - math.ceil(fraction * total)
    return 1 - math.comb(honest, count) / math.comb(total, count)


@dataclass(frozen=True)
class Trained:
    """A step that was trained again: what a transcript would say of it, and the state after it."""

    step: int
    told: Step
    stepper: Stepper  # as the step left it
    trace: Trace | None

    def params_sha256(self) -> str:
        """SHA-256 of the parameters, as a phase ends with them."""
        return parameters.digest(self.stepper.state.params)


def again(
    run: Run, phase: Phase, start: int, last: int, told: Transcript, traced: int | None = None
) -> Iterator[Trained]:
    """Train steps ``start`` to ``last`` again, from the checkpoint there, or from the seed at 0.

    ``traced`` is a step whose trace is wanted.

    Raises:
        InputError: the checkpoint is damaged, or its state is not that of the transcript.
    """
    frozen: Params = {} if phase.expert is None else load_trunk(run)
    receipt, data = Receipt.start(len(run.config.domains)), batches(run.prepared, phase)
    with jax.set_mesh(run.mesh):
        if not start:
            state = first_state(run, phase)
        else:
            with checkpoint.manager(run.folder.checkpoints / phase.name, keep=1 << 30) as manager:
                state, record = checkpoint.restore_step(manager, start, state_form(run, phase))
            receipt = Receipt.from_json(record["receipt"])
            if wanted := told.states.get(start):
                found = tree_digest(checkpoint.tensor_sha256(state))
                if wanted.state != found:
                    raise InputError(
                        f"{phase.name}: after {start} steps the checkpoint has SHA-256 "
                        f"{found.hex()}, the transcript says {wanted.state.hex()}"
                    )
        stepper = stepper_of(run, phase, state, frozen)
        for i, batch in enumerate(prefetch(data.batch, start, last), start):
            tracer = Tracer(stepper, batch.tokens) if i == traced else None
            rate, keep = learning_rate(phase.recipe, i, phase.steps), i + 1 in told.states
            apply = i not in phase.recipe.skip_steps
            metrics = stepper.step(batch.tokens, rate, apply, keep or tracer is not None)
            receipt = receipt.extend(batch)
            step = Step.of(receipt.chain, metrics)
            yield Trained(i, step, stepper, tracer.trace(told.head, i, step) if tracer else None)


def train_again(run: Run, segment: Segment, told: Transcript, progress: Progress) -> None:
    """Train a segment again, from the checkpoint before it, and compare every bit.

    The last of a phase must leave the very parameters that the phase ends with.

    Raises:
        InputError: naming the first step, or the training state, that is not as told.
    """
    phase = segment.phase
    for trained in again(run, phase, segment.start, segment.last, told):
        i = trained.step
        pairs: list[tuple[Told, Told]] = [(trained.told, told.steps[i])]
        if left := told.states.get(i + 1):
            pairs.append((State.of(trained.stepper), left))
        if i + 1 == phase.steps and told.end is not None:
            pairs.append((End(bytes.fromhex(trained.params_sha256())), End(told.end)))
        for now, was in pairs:
            if name := now.difference(was):
                raise InputError(
                    f"{phase.name}: step {i}: {name} is {now.shown(name)}, the transcript says "
                    f"{was.shown(name)}"
                )
        progress.advance(1)


def seal_again(run: Run) -> bytes:
    """Fit the router, evaluate, quantise and seal again, elsewhere and on one device; the root.

    Raises:
        InputError: it is not the root of the run's sealed model.
    """
    sealed = run.folder.sealed
    with tempfile.TemporaryDirectory(prefix="s7jax-audit-") as folder:
        again = RunFolder(Path(folder))
        again.checkpoints.mkdir()
        for phase in phases(run.config):
            again.final(phase.name).symlink_to(run.folder.final(phase.name).absolute())
        again.model.mkdir()
        for earlier in run.folder.seals()[:-1]:
            (again.model / earlier.name).symlink_to(earlier.absolute())
        # What follows training depends on the mesh in its last bits: it is made on one device.
        copy = dataclasses.replace(run, folder=again, pools=(single(),))
        pipeline.fit_router(copy)
        pipeline.quantize(copy, pipeline.quality(copy))
        root = pipeline.seal(copy).root
    if root != (wanted := s7l.open(sealed).root):
        raise InputError(f"{sealed}: root {wanted.hex()}; sealed again it is {root.hex()}")
    return root


def environments(run: Run, told: Mapping[str, Transcript]) -> Iterator[str]:
    """What is not here as it was where the run was trained; bits may differ for it."""
    here = environment(run.mesh, "")
    for name, one in told.items():
        for found in one.environments.values():
            for key, value in here.items():
                if found.get(key) != value and key != "stablehlo_sha256":
                    was = show(found.get(key))
                    yield f"{name} was trained with {key} {was}; here it is {show(value)}"
    if run.config.reduction != "tree":
        yield f"with reduction {run.config.reduction!r} bits depend on the number of data groups"


def _phases(run: Run, names: Sequence[str]) -> list[Phase]:
    """The phases called so, or all, in the order of training.

    Raises:
        UsageError: there is none of a name.
    """
    every = phases(run.config)
    known = [phase.name for phase in every]
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"--phase {unknown[0]}: expected of {', '.join(known)}")
    return [phase for phase in every if not names or phase.name in names]


def report(
    run: Run, count: int, seed: str, names: Sequence[str] = (), *, reseal: bool = True
) -> dict[str, Any]:
    """Audit a finished run, arguments as of :func:`audit`; all that was found, as JSON types.

    ``outcome`` is ``as told``, or the first thing that is not; ``sealed`` the root of the model.

    Raises:
        UsageError: there is no phase of a name.
    """
    head = {
        "format": FORMAT,
        "version": VERSION,
        "sealed": None,
        "config_sha256": run.config.digest(),
        "phases": [phase.name for phase in _phases(run, names)],
        "seed": seed,
        "wanted": count,
        "mesh": dict(run.mesh.shape),
        "environment": environment(run.mesh, ""),
    }
    try:
        if run.folder.sealed.exists():
            head["sealed"] = s7l.open(run.folder.sealed).root.hex()
        return head | {"outcome": AS_TOLD} | audit(run, count, seed, names, reseal=reseal)
    except InputError as e:
        return head | {"outcome": str(e)}


def sign(found: Mapping[str, Any], path: Path, keys: Sequence[Path]) -> None:
    """Write a report as a signed note.

    Raises:
        SealError: a key is unreadable, or ``path`` is another note.
    """
    text = json.dumps(found, sort_keys=True, separators=(",", ":"))
    note.sign(path, f"{HEADING}\n{text}\n", keys)


def signed(path: Path, trusted: Sequence[Path]) -> tuple[dict[str, Any], list[Path]]:
    """A report that one of some keys has signed, and those that have.

    Raises:
        SealError: not one, or not signed by any of them.
    """
    found = note.read(path)
    signers = found.signed_by(trusted, path)
    heading, _, text = found.text.partition("\n")
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        tree = None
    match tree:
        case {"format": name, "version": version, "outcome": str(outcome)} if (
            heading,
            name,
            version,
        ) == (HEADING, FORMAT, VERSION) and (outcome != AS_TOLD or tree.keys() >= TOLD):
            return dict(tree), signers
    raise s7l.SealError(str(path), f"not the report of an audit, version {VERSION}")


def audit(
    run: Run, count: int, seed: str, names: Sequence[str] = (), *, reseal: bool = True
) -> dict[str, Any]:
    """Audit a finished run; what was done, as JSON types.

    Args:
        run: the run, on the mesh to train on.
        count: segments to train again; all, if there are no more.
        seed: what draws them; whoever trained must not have known it.
        names: phases, if not all.
        reseal: also do again what follows training.

    Raises:
        InputError: something is not as the run tells it.
    """
    which = _phases(run, names)
    told = read(run, which)
    for line in dict.fromkeys(environments(run, told)):
        print(f"warning: {line}: the bits may differ without a forger")
    for phase in which:
        require_receipts(run, phase, told[phase.name])
    every, roots = segments(run, told), [one.root.hex() for one in told.values()]
    drawn = draw(every, count, seed, roots)
    steps = sum(segment.steps for segment in drawn)
    total = sum(phase.steps for phase in which)
    print(f"to be trained again: {steps} of {total} steps, {steps / total:.1%}")
    with Progress("train again", steps, "steps", None, 0, "compiling") as progress:
        for segment in drawn:
            train_again(run, segment, told[segment.phase.name], progress)
    done = {
        "transcripts": dict(zip(told, roots, strict=True)),
        "segments": [str(segment) for segment in drawn],
        "of": len(every),
        "steps": steps,
        "of_steps": total,
        "caught": {str(f): odds(len(every), len(drawn), f) for f in FRACTIONS},
    }
    if reseal and not names and run.folder.sealed.exists():
        done["root"] = seal_again(run).hex()
    return done
