"""The table of formats: by the end of a file's name, how its records are read.

A reader takes an open binary file and yields :class:`Record` and, where one cannot be read,
:class:`Bad`; it never holds more than one record, block or row group. ``limit`` is the most bytes
that a single record may take.
"""

import csv
import dataclasses
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any

from s7jax.data.compression import COMPRESSIONS, DamagedFile, Joined, decompressed
from s7jax.errors import UsageError
from s7jax.extras import how_to_install

_BUFFER = 1 << 20
_ROWS = 8  # of Parquet held at a time: as many longest records as --memory has room for
_BOM = b"\xef\xbb\xbf"

TEXT_SUFFIXES = tuple(
    ".txt .md .rst .tex .org .py .pyi .rs .c .h .cc .cpp .hpp .java .js .ts .go .rb .sh .pl .php"
    " .cs .kt .swift .scala .lua .r .jl .hs .ml .lean .v .sql .html .css .toml .yaml .yml .ini"
    " .cfg .cmake .proto".split()
)


@dataclass(frozen=True)
class Record:
    """One record, ``{column: value}`` or the whole text, and where in its file it stands."""

    value: Mapping[str, Any] | str
    at: str  # ":12" line, "#12" row, "!name" member; empty for a whole file


@dataclass(frozen=True)
class Bad:
    """A record that cannot be read."""

    at: str
    why: str


@dataclass(frozen=True)
class LeftOut:
    """A part of a file that is no record, and why: it is counted."""

    at: str
    why: str


Found = Record | Bad | LeftOut
Reader = Callable[[IO[bytes], "Wanted"], Iterator[Found]]


@dataclass(frozen=True)
class Wanted:
    """What a reader needs to know beside the file."""

    columns: tuple[str, ...] = ()  # those that are used; what is read of a column format
    limit: int = 1 << 28  # bytes that one record may take


@dataclass(frozen=True)
class Format:
    """A way of holding records in a file."""

    name: str
    suffixes: tuple[str, ...]
    read: Reader
    seeks: bool = False  # needs a file that can be sought in


def _text(file: IO[bytes], wanted: Wanted) -> Iterator[Found]:
    data = _whole(file, wanted.limit)
    yield Bad("", _too_long(wanted.limit)) if data is None else _decoded(data, "", 0)


def _jsonl(
    file: IO[bytes], wanted: Wanted, first: int = 1, offset: int = 0
) -> Iterator[Record | Bad]:
    """Lines, of which the first has that number and begins at that byte of its file."""
    for number, line in enumerate(_lines(file, wanted.limit), start=first):
        at = f":{number}"
        if line is None:
            yield Bad(at, _too_long(wanted.limit))
            continue
        if line.removeprefix(_BOM if number == 1 else b"").strip():
            text = _decoded(line, at, offset)
            yield text if isinstance(text, Bad) else _json_record(str(text.value), at)
        offset += len(line)


def _json(file: IO[bytes], wanted: Wanted) -> Iterator[Found]:
    """An array of objects, one object, JSON lines under another name, or any other JSON as text.

    One object is a record only if it has the columns that are wanted: source trees have others.
    What looks like JSON and is none is text only if it names none of them.
    """
    head, first = _up_to_text(file, wanted.limit)
    if (line := _object(head.removeprefix(_BOM))) is not None:
        rest, more = _up_to_text(file, wanted.limit)
        if rest.strip():
            number, second = first + more, rest.lstrip()
            if len(second) >= wanted.limit:
                raise DamagedFile(f":{number}: {_too_long(wanted.limit)}")
            if _object(second) is None:
                raise DamagedFile(f":{number}: not a JSON line, after a first line that is one")
            yield Record(line, f":{first}")
            body = io.BufferedReader(Joined(second, file), _BUFFER)
            yield from _jsonl(body, wanted, number, len(head) + len(rest) - len(second))
            return
        head += rest
    data = _whole(io.BufferedReader(Joined(head, file), _BUFFER), wanted.limit)
    if data is None:
        yield Bad("", f"{_too_long(wanted.limit)}; write it as JSON lines (.jsonl)")
        return
    text = _decoded(data, "", 0)
    if isinstance(text, Bad):
        yield text
        return
    whole = str(text.value)
    start = whole.lstrip()[:1]
    value = _parsed(whole, "") if start in ("[", "{") else text
    if isinstance(value, Bad) and (start == "[" or _named(whole, wanted.columns)):
        yield value
    elif isinstance(value, list) and (not value or any(isinstance(x, Mapping) for x in value)):
        for i, entry in enumerate(value):
            at = f"#{i}"
            is_record = isinstance(entry, Mapping)
            yield Record(entry, at) if is_record else Bad(at, "no object, beside others that are")
    elif isinstance(value, Mapping) and wanted.columns and _has(value, wanted.columns):
        yield Record(value, "")
    else:
        yield text


def _csv(file: IO[bytes], wanted: Wanted, delimiter: str = ",") -> Iterator[Found]:
    csv.field_size_limit(wanted.limit)
    reader = csv.DictReader(_table_lines(file, wanted.limit), delimiter=delimiter, strict=True)
    try:
        names = reader.fieldnames or ()
        if not any(names):
            raise DamagedFile(":1: expected the names of the columns, found an empty line")
        _require_once(wanted.columns, names, ":1")
        for record in reader:
            at = f":{reader.line_num}"
            if None in record or None in record.values():
                yield Bad(at, f"not {len(names)} columns as in the first line")
            else:
                yield Record(record, at)
    except csv.Error as e:
        raise DamagedFile(f":{reader.reader.line_num}: not CSV: {e}") from e


def _table_lines(file: IO[bytes], limit: int) -> Iterator[str]:
    """Lines for ``csv``, each of bounded length; a lone carriage return ends one too."""
    offset = 0
    for number, line in enumerate(_lines(file, limit), start=1):
        if line is None:
            raise DamagedFile(f":{number}: {_too_long(limit)}")
        text = _decoded(line, "", offset)
        if isinstance(text, Bad):
            raise DamagedFile(f":{number}: {text.why}")
        offset += len(line)
        yield from io.StringIO(str(text.value), newline="")


def _tsv(file: IO[bytes], wanted: Wanted) -> Iterator[Found]:
    return _csv(file, wanted, delimiter="\t")


def _parquet(file: IO[bytes], wanted: Wanted) -> Iterator[Found]:
    pyarrow = _pyarrow()
    from pyarrow import parquet  # noqa: PLC0415 (an optional package)

    try:
        # Read page by page, and fewer rows at a time where they are long.
        table = parquet.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False)
        columns = _top(wanted.columns, table.schema_arrow.names)
        rows = _rows_at_a_time(table.metadata, columns, wanted.limit)
        yield from _rows(table.iter_batches(rows, columns=columns), pyarrow, wanted.limit)
    except (pyarrow.ArrowException, OSError) as e:
        raise DamagedFile(f": not readable as Parquet: {e}") from e


def _arrow(file: IO[bytes], wanted: Wanted) -> Iterator[Found]:
    pyarrow = _pyarrow()
    try:
        try:
            table = pyarrow.ipc.open_file(file)
            names, batches = (
                table.schema.names,
                map(table.get_batch, range(table.num_record_batches)),
            )
        except pyarrow.ArrowInvalid:
            file.seek(0)
            table = pyarrow.ipc.open_stream(file)
            names, batches = table.schema.names, iter(table)
        columns = _top(wanted.columns, names)
        sound = (_validated(batch.select(columns), pyarrow) for batch in batches)
        yield from _rows(sound, pyarrow, wanted.limit)
    except (pyarrow.ArrowException, OSError) as e:
        raise DamagedFile(f": not readable as Arrow IPC: {e}") from e


def _validated(batch: Any, pyarrow: Any) -> Any:
    """A batch whose offsets are all within its buffers: Arrow itself would read beyond them."""
    for column in batch.columns:
        try:
            column.validate(full=True)
        except pyarrow.ArrowInvalid as e:
            # Offsets are checked before text; in a text alone that is one row's fault.
            if "UTF8" not in str(e) or column.type not in (
                pyarrow.string(),
                pyarrow.large_string(),
            ):
                raise
    return batch


def _archive(read: Reader) -> Reader:
    """A reader of archives, which says itself that one is damaged."""

    def reader(file: IO[bytes], wanted: Wanted) -> Iterator[Found]:
        try:
            yield from read(file, wanted)
        except (tarfile.TarError, EOFError) as e:
            raise DamagedFile(f": damaged or cut off: {e}") from e

    return reader


@_archive
def _tar(file: IO[bytes], wanted: Wanted) -> Iterator[Found]:
    """Every member as a file of its own, by its own name."""
    for name, member in _members(file):
        if isinstance(member, str):
            yield LeftOut(f"!{name}", member)
            continue
        kind = kind_of(name)
        if kind is None or kind.format.name in ("tar", "webdataset"):
            yield Bad(f"!{name}", f"a member of an unknown kind ({suffix_of(name)})")
            continue
        try:
            with kind.open(member, wanted.limit) as plain:
                seekable = plain
                if kind.format.seeks:
                    data = _whole(plain, wanted.limit)
                    if data is None:
                        yield Bad(f"!{name}", _too_long(wanted.limit))
                        continue
                    seekable = io.BytesIO(data)
                for found in kind.format.read(seekable, wanted):
                    yield dataclasses.replace(found, at=f"!{name}{found.at}")
        except DamagedFile as e:
            yield Bad(f"!{name}", str(e).removeprefix(": "))


@_archive
def _webdataset(file: IO[bytes], wanted: Wanted) -> Iterator[Found]:
    """Members with one name up to its first dot are one record: its columns are the endings."""
    key, record = "", dict[str, Any]()
    for name, member in _members(file):
        if isinstance(member, str):
            yield LeftOut(f"!{name}", member)
            continue
        path = PurePosixPath(name)
        stem, _, ending = path.name.partition(".")
        prefix = str(path.with_name(stem)) if stem else name
        if prefix != key and record:
            yield Record(record, f"!{key}")
            record = {}
        key = prefix
        data = _whole(member, wanted.limit)
        if data is None or ending in record:
            why = (
                _too_long(wanted.limit) if data is None else "a member of this name is there twice"
            )
            yield Bad(f"!{name}", why)
            continue
        if ending in {column.split(".")[0] for column in wanted.columns}:
            text = _decoded(data, f"!{name}", 0)
            parsed = text
            if isinstance(text, Record) and ending == "json":
                parsed = _json_record(str(text.value), text.at)
            if isinstance(parsed, Bad):
                yield parsed
                continue
            record[ending] = parsed.value
        else:
            record[ending] = None
    if record:
        yield Record(record, f"!{key}")


FORMATS = (
    Format("text", TEXT_SUFFIXES, _text),
    Format("jsonl", (".jsonl", ".ndjson"), _jsonl),
    Format("json", (".json",), _json),
    Format("csv", (".csv",), _csv),
    Format("tsv", (".tsv",), _tsv),
    Format("parquet", (".parquet", ".pq"), _parquet, seeks=True),
    Format("arrow", (".arrow", ".feather", ".ipc"), _arrow, seeks=True),
    Format("tar", (".tar",), _tar),
    Format("webdataset", (), _webdataset),
)
_SHORT = {".tgz": ".tar.gz", ".tbz2": ".tar.bz2", ".txz": ".tar.xz"}


@dataclass(frozen=True)
class Kind:
    """How one file is read: its format, and the compression around it."""

    format: Format
    compression: str = ""  # one of COMPRESSIONS

    @property
    def name(self) -> str:
        """Such as ``jsonl.gz``."""
        return self.format.name + self.compression

    def open(self, file: IO[bytes], limit: int) -> IO[bytes]:
        """The content of an open file, decompressed as it is read.

        Raises:
            DamagedFile: a compressed file that cannot be read within the limit, on any read.
        """
        if not self.compression:
            return file
        return decompressed(self.compression, file, limit)


def kind_of(name: str, format_name: str | None = None) -> Kind | None:
    """How a file of this name is read; None if no format of the table has such a name.

    ``format_name`` is the format's name where the file's own does not tell.
    """
    name = name.lower()
    for short, long in _SHORT.items():
        name = name.removesuffix(short) + long if name.endswith(short) else name
    compression = next((suffix for suffix in COMPRESSIONS if name.endswith(suffix)), "")
    plain = name.removesuffix(compression)
    for entry in FORMATS:
        if entry.name == format_name or (format_name is None and plain.endswith(entry.suffixes)):
            # A column format compresses inside; one around it would have to be unpacked first.
            return Kind(entry, compression) if not (compression and entry.seeks) else None
    return None


def suffix_of(name: str) -> str:
    """What is to be said of a name that no format has."""
    return "".join(PurePosixPath(name).suffixes[-2:]).lower() or "no suffix"


def _up_to_text(file: IO[bytes], limit: int) -> tuple[bytes, int]:
    """The next line that is not blank, blank ones before it, and how many lines that is."""
    read, count = bytearray(), 0
    while len(read) < limit and (line := file.readline(limit)):
        read += line
        count += 1
        if line.removeprefix(_BOM).strip():
            break
    return bytes(read), count


def _lines(file: IO[bytes], limit: int) -> Iterator[bytes | None]:
    """Lines with their line ends; None for one longer than the limit."""
    while line := file.readline(limit + 1):
        if len(line) <= limit:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(_BUFFER)
        yield None


def _whole(file: IO[bytes], limit: int) -> bytes | None:
    """All of a file, or None if that is more than the limit."""
    parts, size = [], 0
    while part := file.read(_BUFFER):
        parts.append(part)
        if (size := size + len(part)) > limit:
            return None
    return b"".join(parts)


def _too_long(limit: int) -> str:
    return f"longer than {limit / 1e6:,.0f} MB, the most that --memory leaves for one record"


def _decoded(data: bytes, at: str, offset: int) -> Record | Bad:
    if (nul := data.find(b"\0")) >= 0:
        why = f"no text: a NUL at byte {offset + nul}; UTF-16 is to be written as UTF-8"
        return Bad(at, why)
    try:
        return Record(data.removeprefix(_BOM).decode(), at)
    except UnicodeDecodeError as e:
        start = offset + e.start + (len(_BOM) if data.startswith(_BOM) else 0)
        return Bad(at, f"not UTF-8 at byte {start} ({e.object[e.start : e.start + 1].hex()})")


def _json_record(line: str, at: str) -> Record | Bad:
    parsed = _parsed(line, at)
    if isinstance(parsed, Bad):
        return parsed
    if isinstance(parsed, Mapping):
        return Record(parsed, at)
    return Bad(at, "expected a JSON object with a field of text")


def _parsed(text: str, at: str) -> Any:
    """The JSON value, or why it is none."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as e:
        return Bad(at, f"not a JSON line: {e}" if at else f"not JSON: {e}")


def _object(line: bytes) -> Mapping[str, Any] | None:
    """A line that is a JSON object; None if it is not."""
    if not line.lstrip().startswith(b"{"):
        return None
    text = _decoded(line, "", 0)
    value = _parsed(str(text.value), "") if isinstance(text, Record) else text
    return value if isinstance(value, Mapping) else None


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object, refusing a key that stands in it twice: which value is meant, nobody can say."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands there twice")
    return found


def _pyarrow() -> Any:
    try:
        import pyarrow  # noqa: PLC0415 (an optional package)
        import pyarrow.ipc  # noqa: PLC0415
    except ModuleNotFoundError:
        raise UsageError(f"Parquet and Arrow need pyarrow: {how_to_install('data')}") from None
    return pyarrow


def _top(columns: Sequence[str], there: Sequence[str]) -> list[str]:
    """The table's columns that are used.

    Raises:
        DamagedFile: one that it has not.
    """
    whole = [column if column in there else column.split(".")[0] for column in columns]
    wanted = list(dict.fromkeys(whole))
    for column in wanted:
        if column not in there:
            raise DamagedFile(f": no column {column!r}; it has {', '.join(there) or 'none'}")
    _require_once(wanted, there, "")
    return wanted


def _require_once(columns: Sequence[str], there: Sequence[str], at: str) -> None:
    """Refuse a table that has a wanted column twice: which one is meant, nobody can say."""
    for column in columns:
        if list(there).count(column) > 1:
            raise DamagedFile(f"{at}: the column {column!r} stands there twice")


def _named(text: str, columns: Sequence[str]) -> bool:
    """Whether a text that ought to be JSON has one of these fields."""
    return any(f'"{column.split(".")[0]}"' in text for column in columns)


def _has(value: Mapping[str, Any], columns: Sequence[str]) -> bool:
    """Whether an object has all these columns, as far as their first names tell."""
    return all(column in value or column.split(".")[0] in value for column in columns)


def _rows_at_a_time(metadata: Any, columns: Sequence[str], limit: int) -> int:
    """Rows of a Parquet file whose wanted columns are at most one record's limit together."""
    rows = _ROWS
    for g in range(metadata.num_row_groups):
        group = metadata.row_group(g)
        chunks = (group.column(c) for c in range(group.num_columns))
        size = sum(
            chunk.total_uncompressed_size
            for chunk in chunks
            if chunk.path_in_schema in columns or chunk.path_in_schema.split(".")[0] in columns
        )
        rows = min(rows, limit * group.num_rows // max(1, size))
    return max(1, rows)


def _rows(batches: Any, pyarrow: Any, limit: int) -> Iterator[Found]:
    number = 0
    for batch in batches:
        for row in range(batch.num_rows):
            part, at = batch.slice(row, 1), f"#{number}"
            number += 1
            if part.get_total_buffer_size() > limit and part.nbytes > limit:
                yield Bad(at, _too_long(limit))
                continue
            try:
                record = Record(part.to_pylist()[0], at)
            except (ValueError, OverflowError, pyarrow.ArrowException) as e:
                why = "not UTF-8" if isinstance(e, UnicodeDecodeError) else "not readable"
                yield Bad(at, f"{why}: {e}")
                continue
            yield record


class _Member(tarfile.TarInfo):
    """A member whose header is damaged ends an archive in an error, not as if it were the last."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "_Member":
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            raise tarfile.ReadError("no end of the archive after its last member") from None
        except (tarfile.HeaderError, ValueError) as e:  # ValueError: of numbers in a pax header
            raise tarfile.ReadError(f"{e} at byte {tarfile_.offset}") from e


def _members(file: IO[bytes]) -> Iterator[tuple[str, IO[bytes] | str]]:
    """Names and contents of an archive's files, in its order; or why one is left out."""
    with tarfile.open(fileobj=file, mode="r|", tarinfo=_Member) as archive:
        for member in archive:
            if member.isdir():
                continue
            parts = PurePosixPath(member.name).parts
            content = archive.extractfile(member) if member.isfile() else None
            if any(part.startswith(".") and part != ".." for part in parts):
                yield member.name, "hidden"
            elif content is not None:
                yield member.name, content if member.size else "empty"
            else:
                yield member.name, "link" if member.islnk() or member.issym() else "no regular file"
        stream: Any = archive.fileobj
        while rest := stream.read(_BUFFER):
            if rest.strip(b"\0"):
                raise tarfile.ReadError("more follows after its end: another archive, or damage")
