"""Writing reports: a page and its Markdown, side by side."""

from collections.abc import Sequence
from pathlib import Path

from s7jax.report import page
from s7jax.report.facts import gather
from s7jax.storage import write_bytes
from s7jax.train.folder import RunFolder


def write(run: RunFolder, out: Path) -> tuple[Path, Path]:
    """The report of one run; returns the files written, ``out`` and its Markdown.

    Raises:
        InputError: not a run, or a file of it is damaged.
    """
    return _written(out, page.of_run(gather(run), str(run.path)))


def compare(runs: Sequence[RunFolder], out: Path) -> tuple[Path, Path]:
    """Several runs side by side; errors as of :func:`write`."""
    short = [run.path.name for run in runs]
    unique = len(set(short)) == len(short)
    names = short if unique else [str(run.path) for run in runs]
    return _written(out, page.of_runs(dict(zip(names, map(gather, runs), strict=True))))


def _written(out: Path, forms: tuple[str, str]) -> tuple[Path, Path]:
    paths = out, out.with_suffix(".md")
    for path, text in zip(paths, forms, strict=True):
        write_bytes(path, text.encode(errors="surrogateescape"))  # of paths that are no text here
    return paths
