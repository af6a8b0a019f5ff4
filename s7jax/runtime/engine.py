"""Generation in continuous batches: prompts join and leave, and no bits change.

One iteration feeds every row's next tokens to the trunk (a prompt in chunks, an answer token by
token), chooses each row's expert by the routing rule, lets it catch up on what it has not seen
from the trunk's remembered outputs, and chooses the next tokens. A row that finishes makes room
for the next prompt. As every result depends on the tokens before it in its row alone, a prompt
gives the same tokens and the same proof in any company.

With ``drafts`` that many tokens are proposed, by the row's own text (:mod:`s7jax.runtime.lookup`)
or by the trunk's head, and the expert checks them in one chunk. What comes out is what the expert
would have said one by one: integers leave no other possibility. Only greedy rows draft: what is
drawn is seldom guessed.
"""

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from s7jax.errors import InputError, UsageError
from s7jax.integer.logprobs import best, logprobs
from s7jax.integer.routing import route_last
from s7jax.integer.sampling import choose
from s7jax.runtime.compute import Array, Cache, Compute
from s7jax.runtime.gate import Gate
from s7jax.runtime.lookup import Lookup
from s7jax.runtime.policy import Policy
from s7jax.runtime.prompt import Prompt
from s7jax.runtime.proof import Proof, Step, hashed
from s7jax.runtime.session import Session

# Bytes of caches and of a chunk's scores: so much, and so many per byte sealed.
CACHE_LIMIT, CACHE_PER_BYTE = 1 << 30, 8
CHUNK = 128  # positions whose scores are held at once, at most
DRAFTERS = ("lookup", "trunk")
MOST_DRAFTS = 15  # with the token before them as many as a compiled chunk holds
MOST_SCORED = 16  # tokens of a prompt whose logits are asked for at once


@dataclass(frozen=True)
class Request:
    """A prompt (at least one id, told as :mod:`s7jax.runtime.prompt` says) and its policy."""

    prompt: Prompt
    policy: Policy
    logprobs: int | None = None  # most likely tokens told beside each token; None: no scores
    score_prompt: bool = False  # scores of the prompt's tokens too
    generate: bool = True  # if not, the answer is cut (``client``) before its first token


@dataclass(frozen=True)
class Score:
    """How likely a token was: ln of its probability, 16 fraction bits (:mod:`.logprobs`)."""

    token: int
    logprob: int
    top: tuple[tuple[int, int], ...]  # (id, logprob) of the most likely, that one first


@dataclass(eq=False)
class Completion:
    """What has come of a request so far."""

    request: Request
    output: list[int] = field(default_factory=list)
    experts: list[int] = field(default_factory=list)  # which one gave each token
    scores: list[Score] = field(default_factory=list)  # of each, if asked for
    prompt_scores: list[Score] = field(default_factory=list)  # of the prompt's second token on
    reason: str | None = None  # why it has ended: see :mod:`s7jax.runtime.policy`
    proof: Proof | None = None  # when it has ended
    dropped: bool = False  # nobody wants it any more; may be set by any thread at any time
    lost: str = ""  # the error or interrupt in the middle of a step, after which it never ends
    held: bool = False  # it keeps its row, and steps pass it by
    watch: Callable[["Completion"], None] = lambda _: None  # called after every change


class _Row:
    """One sequence in the batch."""

    def __init__(self, completion: Completion, session: Session, gate: Gate) -> None:
        self.completion, self.session, self.gate = completion, session, gate
        self.policy = session.policy
        self.tokens = session.tokens(0, 1 << 62)
        self.done = 0  # positions that the trunk has seen
        self.router: list[np.ndarray] = []  # logits int32 [E] of each
        self.seen: dict[int, int] = {}  # positions that each expert has seen
        self.lookup = Lookup()
        self.unscored = len(self.tokens) - 1 if completion.request.score_prompt else 0

    @property
    def last(self) -> int:
        """Position whose logits are wanted: of the prompt's unscored tokens, then the last."""
        return len(self.tokens) - 1 - self.unscored

    def route(self, position: int, window: int) -> int:
        """The expert of a position."""
        return route_last(self.router[max(0, position + 1 - window) : position + 1], window)

    def forget(self) -> None:
        """Drop what the trunk and experts saw beyond the row's own tokens."""
        self.session.settle()
        self.done = min(self.done, len(self.tokens))
        del self.router[self.done :]
        self.seen = {e: min(n, self.done) for e, n in self.seen.items()}


class Engine:
    """Runs requests on a sealed model, up to ``rows`` at a time.

    Args:
        compute: the model.
        rows: sequences in a batch; divisible by the mesh's data groups.
        slots: positions a sequence may reach; default and most: the context.
        drafts: tokens proposed before the expert checks them; none: what pays on this engine.
        drafter: who proposes them, one of :data:`DRAFTERS`.
    """

    def __init__(
        self,
        compute: Compute,
        rows: int = 1,
        slots: int | None = None,
        drafts: int | None = None,
        drafter: str = "lookup",
    ) -> None:
        self._cfg = compute.cfg
        check_caches(compute, rows, min(slots or self._cfg.context, self._cfg.context))
        if rows % compute.groups or rows < 1:
            raise UsageError(f"{rows} rows do not divide over {compute.groups} data groups")
        drafts = compute.drafts(rows) if drafts is None else drafts
        if not 0 <= drafts <= MOST_DRAFTS:
            raise UsageError(f"{drafts} drafts: expected 0 to {MOST_DRAFTS}")
        self.slots = min(slots or self._cfg.context, self._cfg.context)
        if drafter not in DRAFTERS:
            raise UsageError(f"drafter {drafter!r}; expected {', '.join(DRAFTERS)}")
        self._compute, self._drafts, self._drafter = compute, drafts, drafter
        self._waiting: deque[Completion] = deque()
        self._turn = threading.RLock()  # one thread at a time; others wait
        self._rows: list[_Row | None] = [None] * rows
        self._allocate()

    def _allocate(self) -> None:
        """Caches of nothing yet."""
        rows = len(self._rows)
        self._cache = self._compute.trunk_cache(rows, self.slots)
        self._beyond = self._cache[0].shape[3]  # where rows are parked: the cache may hold more
        self._experts: dict[int, Cache] = {}
        self._history = self._compute.history(rows, self.slots)

    def submit(
        self, request: Request, watch: Callable[[Completion], None] = lambda _: None
    ) -> Completion:
        """Queue a request; ``watch`` is called whenever it has changed; raises as :meth:`check`."""
        self._compute.require_own_process()
        self.check(request)
        completion = Completion(request, watch=watch)
        with self._turn:
            self._waiting.append(completion)
        return completion

    def check(self, request: Request) -> None:
        """Refuse a request that this engine cannot hold.

        Raises:
            UsageError: the prompt is empty, too long, or not of this vocabulary.
        """
        count, vocab = len(request.prompt.ids), self._cfg.vocab
        if not 1 <= count < self.slots:
            raise UsageError(f"a prompt of {count} tokens; expected 1 to {self.slots - 1}")
        policy = request.policy.canonical(vocab, self._cfg.context - count)
        most = count + (policy.max_new_tokens or self._cfg.context - count)
        if most > self.slots:
            raise UsageError(f"{most} tokens with the answer; this engine holds {self.slots}")
        if not all(0 <= token < vocab for token in request.prompt.ids):
            raise UsageError(f"a prompt holds an id outside 0..{vocab - 1}")

    @property
    def free(self) -> int:
        """Rows that nobody has or waits for."""
        return max(0, self._rows.count(None) - len(self._waiting))

    def warm(self) -> None:
        """Enter every expert with every length of chunk: no request waits for that any more."""
        longest = self.slots - 1
        lengths = {min(self._compute.chunk(n) + 1, longest) for n in (1, 2, longest)}
        for length in sorted(lengths):
            row = self._enter(Completion(Request(Prompt((0,) * length), Policy())))
            with self._turn:
                self._rows[0] = row
                while row.done < length:
                    self._feed({0: row.tokens[row.done :]})
                for e in range(len(self._cfg.domains)):
                    for count in (1, MOST_SCORED):
                        self._ask(e, {0: row}, count)
                self._leave(0, row, "client")

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._waiting) or any(self._rows)

    def cut(self, completion: Completion, end: str) -> None:
        """End a request early, as ``client`` or ``time``; what came so far is proven."""
        with self._turn, self._whole():
            if completion in self._waiting:
                row = self._enter(completion)
                self._waiting.remove(completion)
                self._leave(None, row, end)
            for index, row in self._active():
                if row.completion is completion:
                    self._leave(index, row, end)

    def run(self) -> None:
        """Until everything submitted has ended."""
        while self.busy:
            self.step()

    def step(self) -> None:
        """One iteration: at most one chunk of every row that is not held.

        An error or interrupt in the middle leaves the rows half done: their completions are
        :attr:`~Completion.lost`. Those that wait, and those to come, are not concerned.
        """
        with self._turn, self._whole():
            if self._history is None:
                self._allocate()
            self._step()

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """What changes rows happens whole, or they are given up."""
        try:
            yield
        except BaseException as e:
            for _, row in self._active():
                row.completion.lost = repr(e)
            self._waiting = deque(c for c in self._waiting if not c.lost)
            self._rows = [None] * len(self._rows)
            # Such a step may have used them up; new ones have room when these are gone.
            self._cache, self._experts, self._history = (None, None), {}, None
            raise

    def _step(self) -> None:
        held = (row.completion for _, row in self._active())
        for completion in [c for c in (*self._waiting, *held) if c.dropped]:
            self.cut(completion, "client")
        self._admit()
        stepping = {b: row for b, row in self._active() if not row.completion.held}
        drafted = self._look_up(stepping)
        self._feed({b: row.tokens[row.done :] + drafted[b] for b, row in stepping.items()})
        ready = {b: row for b, row in stepping.items() if row.done >= len(row.tokens)}
        if not ready:
            return
        if self._drafter == "trunk":
            drafted = self._draft(ready)
        calls: dict[tuple[int, bool], dict[int, _Row]] = {}
        for b, row in ready.items():
            if row.unscored or row.completion.request.generate:
                calls.setdefault((self._route(row, row.last), row.unscored > 0), {})[b] = row
            else:
                self._leave(b, row, "client")
        for (e, scoring), mine in sorted(calls.items(), key=lambda call: call[0]):
            if scoring:
                runs = {b: self._run(row, e) for b, row in mine.items()}
                logits = self._ask(e, mine, max(runs.values()))
                for b, row in mine.items():
                    self._score(row, logits[b, : runs[b]])
                continue
            logits = self._ask(e, mine, max(len(drafted[b]) for b in mine) + 1)
            for b, row in mine.items():
                self._take(b, row, e, logits[b], drafted[b])

    def _active(self) -> list[tuple[int, _Row]]:
        return [(b, row) for b, row in enumerate(self._rows) if row is not None]

    def _route(self, row: _Row, position: int) -> int:
        return row.route(position, self._cfg.routing_window)

    def _admit(self) -> None:
        """Fill free rows from the queue: SOH and STX of each."""
        for b, row in enumerate(self._rows):
            if row is None and self._waiting:
                self._rows[b] = self._enter(self._waiting[0])
                self._waiting.popleft()

    def _enter(self, completion: Completion) -> _Row:
        session = Session(self._compute)
        gate = session.begin(completion.request.prompt, completion.request.policy)
        return _Row(completion, session, gate)

    def _gates(self) -> list[Gate | None]:
        return [None if row is None else row.gate for row in self._rows]

    def _gates_of(self, rows: Iterable[int]) -> list[Gate | None]:
        """Those of some rows; the others are parked."""
        some = set(rows)
        return [gate if b in some else None for b, gate in enumerate(self._gates())]

    def _feed(self, pending: dict[int, list[int]]) -> None:
        """Give the trunk the first chunk of what each row has for it, and remember its h."""
        most = max(map(len, pending.values()), default=0)
        if most == 0:
            return
        T = self._compute.chunk(most)
        tokens = np.zeros((len(self._rows), T), np.int32)
        start = np.full(len(self._rows), self._beyond, np.int32)  # parked: nothing is kept
        for b, ids in pending.items():
            row = self._rows[b]
            if row is not None and ids:
                tokens[b, : len(ids[:T])] = ids[:T]
                start[b] = row.done
        gates = self._gates_of(b for b, ids in pending.items() if ids)
        h, router, self._cache = self._compute.trunk(gates, tokens, start, self._cache)
        self._history = self._compute.remember(self._history, h, start)
        for b, ids in pending.items():
            row = self._rows[b]
            if row is not None and ids:
                row.router += list(router[b, : len(ids[:T])])
                row.done += len(ids[:T])

    def _room(self, row: _Row) -> int:
        """How many tokens may be drafted for a row."""
        drawn = row.policy.sampling.temperature_q16
        if drawn or row.unscored or not row.completion.request.generate:
            return 0
        most = row.policy.max_new_tokens or self.slots
        left = most - len(row.completion.output) - 1
        return max(0, min(self._drafts, self.slots - len(row.tokens), left))

    def _look_up(self, rows: dict[int, _Row]) -> dict[int, list[int]]:
        """What each row's own text proposes, if it fits in a chunk with what is to be fed."""
        drafted: dict[int, list[int]] = {b: [] for b in rows}
        if self._drafter != "lookup":
            return drafted
        for b, row in rows.items():
            pending, room = len(row.tokens) - row.done, self._room(row)
            if room and self._compute.chunk(pending + room) >= pending + room:
                drafted[b] = row.lookup.draft(row.tokens, room)
                for token in drafted[b]:
                    row.session.propose(token)
        return drafted

    def _draft(self, ready: dict[int, _Row]) -> dict[int, list[int]]:
        """What the trunk would say next in each row that may draft, fed to it on the way."""
        drafted: dict[int, list[int]] = {b: [] for b in ready}
        room = {b: self._room(row) for b, row in ready.items()}
        for d in range(max(room.values(), default=0)):
            last = self._starts({b: ready[b].done - 1 for b in ready})
            h = self._compute.recall(self._history, last, 1)
            logits = self._compute.head(self._gates(), h)[:, 0]
            mine = {b: [int(logits[b].argmax())] for b, most in room.items() if d < most}
            for b, ids in mine.items():
                drafted[b] += ids
                ready[b].session.propose(ids[0])
            self._feed(mine)
        return drafted

    def _ask(self, e: int, mine: dict[int, _Row], length: int) -> np.ndarray:
        """Logits int32 [B, length, V] of an expert from each row's last position on."""
        if e not in self._experts:
            rows = len(self._rows)
            self._experts[e] = self._compute.expert_cache(e, rows, self.slots)
        for row in mine.values():
            row.session.enter(e)
        while True:  # catch up with what others answered
            behind = {b: row.last - row.seen.get(e, 0) for b, row in mine.items()}
            if max(behind.values()) <= 0:
                break
            self._advance(e, mine, {b: n for b, n in behind.items() if n > 0})
        # An expert that saw a position already sees it again, to the same bits.
        for row in mine.values():
            row.seen[e] = row.last
        y = self._advance(e, mine, {b: min(length, row.done - row.last) for b, row in mine.items()})
        y = self._compute.recall(y, self._zeros(), self._compute.chunk(length))
        return self._compute.head(self._gates_of(mine), y)

    def _advance(self, e: int, mine: dict[int, _Row], counts: dict[int, int]) -> Array:
        """The next chunk of remembered positions through an expert; returns its outputs."""
        T = self._compute.chunk(max(counts.values()))
        start = self._starts({b: mine[b].seen.get(e, 0) for b in counts})
        h = self._compute.recall(self._history, start, T)
        y, self._experts[e] = self._compute.expert(self._gates(), e, h, start, self._experts[e])
        for b, n in counts.items():
            mine[b].seen[e] = mine[b].seen.get(e, 0) + min(n, T)
        return y

    def _run(self, row: _Row, e: int) -> int:
        """How many unscored positions from the row's last on are this expert's, up to a limit."""
        most = min(row.unscored, MOST_SCORED)
        ours = (i for i in range(1, most) if self._route(row, row.last + i) != e)
        return next(ours, most)

    def _score(self, row: _Row, logits_TV: np.ndarray) -> None:
        """Scores of the prompt's tokens that follow these logits."""
        completion = row.completion
        for logits_V in logits_TV:
            token = row.tokens[row.last + 1]
            count = completion.request.logprobs or 0
            completion.prompt_scores.append(_scored(logits_V, token, count))
            row.unscored -= 1

    def _take(
        self, b: int, row: _Row, e: int, logits_TV: np.ndarray, drafted: Sequence[int]
    ) -> None:
        """Tokens that the logits give, as long as the drafts they stand on were right."""
        for i in range(len(drafted) + 1):
            position = row.last
            if i and self._route(row, position) != e:
                break  # the next token is another expert's to say
            logits_V = logits_TV[i]
            token = choose(logits_V, position, row.policy.sampling)
            row.session.record(
                Step(
                    position,
                    row.tokens[position],
                    e,
                    hashed(row.router[position]),
                    hashed(logits_V),
                    token,
                )
            )
            row.tokens.append(token)
            if (count := row.completion.request.logprobs) is not None:
                row.completion.scores.append(_scored(logits_V, token, count))
            row.completion.output.append(token)
            row.completion.experts.append(e)
            if reason := row.session.ending():
                self._leave(b, row, reason)
                return
            if i == len(drafted) or token != drafted[i]:
                # The last token has not been fed; what was fed in its place is forgotten.
                row.done = min(row.done, row.last)
                break
        row.forget()
        row.completion.watch(row.completion)

    def _leave(self, b: int | None, row: _Row, reason: str) -> None:
        """ETX and EOT: the row is free, the proof final."""
        row.session.close(reason)
        row.completion.proof = row.session.collapse()
        row.completion.reason = reason
        if b is not None:
            self._rows[b] = None
        row.completion.watch(row.completion)

    def _starts(self, at: dict[int, int]) -> np.ndarray:
        """Start of each row's chunk; rows that have none are parked beyond the last slot."""
        start = np.full(len(self._rows), self._beyond, np.int32)
        for b, position in at.items():
            start[b] = position
        return start

    def _zeros(self) -> np.ndarray:
        return np.zeros(len(self._rows), np.int32)


def _scored(logits_V: np.ndarray, token: int, count: int) -> Score:
    found_V = logprobs(logits_V)
    top = [(i, int(found_V[i])) for i in best(found_V, count)]
    return Score(token, int(found_V[token]), tuple(top))


def check_caches(compute: Compute, rows: int, slots: int) -> None:
    """Refuse caches and attention scores out of proportion to the file, before they are there.

    Raises:
        InputError: with the figure and the limit.
    """
    cfg = compute.cfg
    stacks = cfg.segments.values()
    caches = sum(2 * math.prod(s.cache_shape(rows, slots)) for s in stacks)
    heads = max(cfg.trunk.heads, cfg.expert.heads)
    wanted = caches + 4 * rows * slots * (cfg.trunk.hidden + heads * CHUNK)
    size = compute.seal.length
    limit = CACHE_LIMIT + CACHE_PER_BYTE * size
    if wanted > limit:
        raise InputError(
            f"caches of {rows} rows of {slots:,} positions take {wanted / 2**30:.1f} GiB with the "
            f"scores of a chunk, more than the {limit / 2**30:.1f} GiB that a file of {size:,} "
            "bytes gets: ask for fewer rows or a shorter answer"
        )
