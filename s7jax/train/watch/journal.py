"""``metrics.jsonl``: one JSON object a training step, written by all the phases of a run.

Experts train side by side, also as processes of their own, and all write to one file: a line is
appended under a lock, and whoever cuts the file back writes a new one, which the others notice.
"""

import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from s7jax.errors import InputError
from s7jax.storage import write_bytes


class Journal:
    """The lines of one phase, from the step on that it resumes from.

    Attributes:
        lost: seconds that went into steps that are done again.
    """

    def __init__(self, path: Path, phase: str, first: int) -> None:
        """Drop what an earlier process wrote of this phase from step ``first`` on."""
        self._path = path
        with _locked(path) as file:
            text = file.read()
            lines = _whole(text)
            kept, self.lost = "", 0.0
            for line, tree in zip(lines, _parsed(path, lines), strict=True):
                if tree["phase"] == phase and tree.get("step", -1) >= first:
                    self.lost += sum(tree.get("spent", {}).values())
                else:
                    kept += line
            if kept != text:
                write_bytes(path, kept.encode())

    def append(self, line: dict[str, Any]) -> None:
        """Add a line; it is whole for every reader."""
        with _locked(self._path) as file:
            file.write(json.dumps(line) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics, each with its ``phase`` and ``seconds``; not a torn last one.

    Raises:
        InputError: missing, or a line is not of that form.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as e:
        raise InputError(f"{path}: {e}") from None
    return list(_parsed(path, _whole(text)))


def spent(lines: Iterable[dict[str, Any]]) -> Counter[str]:
    """Seconds of each kind that lines say went by, in all."""
    total: Counter[str] = Counter()
    for line in lines:
        total.update(line.get("spent", {}))
    return total


def _whole(text: str) -> list[str]:
    """The lines; without a last one whose process was killed while writing."""
    lines = text.splitlines(keepends=True)
    return lines if text.endswith("\n") else lines[:-1]


def _parsed(path: Path, lines: list[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, 1):
        try:
            tree = json.loads(line)
            right = str(tree["phase"]), float(tree["seconds"])
        except (ValueError, TypeError, KeyError):
            right = None
        if right is None:
            raise InputError(
                f"{path}: line {number} is no training step: expected an object with phase and "
                "seconds"
            )
        yield tree


@contextmanager
def _locked(path: Path) -> Iterator[IO[str]]:
    """The file, to be read from its start or appended to, and nobody else's meanwhile."""
    while True:
        with path.open("a+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:  # not replaced meanwhile
                file.seek(0)
                yield file
                return
