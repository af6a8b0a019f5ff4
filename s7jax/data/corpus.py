"""The documents of each domain, ready to be counted, split and read again.

A corpus can be larger than memory: it is always an iterator that can be started again.
"""

import hashlib
import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s7jax.config import Domain
from s7jax.data import builtin, sources
from s7jax.data.sources import Document
from s7jax.digests import file_digest, json_digest
from s7jax.errors import UsageError

_CLIP = 1 << 16  # characters a single document may add to the tokenizer's sample


@dataclass(frozen=True)
class Corpus:
    """One domain's documents."""

    domain: str
    read: Callable[[], Iterator[Document]]
    describe: tuple[Mapping[str, Any], ...]  # name, license, files, bytes, sha256 of each source
    common: bool = True  # Phase 1 trains on it, and the vocabulary is learned from it


def corpora(domains: Sequence[Domain], paths: Mapping[str, Sequence[Path | str]]) -> list[Corpus]:
    """The domains' corpora in expert order; a domain without paths has its built-in one.

    Raises:
        UsageError: a domain that has neither.
        InputError: a source that is not there (its content is checked when read).
    """
    found = []
    for domain in domains:
        common = domain.share > 0
        if paths.get(domain.name):
            found.append(_from_paths(domain.name, paths[domain.name], common))
        elif domain.builtin in builtin.LICENSES:
            found.append(_builtin(domain.name, domain.builtin, common))
        else:
            raise UsageError(
                f"domain {domain.name!r} has no built-in corpus: give --data {domain.name}=PATH"
            )
    return found


def text_key(text: str) -> bytes:
    """What identifies a document's text: the same text is always on the same side."""
    return hashlib.sha256(text.encode()).digest()


def is_held_out(key: bytes, fraction: float) -> bool:
    """Whether the text with this key is kept from training."""
    return int.from_bytes(key[:8], "big") < int(fraction * 2**64)


def distinct(documents: Iterator[Document]) -> Iterator[tuple[bytes, Document]]:
    """Documents with their keys, each text once. Holds 16 bytes per document."""
    seen: set[bytes] = set()
    for document in documents:
        key = text_key(document.text)
        if key[:16] not in seen:
            seen.add(key[:16])
            yield key, document


@dataclass(frozen=True)
class Sample:
    """Training texts to learn a vocabulary from, and the bytes of text they were chosen among."""

    texts: list[str]
    bytes: int


def sample(
    corpus: Corpus, held_out: float, characters: int, advance: Callable[[int], None]
) -> Sample:
    """A fixed random sample of the training texts: those with the smallest keys.

    It depends on the set of texts alone, not on their order, and holds no more than it gives.
    """
    kept: list[tuple[int, str]] = []  # a heap: the largest key first
    size = total = 0
    for key, document in distinct(corpus.read()):
        length = len(document.text.encode())
        total += length
        advance(length)
        if is_held_out(key, held_out):
            continue
        # The first 8 bytes decide the split, so other ones decide the sample.
        text = document.text[:_CLIP]
        heapq.heappush(kept, (-int.from_bytes(key[8:24], "big"), text))
        size += len(text)
        while size - len(kept[0][1]) >= characters:
            size -= len(heapq.heappop(kept)[1])
    return Sample([text for _, text in sorted(kept, reverse=True)], total)


def _builtin(domain: str, corpus: str, common: bool) -> Corpus:
    documents = builtin.documents(corpus)
    keys = b"".join(text_key(document.text) for document in documents)
    description = {
        "name": f"built-in {corpus}",
        "license": builtin.LICENSES[corpus],
        "files": 0,
        "bytes": sum(len(document.text.encode()) for document in documents),
        "sha256": hashlib.sha256(keys).hexdigest(),
    }
    return Corpus(domain, lambda: iter(documents), (description,), common)


def _from_paths(domain: str, paths: Sequence[Path | str], common: bool) -> Corpus:
    listed = [(Path(path), sources.files(domain, path)) for path in paths]

    def read() -> Iterator[Document]:
        for _, files in listed:
            for file in files:
                yield from sources.read_file(file)

    described = tuple(_description(path, files) for path, files in listed)
    return Corpus(domain, read, described, common)


def _description(path: Path, files: Sequence[Path]) -> dict[str, Any]:
    """A source by name and content, not by where it lies: a copy gives the same data."""
    return {
        "name": path.resolve().name,
        "license": "unknown",
        "files": len(files),
        "bytes": sum(file.stat().st_size for file in files),
        "sha256": json_digest([file_digest(file) for file in files]),
    }
