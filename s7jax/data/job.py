"""One preparation of data: what it is of, and its stages, one after another on many processes."""

import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from s7jax.config import Domain
from s7jax.data import clean, documents, files, growth, stages
from s7jax.data.files import File
from s7jax.data.prepared import KEYS, MANIFEST, SPLITS, TOKENIZER, VERSION, Prepared, token_dtype
from s7jax.data.sources import Source
from s7jax.data.tokenizer import Tokenizer
from s7jax.data.workers import Workers
from s7jax.digests import file_digest, json_digest
from s7jax.errors import InputError
from s7jax.storage import write_bytes
from s7jax.terminal.progress import Progress

SHARD_ROWS = 1 << 16
MEMORY = 2 << 30

_WORK = ".work"  # what an interrupted run leaves, removed when all is done
_SAMPLE_PER_TOKEN = 1_000  # characters of tokenizer training text for each vocabulary entry
_SAMPLE_AT_LEAST = 8_000_000
_TASK = 1 << 26  # bytes of files that one task reads; a larger file is a task by itself


@dataclass(frozen=True, kw_only=True)
class How:
    """How data is prepared, beside the arguments that every manifest has."""

    skip_bad: bool = False  # count records and files that cannot be read, instead of stopping
    against: tuple[str, ...] = ()  # evaluation sets that no document may share 13 words with
    near: float = 0.0  # likeness from which two documents are one; 0: only equal ones are
    tokenizer: Path | None = None  # a given tokenizer.json, instead of learning one
    memory: int = MEMORY  # bytes, for all processes together
    cluster: str | None = None  # address of a Ray cluster, instead of local processes
    grow: Path | None = None  # finished data that the sources are added to, in a folder of its own

    def to_json(self) -> dict[str, Any]:
        """What of it decides the result, where it is not as always."""
        near = {"near_duplicates": self.near} if self.near else {}
        return near | ({"skip_bad": True} if self.skip_bad else {})


@dataclass(frozen=True)
class Given:
    """One source, or a built-in corpus."""

    domain: int
    source: Source
    builtin: str | None = None


@dataclass(frozen=True)
class Job:
    """The folder to write, the domains in expert order, every source, the numbers, how."""

    out: Path
    domains: tuple[Domain, ...]
    given: tuple[Given, ...]
    arguments: Mapping[str, Any]
    how: How

    @property
    def work(self) -> Path:
        return self.out / _WORK


class Work:
    """A job being done: its sources listed, then stage after stage."""

    def __init__(
        self, job: Job, run: Workers, known: Sequence[Path], base: Prepared | None
    ) -> None:
        self._job, self._run, self.base = job, run, base
        self._listings = [self._listed(given) for given in job.given]
        self.settings = job.how.to_json()
        reads = list(_read_tasks(job.given, self._listings))
        size = sum(file.size for listing in self._listings for file in listing.files)
        plan = {
            "arguments": {**job.arguments, **self.settings},
            "sources": [[g.domain, g.builtin, g.source.to_json()] for g in job.given],
            "files": [[asdict(f) | {"kind": f.kind.name} for f in x.files] for x in self._listings],
            "known": [file_digest(path) for path in known],
            "grown_from": base.digest if base else None,
        }
        against = self._against()
        plan["against"] = against
        names = {job.domains[given.domain].name for given in job.given}
        buckets = _buckets(size, run.count, job.how.memory)
        buckets = _start(job.out, json_digest(plan), names, buckets)
        self._shared = stages.Shared(
            work=job.work,
            domain_of=tuple(given.domain for given in job.given),
            tasks=len(reads),
            buckets=buckets,
            seed=job.arguments["seed"],
            held_out=job.arguments["held_out"],
            vocab=job.arguments["vocab"],
            limit=job.how.memory // 8,
            skip_bad=job.how.skip_bad,
            sample=self._samples(),
            known=tuple(known),
            ngrams=clean.NGRAM if against else 0,
            near=job.how.near,
        )
        self._reads = [
            stages.Read(self._shared, i, index, job.given[index].source, part, name)
            for i, (index, part, name) in enumerate(reads)
        ]
        if against and not (job.work / stages.NGRAMS).exists():
            self._save_ngrams()
        self.against = file_digest(job.work / stages.NGRAMS) if against else None
        if self.against:
            self.settings["against"] = self.against
        if base:
            growth.require_same_cleaning(base, self.settings)
        self._size = size

    def read(self) -> list[dict[str, Any]]:
        """What each source holds, as its manifest entry."""
        results = self._stage(
            "reading",
            stages.read,
            self._reads,
            self._size or None,
            lambda i: sum(file.size for file in self._reads[i].files),
        )
        return [self._entry(index, results) for index in range(len(self._job.given))]

    def key(
        self,
        entries: Sequence[Mapping[str, Any]],
        earlier: Sequence[tuple[str, Mapping[str, Any]]] = (),
    ) -> str:
        """What the result is a function of: the documents that were read, and the arguments."""
        names = [self._job.domains[given.domain].name for given in self._job.given]
        described = [
            [name, *(entry[field] for field in ("name", "license", "bytes", "sha256"))]
            for name, entry in [*earlier, *zip(names, entries, strict=True)]
        ]
        given = self._job.how.tokenizer
        tokenizer = Tokenizer.load(given).digest if given else None
        of = [VERSION, self._job.arguments, self.settings, self.against, tokenizer, described]
        return json_digest([*of, self.base.digest] if self.base else of)

    def finish(self, sources: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Clean, learn the vocabulary, tokenise and pack; the entries of the job's domains."""
        shared = self._shared
        of_bucket = [stages.OfBucket(shared, bucket) for bucket in range(shared.buckets)]
        cleaned = self._stage("cleaning", stages.clean, of_bucket)
        for name in ("duplicates", "contaminated"):
            self._add(sources, name, [result[name] for result in cleaned])
        if shared.near:
            found = clean.near_duplicates(
                [shared.of("clean", bucket, "npz") for bucket in range(shared.buckets)], shared.near
            )
            write_bytes(shared.work / stages.NEAR, b"".join(key for key, _ in found))
            self._add(sources, "near duplicates", [Counter(str(source) for _, source in found)])
        path = self._tokenizer()
        size = sum(source["bytes"] for source in sources)
        tasks = [stages.Tokenise(shared, bucket, path) for bucket in range(shared.buckets)]
        tokenised = self._stage(
            "encoding", stages.tokenise, tasks, size, lambda _: size // shared.buckets
        )
        wanted = sorted({given.domain for given in self._job.given})
        planned = [self._plan(domain, sources, tokenised) for domain in wanted]
        packs = [task for _, splits in planned for _, written in splits for task in written]
        shards = iter(self._stage("packing", stages.pack, packs))
        for entry, splits in planned:
            for split, written in splits:
                entry[split]["shards"] = [next(shards) for _ in written]
        made = [entry for entry, _ in planned]
        return growth.joined(self.base, self._job.out, made) if self.base else made

    def _stage(
        self,
        name: str,
        function: Callable[[Any], Any],
        tasks: Sequence[Any],
        total: int | None = None,
        size: Callable[[int], int] | None = None,
    ) -> list[Any]:
        """Results of a stage in the order of its tasks."""
        results: list[Any] = [None] * len(tasks)
        with Progress(name, total or len(tasks), "bytes" if size and total else "parts") as bar:
            for number, result in self._run.run(function, tasks):
                results[number] = result
                bar.advance(size(number) if size and total else 1)
        return results

    def _listed(self, given: Given) -> files.Listing:
        if given.builtin:
            return files.Listing((), {})
        name, skip = self._job.domains[given.domain].name, self._job.how.skip_bad
        parts = [files.listing(name, path, given.source.format, skip) for path in given.source.path]
        left = sum((Counter(part.left_out) for part in parts), Counter[str]())
        return files.Listing(tuple(f for part in parts for f in part.files), dict(left))

    def _samples(self) -> dict[int, int]:
        """Characters of each domain that the vocabulary is learned from."""
        if self._job.how.tokenizer or self.base or (self._job.out / MANIFEST).exists():
            return {}
        common = [i for i, domain in enumerate(self._job.domains) if domain.share > 0]
        vocab = self._job.arguments["vocab"]
        characters = max(_SAMPLE_AT_LEAST, _SAMPLE_PER_TOKEN * vocab) // max(1, len(common))
        return dict.fromkeys(common, characters)

    def _against(self) -> list[list[Any]]:
        self._evaluation = [
            file
            for path in self._job.how.against
            for file in files.listing("--against", path).files
        ]
        return [[file.url, file.size, file.stamp] for file in self._evaluation]

    def _save_ngrams(self) -> None:
        limit = self._job.how.memory // 8
        texts = (text for file in self._evaluation for text in documents.texts(file, limit))
        found = clean.NgramFilter.of(texts, clean.NGRAM)
        if not len(found):
            raise InputError(f"--against: no text of {clean.NGRAM} words or more in it")
        found.save(self._job.work / stages.NGRAMS)

    def _entry(self, index: int, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The manifest's entry of a source after reading."""
        given, listing = self._job.given[index].source, self._listings[index]
        parts = [r for task, r in zip(self._reads, results, strict=True) if task.index == index]
        skipped = sum((Counter(part["skipped"]) for part in parts), Counter[str]())
        kinds = Counter(file.kind.name for file in listing.files)
        weight = {"weight": given.weight} if given.weight != 1 else {}
        return {
            "name": given.name or Path(given.path[0].rstrip("/")).resolve().name,
            "license": given.license,
            **weight,
            "files": len(listing.files),
            "formats": dict(sorted(kinds.items())),
            "left_out": listing.left_out,
            "records": sum(part["records"] for part in parts),
            "skipped": dict(sorted(skipped.items())),
            "bytes": sum(part["bytes"] for part in parts),
            "sha256": json_digest([given.weight, *(d for part in parts for d in part["digests"])]),
        }

    def _add(
        self, sources: list[dict[str, Any]], name: str, counts: Sequence[Mapping[str, int]]
    ) -> None:
        """Count documents that a later stage left out under their source."""
        for index, entry in enumerate(sources):
            if number := sum(count.get(str(index), 0) for count in counts):
                entry["skipped"] = dict(sorted({**entry["skipped"], name: number}.items()))

    def _tokenizer(self) -> Path:
        """The tokenizer of the rows: given, finished already, or learned from the sample now."""
        path, shared = self._job.out / TOKENIZER, self._shared
        learned = shared.work / "learned"
        if given := self.base.path / TOKENIZER if self.base else self._job.how.tokenizer:
            Tokenizer.load(given).save(path)
        elif shared.sample and not learned.exists():
            last = stages.last_keys(shared)
            tasks = [stages.Sample(shared, bucket, last) for bucket in range(shared.buckets)]
            parts = self._stage("sampling", stages.sample, tasks)
            texts = [
                text
                for domain in sorted(last)
                for _, text in sorted(pair for part in parts for pair in part.get(domain, []))
            ]
            Tokenizer.train(texts, self._job.arguments["vocab"]).save(path)
            write_bytes(learned, b"")
        return path

    def _plan(
        self, domain: int, sources: Sequence[dict[str, Any]], tokenised: Sequence[Any]
    ) -> tuple[dict[str, Any], list[tuple[str, list[stages.Pack]]]]:
        """A domain's entry without its shards, and the tasks that write them."""
        name, width = self._job.domains[domain].name, self._job.arguments["context"] + 1
        folder = self._job.out / name
        folder.mkdir(exist_ok=True)
        indices = [i for i, given in enumerate(self._job.given) if given.domain == domain]
        entry: dict[str, Any] = {"name": name, "sources": [sources[i] for i in indices]}
        for i in indices:
            sources[i] |= {
                s: sum(r["counts"].get(str(i), {s: [0]})[s][0] for r in tokenised) for s in SPLITS
            }
        splits = []
        for number, split in enumerate(SPLITS):
            counts = [
                r["counts"][str(i)][split]
                for r in tokenised
                for i in indices
                if str(i) in r["counts"]
            ]
            totals = [sum(column) for column in zip(*counts, strict=True)] or [0, 0, 0]
            if split == "train" or not self.base:
                _require_a_row(name, split, totals[2], width, [sources[i] for i in indices])
            rows = totals[2] // width
            entry[split] = {
                **dict(zip(("documents", "bytes", "tokens"), totals, strict=True)),
                "cut_tokens": totals[2] % width,
                "rows": rows,
            }
            splits.append((split, self._packs(folder, domain, number, rows, width, tokenised)))
        entry["keys"] = self._keys(folder, domain)
        return entry, splits

    def _packs(
        self, folder: Path, domain: int, split: int, rows: int, width: int, tokenised: Sequence[Any]
    ) -> list[stages.Pack]:
        """Tasks for the shards of a split: each has the bytes of its rows, wherever they lie."""
        dtype = token_dtype(self._job.arguments["vocab"])
        streams = [
            (self._shared.of("tokens", bucket, "tokens"), start, size)
            for bucket, result in enumerate(tokenised)
            for d, s, start, size in result["parts"]
            if (d, s) == (domain, split)
        ]
        count = math.ceil(rows / SHARD_ROWS)
        before = self.base.shards(folder.name, SPLITS[split]) if self.base else []
        tasks = []
        for i in range(count):
            first, last = i * SHARD_ROWS, min(rows, (i + 1) * SHARD_ROWS)
            number, all_ = len(before) + i, len(before) + count
            name = f"{SPLITS[split]}-{number:05d}-of-{all_:05d}.arrayrecord"
            size = width * dtype.itemsize
            parts = tuple(_cut(streams, first * size, last * size))
            path, work = folder / name, self._shared.work
            tasks.append(stages.Pack(path, work, dtype.str, width, last - first, parts))
        return tasks

    def _keys(self, folder: Path, domain: int) -> dict[str, Any]:
        """Write what identifies the domain's documents, for data that is added later."""
        path, buckets = folder / KEYS, self._shared.buckets
        parts = [self._shared.of("tokens", bucket, f"{domain}.keys") for bucket in range(buckets)]
        keys = b"".join(part.read_bytes() for part in parts if part.exists())
        if self.base:
            keys = growth.merged_keys(keys, (self.base.path / folder.name / KEYS).read_bytes())
        write_bytes(path, keys)
        return {"name": KEYS, "bytes": path.stat().st_size, "sha256": file_digest(path)}


def _read_tasks(
    given: Sequence[Given], listings: Sequence[files.Listing]
) -> Iterator[tuple[int, tuple[File, ...], str | None]]:
    """Source, files and built-in corpus of each task. What counts its documents is one task."""
    for index, (entry, listing) in enumerate(zip(given, listings, strict=True)):
        if entry.builtin or entry.source.max_documents:
            yield index, listing.files, entry.builtin
            continue
        part: list[File] = []
        for file in listing.files:
            if part and sum(f.size for f in part) + file.size > _TASK:
                yield index, tuple(part), None
                part = []
            part.append(file)
        yield index, tuple(part), None


def _buckets(size: int, count: int, memory: int) -> int:
    """Into how many parts text is sorted: each small in memory, and some for every worker.

    Compressed files hold a few times their size. The result does not depend on it.
    """
    share = max(1 << 20, min(1 << 26, memory // (16 * count)))
    return min(4096, max(4 * count, 4 * size // share))


def _start(out: Path, plan: str, domains: Iterable[str], buckets: int) -> int:
    """Keep what an interrupted run of the same job left, and nothing of any other."""
    work = out / _WORK
    state = work / "plan"
    if not state.exists() or state.read_text().split()[0] != plan:
        shutil.rmtree(work, ignore_errors=True)
        for domain in () if (out / MANIFEST).exists() else domains:
            shutil.rmtree(out / domain, ignore_errors=True)
        for stage in ("read", "clean", "tokens"):
            (work / stage).mkdir(parents=True)
        write_bytes(state, f"{plan} {buckets}".encode())
    return int(state.read_text().split()[1])


def _cut(
    streams: Sequence[tuple[Path, int, int]], first: int, last: int
) -> Iterator[tuple[Path, int, int]]:
    """Bytes ``first`` to ``last`` of streams one after another, as pieces of them."""
    position = 0
    for path, start, size in streams:
        begin, end = max(first, position), min(last, position + size)
        if begin < end:
            yield path, start + begin - position, end - begin
        position += size


def _require_a_row(
    domain: str, split: str, tokens: int, needed: int, sources: Sequence[Mapping[str, Any]]
) -> None:
    if tokens < needed:
        gone = sum((Counter(source["skipped"]) for source in sources), Counter[str]())
        left = ", ".join(f"{count:,} {reason}" for reason, count in sorted(gone.items()))
        raise InputError(
            f"{domain}: {tokens} {split.replace('_', '-')} tokens, needed at least {needed} for "
            "one row; give more text, a shorter context or another held-out fraction"
            f"{f' (left out: {left})' if left else ''}"
        )
