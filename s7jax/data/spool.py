"""Documents on disk between reading and tokenising, sorted into buckets by their rank.

Equal texts have equal ranks, so a bucket holds all copies of whatever it holds: it can be
de-duplicated, ordered and tokenised by itself. One file per reading task, written whole or not at
all; an index says where each bucket's sections are.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgpack
import numpy as np

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_FLUSH = 1 << 26  # bytes of text held before they are written, at most
_LEVEL = 1  # of zstd: text is read once, soon


@dataclass(frozen=True)
class Entry:
    """A document in a bucket."""

    source: int
    number: int  # among its task's documents
    copy: int  # 0, or which repetition of a source of more weight
    key: bytes
    rank: int
    text: str


def bucket_of(rank: int, buckets: int) -> int:
    """The bucket of a rank: consecutive ranks, so that buckets in order are in rank order."""
    return rank * buckets >> 64


class Writer:
    """Writes the documents of one task."""

    def __init__(self, path: Path, buckets: int, most: int = _FLUSH) -> None:
        self._path, self._buckets, self._most = path, buckets, min(most, _FLUSH)
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}")
        self._file = self._temporary.open("wb")
        self._held: list[list[bytes]] = [[] for _ in range(buckets)]
        self._size = 0
        self._offsets = [0]

    def add(self, entry: Entry) -> None:
        """One more document."""
        packed = (entry.source, entry.number, entry.copy, entry.key, entry.rank, entry.text)
        data: bytes = msgpack.packb(packed)
        self._held[bucket_of(entry.rank, self._buckets)].append(data)
        self._size += len(data)
        if self._size >= self._most:
            self._flush()

    def close(self) -> None:
        """Make the file visible, with its index."""
        self._flush()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        index = np.array(self._offsets, np.int64)
        with self._path.with_suffix(".index").open("wb") as file:
            np.save(file, index)
        self._temporary.replace(self._path)

    def discard(self) -> None:
        """Leave nothing."""
        with contextlib.suppress(OSError):  # of a full disk, once more
            self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _flush(self) -> None:
        for records in self._held:
            if records:
                self._file.write(zstd.compress(b"".join(records), _LEVEL))
                records.clear()
            self._offsets.append(self._file.tell())
        self._size = 0


def read_bucket(path: Path, buckets: int, bucket: int) -> Iterator[Entry]:
    """The documents of one bucket of one task, in the order they were added."""
    offsets = np.load(path.with_suffix(".index"))
    with path.open("rb") as file:
        for section in range(bucket, len(offsets) - 1, buckets):
            start, end = int(offsets[section]), int(offsets[section + 1])
            if start == end:
                continue
            file.seek(start)
            unpacker = msgpack.Unpacker(max_buffer_size=0)
            unpacker.feed(zstd.decompress(file.read(end - start)))
            for fields in unpacker:
                yield Entry(*fields)
