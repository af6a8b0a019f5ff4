"""What a task asks of a model: how likely text is, and what comes next. Of a run, and of a seal.

Both choose the expert of every position by the one routing rule.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from s7jax.architecture import Architecture
from s7jax.data.batching import full_batches
from s7jax.data.tokenizer import Tokenizer
from s7jax.integer.logprobs import BITS
from s7jax.mesh import DATA
from s7jax.model.language_model import Params, expert_output, head, router_logits, trunk_output
from s7jax.model.layers import ACTIVATIONS
from s7jax.model.routing import route
from s7jax.runtime.engine import Request
from s7jax.runtime.model import Model
from s7jax.terminal.progress import Progress
from s7jax.train.step import place

LOGITS = 1 << 23  # that exist at once in each data group, about
STEP = 128  # lengths are multiples of it: few programs are compiled


class Scores(NamedTuple):
    """Of a sequence of T ids."""

    logprobs: NDArray[np.float64]  # [T - 1] in nats: of each id after the first
    likeliest: NDArray[np.bool_]  # [T - 1]: whether no other id was more likely


class Scorer(Protocol):
    """A model to be asked.

    Attributes:
        tokenizer: text to ids.
        context: ids it reads at most: one less than its context, which has room for an answer.
    """

    tokenizer: Tokenizer
    context: int

    def score(self, rows: Sequence[Sequence[int]]) -> list[Scores]:
        """How likely each id of each row is after those before it; 2 to ``context`` ids a row."""

    def complete(self, prompts: Sequence[Sequence[int]], most: int) -> list[str]:
        """The likeliest continuation of each prompt, of up to so many tokens."""


@partial(jax.jit, static_argnums=0)
def _scores(cfg: Architecture, params: Params, tokens_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log-probability of the next token, float32 [B, T - 1], and the likeliest, int32 [B, T]."""
    h_BTD = trunk_output(cfg, params, tokens_BT)
    chosen_BT1 = route(router_logits(cfg, params, h_BTD), cfg.routing_window)[..., None]
    x_BTD = h_BTD
    for e in range(len(cfg.domains)):
        x_BTD = jnp.where(chosen_BT1 == e, expert_output(cfg, params[f"expert{e}"], h_BTD), x_BTD)
    logits_BTV = jax.sharding.reshard(head(cfg, params, x_BTD), ACTIVATIONS)
    logprob_BTV = jax.nn.log_softmax(logits_BTV[:, :-1])
    label_BT1 = tokens_BT[:, 1:, None]
    found_BT = jnp.take_along_axis(logprob_BTV, label_BT1, axis=-1)[..., 0]
    return found_BT, jnp.argmax(logits_BTV, axis=-1).astype(jnp.int32)


class FloatScorer:
    """The routed float model, in float32 on a mesh, where its parameters are."""

    def __init__(self, cfg: Architecture, params: Params, tokenizer: Tokenizer, mesh: Mesh) -> None:
        self._cfg, self._mesh, self._params = cfg, mesh, params
        self.tokenizer, self.context = tokenizer, cfg.context - 1

    def score(self, rows: Sequence[Sequence[int]]) -> list[Scores]:
        """As :class:`Scorer`; rows of about one length go together."""
        found: list[Scores | None] = [None] * len(rows)
        for indices, tokens_NT in self._by_length(rows):
            scored = zip(indices, tokens_NT, self._run(tokens_NT), strict=True)
            for i, tokens_T, (logprobs, likeliest) in scored:
                n = len(rows[i]) - 1
                same = likeliest[:n] == tokens_T[1 : n + 1]
                found[i] = Scores(logprobs[:n].astype(np.float64), same)
        return [scores for scores in found if scores is not None]

    def complete(self, prompts: Sequence[Sequence[int]], most: int) -> list[str]:
        """As :class:`Scorer`; everything is computed again for every token."""
        rows, before = [list(ids) for ids in prompts], [len(ids) for ids in prompts]
        live = set(range(len(rows)))
        with Progress("complete", most, "tokens") as progress:
            for _ in range(most):
                asked = sorted(live)
                for indices, tokens_NT in self._by_length([rows[i] for i in asked]):
                    for k, (_, likeliest) in zip(indices, self._run(tokens_NT), strict=True):
                        i = asked[k]
                        rows[i].append(int(likeliest[len(rows[i]) - 1]))
                        if rows[i][-1] == self.tokenizer.eod or len(rows[i]) >= self.context:
                            live.discard(i)
                progress.advance(1)
                if not live:
                    break
        texts = (self.tokenizer.decode(ids[n:]) for ids, n in zip(rows, before, strict=True))
        return [text.decode(errors="replace") for text in texts]

    def _by_length(self, rows: Sequence[Sequence[int]]) -> list[tuple[list[int], np.ndarray]]:
        """Indices of rows of one padded length, and the rows, int32 [N, T]."""
        lengths: dict[int, list[int]] = {}
        for i, row in enumerate(rows):
            padded = min(-(-len(row) // STEP) * STEP, self._cfg.context)
            lengths.setdefault(padded, []).append(i)
        groups = []
        for length, indices in sorted(lengths.items()):
            tokens_NT = np.zeros((len(indices), length), np.int32)
            for k, i in enumerate(indices):
                tokens_NT[k, : len(rows[i])] = rows[i]
            groups.append((indices, tokens_NT))
        return groups

    def _run(self, tokens_NT: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        groups = self._mesh.shape[DATA]
        at_once = max(1, LOGITS // (tokens_NT.shape[1] * self._cfg.vocab)) * groups
        found: list[tuple[np.ndarray, np.ndarray]] = []
        with jax.set_mesh(self._mesh):
            for filled, counted in full_batches(tokens_NT, at_once):
                scores = _scores(self._cfg, self._params, place(filled, self._mesh))
                logprobs, likeliest = (np.asarray(x)[counted] for x in scores)
                found += zip(logprobs, likeliest, strict=True)
        return found


class SealedScorer:
    """A sealed model, on integers alone."""

    def __init__(self, model: Model) -> None:
        self.tokenizer, self.context = model.tokenizer, model.compute.cfg.context - 1
        self._model = model

    def score(self, rows: Sequence[Sequence[int]]) -> list[Scores]:
        """As :class:`Scorer`."""
        policy, found = self._model.policy(max_new_tokens=1), []
        requests = [
            Request(self._model.prompt(row), policy, 1, score_prompt=True, generate=False)
            for row in rows
        ]
        for answer in self._model.run_all(requests):
            scores = answer.completion.prompt_scores
            logprobs = np.array([score.logprob / (1 << BITS) for score in scores])
            found.append(Scores(logprobs, np.array([s.logprob >= s.top[0][1] for s in scores])))
        return found

    def complete(self, prompts: Sequence[Sequence[int]], most: int) -> list[str]:
        """As :class:`Scorer`."""
        policy = self._model.policy(max_new_tokens=most)
        requests = [Request(self._model.prompt(ids), policy) for ids in prompts]
        return [answer.text for answer in self._model.run_all(requests)]
