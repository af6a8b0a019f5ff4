"""One answer of a request as it stands in a response: text, log-probabilities, route."""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from s7jax.data.tokenizer import EOD
from s7jax.integer.logprobs import BITS
from s7jax.runtime.engine import Request, Score
from s7jax.runtime.model import Model, TextDecoder
from s7jax.server.worker import Running

_WORDS = {"stop": "stop", "time": "time"}
"""OpenAI's word for an end; a time limit has its own, everything else is ``length``."""


@dataclass
class Piece:
    """What is new of an answer; pieces added up are the answer."""

    text: str = ""
    experts: list[int] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float | None] = field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = field(default_factory=list)
    text_offset: list[int] = field(default_factory=list)

    def add(self, other: "Piece") -> None:
        """The other one after this."""
        self.text += other.text
        for name in ("experts", "tokens", "token_logprobs", "top_logprobs", "text_offset"):
            getattr(self, name).extend(getattr(other, name))


class Choice:
    """An answer: fed by the engine, told in pieces or whole.

    Args:
        model: the open model.
        request: what was asked.
        echo: the text of the prompt, to be told before the answer; None: it is not.
        hidden: whether the prompt's first id was put there by the server.
    """

    def __init__(self, model: Model, request: Request, echo: str | None, hidden: bool) -> None:
        self.request = request
        self.running: Running | None = None
        self.reason = ""
        self._model, self._echo, self._hidden = model, echo, hidden
        self._decoder = TextDecoder(model.tokenizer, request.policy)
        self._offsets = codecs.getincrementaldecoder("utf-8")("replace")
        self._count = self._offset = 0

    @property
    def finish(self) -> str:
        """Why it ended, as OpenAI says it."""
        return _WORDS.get(self.reason, "length")

    @property
    def mean_logprob(self) -> float:
        """Of its tokens; 0 if there are none."""
        assert self.running is not None
        assert self.running.completion is not None
        scores = self.running.completion.scores
        return sum(score.logprob for score in scores) / max(len(scores), 1)

    def take(self, count: int, reason: str) -> Piece:
        """What ``count`` tokens and the end, if there is one, add to what was told."""
        assert self.running is not None
        assert self.running.completion is not None
        completion, piece = self.running.completion, Piece()
        if self._echo is not None and (count or reason):
            piece.text = self._echo
            if self.request.logprobs is not None:
                self._add_prompt(piece, completion.prompt_scores)
            self._offset, self._echo = len(self._echo), None
        new = slice(self._count, count)
        piece.experts = completion.experts[new]
        if self.request.logprobs is not None:
            for score in completion.scores[new]:
                self._add(piece, score.token, score)
        piece.text += self._decoder.feed(completion.output[:count], bool(reason))
        self._count, self.reason = count, reason
        return piece

    def _add_prompt(self, piece: Piece, scores: Sequence[Score]) -> None:
        """Every token that was sent; the first has no score unless one was put before it."""
        ids = self.request.prompt.ids
        if not self._hidden:
            self._add(piece, ids[0], None)
        for token, score in zip(ids[1:], scores, strict=False):
            self._add(piece, token, score)

    def _add(self, piece: Piece, token: int, score: Score | None) -> None:
        count = self.request.logprobs
        told = None if score is None else score.logprob / (1 << BITS)
        piece.tokens.append(self._text(token))
        piece.token_logprobs.append(told)
        piece.text_offset.append(self._offset)
        self._offset += len(self._offsets.decode(self._model.tokenizer.token_bytes[token]))
        if count:
            top = {} if score is None else {self._text(i): p / (1 << BITS) for i, p in score.top}
            # The token itself is told too, as OpenAI's users expect.
            piece.top_logprobs.append(None if told is None else {**top, self._text(token): told})

    def _text(self, token: int) -> str:
        data = self._model.tokenizer.token_bytes[token]
        if not data:
            return EOD
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def told(self, index: int, piece: Piece, finish: str | None) -> dict[str, Any]:
        """A piece as an item of ``choices``."""
        scores = {
            "tokens": piece.tokens,
            "token_logprobs": piece.token_logprobs,
            "top_logprobs": piece.top_logprobs if self.request.logprobs else None,
            "text_offset": piece.text_offset,
        }
        return {
            "index": index,
            "text": piece.text,
            "logprobs": None if self.request.logprobs is None else scores,
            "finish_reason": finish,
            "experts": piece.experts,
        }
