"""Prepared rows as batches: exact in mixture, and a pure function of (seed, step, data).

There is no iterator state: a run that stops after any step resumes at the next one.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import grain
import numpy as np
from numpy.typing import NDArray

from s7jax.data.prepared import Prepared, token_dtype
from s7jax.errors import InputError, UsageError


@dataclass(frozen=True)
class Batch:
    """The sequences of one step and where they come from."""

    tokens: NDArray[np.int32]  # [batch, context + 1]
    domain: NDArray[np.int32]  # [batch], index of the domain
    row: NDArray[np.int64]  # [batch], row in the domain's training split


class TrainingBatches:
    """All batches of a run, without end: each epoch of a domain is shuffled anew."""

    def __init__(
        self,
        prepared: Prepared,
        *,
        batch: int,
        seed: int,
        shares: Mapping[str, int],
        first: int = 0,
    ) -> None:
        """Draw from some domains in exact shares.

        Args:
            prepared: The data.
            batch: Sequences per step.
            seed: Decides the order of rows.
            shares: Sequences of each domain, at least one, in every aligned cycle of the run.
            first: Cycles that are passed over, because another phase has drawn them.

        Raises:
            UsageError: an unknown domain, or a share or batch below one.
        """
        for domain, share in shares.items():
            if domain not in prepared.domains:
                known = ", ".join(prepared.domains)
                raise UsageError(f"domain {domain!r}: expected one of {known}")
            if share < 1:
                raise UsageError(f"domain {domain!r} has share {share}; expected at least 1")
        if not shares:
            raise UsageError("no domain to draw from; expected at least one")
        if batch < 1:
            raise UsageError(f"batch {batch}: expected at least 1")
        rows = [
            grain.MapDataset.source(_Rows(prepared, domain, "train"))
            .shuffle(_shuffle_seed(seed, domain))
            .repeat()
            for domain in shares
        ]
        mixed = grain.MapDataset.select_from_datasets(
            rows, _ExactMixture(list(shares.values()), first)
        )
        self._batches = mixed.batch(batch)

    def batch(self, step: int) -> Batch:
        """The batch of one step, from 0; costs the same for every step."""
        return Batch(**self._batches[step])


def prefetch(
    batch: Callable[[int], Batch], start: int, stop: int, ahead: int = 4
) -> Iterator[Batch]:
    """``batch(start) … batch(stop - 1)``, read in a thread up to ``ahead`` steps early."""
    with ThreadPoolExecutor(1, "prefetch") as thread:
        waiting: deque[Future[Batch]] = deque()
        try:
            for step in range(start, stop):
                waiting.append(thread.submit(batch, step))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            thread.shutdown(cancel_futures=True)


def held_out(prepared: Prepared, domain: str, sequences: int) -> NDArray[np.int32]:
    """The first rows of a domain's held-out split, int32[n, context + 1], the same every time.

    ``n`` is ``sequences``, or all there are if that is fewer.

    Raises:
        UsageError: an unknown domain or fewer than one sequence.
        InputError: there is no held-out row.
    """
    if domain not in prepared.domains:
        raise UsageError(f"domain {domain!r}: expected one of {', '.join(prepared.domains)}")
    if sequences < 1:
        raise UsageError(f"{sequences} held-out sequences: expected at least 1")
    n = min(sequences, prepared.rows(domain, "held_out"))
    if n < 1:
        raise InputError(f"{prepared.path}: no held-out row for {domain}; prepare with more text")
    rows = _Rows(prepared, domain, "held_out")
    return np.stack([rows[i]["tokens"] for i in range(n)])


@dataclass(frozen=True)
class Receipt:
    """What was trained on: sequences of each domain, and one hash over all of them in order."""

    sequences: tuple[int, ...]
    chain: str  # SHA-256, hexadecimal

    @classmethod
    def start(cls, domains: int) -> Self:
        """The receipt of nothing."""
        return cls((0,) * domains, hashlib.sha256(b"s7-mixture").hexdigest())

    def extend(self, batch: Batch) -> Self:
        """The receipt after one more batch. Batches in another order give another chain."""
        seen = np.bincount(batch.domain, minlength=len(self.sequences))
        ids = np.stack([batch.domain.astype("<i8"), batch.row.astype("<i8")], axis=1)
        return type(self)(
            tuple(int(a + b) for a, b in zip(self.sequences, seen, strict=True)),
            hashlib.sha256(bytes.fromhex(self.chain) + ids.tobytes()).hexdigest(),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"sequences": list(self.sequences), "chain": self.chain}

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> Self:
        """Inverse of :meth:`to_json`.

        Raises:
            InputError: not a receipt.
        """
        try:
            sequences, chain = tuple(int(n) for n in tree["sequences"]), str(tree["chain"])
            if len(bytes.fromhex(chain)) != 32:
                raise ValueError(f"chain {chain!r} is no SHA-256")
            return cls(sequences, chain)
        except (KeyError, TypeError, ValueError) as e:
            raise InputError(f"not a mixture receipt: {e!r}") from e


class _Rows:
    """A split as a random-access source of single sequences."""

    def __init__(self, prepared: Prepared, domain: str, split: str) -> None:
        self._where = prepared.path / domain
        shards = [str(path) for path in prepared.shards(domain, split)]
        self._records = self._tried(lambda: grain.sources.ArrayRecordDataSource(shards))
        self._domain = np.int32(prepared.domains.index(domain))
        self._dtype = token_dtype(prepared.vocab)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, row: int) -> dict[str, Any]:
        record = self._tried(lambda: self._records[row])
        tokens = np.frombuffer(record, self._dtype).astype(np.int32)
        return {"tokens": tokens, "domain": self._domain, "row": np.int64(row)}

    def _tried(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except (RuntimeError, OSError, ValueError) as e:  # what a damaged shard makes it raise
            raise InputError(f"{self._where}: a shard is damaged or gone: {e}") from e


class _ExactMixture(grain.transforms.DatasetSelectionMap):
    """Position in the run → (domain, position in the domain).

    ``MapDataset.mix`` spreads domains evenly too, but rounds weights to hundredths of the
    smallest; here every aligned cycle holds exactly the given counts, whatever they are.
    """

    def __init__(self, counts: Sequence[int], first: int) -> None:
        self._counts, self._first = list(counts), first
        # The j-th of c sequences stands at (j + ½)/c of the cycle; equal places by domain.
        places = sorted(
            ((2 * j + 1) / (2 * c), domain, j) for domain, c in enumerate(counts) for j in range(c)
        )
        self._pattern = [(domain, j) for _, domain, j in places]

    def __len__(self) -> int:
        return 2**62  # without end

    def __getitem__(self, index: int) -> tuple[int, int]:
        cycle, place = divmod(index, len(self._pattern))
        domain, j = self._pattern[place]
        return domain, (self._first + cycle) * self._counts[domain] + j


def _shuffle_seed(seed: int, domain: str) -> int:
    """32 bits for a domain's order; grain adds the epoch, so neighbouring seeds must not follow."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{domain}".encode()).digest()[:4], "big")
