"""The stages of preparing data, as tasks: read → clean → sample → tokenise → pack.

A task is a pure function of its argument and of the files that earlier stages left in the work
folder. What it makes appears under its name whole or not at all, so a task may be stopped and
computed again, by any process that sees the folder.
"""

import hashlib
import heapq
import json
import os
import secrets
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from numpy.typing import NDArray

from s7jax.data import builtin, documents, spool
from s7jax.data.clean import NearSignatures, NgramFilter
from s7jax.data.documents import Counts, Document
from s7jax.data.files import File
from s7jax.data.prepared import SPLITS, token_dtype
from s7jax.data.sources import Source
from s7jax.data.tokenizer import Tokenizer
from s7jax.digests import file_digest
from s7jax.storage import write_bytes, write_json

NEAR = "near"  # in the work folder: keys of near-duplicates
NGRAMS = "ngrams.npy"

_CLIP = 1 << 16  # characters a single document may add to the tokenizer's sample
_BATCH = 1 << 19  # characters tokenised at a time


@dataclass(frozen=True)
class Shared:
    """What every task of a job knows."""

    work: Path
    domain_of: tuple[int, ...]  # the domain of each source
    tasks: int  # of reading
    buckets: int
    seed: int
    held_out: float
    vocab: int
    limit: int  # bytes that one record may take
    skip_bad: bool
    sample: Mapping[int, int]  # domains that the vocabulary is learned from → characters
    known: tuple[Path, ...] = ()  # keys of documents that finished domains hold
    ngrams: int = 0  # length of what is looked for of evaluation sets; 0: nothing
    near: float = 0.0  # similarity from which documents count as one; 0: only equal ones do

    def texts(self, task: int) -> Path:
        """What a reading task leaves."""
        return self.work / "read" / f"{task:06}.texts"

    def of(self, stage: str, bucket: int, ending: str) -> Path:
        """What a stage leaves of a bucket."""
        return self.work / stage / f"{bucket:05}.{ending}"


@dataclass(frozen=True)
class Read:
    """Read some files of one source, or a built-in corpus."""

    shared: Shared
    number: int
    index: int  # of the source
    source: Source
    files: tuple[File, ...]
    builtin: str | None


@dataclass(frozen=True)
class OfBucket:
    """Work on one bucket."""

    shared: Shared
    bucket: int


@dataclass(frozen=True)
class Sample(OfBucket):
    """Collect the texts of a domain's sample: those with keys up to its last one."""

    last: Mapping[int, bytes]


@dataclass(frozen=True)
class Tokenise(OfBucket):
    """Tokenise a bucket."""

    tokenizer: Path


@dataclass(frozen=True)
class Pack:
    """Write one shard: its rows are consecutive tokens of the buckets in order."""

    path: Path
    work: Path  # where it is written, until it is whole
    dtype: str
    width: int
    rows: int
    parts: tuple[tuple[Path, int, int], ...]  # file, first byte, bytes


def read(task: Read) -> dict[str, Any]:
    """Spool the documents of a task; counts of what became of its records."""
    record = task.shared.texts(task.number).with_suffix(".json")
    return _once(record, lambda: _read(task))


def _read(task: Read) -> dict[str, Any]:
    shared, source = task.shared, task.source
    counts, digests, not_drawn, size = Counts(), [], 0, 0
    writer = spool.Writer(shared.texts(task.number), shared.buckets, shared.limit)
    try:
        number = 0
        groups: list[tuple[File, ...]] = [(file,) for file in task.files] or [()]
        for group in groups:
            sha = hashlib.sha256()
            for document in _documents(task, group, counts):
                key = documents.text_key(document.text)
                sha.update(key)
                number += 1
                if not documents.is_drawn(key, source.weight):
                    not_drawn += 1
                    continue
                size += len(document.text.encode())
                held = documents.is_held_out(key, shared.held_out)
                for copy in range(1 if held else max(1, int(source.weight))):
                    place = documents.rank(shared.seed, key, copy)
                    writer.add(spool.Entry(task.index, number, copy, key, place, document.text))
            digests.append(sha.hexdigest())
            if counts.documents == source.max_documents:
                break
        writer.close()
    except BaseException:
        writer.discard()
        raise
    skipped = {**counts.skipped, **({"not drawn": not_drawn} if not_drawn else {})}
    return {
        "records": counts.records,
        "documents": counts.documents,
        "skipped": dict(sorted(skipped.items())),
        "digests": digests,
        "bytes": size,
    }


def _documents(task: Read, group: tuple[File, ...], counts: Counts) -> Iterator[Document]:
    if task.builtin is None:
        shared = task.shared
        yield from documents.read(
            task.source, group, counts, limit=shared.limit, skip_bad=shared.skip_bad
        )
        return
    for document in builtin.documents(task.builtin):
        counts.records += 1
        counts.documents += 1
        yield document


def clean(task: OfBucket) -> dict[str, Any]:
    """Decide which documents of a bucket go; counts by source, and keys for the sample."""
    return _once(task.shared.of("clean", task.bucket, "json"), lambda: _clean(task))


def _clean(task: OfBucket) -> dict[str, Any]:
    shared = task.shared
    ngrams = NgramFilter.load(shared.work / NGRAMS, shared.ngrams) if shared.ngrams else None
    near = NearSignatures() if shared.near else None
    duplicates, contaminated = Counter[str](), Counter[str]()
    dropped: list[bytes] = []
    samples: dict[int, list[tuple[bytes, int]]] = defaultdict(list)
    for number, entry in _unique(task, duplicates):
        if ngrams and ngrams.matches(entry.text):
            contaminated[str(entry.source)] += entry.copy == 0
            dropped.append(entry.key)
            continue
        if entry.copy:
            continue
        if near:
            near.add(entry.key, number << 40 | entry.number, entry.source, entry.text)
        domain = shared.domain_of[entry.source]
        if domain in shared.sample and not documents.is_held_out(entry.key, shared.held_out):
            samples[domain].append((_sample_key(entry.key), min(len(entry.text), _CLIP)))
    if near:
        near.save(shared.of("clean", task.bucket, "npz"))
    write_bytes(shared.of("clean", task.bucket, "dropped"), b"".join(dropped))
    shortened = {
        domain: _smallest(found, shared.sample[domain]) for domain, found in samples.items()
    }
    write_bytes(shared.of("clean", task.bucket, "sample"), msgpack.packb(shortened))
    return {"duplicates": dict(duplicates), "contaminated": dict(contaminated)}


def sample(task: Sample) -> dict[int, list[tuple[bytes, str]]]:
    """Texts of a bucket that belong to the tokenizer's sample, by domain, with their keys."""
    found: dict[int, list[tuple[bytes, str]]] = defaultdict(list)
    shared = task.shared
    for entry in _survivors(task):
        domain = shared.domain_of[entry.source]
        if entry.copy or domain not in task.last or not shared.sample:
            continue
        key = _sample_key(entry.key)
        if key <= task.last[domain] and not documents.is_held_out(entry.key, shared.held_out):
            found[domain].append((key, entry.text[:_CLIP]))
    return dict(found)


def last_keys(shared: Shared) -> dict[int, bytes]:
    """The largest key of each domain's sample: of the training texts with the smallest keys.

    So the sample depends on the set of texts alone, not on their order or place.
    """
    kept: dict[int, list[tuple[bytes, int]]] = defaultdict(list)
    for bucket in range(shared.buckets):
        packed = shared.of("clean", bucket, "sample").read_bytes()
        for domain, found in msgpack.unpackb(packed, strict_map_key=False).items():
            merged = heapq.merge(kept[domain], ((key, size) for key, size in found))
            kept[domain] = _smallest(list(merged), shared.sample[domain])
    return {domain: found[-1][0] for domain, found in kept.items() if found}


def tokenise(task: Tokenise) -> dict[str, Any]:
    """Write a bucket's tokens, by domain and split in rank order; counts, and where each lies."""
    return _once(task.shared.of("tokens", task.bucket, "json"), lambda: _tokenise(task))


def _tokenise(task: Tokenise) -> dict[str, Any]:
    shared = task.shared
    tokenizer = _loaded(task.tokenizer)
    eod = np.array([tokenizer.eod], np.int32)
    ordered = sorted(_survivors(task), key=lambda entry: (entry.rank, entry.key))
    streams: dict[tuple[int, int], list[NDArray[Any]]] = defaultdict(list)
    counts: dict[str, dict[str, list[int]]] = defaultdict(lambda: {s: [0, 0, 0] for s in SPLITS})
    keys: dict[int, list[bytes]] = defaultdict(list)
    for batch in _batches(ordered):
        encoded = tokenizer.encode_batch([entry.text for entry in batch])
        for entry, ids in zip(batch, encoded, strict=True):
            split = int(documents.is_held_out(entry.key, shared.held_out))
            domain = shared.domain_of[entry.source]
            streams[domain, split] += [ids.astype(token_dtype(shared.vocab)), eod]
            count = counts[str(entry.source)][SPLITS[split]]
            sizes = (1, len(entry.text.encode()), len(ids) + 1)
            count[:] = [a + b for a, b in zip(count, sizes, strict=True)]
            if not entry.copy:
                keys[domain].append(entry.rank.to_bytes(8, "big") + entry.key[8:16])
    parts, data = [], bytearray()
    for (domain, split), stream in sorted(streams.items()):
        flat = np.concatenate(stream).astype(token_dtype(shared.vocab)).tobytes()
        parts.append([domain, split, len(data), len(flat)])
        data += flat
    write_bytes(shared.of("tokens", task.bucket, "tokens"), bytes(data))
    for domain, found in keys.items():
        write_bytes(shared.of("tokens", task.bucket, f"{domain}.keys"), b"".join(found))
    return {"counts": counts, "parts": parts}


def pack(task: Pack) -> dict[str, Any]:
    """Write one shard; its manifest entry. The file is the same bytes for the same rows.

    Raises:
        OSError: it cannot be written.
    """
    if not task.path.exists():
        dtype = np.dtype(task.dtype)
        temporary = task.work / f"{task.path.parent.name}.{task.path.name}.{secrets.token_hex(8)}"
        writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
        rest = np.zeros(0, dtype)
        for path, start, size in task.parts:
            part = np.memmap(path, np.uint8, "r", start, size) if size else np.zeros(0, np.uint8)
            joined = np.concatenate([rest, part.view(dtype)])
            whole = len(joined) // task.width * task.width
            for row in joined[:whole].reshape(-1, task.width):
                writer.write(row.tobytes())
            rest = joined[whole:].copy()
        try:
            writer.close()
        except RuntimeError as e:  # what the library makes of a full disk
            temporary.unlink(missing_ok=True)
            raise OSError(f"{task.path}: {e}") from e
        assert not len(rest)
        _sync(temporary)
        temporary.replace(task.path)
    size, digest = task.path.stat().st_size, file_digest(task.path)
    return {"name": task.path.name, "bytes": size, "sha256": digest}


def _unique(task: OfBucket, duplicates: Counter[str]) -> Iterator[tuple[int, spool.Entry]]:
    """A bucket's documents in the order of tasks, each text once, and the number of their task."""
    shared = task.shared
    seen: set[tuple[bytes, int]] = set()
    known = [np.memmap(path, ">u8", "r").reshape(-1, 2) for path in shared.known]
    for number in range(shared.tasks):
        for entry in spool.read_bucket(shared.texts(number), shared.buckets, task.bucket):
            identity = (entry.key[:16], entry.copy)
            if identity in seen or any(_holds(keys, shared.seed, entry.key) for keys in known):
                duplicates[str(entry.source)] += entry.copy == 0
                continue
            seen.add(identity)
            yield number, entry


def _survivors(task: OfBucket) -> Iterator[spool.Entry]:
    """What cleaning has left of a bucket."""
    dropped = set[bytes]()
    for path in (task.shared.of("clean", task.bucket, "dropped"), task.shared.work / NEAR):
        data = path.read_bytes() if path.exists() else b""
        dropped.update(data[i : i + 32] for i in range(0, len(data), 32))
    for _, entry in _unique(task, Counter()):
        if entry.key not in dropped:
            yield entry


def _holds(keys: NDArray[Any], seed: int, key: bytes) -> bool:
    """Whether the keys of a finished domain, in rank order, have this one."""
    rank, other = documents.rank(seed, key), int.from_bytes(key[8:16], "big")
    place = int(np.searchsorted(keys[:, 0], np.uint64(rank)))
    while place < len(keys) and keys[place, 0] == rank:
        if keys[place, 1] == other:
            return True
        place += 1
    return False


def _once(record: Path, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What an earlier run of the task left, or what it gives now."""
    if not record.exists():
        write_json(record, work())
    found: dict[str, Any] = json.loads(record.read_bytes())
    return found


def _sample_key(key: bytes) -> bytes:
    """What decides the sample: other bytes than those that decide the split."""
    return key[8:24]


def _smallest(found: list[tuple[bytes, int]], characters: int) -> list[tuple[bytes, int]]:
    """The smallest keys whose documents have at least so many characters, in order."""
    size, kept = 0, []
    for key, length in sorted((key, length) for key, length in found):
        if size >= characters:
            break
        kept.append((key, length))
        size += length
    return kept


@cache
def _loaded(path: Path) -> Tokenizer:
    return Tokenizer.load(path)


def _batches(entries: list[spool.Entry]) -> Iterator[list[spool.Entry]]:
    batch, size = [], 0
    for entry in entries:
        batch.append(entry)
        size += len(entry.text)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
