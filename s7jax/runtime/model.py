"""A sealed model to run: text in, text and proof out."""

import codecs
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from s7jax import mesh as meshes
from s7jax import s7l
from s7jax.data.tokenizer import Tokenizer
from s7jax.errors import UsageError
from s7jax.integer.sampling import ONE, Sampling
from s7jax.runtime.compute import Compute
from s7jax.runtime.engine import Completion, Engine, Request
from s7jax.runtime.proof import Policy, Proof

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
        """Ids of a prompt: a document begins behind the end of the one before."""
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


class Answer:
    """An answer on its way: iterate for pieces of text, then read ``text`` and ``proof``."""

    def __init__(self, model: Model, request: Request) -> None:
        self._model = model
        self._engine = model.engine(request)
        self.completion: Completion = self._engine.submit(request)
        self._pieces: list[str] = []
        self._shown = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def __iter__(self) -> Iterator[str]:
        """Pieces of text; none ends inside a character."""
        yield from list(self._pieces)
        while self.completion.reason is None or self._shown < len(self.completion.output):
            if self._shown == len(self.completion.output):
                self._engine.step()
                continue
            piece = self._decode()
            if piece:
                self._pieces.append(piece)
                yield piece

    def _decode(self) -> str:
        new = self.completion.output[self._shown :]
        self._shown += len(new)
        stops = self.completion.request.policy.stop
        data = self._model.tokenizer.decode(token for token in new if token not in stops)
        final = self.completion.reason is not None
        return self._decoder.decode(data, final)

    @property
    def text(self) -> str:
        """The whole answer."""
        for _ in self:
            pass
        return "".join(self._pieces)

    @property
    def proof(self) -> Proof:
        """The proof of the whole answer."""
        _ = self.text
        assert self.completion.proof is not None
        return self.completion.proof
