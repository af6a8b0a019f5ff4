"""The table of formats: by the end of a file's name, how its records are read.

A reader takes an open binary file and yields :class:`Record` and, where one cannot be read,
:class:`Bad`; it never holds more than one record, block or row group. ``limit`` is the most bytes
that a single record may take.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any

from s7jax.errors import InputError, UsageError
from s7jax.extras import how_to_install

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

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


class DamagedFile(InputError):
    """From here on nothing of the file can be read."""


Reader = Callable[[IO[bytes], "Wanted"], Iterator[Record | Bad]]


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


def _text(file: IO[bytes], wanted: Wanted) -> Iterator[Record | Bad]:
    data = _whole(file, wanted.limit)
    yield Bad("", _too_long(wanted.limit)) if data is None else _decoded(data, "", 0)


def _jsonl(file: IO[bytes], wanted: Wanted) -> Iterator[Record | Bad]:
    offset = 0
    for number, line in enumerate(_lines(file, wanted.limit), start=1):
        at = f":{number}"
        if line is None:
            yield Bad(at, _too_long(wanted.limit))
            continue
        if line.removeprefix(_BOM if number == 1 else b"").strip():
            text = _decoded(line, at, offset)
            yield text if isinstance(text, Bad) else _json_record(str(text.value), at)
        offset += len(line)


def _json(file: IO[bytes], wanted: Wanted) -> Iterator[Record | Bad]:
    """An array of objects, one object, JSON lines under another name, or any other JSON as text.

    One object is a record only if it has the columns that are wanted: source trees have others.
    """
    head = file.readline(wanted.limit).removeprefix(_BOM)
    if (line := _object(head)) is not None and (rest := file.readline(wanted.limit)):
        if rest.strip() and _object(rest) is None:
            yield Bad(":2", "not a JSON line, after a first line that is one")
            return
        yield Record(line, ":1")
        body = io.BufferedReader(_Joined(rest, file), _BUFFER)
        for record in _jsonl(body, wanted):
            at = f":{int(record.at[1:]) + 1}"
            yield Record(record.value, at) if isinstance(record, Record) else Bad(at, record.why)
        return
    data = _whole(io.BufferedReader(_Joined(head, file), _BUFFER), wanted.limit)
    if data is None:
        yield Bad("", f"{_too_long(wanted.limit)}; write it as JSON lines (.jsonl)")
        return
    text = _decoded(data, "", 0)
    if isinstance(text, Bad):
        yield text
        return
    start = str(text.value).lstrip()[:1]
    value = _parsed(str(text.value), "") if start in ("[", "{") else text
    if start == "[" and isinstance(value, Bad):
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


def _csv(file: IO[bytes], wanted: Wanted, delimiter: str = ",") -> Iterator[Record | Bad]:
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
        raise DamagedFile(f":{reader.line_num}: not CSV: {e}") from e


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


def _tsv(file: IO[bytes], wanted: Wanted) -> Iterator[Record | Bad]:
    return _csv(file, wanted, delimiter="\t")


def _parquet(file: IO[bytes], wanted: Wanted) -> Iterator[Record | Bad]:
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


def _arrow(file: IO[bytes], wanted: Wanted) -> Iterator[Record | Bad]:
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
        yield from _rows((batch.select(columns) for batch in batches), pyarrow, wanted.limit)
    except (pyarrow.ArrowException, OSError) as e:
        raise DamagedFile(f": not readable as Arrow IPC: {e}") from e


def _archive(read: Reader) -> Reader:
    """A reader of archives, which says itself that one is damaged."""

    def reader(file: IO[bytes], wanted: Wanted) -> Iterator[Record | Bad]:
        try:
            yield from read(file, wanted)
        except (tarfile.TarError, EOFError) as e:
            raise DamagedFile(f": damaged or cut off: {e}") from e

    return reader


@_archive
def _tar(file: IO[bytes], wanted: Wanted) -> Iterator[Record | Bad]:
    """Every member as a file of its own, by its own name."""
    for name, member in _members(file):
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
                for record in kind.format.read(seekable, wanted):
                    at = f"!{name}{record.at}"
                    if isinstance(record, Record):
                        yield Record(record.value, at)
                    else:
                        yield Bad(at, record.why)
        except DamagedFile as e:
            yield Bad(f"!{name}", str(e).removeprefix(": "))


@_archive
def _webdataset(file: IO[bytes], wanted: Wanted) -> Iterator[Record | Bad]:
    """Members with one name up to its first dot are one record: its columns are the endings."""
    key, record = "", dict[str, Any]()
    for name, member in _members(file):
        path = PurePosixPath(name)
        stem, _, ending = path.name.partition(".")
        prefix = str(path.with_name(stem)) if stem else name
        if prefix != key and record:
            yield Record(record, f"!{key}")
            record = {}
        key = prefix
        data = _whole(member, wanted.limit)
        if data is None:
            yield Bad(f"!{name}", _too_long(wanted.limit))
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
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
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
        return io.BufferedReader(_Decompressed(self.compression, file, limit), _BUFFER)


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


class _Decompressed(io.RawIOBase):
    """Decompressed bytes; every error of every library is a damaged file with its reason."""

    def __init__(self, compression: str, file: IO[bytes], limit: int) -> None:
        self._stream: Any
        if compression == ".gz":
            self._stream = gzip.GzipFile(fileobj=file)
        elif compression == ".bz2":
            self._stream = bz2.BZ2File(file)
        elif compression == ".xz":
            self._stream = lzma.LZMAFile(file)  # noqa: SIM115 (closed with the file around it)
        else:
            self._stream = _zstd(file, limit)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data: bytes = self._stream.read(len(buffer))
        except (zstd.ZstdError, zlib.error, lzma.LZMAError, OSError, EOFError) as e:
            raise DamagedFile(f": damaged or cut off: {e}") from e
        buffer[: len(data)] = data
        return len(data)


def _zstd(file: IO[bytes], limit: int) -> Any:
    """A zstd stream of any window that fits the limit."""
    most = min(31, max(27, limit.bit_length() + 1))  # half of the memory, limit being an eighth
    head = io.BufferedReader(_Joined(b"", file), _BUFFER)
    start = head.peek(18)[:18]
    if (size := _window(start)) > 1 << most:
        raise DamagedFile(
            f": needs a zstd window of {size / 2**20:,.0f} MiB, more than the {2 ** (most - 20)} "
            "MiB that --memory leaves; give more memory or compress it again without --long"
        )
    options = {int(zstd.DecompressionParameter.window_log_max): most}
    return zstd.ZstdFile(head, options=options)


def _window(head: bytes) -> int:
    """Bytes of the window that a zstd frame asks for (RFC 8878, 3.1.1.1.2); 0 if it has none."""
    if len(head) < 6 or head[:4] != b"\x28\xb5\x2f\xfd" or head[4] & 0x20:
        return 0
    base = 1 << (10 + (head[5] >> 3))
    return base + (base >> 3) * (head[5] & 7)


class _Joined(io.RawIOBase):
    """Bytes that were read already, and the file they came from."""

    def __init__(self, head: bytes, file: IO[bytes]) -> None:
        self._head, self._file = io.BytesIO(head), file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._head.read(len(buffer)) or self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


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


def _rows(batches: Any, pyarrow: Any, limit: int) -> Iterator[Record | Bad]:
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


def _members(file: IO[bytes]) -> Iterator[tuple[str, IO[bytes]]]:
    """Names and contents of the regular files of an archive, in its order."""
    with tarfile.open(fileobj=file, mode="r|") as archive:
        for member in archive:
            if member.isfile() and member.size:
                content = archive.extractfile(member)
                assert content is not None
                yield member.name, content
