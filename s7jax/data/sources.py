"""Text files in, documents out, always in the same order.

A source is a file, a folder or a glob. JSON lines (plain, gzip, zstd) hold one document a line
in the field ``text``; every other known file is one document.
"""

import difflib
import glob
import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import zstandard

from s7jax.errors import InputError, UsageError

JSONL_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
TEXT_SUFFIXES = tuple(
    ".txt .md .rst .tex .org .py .pyi .rs .c .h .cc .cpp .hpp .java .js .ts .go .rb .sh .pl .php"
    " .cs .kt .swift .scala .lua .r .jl .hs .ml .lean .v .sql .html .css .toml .yaml .yml .ini"
    " .cfg .json .cmake .proto".split()
)
SPELLINGS = {"reasoning": "reason"}  # the specification's mixture table writes it out (§3)

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Document:
    """One text and where it came from."""

    text: str
    origin: str  # path, with the line for JSON lines


def parse_data_flags(flags: Iterable[str], domains: Sequence[str]) -> dict[str, list[Path]]:
    """``["code=PATH", …]`` as paths by domain, in domain order; a domain may come several times.

    Raises:
        UsageError: a flag without ``=`` or path, or an unknown domain.
    """
    paths: dict[str, list[Path]] = {domain: [] for domain in domains}
    known = [*domains, *(s for s, name in SPELLINGS.items() if name in domains)]
    for flag in flags:
        name, _, path = flag.partition("=")
        if not path:
            raise UsageError(f"--data {flag!r}: expected DOMAIN=PATH, e.g. code=src/")
        if name not in known:
            near = difflib.get_close_matches(name.lower(), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
            raise UsageError(f"--data {flag!r}: unknown domain {name!r}; {hint}")
        paths[SPELLINGS.get(name, name)].append(Path(path))
    return {domain: found for domain, found in paths.items() if found}


def require_all(paths: Mapping[str, Sequence[Path | str]], domains: Sequence[str]) -> None:
    """Refuse sources of some domains alone: built-in text is not mixed in unasked.

    Raises:
        UsageError: naming the domains without any.
    """
    if missing := [domain for domain in domains if not paths.get(domain)]:
        raise UsageError(
            f"--data has no source for {', '.join(missing)}; add {missing[0]}=PATH "
            "(or leave --data out for the built-in corpus)"
        )


def files(domain: str, source: Path | str) -> list[Path]:
    """The files of one source, sorted bytewise by path.

    A folder gives every regular file of a known suffix that is not empty and not hidden.

    Raises:
        InputError: nothing there, or a file named explicitly whose suffix is not known.
    """
    source = Path(source)
    if source.is_dir():
        found = list(_tree(source))
        if not found:
            raise InputError(f"{domain}: {source} holds no file of a known suffix with any content")
    elif source.exists():
        found = [source]
    elif glob.has_magic(str(source)):
        found = [p for p in map(Path, glob.glob(str(source), recursive=True)) if p.is_file()]  # noqa: PTH207 (absolute too)
        if not found:
            raise InputError(f"{domain}: {source} matches no file")
    else:
        raise InputError(f"{domain}: {source} does not exist")
    for path in found:
        if not path.name.lower().endswith(JSONL_SUFFIXES + TEXT_SUFFIXES):
            raise InputError(
                f"{domain}: {path} has an unknown suffix; expected {', '.join(JSONL_SUFFIXES)} "
                "or plain text such as .txt, .md, .py"
            )
    return sorted(found, key=os.fsencode)


def read(domain: str, source: Path | str) -> Iterator[Document]:
    """The documents of one source, in file and line order. Empty texts are left out.

    Raises:
        InputError: as :func:`files` and :func:`read_file`.
    """
    for path in files(domain, source):
        yield from read_file(path)


def read_file(path: Path) -> Iterator[Document]:
    """The documents of one file.

    Raises:
        InputError: empty, damaged or non-UTF-8 file, or a line that is no JSON object with a
            string ``text``; names file, line and byte offset.
    """
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty; remove it from the sources")
    if path.name.lower().endswith(JSONL_SUFFIXES):
        yield from _read_jsonl(path)
    else:
        yield Document(_utf8(path.read_bytes(), str(path), 0), str(path))


def _tree(folder: Path) -> Iterator[Path]:
    for parent, names, leaves in os.walk(folder):
        names[:] = [name for name in names if not name.startswith(".")]
        for leaf in leaves:
            path = Path(parent, leaf)
            known = leaf.lower().endswith(JSONL_SUFFIXES + TEXT_SUFFIXES)
            if known and not leaf.startswith(".") and path.is_file() and path.stat().st_size:
                yield path


def _read_jsonl(path: Path) -> Iterator[Document]:
    offset = 0
    for number, line in enumerate(_lines(path), start=1):
        origin = f"{path}:{number}"
        if line.strip():
            text = _text(_utf8(line, origin, offset), origin)
            if text:
                yield Document(text, origin)
        offset += len(line)


def _text(line: str, origin: str) -> str:
    """The field ``text`` of one JSON line."""
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise InputError(f"{origin}: not a JSON line: {e}") from e
    if not isinstance(record, Mapping) or "text" not in record:
        raise InputError(f"{origin}: expected a JSON object with a field 'text'")
    text = record["text"]
    if not isinstance(text, str):
        raise InputError(f"{origin}: field 'text' is {type(text).__name__}, expected a string")
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise InputError(f"{origin}: field 'text' holds half a surrogate pair: {e.reason}") from e
    return text


def _utf8(data: bytes, origin: str, offset: int) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as e:
        raise InputError(
            f"{origin}: not UTF-8 at byte {offset + e.start} ({data[e.start : e.start + 1].hex()})"
        ) from e


def _lines(path: Path) -> Iterator[bytes]:
    """Lines with their line ends, of the decompressed content."""
    with path.open("rb") as file:
        rest = b""
        try:
            for chunk in _chunks(path, file):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from (line + b"\n" for line in lines)
        except (zstandard.ZstdError, zlib.error, gzip.BadGzipFile, EOFError) as e:
            raise InputError(f"{path}: damaged or cut off: {e}") from e
        if rest:
            yield rest


def _chunks(path: Path, file: IO[bytes]) -> Iterator[bytes]:
    suffix = path.suffix.lower()
    if suffix == ".zst":
        return _unzstd(file)
    stream = gzip.GzipFile(fileobj=file) if suffix == ".gz" else file
    return iter(lambda: stream.read(_CHUNK), b"")


def _unzstd(file: IO[bytes]) -> Iterator[bytes]:
    """Decompressed chunks; the library's own stream ends silently where a cut-off file ends."""
    decoder = None
    while data := file.read(_CHUNK):
        while data:
            decoder = decoder or zstandard.ZstdDecompressor().decompressobj()
            yield decoder.decompress(data)
            data, decoder = (decoder.unused_data, None) if decoder.eof else (b"", decoder)
    if decoder:
        raise EOFError("the last zstd frame is incomplete")
