"""A sealed model to run: text in, text and proof out."""

import codecs
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from s7jax import mesh as meshes
from s7jax import s7l
from s7jax.data.tokenizer import Tokenizer
from s7jax.errors import UsageError
from s7jax.integer.routing import route
from s7jax.integer.sampling import ONE, Sampling
from s7jax.runtime import proof as proofs
from s7jax.runtime.compute import Compute
from s7jax.runtime.engine import Completion, Engine, Request
from s7jax.runtime.proof import Forward, Policy, Proof
from s7jax.runtime.session import Session

MOST_ROWS = 8  # of a batch that nobody sized
SLOT_STEP = 256  # positions are reserved in multiples of it, so that few shapes are compiled


def open(
    path: Path | str, *, mesh: str = "1x1", root: bytes | None = None, drafts: int = 0
) -> "Model":
    """Open a sealed model for generation; use as a context manager.

    Args:
        path: the sealed file.
        mesh: ``"DATAxMODEL"`` or ``"POOLSxDATAxMODEL"``; virtual devices on CPUs.
        root: the 32-byte root it must have; without it any honest seal is accepted.
        drafts: tokens the trunk proposes at a time in greedy decoding; the answer is the same.

    Raises:
        SealError: no seal, or another root.
        UsageError: a mesh that does not fit the model or the machine.
    """
    return Model(s7l.open(path, root=root), mesh, drafts)


class Model:
    """An open sealed model.

    Attributes:
        seal: the sealed file: root, manifest, tensors.
        tokenizer: bytes to ids and back.
    """

    def __init__(self, seal: s7l.Seal, mesh: str = "1x1", drafts: int = 0) -> None:
        self.seal = seal
        self.tokenizer = Tokenizer.from_vocabulary(seal.vocabulary.file_tree())
        shape = meshes.parse(mesh)
        meshes.check_model(shape, seal.manifest.dimensions)
        meshes.provision(shape)
        self.compute = Compute(seal, meshes.pools(shape))
        self._drafts = drafts
        self._engines: dict[int, Engine] = {}

    def encode(self, text: str | bytes) -> tuple[int, ...]:
        """Ids of a prompt: a document begins after the end of the one before."""
        return (Tokenizer.eod, *self.tokenizer.encode(text).tolist())

    def policy(
        self,
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: Sequence[int] | None = None,
    ) -> Policy:
        """A decoding policy; what is not given is as sealed. 0 ≤ temperature ≤ 256 (0: greedy).

        Raises:
            UsageError: a value is out of range.
        """
        sealed = self.seal.stream["defaults"]
        most = sealed["max_new_tokens"] if max_new_tokens is None else max_new_tokens
        if not most >= 1:
            raise UsageError(f"max_new_tokens is {most}; expected at least 1")
        sampling = Sampling(
            temperature_q16=round(temperature * ONE),
            top_k=top_k,
            top_p_q16=round(top_p * ONE),
            seed=sealed["seed"] if seed is None else seed,
        )
        stops = sealed["stop"] if stop is None else stop
        return Policy(sampling=sampling, max_new_tokens=most, stop=tuple(stops))

    def generate(self, prompt: str | bytes, **options: Any) -> "Answer":
        """The continuation of a prompt, as it comes; ``options`` as of :meth:`policy`."""
        return Answer(self, Request(self.encode(prompt), self.policy(**options)))

    def generate_all(self, prompts: Sequence[str | bytes], **options: Any) -> list["Answer"]:
        """The continuations of several prompts, made in one batch; all have ended.

        Each is what :meth:`generate` would have given, token for token and proof for proof.
        """
        requests = [Request(self.encode(p), self.policy(**options)) for p in prompts]
        groups = self.compute.groups
        rows = -(-max(1, min(len(requests), MOST_ROWS)) // groups) * groups
        engine = Engine(self.compute, rows, drafts=self._drafts)
        answers = [Answer(self, request, engine) for request in requests]
        engine.run()
        return answers

    def engine(self, request: Request) -> Engine:
        """An engine of one row with room for a request; engines are kept, and hold caches."""
        context = self.compute.cfg.context
        wanted = len(request.prompt) + request.policy.max_new_tokens
        slots = min(context, -(-wanted // SLOT_STEP) * SLOT_STEP)
        if slots not in self._engines:
            rows = self.compute.groups
            self._engines[slots] = Engine(self.compute, rows, slots, self._drafts)
        return self._engines[slots]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._engines.clear()


class TextDecoder:
    """Ids to text as they come; no piece ends inside a character, stop tokens are no text."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[int]) -> None:
        self._tokenizer, self._stops = tokenizer, frozenset(stops)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._fed = 0

    def feed(self, ids: Sequence[int], final: bool) -> str:
        """The text of those ``ids`` (all there are so far) that are new."""
        new, self._fed = ids[self._fed :], len(ids)
        data = self._tokenizer.decode(token for token in new if token not in self._stops)
        return self._decoder.decode(data, final)


class Answer:
    """An answer on its way: iterate for pieces of text, then read ``text`` and ``proof``."""

    def __init__(self, model: Model, request: Request, engine: Engine | None = None) -> None:
        self._model = model
        self._engine = engine or model.engine(request)
        self.completion: Completion = self._engine.submit(request)
        self._pieces: list[str] = []
        self._shown = 0
        self._decoder = TextDecoder(model.tokenizer, request.policy.stop)

    def __iter__(self) -> Iterator[str]:
        """Pieces of text; none ends inside a character."""
        yield from list(self._pieces)
        while self.completion.reason is None or self._shown < len(self.completion.output):
            if self._shown == len(self.completion.output):
                self._engine.step()
                continue
            self._shown = len(self.completion.output)
            ended = self.completion.reason is not None
            piece = self._decoder.feed(self.completion.output, ended)
            if piece:
                self._pieces.append(piece)
                yield piece

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
            "prompt_tokens": len(self.completion.request.prompt),
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
            f"tokens/s with compilation; experts: {route}; root {report['root'][:16]}…]"
        )

    @property
    def proof(self) -> Proof:
        """The proof of the whole answer."""
        _ = self.text
        assert self.completion.proof is not None
        return self.completion.proof


def by_devices(model: Model) -> Forward:
    """The integer model on its mesh as an implementation to replay with."""
    compute = model.compute

    def forward(tokens_T: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        # Padding after the last token changes nothing, and few lengths are compiled.
        length = min(-(-len(tokens_T) // SLOT_STEP) * SLOT_STEP, compute.cfg.context)
        padded = np.pad(tokens_T, (0, length - len(tokens_T)))
        rows, start = np.repeat(padded[None], compute.groups, axis=0), np.zeros(compute.groups)
        with Session(compute) as session:
            gates = [session.begin(tokens_T.tolist(), model.policy())]
            cache = compute.trunk_cache(*rows.shape)
            h, router, _ = compute.trunk(gates, rows, start, cache)
            wanted = slice(first, len(tokens_T))
            chosen = route(router, compute.cfg.routing_window)[0, wanted]
            logits = np.empty((len(chosen), compute.cfg.vocab), np.int32)
            for e in np.unique(chosen):
                cache = compute.expert_cache(int(e), *rows.shape)
                y, _ = compute.expert(gates, int(e), h, start, cache)
                logits[chosen == e] = compute.head(gates, y)[0, wanted][chosen == e]
        return router[0, wanted], chosen, logits

    return forward


def replay(path: Path, seal: s7l.Seal | s7l.Bundle, mesh: str | None = None) -> dict[str, Any]:
    """Compute a proof again, in NumPy or on a mesh; what it holds, as JSON types.

    Raises:
        InputError: the file is no proof, or not of this seal, or a step differs (it is named).
    """
    if isinstance(seal, s7l.Bundle):
        raise UsageError("a proof is replayed with the whole sealed model, not with a bundle")
    found = proofs.load(path)
    forward = by_devices(Model(seal, mesh)) if mesh else proofs.by_specification(seal)
    proofs.replay(found, seal, forward)
    return {"steps": len(found.steps), "end": found.end, "chain": found.chain.hex()}
