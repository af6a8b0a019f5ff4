"""Where files lie: folders, globs and URLs as lists of files, and their content.

A plain path is read with the standard library. Everything with ``://`` is fsspec's: S3, GCS,
HTTP, ``file://``, ``memory://``, as its environment variables configure it (``AWS_ENDPOINT_URL``,
``FSSPEC_S3_KEY``, …).
"""

import fnmatch
import glob
import io
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from s7jax.data.formats import Kind, kind_of, suffix_of
from s7jax.errors import InputError, UsageError
from s7jax.extras import how_to_install

_BUFFER = 1 << 20

# What lies beside tables of records and says something about them: no text to train on.
_ABOUT_RECORDS = (
    "readme*",
    "license*",
    "dataset_info*.json",
    "dataset_dict.json",
    "state.json",
    "_success",
    "_metadata",
    "_common_metadata",
)


@dataclass(frozen=True)
class File:
    """One file of a source."""

    url: str  # as it is opened: a path, or a URL
    size: int  # bytes
    kind: Kind
    stamp: str  # changes when the file does: its time, or its ETag


@dataclass(frozen=True)
class Listing:
    """The files of a source in bytewise order of their names, and what else was found."""

    files: tuple[File, ...]
    left_out: dict[str, int]  # reason → files


@dataclass(frozen=True)
class _Entry:
    url: str
    name: str  # below the source
    size: int
    stamp: str


def is_url(path: str) -> bool:
    """Whether a source is fsspec's to open."""
    return "://" in path


def listing(
    domain: str, path: str, format_name: str | None = None, skip_unknown: bool = False
) -> Listing:
    """The files of one path, glob or URL.

    A folder gives every file below it, through symbolic links too. Hidden and empty files are
    left out and counted, and so are, with ``skip_unknown``, files of no known kind.

    Raises:
        InputError: nothing there, or a file that cannot be read as anything.
    """
    found, left, explicit = _remote(path) if is_url(path) else _local(path)
    if not found and explicit:
        raise InputError(f"{domain}: {path} {explicit}")
    files, unknown = list[File](), Counter[str]()
    first_unknown, records = "", set[str]() if format_name else _record_folders(found)
    for entry in sorted(found, key=lambda e: os.fsencode(e.url)):
        kind = kind_of(entry.name, format_name)
        if _is_note(entry, kind, records):
            left["about the records beside it"] += 1
        elif kind is None:
            unknown[suffix_of(entry.name)] += 1
            first_unknown = first_unknown or entry.url
        elif not entry.size:
            if len(found) == 1:
                raise InputError(f"{domain}: {entry.url} is empty; remove it from the sources")
            left["empty"] += 1
        else:
            files.append(File(entry.url, entry.size, kind, entry.stamp))
    if unknown and not skip_unknown:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(unknown.items()))
        raise InputError(
            f"{domain}: {first_unknown} has an unknown suffix ({kinds}): name the files by a glob "
            "such as src/**/*.py, or leave out what cannot be read with --on-bad skip"
        )
    left.update({f"unknown kind {suffix}": count for suffix, count in unknown.items()})
    if not files:
        raise InputError(f"{domain}: {path} holds no file of a known suffix with any content")
    return Listing(tuple(files), dict(sorted(left.items())))


@contextmanager
def opened(url: str) -> Iterator[IO[bytes]]:
    """A file's bytes, to be read from the start; can be sought in."""
    if is_url(url):
        system, path = _system(url)
        with io.BufferedReader(_RemoteFile(url, system, path), _BUFFER) as file:
            yield file
    else:
        with Path(url).open("rb") as file:
            yield file


class _RemoteFile(io.RawIOBase):
    """A file of fsspec's, whose libraries each have errors of their own: here they are one kind.

    Its own files also read lines of any length only.
    """

    def __init__(self, url: str, system: Any, path: str) -> None:
        self._url = url
        self._file = self._tried(lambda: system.open(path, "rb"))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data: bytes = self._tried(lambda: self._file.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._tried(lambda: self._file.seek(offset, whence)))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()

    def _tried(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except Exception as e:
            raise InputError(f"{self._url}: {type(e).__name__}: {e}") from e


def _record_folders(found: Sequence[_Entry]) -> set[str]:
    """Folders with files of records in them or further below."""
    folders = set[str]()
    for entry in found:
        if entry.size and _holds_records(kind_of(entry.name)):
            folders.update(map(str, PurePosixPath(entry.url).parents))
    return folders


def _is_note(entry: _Entry, kind: Kind | None, records: set[str]) -> bool:
    """Whether a file only describes the records beside it: a card, a licence, metadata."""
    path = PurePosixPath(entry.url)
    named = any(fnmatch.fnmatch(path.name.lower(), pattern) for pattern in _ABOUT_RECORDS)
    return named and str(path.parent) in records and not _holds_records(kind)


def _holds_records(kind: Kind | None) -> bool:
    return kind is not None and kind.format.name not in ("text", "json")


def _local(path: str) -> tuple[list[_Entry], Counter[str], str]:
    left = Counter[str]()
    source = Path(path)
    if source.is_dir():
        return [_entry(p, str(p.relative_to(source))) for p in _tree(source, left)], left, ""
    if source.exists():
        if not source.is_file():
            return [], left, "is no regular file: write what it gives to one"
        return [_entry(source, source.name)], left, ""
    if not glob.has_magic(path):
        return [], left, "does not exist"
    recursive = "**" in source.parts
    matches = _below(source, left) if recursive else map(Path, glob.glob(path))  # noqa: PTH207
    found = []
    for match in sorted(matches):
        if match.is_file():
            found.append(_entry(match, match.name))
        else:
            left["folder" if match.is_dir() else _no_file(match)] += 1
    return found, left, "matches no file"


def _below(pattern: Path, left: Counter[str]) -> Iterator[Path]:
    """What a pattern with ``**`` matches; no folder is read twice for the same rest of it."""
    at = pattern.parts.index("**")
    head, rest = Path(*pattern.parts[:at]), pattern.parts[at:]
    bases = map(Path, glob.glob(str(head))) if at else [head]  # noqa: PTH207 (absolute too)
    todo = [(base, _open({0}, rest)) for base in sorted(bases) if base.is_dir()]
    seen, told = set[tuple[str, frozenset[int]]](), set[tuple[str, str]]()
    while todo:
        folder, places = todo.pop()
        real = os.path.realpath(folder)
        if (real, places) in seen:
            left["folder linked twice"] += 1
            continue
        seen.add((real, places))
        for name in _names(folder):
            path, here = folder / name, [i for i in places if i < len(rest)]
            fitting = [i for i in here if _fits(name, rest[i])]
            if path.is_dir():
                if fitting:
                    below = {i if rest[i] == "**" else i + 1 for i in fitting}
                    todo.append((path, _open(below, rest)))
            elif len(rest) - 1 in fitting and (real, name) not in told:
                told.add((real, name))
                yield path


def _open(places: set[int], pattern: Sequence[str]) -> frozenset[int]:
    """Places in a pattern, and those after a ``**`` there, which may stand for no folder."""
    after = {i + 1 for i in places if i < len(pattern) and pattern[i] == "**"}
    return frozenset(places) if after <= places else _open(places | after, pattern)


def _fits(name: str, part: str) -> bool:
    """Whether a name is that of one part of a pattern; hidden names want a dot there too."""
    hidden = name.startswith(".") and not part.startswith(".")
    return not hidden and (part == "**" or fnmatch.fnmatchcase(name, part))


def _names(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError as e:
        raise InputError(f"{folder}: {e.strerror}") from e


def _no_file(path: Path) -> str:
    return "no regular file" if path.exists() else "broken link"


def _entry(path: Path, name: str) -> _Entry:
    status = path.stat()
    return _Entry(str(path), name, status.st_size, str(status.st_mtime_ns))


def _tree(folder: Path, left: Counter[str]) -> Iterator[Path]:
    """Regular files below a folder; links to folders are followed, each real folder once."""
    seen = set[str]()
    for parent, names, leaves in os.walk(folder, onerror=_raise, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            left["folder linked twice"] += 1
            names.clear()
            continue
        seen.add(real)
        left["hidden folder"] += sum(name.startswith(".") for name in names)
        names[:] = sorted(name for name in names if not name.startswith("."))
        for leaf in leaves:
            path = Path(parent, leaf)
            if leaf.startswith("."):
                left["hidden"] += 1
            elif path.is_file():
                yield path
            else:
                left[_no_file(path)] += 1
    for reason in [reason for reason, count in left.items() if not count]:
        del left[reason]


def _raise(error: OSError) -> None:
    raise InputError(f"{error.filename}: {error.strerror}") from error


def _remote(url: str) -> tuple[list[_Entry], Counter[str], str]:
    system, path = _system(url)
    left = Counter[str]()
    try:
        if glob.has_magic(path):
            found, missing = system.glob(path, detail=True), "matches no file"
        else:
            found, missing = system.find(path, detail=True), "does not exist"
        if not found and not glob.has_magic(path):
            system.info(path)  # says why, where there is a reason
    except FileNotFoundError as e:
        why = f": {e.__cause__}" if e.__cause__ else ""
        return [], left, f"does not exist{why}"
    except Exception as e:  # whatever a file system's own library raises
        raise InputError(f"{url}: {type(e).__name__}: {e}") from e
    entries = []
    for name, info in found.items():
        inner = str(name).removeprefix(path).strip("/") or PurePosixPath(str(name)).name
        if info["type"] != "file":
            continue
        if any(part.startswith(".") for part in PurePosixPath(inner).parts):
            left["hidden"] += 1
            continue
        stamp = str(
            info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("created")
        )
        full = system.unstrip_protocol(name)
        entries.append(_Entry(full, PurePosixPath(str(name)).name, int(info["size"] or 0), stamp))
    return entries, left, missing


def _system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path there.

    Raises:
        UsageError: its package is not installed, or nobody knows the protocol.
    """
    import fsspec  # noqa: PLC0415 (a second that local files need not wait)

    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as e:
        raise UsageError(f"{url}: {e}; S3 needs {how_to_install('data')}") from e
    except ValueError as e:
        raise UsageError(f"{url}: {e}") from e
    return system, path
