"""A run from Python, as in a notebook: what the commands do, by the same functions.

Arguments are the commands' flags: they are checked as there, and the same arguments give the same
bytes.
"""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from s7jax.data.prepared import Prepared
from s7jax.errors import UsageError
from s7jax.report.facts import gather
from s7jax.report.figures import Picture, curves
from s7jax.report.write import write
from s7jax.runs import pipeline
from s7jax.runs.opening import add_run_flags, add_start_flags, add_watch_flags, begin
from s7jax.runs.preparing import add_prepare_flags, prepare_text
from s7jax.train.run import Run
from s7jax.train.watch import journal

Sources = Mapping[str, str | Path | Sequence[str | Path]]


class TrainedRun:
    """A run that is trained: its metrics and curves, and the way to a sealed model.

    Attributes:
        folder: where everything of it lies.
    """

    def __init__(self, run: Run, seconds: dict[str, float]) -> None:
        self.folder = run.folder.path
        self._run, self._seconds = run, seconds

    def __repr__(self) -> str:
        return f"<s7jax run {self.folder}: {self._run.config.preset}, trained>"

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``: one a training step, of all phases.

        Raises:
            InputError: the file is damaged.
        """
        return journal.read(self._run.folder.metrics)

    def plot(self, phase: str = "trunk") -> Picture:
        """Curves of a phase: loss, and bits per byte on held-out text; a notebook shows them.

        Args:
            phase: ``trunk``, or the domain of an expert.

        Raises:
            UsageError: no such phase.
        """
        facts = gather(self._run.folder)
        phases = {found["label"]: found for found in facts["phases"]}
        if phase not in phases:
            raise UsageError(f"plot({phase!r}): expected {', '.join(phases)}")
        return Picture(curves(phases[phase], facts["domains"], phase))

    def seal(self) -> Path:
        """Evaluate, quantise, seal, verify, prove, and write the report; returns the sealed file.

        Raises:
            InputError: something on the way is damaged.
        """
        pipeline.finish(self._run, self._seconds)
        return self._run.folder.sealed

    def report(self) -> Path:
        """Write the report as it stands now; returns the page.

        Raises:
            InputError: a file of the run is damaged.
        """
        return write(self._run.folder, self._run.folder.page)[0]


def pretrain(
    run: str | Path,
    *,
    preset: str | None = None,
    data: Sources | str | Path | None = None,
    prepared: Prepared | str | Path | None = None,
    tokens: int | str | None = None,
    expert_tokens: int | str | Sequence[int | str] | None = None,
    mesh: str | None = None,
    set: Mapping[str, Any] | None = None,
    **flags: Any,
) -> TrainedRun:
    """Start a run, or go on with one: trunk, experts, router; what is done already is kept.

    Args:
        run: its name under ``runs/``, or a folder (with a slash).
        preset: model size, such as ``"s7-nano"``.
        data: sources by domain, or a ``data.toml``; without any the built-in corpus.
        prepared: what :func:`prepare` gave, instead of ``data``.
        tokens: Phase 1 trains on as many, such as ``"5M"``.
        expert_tokens: Phase 2: one number, or one for each expert.
        mesh: devices, such as ``"4x2"``; virtual ones on CPUs.
        set: fields of the configuration by name, such as ``{"trunk.peak_lr": 0.01}``.
        flags: any other flag of ``s7jax pipeline``, such as ``seed=1``, ``save_every="500k"``,
            ``log_to="mlflow"``.

    Raises:
        UsageError: arguments that the command would refuse.
        InputError: data or checkpoints that cannot be used.
        Stopped: interrupted; what was done is saved, the same call goes on.
    """
    _require_path("run", run)
    if not isinstance(prepared, Prepared | None):
        _require_path("prepared", prepared)
    args = _parsed(
        (add_run_flags, add_start_flags, add_watch_flags),
        run=str(run),
        preset=preset,
        data=_sources(data),
        prepared=prepared.path if isinstance(prepared, Prepared) else prepared,
        tokens=tokens,
        expert_tokens=expert_tokens,
        mesh=mesh,
        set=_assignments(set),
        **flags,
    )
    opened = begin(args)
    return TrainedRun(opened, pipeline.train(opened))


def prepare(
    out: str | Path,
    *,
    preset: str,
    data: Sources | str | Path | None = None,
    set: Mapping[str, Any] | None = None,
    **flags: Any,
) -> Prepared:
    """Turn text into tokenised training data; what is there already is checked and used.

    Args:
        out: folder to write.
        preset: model size whose vocabulary and context it shall have.
        data: sources by domain, or a ``data.toml``; without any the built-in corpus.
        set: fields of the configuration by name, as the run will have them.
        flags: any other flag of ``s7jax prepare``, such as ``near_duplicates=0.8``.

    Raises:
        UsageError: arguments that the command would refuse.
        InputError: data that cannot be used.
    """
    _require_path("out", out)
    return prepare_text(
        _parsed(
            (add_prepare_flags,),
            out=out,
            preset=preset,
            data=_sources(data),
            set=_assignments(set),
            **flags,
        )
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def _require_path(name: str, value: Any) -> None:
    if not isinstance(value, str | Path) or "\0" in str(value):
        raise UsageError(f"{name} is {value!r}; expected a name or a folder")


def _parsed(adds: Iterable[Any], **given: Any) -> argparse.Namespace:
    """Arguments as the command line has them, by the same parser."""
    parser, words = _Parser(allow_abbrev=False, add_help=False), list[str]()
    for add in adds:
        add(parser)
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, list | tuple):
            words += [flag, *map(str, value)] if value else []
        elif value is True:
            words.append(flag)
        elif value is not None and value is not False:
            words.append(f"{flag}={value}")
    return parser.parse_args(words)


def _sources(data: Sources | str | Path | None) -> list[str]:
    if not isinstance(data, Mapping):
        return [] if data is None else [str(data)]
    lists = {d: [s] if isinstance(s, str | Path) else s for d, s in data.items()}
    for domain, given in lists.items():
        if not isinstance(given, list | tuple):
            raise UsageError(f"data[{domain!r}] is {given!r}; expected a source or a list of them")
    return [f"{domain}={source}" for domain, given in lists.items() for source in given]


def _assignments(fields: Mapping[str, Any] | None) -> list[str]:
    if not isinstance(fields or {}, Mapping):
        raise UsageError(f"set is {fields!r}; expected fields by name: {{'trunk.peak_lr': 0.01}}")
    try:
        return [f"{name}={json.dumps(value)}" for name, value in (fields or {}).items()]
    except TypeError:
        raise UsageError(f"set is {fields!r}; expected plain numbers, text and lists") from None
