"""Runs as they lie on the disk: how far each has come, how large it is, what it needs no more."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from s7jax.config import Config
from s7jax.data.prepared import MANIFEST
from s7jax.errors import InputError, UsageError
from s7jax.s7l.schema import read_json
from s7jax.storage import lock
from s7jax.train.folder import CONTROLS, RunFolder
from s7jax.train.phase import phases


def overview(run: RunFolder) -> dict[str, Any]:
    """What a run is, as JSON types.

    ``name``, ``preset``, ``state``, ``bytes``, ``bits_per_byte``: the mean over the domains of the
    routed model on held-out text; None as long as nobody has measured it. What could not be read
    is None too, the state is ``damaged``, and ``problem`` says why.
    """
    told: dict[str, Any] = {"name": run.path.name, "preset": None, "state": "damaged"}
    told |= {"bytes": size(run.path), "bits_per_byte": None, "problem": None}
    try:
        config = run.config()
        told |= {"preset": config.preset, "bits_per_byte": _bits_per_byte(run)}
        told["state"] = state(run, config)
    except (InputError, UsageError) as e:
        told["problem"] = str(e)
    return told


def _bits_per_byte(run: RunFolder) -> float | None:
    if not run.evaluation.exists():
        return None
    try:
        found = read_json(run.evaluation)["quality"]["bits_per_byte"]
        return float(sum(row["routed"] for row in found.values()) / len(found))
    except (ArithmeticError, AttributeError, LookupError, TypeError) as e:
        raise InputError(f"{run.evaluation}: not what `s7jax evaluate` writes") from e


def state(run: RunFolder, config: Config) -> str:
    """How far a run has come: what there is, or of a phase that has begun how many steps."""
    stages = {
        "sealed": run.sealed,
        "quantised": run.weights,
        "evaluated": run.evaluation,
        "router fitted": run.final("router"),
    }
    training = [phase for phase in phases(config) if not run.final(phase.name).is_dir()]
    for phase in training:
        saves = run.checkpoints / phase.name
        if steps := [int(path.name) for path in saves.glob("[0-9]*") if path.name.isdecimal()]:
            stages[f"{phase.name}: {max(steps)} of {phase.steps} steps"] = saves
    trained = [phase.name for phase in phases(config) if phase not in training]
    stages |= {f"{name} trained": run.final(name) for name in reversed(trained)}
    stages["prepared"] = run.prepared / MANIFEST
    return next((stage for stage, path in stages.items() if path.exists()), "begun")


def size(path: Path) -> int:
    """Bytes of all files of a folder."""
    return sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())


def spare(run: RunFolder) -> list[Path]:
    """What a run needs no more: resumable checkpoints of phases that have ended, and leftovers."""
    ended = [phase for phase in phases(run.config()) if run.final(phase.name).is_dir()]
    found = [run.checkpoints / phase.name for phase in ended]
    found += [path for control in _controls(run) for path in spare(control)]
    leftovers = ("model/.*", "data/.work", ".*.json.*", "checkpoints/*.orbax-checkpoint-tmp*")
    found += [path for pattern in leftovers for path in run.path.glob(pattern)]
    return [path for path in found if path.exists()]


def whole(run: RunFolder) -> list[Path]:
    """Everything a run has made, its configuration last.

    Raises:
        InputError: not a run, a link to one, or something else lies in its folder too.
    """
    run.read()
    if run.path.is_symlink():
        raise InputError(f"{run.path} is a link to {run.path.resolve()}: name that folder itself")
    made = [run.data, run.metrics, run.tensorboard, run.trackers, run.profile, run.checkpoints]
    made += [run.transcript("trunk").parent, run.model, run.evaluation, run.comparison]
    made += [run.tasks, run.controls, run.controls_file]
    made += [run.samples, run.report, run.page, run.summary]
    made = [path for path in [*made, run.config_file] if path.exists()]
    if others := set(run.path.iterdir()) - set(made):
        raise InputError(f"{min(others)} is no part of a run: {run.path} is not removed")
    return made


def remove(run: RunFolder, paths: list[Path]) -> int:
    """Remove them; returns the bytes that were freed.

    Raises:
        InputError: another process is training one of the run's phases.
    """
    with ExitStack() as held:
        for folder in _locks(run):
            held.enter_context(lock(folder))
        freed = 0
        for path in paths:
            freed += size(path) if path.is_dir() else path.stat().st_size
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not any(run.path.iterdir()):
        run.path.rmdir()
    return freed


def _locks(run: RunFolder) -> Iterator[Path]:
    """The lock files of phases that have been trained, or are being trained."""
    for one in (run, *_controls(run)):
        yield from one.checkpoints.glob("*/.lock*")


def _controls(run: RunFolder) -> list[RunFolder]:
    """The dense models that have been trained beside a run, or are being trained."""
    found = (run.control(equal) for equal in CONTROLS)
    return [control for control in found if control.config_file.exists()]
