"""Cleaning: documents that hold text of evaluation sets, and documents that are nearly the same."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from s7jax.errors import UsageError
from s7jax.extras import how_to_install

NGRAM = 13  # words in a row that say: this is from there (GPT-3, arXiv 2005.14165, appendix C)

_WORD = re.compile(r"\w+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_PERMUTATIONS = 128
_SHINGLE = 5  # words


class NgramFilter:
    """Which texts share ``n`` words in a row with evaluation sets, whatever stands between them."""

    def __init__(self, hashes: NDArray[np.uint64], n: int) -> None:
        self._hashes, self._n = hashes, n

    @classmethod
    def of(cls, texts: Iterable[str], n: int) -> Self:
        """Of all n-grams of some texts; one of fewer words has none."""
        found = [ngrams(text, n) for text in texts]
        return cls(np.unique(np.concatenate(found)) if found else np.zeros(0, np.uint64), n)

    @classmethod
    def load(cls, path: Path, n: int) -> Self:
        """From a file of :meth:`save`."""
        return cls(np.load(path, mmap_mode="r"), n)

    def save(self, path: Path) -> None:
        """As an array of hashes in order."""
        np.save(path, self._hashes)

    def __len__(self) -> int:
        return len(self._hashes)

    def matches(self, text: str) -> bool:
        """Whether the text holds one of the n-grams."""
        wanted = ngrams(text, self._n)
        places = np.searchsorted(self._hashes, wanted)
        places[places == len(self._hashes)] = 0
        return bool(len(self._hashes)) and bool(np.any(self._hashes[places] == wanted))


def ngrams(text: str, n: int) -> NDArray[np.uint64]:
    """Hashes of the text's runs of ``n`` words, lower-cased, without what stands between them."""
    words = np.array([_word(word) for word in _WORD.findall(text.lower())], np.uint64)
    count = len(words) - n + 1
    if count < 1:
        return np.zeros(0, np.uint64)
    total = np.zeros(count, np.uint64)
    for i in range(n):
        total = total * _FACTOR + words[i : i + count]
    return total


@lru_cache(1 << 18)
def _word(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")


class NearSignatures:
    """MinHash signatures of a bucket's documents."""

    def __init__(self) -> None:
        self._keys: list[bytes] = []
        self._orders: list[int] = []
        self._sources: list[int] = []
        self._signatures: list[NDArray[np.uint32]] = []

    def add(self, key: bytes, order: int, source: int, text: str) -> None:
        """One more document; ``order`` decides which of several stays, the lowest."""
        self._keys.append(key)
        self._orders.append(order)
        self._sources.append(source)
        self._signatures.append(_signature(text))

    def save(self, path: Path) -> None:
        """Keys uint8[n, 32], orders and sources int64[n], signatures uint32[n, 128]."""
        count = len(self._keys)
        np.savez(
            path,
            keys=np.frombuffer(b"".join(self._keys), np.uint8).reshape(count, 32),
            orders=np.array(self._orders, np.int64),
            sources=np.array(self._sources, np.int64),
            signatures=np.array(self._signatures, np.uint32).reshape(count, _PERMUTATIONS),
        )


def near_duplicates(paths: Sequence[Path], threshold: float) -> list[tuple[bytes, int]]:
    """Documents that are nearly the same as an earlier one: their keys and sources.

    Documents that agree in one of the bands of locality-sensitive hashing are compared by their
    whole signatures; those at least ``threshold`` alike are joined, and of each such set the
    first stays.
    """
    loaded = [np.load(path) for path in paths]
    orders = np.concatenate([part["orders"] for part in loaded])
    by_order = np.argsort(orders)
    joined = np.arange(len(orders))
    signatures = np.concatenate([part["signatures"] for part in loaded])
    bands, rows = _bands(threshold)
    for band in range(bands):
        columns = np.ascontiguousarray(signatures[:, band * rows : (band + 1) * rows])
        first: dict[bytes, int] = {}
        for i in by_order:
            other = first.setdefault(columns[i].tobytes(), int(i))
            if other != i and np.mean(signatures[i] == signatures[other]) >= threshold:
                _join(joined, orders, int(i), other)
    keys = np.concatenate([part["keys"] for part in loaded])
    sources = np.concatenate([part["sources"] for part in loaded])
    gone = [i for i in range(len(orders)) if _root(joined, i) != i]
    return [(keys[i].tobytes(), int(sources[i])) for i in gone]


def _signature(text: str) -> NDArray[np.uint32]:
    words = _WORD.findall(text.lower())
    shingles = {" ".join(words[i : i + _SHINGLE]) for i in range(max(1, len(words) - _SHINGLE + 1))}
    sketch = _datasketch().MinHash(num_perm=_PERMUTATIONS, seed=1)
    sketch.update_batch([shingle.encode() for shingle in shingles])
    values: NDArray[np.uint32] = sketch.hashvalues.astype(np.uint32)
    return values


def _bands(threshold: float) -> tuple[int, int]:
    """Bands and rows for which pairs of the threshold's likeness are found nearly always."""
    lsh = _datasketch().MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS, weights=(0.1, 0.9))
    return int(lsh.b), int(lsh.r)


def _datasketch() -> Any:
    try:
        import datasketch  # noqa: PLC0415 (an optional package)
    except ModuleNotFoundError:
        hint = how_to_install("data")
        raise UsageError(f"--near-duplicates needs datasketch: {hint}") from None
    return datasketch


def _root(joined: NDArray[Any], i: int) -> int:
    while joined[i] != i:
        joined[i] = joined[joined[i]]
        i = int(joined[i])
    return i


def _join(joined: NDArray[Any], orders: NDArray[Any], a: int, b: int) -> None:
    """Make two sets one, whose root is the earliest document."""
    a, b = _root(joined, a), _root(joined, b)
    if orders[b] < orders[a]:
        a, b = b, a
    joined[b] = a
