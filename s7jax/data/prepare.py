"""Sources to training rows: split, tokenise in parallel, shuffle, pack, write, vouch.

The result is a function of the sources' content and the arguments alone: not of the number of
workers, of interruptions, or of where anything lies.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import tee
from pathlib import Path
from typing import Any

import numpy as np

from s7jax.config import Domain
from s7jax.data.corpus import Corpus, corpora, distinct, is_held_out, sample
from s7jax.data.encode import Encoder, encoder
from s7jax.data.prepared import (
    FORMAT,
    MANIFEST,
    SPLITS,
    TOKENIZER,
    VERSION,
    Prepared,
    manifest_digest,
    read_manifest,
    token_dtype,
)
from s7jax.data.sequences import Spool, write_shards
from s7jax.data.sources import Document
from s7jax.data.tokenizer import Tokenizer
from s7jax.digests import file_digest, json_digest
from s7jax.errors import InputError, UsageError
from s7jax.storage import write_json
from s7jax.terminal.progress import Progress

_WORK = ".work"  # what an interrupted run leaves, removed when all is done
_BATCH = 1 << 19  # characters tokenised at a time by one worker
_SAMPLE_PER_TOKEN = 1_000  # characters of tokenizer training text for each vocabulary entry
_SAMPLE_AT_LEAST = 8_000_000


def prepare(
    sources: Mapping[str, Sequence[Path | str]] | None,
    out: Path | str,
    *,
    domains: Sequence[Domain],
    vocab: int,
    context: int,
    seed: int = 0,
    held_out: float = 0.05,
    workers: int | None = None,
) -> Prepared:
    """Write rows of ``context + 1`` tokens for every domain and split, and their manifest.

    Args:
        sources: Files, folders or globs by domain; what has none is the domain's built-in corpus.
        out: The folder to write. An interrupted run resumes; a finished one is checked, and
            grows by domains that are new and have share 0.
        domains: The domains, in expert order. The vocabulary is learned from those with a share.
        vocab: Exact size of the vocabulary to learn.
        context: Tokens a sequence holds.
        seed: Decides the order of documents.
        held_out: Fraction of the documents kept from training.
        workers: Processes that tokenise; None is one for each core.

    Raises:
        UsageError: an argument out of range.
        InputError: unreadable or too little text, or ``out`` holds data of other sources.
    """
    if not 0 < held_out < 1:
        raise UsageError(f"held-out {held_out}: expected a fraction between 0 and 1")
    if context < 2:
        raise UsageError(f"context {context}: expected at least 2 tokens")
    if workers is not None and workers < 1:
        raise UsageError(f"workers {workers}: expected at least 1")
    out = Path(out)
    work = out / _WORK
    found = corpora(domains, sources or {})
    job = _Job(found, out, vocab, context, seed, held_out, workers or os.cpu_count() or 1)
    if (out / MANIFEST).exists() and (finished := _finished(job)):
        return finished
    _start(work, job.key)
    sizes = _tokenizer(job)
    with encoder(out / TOKENIZER, job.workers) as encode:
        entries = [_domain(job, corpus, encode, sizes.get(corpus.domain)) for corpus in found]
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        **job.arguments,
        "key": job.key,
        "tokenizer": encode.tokenizer.digest,
        "domains": entries,
    }
    write_json(out / MANIFEST, {**manifest, "digest": manifest_digest(manifest)})
    shutil.rmtree(work)
    return Prepared.load(out)


@dataclass(frozen=True)
class _Job:
    corpora: list[Corpus]
    out: Path
    vocab: int
    context: int
    seed: int
    held_out: float
    workers: int

    @property
    def arguments(self) -> dict[str, Any]:
        names = ("vocab", "context", "seed", "held_out")
        return {name: getattr(self, name) for name in names}

    @property
    def key(self) -> str:
        """What the result is a function of."""
        common = [[c.domain, c.describe] for c in self.corpora if c.common]
        added = [[c.domain, c.describe] for c in self.corpora if not c.common]
        return json_digest([VERSION, self.arguments, common, *([added] if added else [])])


def _finished(job: _Job) -> Prepared | None:
    """What an earlier run finished; None, and the rest kept, if a file of it was damaged since."""
    manifest = read_manifest(job.out)
    if manifest["key"] != job.key:
        if not _grows(manifest, job):
            raise InputError(
                f"{job.out} holds finished data of other sources or arguments (digest "
                f"{manifest['digest'][:12]}); choose another folder or remove this one"
            )
        _take_up(manifest, job)
        return None
    try:
        prepared = Prepared.load(job.out)
        prepared.verify()
    except InputError:
        _take_up(manifest, job)
        (job.out / MANIFEST).unlink()
        return None
    return prepared


def _grows(manifest: Mapping[str, Any], job: _Job) -> bool:
    """Whether the job is that of finished data, and further domains that change none of it."""
    finished = [[entry["name"], list(entry["sources"])] for entry in manifest["domains"]]
    wanted = [[corpus.domain, list(corpus.describe)] for corpus in job.corpora]
    same = all(manifest[name] == value for name, value in job.arguments.items())
    further = job.corpora[len(finished) :]
    return same and finished == wanted[: len(finished)] and not any(c.common for c in further)


def _take_up(manifest: Mapping[str, Any], job: _Job) -> None:
    """Let a job begin with the domains of a manifest as done, whose files are checked again."""
    _start(job.out / _WORK, job.key)
    for entry in manifest["domains"]:
        write_json(job.out / _WORK / f"{entry['name']}.json", entry)
    path = job.out / TOKENIZER
    if path.exists() and Tokenizer.load(path).digest == manifest["tokenizer"]:
        write_json(job.out / _WORK / "bytes.json", {})  # it need not be learned again


def _start(work: Path, key: str) -> None:
    """Keep what an interrupted run of the same job left, and nothing of any other."""
    state = work / "key"
    if not state.exists() or state.read_text() != key:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        state.write_text(key)


def _tokenizer(job: _Job) -> dict[str, int]:
    """Learn the vocabulary from the same number of characters of every domain's training texts.

    Returns the bytes of text in each domain, counted on the way.
    """
    path, sizes = job.out / TOKENIZER, job.out / _WORK / "bytes.json"
    if not sizes.exists():
        common = [corpus for corpus in job.corpora if corpus.common]
        characters = max(_SAMPLE_AT_LEAST, _SAMPLE_PER_TOKEN * job.vocab) // len(common)
        with Progress("reading", None, "bytes") as progress:
            samples = [
                sample(corpus, job.held_out, characters, progress.advance) for corpus in common
            ]
        tokenizer = Tokenizer.train([text for s in samples for text in s.texts], job.vocab)
        tokenizer.save(path)
        write_json(sizes, {c.domain: s.bytes for c, s in zip(common, samples, strict=True)})
    counted: dict[str, int] = json.loads(sizes.read_bytes())
    return counted


def _domain(job: _Job, corpus: Corpus, encode: Encoder, size: int | None) -> dict[str, Any]:
    """The manifest entry of one domain; its shards are written unless they are there."""
    folder = job.out / corpus.domain
    record = job.out / _WORK / f"{corpus.domain}.json"
    if record.exists():
        done: dict[str, Any] = json.loads(record.read_bytes())
        if all(_intact(folder, shard) for split in SPLITS for shard in done[split]["shards"]):
            return done
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    entry: dict[str, Any] = {"name": corpus.domain, "sources": list(corpus.describe)}
    with ExitStack() as stack:
        spools = {
            split: stack.enter_context(
                Spool(job.out / _WORK / f"{corpus.domain}.{split}", token_dtype(job.vocab))
            )
            for split in SPLITS
        }
        with Progress(corpus.domain, size, "bytes") as progress:
            _tokenise(job, corpus, encode, spools, progress)
        for split, spool in spools.items():
            _require_a_row(corpus.domain, split, spool.tokens, job.context + 1)
            shards = write_shards(spool, folder, split, job.context + 1)
            entry[split] = {**spool.counts, **shards}
    write_json(record, entry)
    return entry


def _tokenise(
    job: _Job,
    corpus: Corpus,
    encode: Encoder,
    spools: Mapping[str, Spool],
    progress: Progress,
) -> None:
    train, held_out = (spools[split] for split in SPLITS)
    eod = np.array([encode.tokenizer.eod], np.int32)
    # One stream is encoded while its twin is kept to say which document an encoding is of.
    batches, twins = tee(_batches(distinct(corpus.read())))
    encodings = encode([document.text for _, document in batch] for batch in batches)
    for batch, ids in zip(twins, encodings, strict=True):
        for (key, document), tokens in zip(batch, ids, strict=True):
            spool = held_out if is_held_out(key, job.held_out) else train
            size = len(document.text.encode())
            spool.add(np.concatenate([tokens, eod]), _rank(job.seed, key), size)
            progress.advance(size)


def _batches(
    documents: Iterator[tuple[bytes, Document]],
) -> Iterator[list[tuple[bytes, Document]]]:
    """Consecutive documents in lists of about ``_BATCH`` characters."""
    batch, size = [], 0
    for key, document in documents:
        batch.append((key, document))
        size += len(document.text)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _rank(seed: int, key: bytes) -> int:
    """A document's place in the order of this seed: of its text alone, so reproducible anywhere."""
    return int.from_bytes(hashlib.sha256(f"{seed}:".encode() + key).digest()[:8], "big")


def _require_a_row(domain: str, split: str, tokens: int, needed: int) -> None:
    if tokens < needed:
        raise InputError(
            f"{domain}: {tokens} {split.replace('_', '-')} tokens, needed at least {needed} for "
            "one row; give more text, a shorter context or another held-out fraction"
        )


def _intact(folder: Path, shard: Mapping[str, Any]) -> bool:
    path = folder / shard["name"]
    return path.exists() and file_digest(path) == str(shard["sha256"])
