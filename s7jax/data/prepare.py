"""Sources to training rows: read, clean, tokenise, shuffle, pack, vouch; on many processes.

The result is a function of the sources' content and the arguments alone: not of the number of
workers or machines, of interruptions, of memory, or of where anything lies.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from s7jax.config import Domain
from s7jax.data import builtin, growth
from s7jax.data.job import Given, How, Job, Work
from s7jax.data.prepared import (
    FORMAT,
    KEYS,
    MANIFEST,
    SPLITS,
    TOKENIZER,
    VERSION,
    Prepared,
    manifest_digest,
    read_manifest,
)
from s7jax.data.sources import Source, source
from s7jax.data.tokenizer import Tokenizer
from s7jax.data.workers import workers
from s7jax.digests import file_digest
from s7jax.errors import InputError, UsageError
from s7jax.storage import lock, write_json

_ARGUMENTS = ("vocab", "context", "seed", "held_out")


def prepare(
    sources: Mapping[str, Sequence[Any]] | None,
    out: Path | str,
    *,
    domains: Sequence[Domain],
    vocab: int,
    context: int,
    seed: int = 0,
    held_out: float = 0.05,
    workers: int | None = None,
    how: How | None = None,
    reread: bool = True,
) -> Prepared:
    """Write rows of ``context + 1`` tokens for every domain and split, and their manifest.

    Args:
        sources: Paths or :class:`Source` by domain; what has none is its built-in corpus.
        out: The folder to write. An interrupted run resumes; a finished one is checked, and
            grows by domains that are new and have share 0.
        domains: The domains, in expert order. The vocabulary is learned from those with a share.
        vocab: Exact size of the vocabulary to learn.
        context: Tokens a sequence holds.
        seed: Decides the order of documents.
        held_out: Fraction of the documents kept from training.
        workers: Processes; None is one for each core.
        how: What else there is to say.
        reread: Whether the sources of finished data are read again, to see that it is theirs;
            otherwise it stands on its shards, and its sources may be gone.

    Raises:
        UsageError: an argument out of range.
        InputError: unreadable or too little text, or ``out`` holds data of other sources.
    """
    how = how or How()
    _check(vocab, context, held_out, workers, how)
    numbers = {"vocab": vocab, "context": context, "seed": seed, "held_out": held_out}
    given = _given(domains, sources or {}, with_builtin=how.grow is None)
    job = Job(Path(out), tuple(domains), given, numbers, how)
    finished = read_manifest(job.out) if (job.out / MANIFEST).exists() else None
    try:
        if finished and not reread and _stands(finished, job):
            if len(finished["domains"]) != len(domains):
                return _with_domains(job, finished, workers)
            if (prepared := _sound(job.out)) is not None:
                return prepared
        return _whole(job, finished, workers)
    except OSError as e:
        if e.filename is not None:
            raise
        raise InputError(
            f"{job.out}: {e.strerror or e}; what is done stays, so give the command again"
        ) from e


def _check(vocab: int, context: int, held_out: float, count: int | None, how: How) -> None:
    if not 0 < held_out < 1:
        raise UsageError(f"held-out {held_out}: expected a fraction between 0 and 1")
    if context < 2:
        raise UsageError(f"context {context}: expected at least 2 tokens")
    if count is not None and count < 1:
        raise UsageError(f"workers {count}: expected at least 1")
    if how.near and not 0.3 <= how.near <= 1:
        raise UsageError(f"near-duplicates {how.near}: expected a likeness from 0.3 to 1")
    if how.memory < 1 << 26:
        raise UsageError(f"memory {how.memory}: expected at least 64MB")
    if how.grow and (how.tokenizer or how.near):
        what = "--tokenizer" if how.tokenizer else "--near-duplicates"
        why = "the tokenizer stays" if how.tokenizer else "near duplicates of old text are not seen"
        raise UsageError(f"--grow with {what}: {why}")
    if how.tokenizer and (size := Tokenizer.load(how.tokenizer).vocab_size) != vocab:
        raise UsageError(
            f"--tokenizer {how.tokenizer}: {size:,} tokens, the preset has {vocab:,}; a model of "
            f"that many has --set model.vocab={size}"
        )


def _given(
    domains: Sequence[Domain], sources: Mapping[str, Sequence[Any]], with_builtin: bool
) -> tuple[Given, ...]:
    found: list[Given] = []
    for i, domain in enumerate(domains):
        if sources.get(domain.name):
            found += [Given(i, source(entry)) for entry in sources[domain.name]]
        elif not with_builtin:
            continue
        elif domain.builtin in builtin.LICENSES:
            license_ = builtin.LICENSES[domain.builtin]
            named = Source(path=(), name=f"built-in {domain.builtin}", license=license_)
            found.append(Given(i, named, domain.builtin))
        else:
            raise UsageError(
                f"domain {domain.name!r} has no built-in corpus: give --data {domain.name}=PATH"
            )
    return tuple(found)


def _whole(job: Job, finished: Mapping[str, Any] | None, count: int | None) -> Prepared:
    """Read everything; what is finished must be of the same text."""
    if finished:
        names = [entry["name"] for entry in finished["domains"]]
        if names != [d.name for d in job.domains] and _stands(finished, job):
            return _with_domains(job, finished, count)
    base = None
    if job.how.grow:
        if not job.given:
            raise UsageError(f"--grow {job.how.grow}: give the sources to add with --data")
        names = [domain.name for domain in job.domains]
        base = growth.base(job.how.grow, job.out, names, job.arguments)
    known = [base.path / domain / KEYS for domain in base.domains] if base else []
    with _started(job, count, known, base) as made:
        entries = made.read()
        key = made.key(entries)
        if finished and finished["key"] != key:
            shutil.rmtree(job.work)
            raise InputError(
                f"{job.out} holds finished data of other sources or arguments (digest "
                f"{finished['digest'][:12]}): {_difference(finished, job, entries, base)}; choose "
                "another folder or remove this one"
            )
        if finished and (prepared := _sound(job.out)) is not None:
            shutil.rmtree(job.work)
            return prepared
        if finished:
            _remove_damaged(job.out, finished)
            (job.out / MANIFEST).unlink()
        done = made.finish(entries)
        _publish(job, made, key, done)
    return Prepared.load(job.out)


def _difference(
    manifest: Mapping[str, Any],
    job: Job,
    entries: Sequence[Mapping[str, Any]],
    base: Prepared | None,
) -> str:
    """What finished data has otherwise than the job, in words: the first such thing."""
    if (origin := manifest.get("grown_from")) != (base.digest if base else None):
        if origin is None:
            return "it was not grown from any"
        other = "other data" if base else f"data {origin[:12]} (--grow)"
        return f"it was grown from {other}"
    for name in _ARGUMENTS:
        if manifest[name] != job.arguments[name]:
            return f"{name} is {manifest[name]} there, {job.arguments[name]} here"
    old = base.manifest["domains"] if base else [{"sources": []}] * len(manifest["domains"])
    there = [
        (d["name"], source)
        for d, before in zip(manifest["domains"], old, strict=True)
        for source in d["sources"][len(before["sources"]) :]
    ]
    here = [(job.domains[g.domain].name, e) for g, e in zip(job.given, entries, strict=True)]
    return _other_source(there, here) or "cleaning or the given tokenizer differs"


def _other_source(
    there: Sequence[tuple[str, Mapping[str, Any]]], here: Sequence[tuple[str, Mapping[str, Any]]]
) -> str | None:
    """The first source that is not the same, in words."""
    for (old, before), (new, now) in zip(there, here, strict=False):
        if (old, before["name"], before["license"]) != (new, now["name"], now["license"]):
            return f"{old} is of {before['name']!r} there, {new} of {now['name']!r} here"
        if (before["sha256"], before["bytes"]) != (now["sha256"], now["bytes"]):
            builtin_too = "; it is the running Python's" if "built-in" in now["name"] else ""
            return f"{new}: the text of {now['name']!r} is another one{builtin_too}"
    if len(there) != len(here):
        return f"{len(there)} sources there, {len(here)} here"
    return None


def _remove_damaged(out: Path, manifest: Mapping[str, Any]) -> None:
    """Leave of finished data what is as its manifest says: the rest is made again."""
    for domain in manifest["domains"]:
        for shard in (shard for split in SPLITS for shard in domain[split]["shards"]):
            path = out / domain["name"] / shard["name"]
            if path.exists() and file_digest(path) != shard["sha256"]:
                path.unlink()


def _with_domains(job: Job, finished: Mapping[str, Any], count: int | None) -> Prepared:
    """Finished data and further domains of share 0: only these are read."""
    if _sound(job.out) is None:
        raise InputError(f"{job.out}: a file differs from {MANIFEST}, so no domain can be added")
    old = len(finished["domains"])
    further = replace(job, given=tuple(g for g in job.given if g.domain >= old))
    known = [job.out / e["name"] / KEYS for e in finished["domains"] if "keys" in e]
    with _started(further, count, known) as made:
        entries = made.read()
        earlier = [
            (domain["name"], entry) for domain in finished["domains"] for entry in domain["sources"]
        ]
        key = made.key(entries, earlier)
        _publish(further, made, key, [*finished["domains"], *made.finish(entries)])
    return Prepared.load(job.out)


def _stands(manifest: Mapping[str, Any], job: Job) -> bool:
    """Whether finished data has the job's arguments and domains, or all but new ones of share 0."""
    names = [entry["name"] for entry in manifest["domains"]]
    further = job.domains[len(names) :]
    return (
        all(manifest[name] == job.arguments[name] for name in _ARGUMENTS)
        and names == [domain.name for domain in job.domains[: len(names)]]
        and not any(domain.share for domain in further)
    )


def _sound(out: Path) -> Prepared | None:
    """Finished data whose every file is as its manifest says, or None."""
    try:
        prepared = Prepared.load(out)
        prepared.verify()
    except InputError:
        return None
    return prepared


def _publish(job: Job, made: Work, key: str, entries: list[dict[str, Any]]) -> None:
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        **job.arguments,
        **made.settings,
        **({"grown_from": made.base.digest} if made.base else {}),
        "key": key,
        "tokenizer": Tokenizer.load(job.out / TOKENIZER).digest,
        "domains": entries,
    }
    write_json(job.out / MANIFEST, {**manifest, "digest": manifest_digest(manifest)})
    shutil.rmtree(job.work)


@contextlib.contextmanager
def _started(
    job: Job, count: int | None, known: Sequence[Path], base: Prepared | None = None
) -> Iterator[Work]:
    """The work of a job, on its workers, with the folder locked against a second process."""
    in_process = any("memory:" in path for given in job.given for path in given.source.path)
    count = 1 if in_process else count or os.cpu_count() or 1
    with lock(job.out / ".lock"):
        try:
            with workers(count, job.how.cluster) as run:
                yield Work(job, run, known, base)
        finally:
            (job.out / ".lock").unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it holds something, as it should
                job.out.rmdir()
