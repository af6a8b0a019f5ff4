"""A sealed model to run: text in, text and proof out."""

import codecs
import itertools
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from s7jax import arguments, s7l
from s7jax.data.tokenizer import Tokenizer
from s7jax.errors import InputError, UsageError
from s7jax.integer.routing import route
from s7jax.integer.sampling import ONE, Sampling
from s7jax.runtime import answers
from s7jax.runtime.compute import ENGINES, Forward, open_compute
from s7jax.runtime.engine import Completion, Engine, Request, check_caches
from s7jax.runtime.policy import Policy, cut
from s7jax.runtime.prompt import Prompt, as_bytes, of_ids, of_text
from s7jax.runtime.proof import Proof
from s7jax.runtime.replay import by_specification
from s7jax.runtime.session import Session

REPLAYERS = ("numpy", *ENGINES)  # the specification, or an engine
MOST_ROWS = 8  # of a batch that nobody sized
SLOT_STEP = 256  # positions are reserved in multiples of it, so that few shapes are compiled


def open(
    path: Path | str,
    *,
    engine: str = "auto",
    mesh: str = "1x1",
    threads: int | None = None,
    root: bytes | str | None = None,
    trust: Path | str | Sequence[Path | str] = (),
    drafts: int | None = None,
    drafter: str = "lookup",
) -> "Model":
    """Open a sealed model for generation; use as a context manager.

    Args:
        path: the sealed file.
        engine: ``"native"``, ``"xla"``, or ``"auto"``: native on a CPU with mesh 1x1 where the
            library was compiled. The answer is the same.
        threads: of the native engine; none: one for each processor.
        mesh: of XLA: ``"DATAxMODEL"`` or ``"POOLSxDATAxMODEL"``; virtual devices on CPUs.
        root: the root it must have, 32 bytes or 64 hexadecimal digits; without it any honest
            seal is accepted.
        trust: public keys, PEM; one of them must have signed it (``FILE.sig``).
        drafts: tokens proposed at a time in greedy decoding, none: what pays; the answer is the
            same.
        drafter: who proposes them: ``"lookup"`` in the row's own text, or the ``"trunk"``.

    Raises:
        SealError: no seal, another root, or no signature by a trusted key.
        UsageError: an argument is of another type, or an engine or mesh does not fit the model
            or the machine.
        InputError: the native engine is asked for and not there; or a GPU or TPU does not
            reproduce the known answers.
    """
    if not isinstance(path, str | Path):
        raise UsageError(f"path is {path!r}; expected that of a sealed file")
    if not isinstance(mesh, str):
        raise UsageError(f"mesh is {mesh!r}; expected such as '1x1'")
    root = None if root is None else arguments.root(root)
    seal = s7l.open_trusted(path, root=root, trust=arguments.paths("trust", trust))
    threads = None if threads is None else arguments.whole("threads", threads)
    drafts = None if drafts is None else arguments.whole("drafts", drafts)
    return Model(seal, engine=engine, mesh=mesh, threads=threads, drafts=drafts, drafter=drafter)


class Model:
    """An open sealed model; any number of threads may use it, one computes at a time.

    Attributes:
        seal: the sealed file: root, manifest, tensors.
        tokenizer: bytes to ids and back.
    """

    def __init__(
        self,
        seal: s7l.Seal,
        *,
        engine: str = "auto",
        mesh: str = "1x1",
        threads: int | None = None,
        drafts: int | None = None,
        drafter: str = "lookup",
    ) -> None:
        self.seal = seal
        self.tokenizer = Tokenizer.from_vocabulary(seal.vocabulary.file_tree())
        self.compute = open_compute(seal, engine, mesh, threads)
        self._engine = partial(Engine, self.compute, drafts=drafts, drafter=drafter)
        self._engines: dict[int, Engine] = {}
        self._turn = threading.Lock()
        if not self.compute.on_cpu:
            self._reproduce()

    def _reproduce(self) -> None:
        """The known answers, before any other: a GPU's compiler may be wrong (``docs/runtime.md``).

        Raises:
            InputError: this device computes something else than was sealed.
        """
        try:
            answers.check(self.seal.stream["answers"], by_devices(self))
        except InputError as e:
            raise InputError(
                f"{self.compute.engine}: {e}. This device, or what compiles for it, computes "
                "wrongly; take --engine native, or another version of JAX or CUDA"
            ) from None

    def prompt(self, text: str | bytes | Sequence[int], start: bool = True) -> Prompt:
        """A prompt of text, after the end-of-document id unless ``start`` is false; or of ids.

        Ids are taken as they are: nothing is put before them.

        Raises:
            UsageError: neither text nor a flat sequence of whole numbers.
        """
        if isinstance(text, str | bytes):
            return of_text(self.tokenizer, text, start)
        return of_ids(self.tokenizer, arguments.wholes("prompt", text))

    def policy(
        self,
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
        logit_bias: Mapping[int, float] | None = None,
        stop: Sequence[int] | None = None,
        stop_texts: str | bytes | Sequence[str | bytes] = (),
    ) -> Policy:
        """A decoding policy; what is not given is as sealed. 0 ≤ temperature ≤ 256 (0: greedy).

        Raises:
            UsageError: a value is of another type or out of range.
        """
        sealed = self.seal.stream["defaults"]
        temperature = arguments.number("temperature", temperature)
        top_p = arguments.number("top_p", top_p)
        most = sealed["max_new_tokens"] if max_new_tokens is None else max_new_tokens
        if not 0 <= temperature <= 256:
            raise UsageError(f"temperature is {temperature}; expected a number from 0 to 256")
        if not 1 / ONE <= top_p <= 1:
            raise UsageError(f"top_p is {top_p}; expected a number from 1/65,536 to 1")
        if temperature and not round(temperature * ONE):  # else greedy without a word
            raise UsageError(f"temperature is {temperature:g}; expected 0 or at least 1/64")
        sampling = Sampling(
            temperature_q16=round(temperature * ONE),
            top_k=arguments.whole("top_k", top_k),
            top_p_q16=round(top_p * ONE),
            seed=arguments.whole("seed", sealed["seed"] if seed is None else seed),
            logit_bias=tuple(
                (i, round(bias * ONE)) for i, bias in arguments.biases(logit_bias or {}).items()
            ),
        )
        return Policy(
            sampling=sampling,
            max_new_tokens=None if most is None else arguments.whole("max_new_tokens", most),
            stop=arguments.wholes("stop", sealed["stop"] if stop is None else stop),
            stop_texts=tuple(map(as_bytes, arguments.texts("stop_texts", stop_texts))),
        )

    def generate(
        self, prompt: str | bytes | Sequence[int], *, start: bool = True, **options: Any
    ) -> "Answer":
        """The continuation of a prompt, as it comes; ``options`` as of :meth:`policy`.

        An answer that nobody holds any more is computed no further.
        """
        return Answer(self, Request(self.prompt(prompt, start), self.policy(**options)))

    def generate_all(self, prompts: Sequence[str | bytes], **options: Any) -> list["Answer"]:
        """The continuations of several prompts, made in one batch; all have ended.

        Each is what :meth:`generate` would have given, token for token and proof for proof.

        Raises:
            UsageError: one text in place of several.
        """
        if isinstance(prompts, str | bytes) or not isinstance(prompts, Iterable):
            raise UsageError(f"prompts is {prompts!r}; expected several in a list")
        return self.run_all([Request(self.prompt(p), self.policy(**options)) for p in prompts])

    def run_all(self, requests: Sequence[Request]) -> list["Answer"]:
        """What has come of several requests, in one batch; all have ended."""
        groups = self.compute.groups
        rows = -(-max(1, min(len(requests), MOST_ROWS)) // groups) * groups
        engine = self._engine(rows)
        answers = [Answer(self, request, engine) for request in requests]
        engine.run()
        return answers

    def engine(self, request: Request) -> Engine:
        """An engine of one row with room for a request; engines are kept, and hold caches."""
        self.compute.require_own_process()
        context = self.compute.cfg.context
        wanted = len(request.prompt.ids) + (request.policy.max_new_tokens or context)
        slots = min(context, -(-wanted // SLOT_STEP) * SLOT_STEP)
        with self._turn:
            if slots not in self._engines:
                rows = self.compute.groups
                self._engines[slots] = self._engine(rows, slots)
            return self._engines[slots]

    def __repr__(self) -> str:
        """Which sealed file, on what."""
        return f"<Model {self.seal.root.hex()[:16]}… on {self.compute.engine}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._engines.clear()


class TextDecoder:
    """Ids to text as they come; no piece ends inside a character, or where a stop text may be."""

    def __init__(self, tokenizer: Tokenizer, policy: Policy) -> None:
        self._tokenizer, self._policy = tokenizer, policy
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = max((len(text) - 1 for text in policy.stop_texts), default=0)
        self._fed = self._told = 0
        self._bytes = b""

    def feed(self, ids: Sequence[int], final: bool) -> str:
        """The text of those ``ids`` (all there are so far) that are new."""
        new, self._fed = ids[self._fed :], len(ids)
        self._bytes += self._tokenizer.decode(i for i in new if i not in self._policy.stop)
        text = cut(self._policy, self._bytes)
        end = len(text) if final else max(self._told, len(text) - self._held)
        piece, self._told = text[self._told : end], end
        return self._decoder.decode(piece, final)


class Answer:
    """An answer on its way: iterate for pieces of text, then read ``text`` and ``proof``."""

    def __init__(self, model: Model, request: Request, engine: Engine | None = None) -> None:
        self._model = model
        self._engine = engine or model.engine(request)
        self.completion: Completion = self._engine.submit(request)
        self._pieces: list[str] = []
        self._shown = 0
        self._turn = threading.RLock()
        self._decoder = TextDecoder(model.tokenizer, request.policy)

    def __del__(self) -> None:
        """Nobody can ask for the rest any more."""
        if hasattr(self, "completion"):
            self.completion.dropped = True

    def __iter__(self) -> Iterator[str]:
        """Pieces of text; none ends inside a character.

        Raises:
            InputError: an interrupt came in the middle of a step: what follows is not known.
        """
        self._model.compute.require_own_process()
        told = 0
        while True:
            with self._turn:
                if told == len(self._pieces) and not self._advance():
                    return
                fresh = self._pieces[told:]
            told += len(fresh)
            yield from fresh

    def _advance(self) -> bool:
        """One step further; whether there was one."""
        completion = self.completion
        if completion.lost:
            raise InputError(
                f"the answer broke off in the middle of a step ({completion.lost}); ask again: the "
                "same prompt and policy give the same answer"
            )
        if self._shown == len(completion.output):
            if completion.reason is not None:
                return False
            self._engine.step()
        ended, count = completion.reason is not None, len(completion.output)
        if count > self._shown or ended:
            try:
                self._shown = count
                if piece := self._decoder.feed(completion.output[:count], ended):
                    self._pieces.append(piece)
            except BaseException as e:  # the piece may be missing
                completion.lost, completion.dropped = repr(e), True
                raise
        return True

    def __str__(self) -> str:
        """The whole answer."""
        return self.text

    def __repr__(self) -> str:
        """What has come so far; nothing is computed for it."""
        done = self.completion
        said = "".join(self._pieces)
        state = done.reason or ("lost" if done.lost else "not ended")
        return f"<Answer {said!r}, {len(done.output)} tokens, {state}>"

    @property
    def text(self) -> str:
        """The whole answer."""
        for _ in self:
            pass
        return "".join(self._pieces)

    def report(self) -> dict[str, Any]:
        """The whole answer as JSON types: text, ids, route by segments, hashes to compare."""
        text, domains = self.text, self._model.compute.cfg.domains
        experts = self.completion.experts
        runs = [(domains[e], len(list(run))) for e, run in itertools.groupby(experts)]
        return {
            "text": text,
            "prompt_tokens": len(self.completion.request.prompt.ids),
            "tokens": len(self.completion.output),
            "ids": list(self.completion.output),
            "reason": self.completion.reason,
            "route": [{"domain": domain, "tokens": count} for domain, count in runs],
            "root": self._model.seal.root.hex(),
            "proof": self.proof.chain.hex(),
        }

    def summary(self, seconds: float) -> str:
        """One line on the whole answer: how long, why it ended, which experts, how fast."""
        report = self.report()
        route = ", ".join(f"{part['domain']} {part['tokens']}" for part in report["route"])
        return (
            f"[{report['tokens']} tokens ({report['reason']}), {report['tokens'] / seconds:.1f} "
            f"tokens/s on {self._model.compute.engine}; experts: {route}; "
            f"root {report['root'][:16]}…]"
        )

    @property
    def proof(self) -> Proof:
        """The proof of the whole answer."""
        _ = self.text
        assert self.completion.proof is not None
        return self.completion.proof


def by_engine(seal: s7l.Seal, engine: str = "numpy", mesh: str = "1x1") -> Forward:
    """What a seal answers by one of :data:`REPLAYERS`; raises as :class:`Model`."""
    if engine == "numpy":
        if mesh != "1x1":
            raise UsageError(
                f"the NumPy specification has no devices: mesh {mesh} wants engine xla"
            )
        return by_specification(seal)
    return by_devices(Model(seal, engine=engine, mesh=mesh))


def by_devices(model: Model) -> Forward:
    """The integer model on its mesh as an implementation to replay with."""
    compute = model.compute

    def forward(
        tokens_T: NDArray[np.int32], first: int
    ) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
        rows, length = compute.groups, len(tokens_T)
        # Padding after the last token changes nothing, and few lengths are compiled.
        slots = min(-(-length // SLOT_STEP) * SLOT_STEP, compute.cfg.context)
        check_caches(compute, rows, slots)
        step = compute.chunk(length)
        starts = {at: np.full(rows, at, np.int32) for at in range(0, length, step)}
        trunk: list[tuple[Any, NDArray[np.int32]]] = []  # h and router logits of each chunk
        with Session(compute) as session:
            gate = session.begin(Prompt(tuple(tokens_T.tolist())), Policy())
            gates, cache = [gate] * rows, compute.trunk_cache(rows, slots)
            for at, start in starts.items():
                chunk = tokens_T[at : at + step]
                padded = np.pad(chunk, (0, step - len(chunk)))
                tokens = np.repeat(padded[None], rows, axis=0)
                h, router, cache = compute.trunk(gates, tokens, start, cache)
                trunk.append((h, router[:1]))
            router = np.concatenate([part for _, part in trunk], axis=1)[:, :length]
            chosen = route(router, compute.cfg.routing_window)[0]
            logits = np.empty((length - first, compute.cfg.vocab), np.int32)
            for e in np.unique(chosen[first:]):
                cache = compute.expert_cache(int(e), rows, slots)
                for (at, start), (h, _) in zip(starts.items(), trunk, strict=True):
                    y, cache = compute.expert(gates, int(e), h, start, cache)
                    wanted = at + np.flatnonzero(chosen[at : at + step] == e)
                    wanted = wanted[wanted >= first]
                    if len(wanted):
                        logits[wanted - first] = compute.head(gates, y)[0, wanted - at]
        return router[0, first:], chosen[first:], logits

    return forward
