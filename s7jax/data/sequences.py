"""Token documents to fixed rows: spooled to disk, put in a seeded order, written as shards."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from numpy.typing import NDArray

from s7jax.digests import file_digest

SHARD_ROWS = 1 << 16
_GATHER = 1 << 20  # tokens held while packing


class Spool:
    """Documents of tokens on disk, in the order they came; 16 bytes each in memory."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self._path = path
        self._dtype = dtype
        self._file = path.open("wb")
        self._lengths: list[int] = []
        self._ranks: list[int] = []
        self._bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._path.unlink()

    def add(self, tokens: NDArray[Any], rank: int, size: int) -> None:
        """Append a document: its tokens, its place in the shuffled order, its bytes of text."""
        self._file.write(tokens.astype(self._dtype).tobytes())
        self._lengths.append(len(tokens))
        self._ranks.append(rank)
        self._bytes += size

    @property
    def tokens(self) -> int:
        """Tokens so far."""
        return sum(self._lengths)

    @property
    def counts(self) -> dict[str, int]:
        """Documents, bytes of text and tokens so far."""
        return {"documents": len(self._lengths), "bytes": self._bytes, "tokens": self.tokens}

    def rows(self, width: int) -> Iterator[NDArray[Any]]:
        """Blocks [n, width] of the documents joined by rank; an incomplete last row is dropped."""
        self._file.flush()
        flat = np.memmap(self._path, self._dtype, "r")
        ends = np.cumsum(self._lengths)
        held: list[NDArray[Any]] = []
        size = 0
        for i in np.argsort(np.array(self._ranks, np.uint64), kind="stable"):
            held.append(flat[ends[i] - self._lengths[i] : ends[i]])
            size += self._lengths[i]
            if size >= _GATHER:
                full, rest = _cut(held, width)
                yield full
                held, size = [rest], len(rest)
        if held:
            yield _cut(held, width)[0]


def write_shards(spool: Spool, folder: Path, split: str, width: int) -> Mapping[str, Any]:
    """Write a split's rows as ArrayRecord files; the manifest entry of rows and shards.

    The files are the same bytes for the same rows.
    """
    total = spool.tokens // width
    count = -(-total // SHARD_ROWS)
    names = [f"{split}-{i:05d}-of-{count:05d}.arrayrecord" for i in range(count)]
    rows = (row for block in spool.rows(width) for row in block)
    shards = []
    for i, name in enumerate(names):
        path = folder / name
        writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        for _ in range(min(SHARD_ROWS, total - i * SHARD_ROWS)):
            writer.write(next(rows).tobytes())
        writer.close()
        _sync(path)
        shards.append({"name": name, "bytes": path.stat().st_size, "sha256": file_digest(path)})
    return {"rows": total, "shards": shards}


def _cut(parts: Sequence[NDArray[Any]], width: int) -> tuple[NDArray[Any], NDArray[Any]]:
    flat = np.concatenate(parts)
    full = len(flat) // width * width
    return flat[:full].reshape(-1, width), flat[full:]


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
