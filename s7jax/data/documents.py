"""Documents out of files: the text of each record, what was skipped, and what identifies a text."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from s7jax.data import files
from s7jax.data.compression import DamagedFile
from s7jax.data.files import File
from s7jax.data.formats import Bad, Found, LeftOut, Record, Wanted
from s7jax.data.sources import Source
from s7jax.errors import InputError

_SHOWN = 200  # characters of the names of fields that a message holds


@dataclass(frozen=True)
class Document:
    """One text and where it came from."""

    text: str
    origin: str  # path, with the line, row or member where a file holds several


@dataclass
class Counts:
    """What became of the records of a source; every one is in exactly one place."""

    records: int = 0
    documents: int = 0
    skipped: Counter[str] = field(default_factory=Counter)


def read(
    source: Source, found: Iterable[File], counts: Counts, *, limit: int, skip_bad: bool
) -> Iterator[Document]:
    """The documents of some files of a source, in their order. Empty texts are left out.

    Args:
        source: What is read of each record.
        found: The files.
        counts: Added to.
        limit: Bytes that one record may take.
        skip_bad: Count what cannot be read, and go on.

    Raises:
        InputError: what cannot be read, naming file and record.
    """
    wanted = Wanted((source.field, *source.keep), limit)
    for file in found:
        try:
            for record in _records(file, wanted):
                counts.records += 1
                if isinstance(record, LeftOut):
                    counts.skipped[record.why] += 1
                    continue
                bad = record if isinstance(record, Bad) else None
                text = "" if isinstance(record, Bad) else _text(record, source)
                if isinstance(text, Bad):
                    bad = text
                if bad and not skip_bad:
                    raise InputError(f"{file.url}{bad.at}: {bad.why}")
                if bad:
                    counts.skipped["bad"] += 1
                elif text is None:
                    counts.skipped["filtered"] += 1
                elif not text:
                    counts.skipped["empty"] += 1
                else:
                    counts.documents += 1
                    yield Document(str(text), f"{file.url}{record.at}")
                    if counts.documents == source.max_documents:
                        return
        except DamagedFile as e:
            if not skip_bad:
                raise InputError(f"{file.url}{e}") from e
            counts.skipped["damaged files"] += 1


def texts(file: File, limit: int) -> Iterator[str]:
    """Every string in every record of a file, whatever its columns are called.

    Raises:
        InputError: what cannot be read, naming file and record.
    """
    try:
        for record in _records(file, Wanted((), limit)):
            if isinstance(record, Bad):
                raise InputError(f"{file.url}{record.at}: {record.why}")
            if isinstance(record, Record):
                yield from _strings(record.value)
    except DamagedFile as e:
        raise InputError(f"{file.url}{e}") from e


def text_key(text: str) -> bytes:
    """What identifies a document's text: the same text is always on the same side."""
    return hashlib.sha256(text.encode()).digest()


def is_held_out(key: bytes, fraction: float) -> bool:
    """Whether the text with this key is kept from training."""
    return int.from_bytes(key[:8], "big") < int(fraction * 2**64)


def rank(seed: int, key: bytes, copy: int = 0) -> int:
    """A document's place in the order of this seed, below 2**64: of its text alone."""
    salt = f"{seed}:{copy}:" if copy else f"{seed}:"
    return int.from_bytes(hashlib.sha256(salt.encode() + key).digest()[:8], "big")


def is_drawn(key: bytes, weight: float) -> bool:
    """Whether a source of a weight below one gives this document."""
    drawn = int.from_bytes(hashlib.sha256(b"weight:" + key).digest()[:8], "big")
    return weight >= 1 or drawn < int(weight * 2**64)


def _records(file: File, wanted: Wanted) -> Iterator[Found]:
    with files.opened(file.url) as raw, file.kind.open(raw, wanted.limit) as plain:
        yield from file.kind.format.read(plain, wanted)


def _text(record: Record, source: Source) -> str | Bad | None:
    """The text of a record; None if its columns say that it is not wanted."""
    if isinstance(record.value, str):
        return record.value
    wanted = _is_kept(record, source)
    if wanted is not True:
        return wanted or None
    found = _at(record.value, source.field.split("."))
    if isinstance(found, _Missing):
        why = f"expected an object with a field {source.field!r}; {found.has}"
        return Bad(record.at, f"{why}; say which with --field")
    parts = found if isinstance(found, list) else [found]
    for part in parts:
        if part is not None and not isinstance(part, str):
            kind = type(part).__name__
            return Bad(record.at, f"field {source.field!r} is {kind}, expected a string")
    text = "\n".join(part for part in parts if part)
    try:
        text.encode()
    except UnicodeEncodeError as e:
        return Bad(record.at, f"field {source.field!r} holds half a surrogate pair: {e.reason}")
    return text


def _is_kept(record: Record, source: Source) -> Bad | bool:
    """Whether every column that decides it has one of its values."""
    for column, values in source.keep.items():
        found = _at(record.value, column.split("."))
        if isinstance(found, _Missing):
            return Bad(record.at, f"no field {column!r} to keep by; {found.has}")
        kept = found if isinstance(found, list) else [found]
        if not any(value in values for value in kept):
            return False
    return True


@dataclass(frozen=True)
class _Missing:
    has: str


def _at(value: Any, path: list[str]) -> Any:
    """What stands at ``a.*.b`` of a tree; a list where the path has a star; None below a null."""
    for i, name in enumerate(path):
        if value is None:
            return None
        whole = ".".join(path[i:])  # a name may have dots in it
        if isinstance(value, Mapping) and whole in value:
            return value[whole]
        if name == "*":
            if not isinstance(value, list):
                return _Missing(f"{'.'.join(path[:i])!r} is no list")
            inner = [_at(entry, path[i + 1 :]) for entry in value]
            missing = next((entry for entry in inner if isinstance(entry, _Missing)), None)
            flat = [x for entry in inner for x in (entry if isinstance(entry, list) else [entry])]
            return missing or flat
        if not isinstance(value, Mapping) or name not in value:
            names = ", ".join(map(str, value)) if isinstance(value, Mapping) else "no fields"
            return _Missing(f"it has {names[:_SHOWN]}{'…' * (len(names) > _SHOWN)}")
        value = value[name]
    return value


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _strings(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _strings(entry)
