"""A sealed model beside the float one it was made from, on the same held-out tokens."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from s7jax.architecture import Architecture
from s7jax.data.batching import full_batches
from s7jax.data.mixture import held_out
from s7jax.errors import InputError
from s7jax.integer.loading import LOGIT_BITS
from s7jax.integer.routing import route
from s7jax.mesh import DATA
from s7jax.model.language_model import Params, expert_output, head, router_logits, trunk_output
from s7jax.terminal.progress import Progress
from s7jax.runtime import Compute, Session
from s7jax.runtime.policy import Policy
from s7jax.runtime.prompt import Prompt
from s7jax.s7l import Seal
from s7jax.train.run import Run

ROWS = 2  # sequences per data group at a time
MODELS = ("trunk", "oracle", "routed")

# The route int32 [N], then log-probabilities float64 [N, V] of trunk, expert 0, 1, …
Answer = tuple[np.ndarray, Iterator[np.ndarray]]


@dataclass
class Tally:
    """Sums over positions of one model in one domain."""

    positions: int = 0
    nll: np.ndarray = field(default_factory=lambda: np.zeros(2))  # nats: float, sealed
    agree: int = 0  # positions with the same most likely token
    kl: float = 0.0  # nats, of the sealed model from the float one

    def add(self, exact: np.ndarray, sealed: np.ndarray, labels: np.ndarray) -> None:
        """Log-probabilities [N, V] of both models and labels [N]."""
        rows = np.arange(len(labels))
        self.positions += len(labels)
        self.nll -= [exact[rows, labels].sum(), sealed[rows, labels].sum()]
        self.agree += int((exact.argmax(axis=-1) == sealed.argmax(axis=-1)).sum())
        self.kl += float((np.exp(exact) * (exact - sealed)).sum())

    def figures(self, size: int) -> dict[str, float]:
        """What a report says, for a text of ``size`` bytes."""
        bits = self.nll / np.log(2) / size
        return {
            "bits_per_byte": float(bits[0]),
            "sealed_bits_per_byte": float(bits[1]),
            "perplexity": float(np.exp(self.nll[0] / self.positions)),
            "perplexity_ratio": float(np.exp((self.nll[1] - self.nll[0]) / self.positions)),
            "agreement": self.agree / self.positions,
            "kl": self.kl / self.positions,
        }


def compare(run: Run, params: Params, seal: Seal) -> dict[str, Any]:
    """Quality of the sealed model and of the float parameters, per domain, as JSON types.

    ``sealed[domain][model]`` for the trunk, the oracle (the domain's own expert) and the routed
    model: bits per byte of both, ``perplexity_ratio``, ``agreement`` (share of positions with the
    same most likely token) and mean ``kl`` in nats.

    Raises:
        InputError: the seal is of another architecture or tokenizer.
    """
    cfg, tokenizer = run.config.model, run.prepared.tokenizer
    compute = Compute(seal, run.pools)
    if compute.cfg != cfg:
        raise InputError(f"the sealed model is {compute.cfg}; expected that of {run.folder.path}: {cfg}")
    if list(seal.vocabulary.tokens[1:]) != tokenizer.token_bytes[1:]:
        raise InputError(f"the sealed vocabulary is not that of {run.prepared.path}")
    report: dict[str, Any] = {}
    rows = {d: held_out(run.prepared, d, run.config.eval_sequences) for d in cfg.domains}
    with Progress("compare", sum(map(len, rows.values())), "sequences") as progress:
        for index, domain in enumerate(cfg.domains):
            tallies = {name: Tally() for name in MODELS}
            for batch, counted in full_batches(rows[domain], ROWS * run.mesh.shape[DATA]):
                used = int(counted.sum())
                inputs, labels = batch[:, :-1], batch[:used, 1:].ravel()
                answers = _float(run, params, inputs, used), _sealed(compute, inputs, used)
                _tally(tallies, answers, index, labels)
                progress.advance(used)
            size = int(tokenizer.token_lengths[rows[domain][:, 1:]].sum())
            report[domain] = {name: tally.figures(size) for name, tally in tallies.items()}
    return {"root": seal.root.hex(), "domains": list(cfg.domains), "sealed": report}


def _tally(
    tallies: dict[str, Tally], answers: tuple[Answer, Answer], index: int, labels: np.ndarray
) -> None:
    (route_exact, exact_models), (route_sealed, sealed_models) = answers
    trunk = next(exact_models), next(sealed_models)
    tallies["trunk"].add(*trunk, labels)
    routed = np.empty_like(trunk[0]), np.empty_like(trunk[1])
    for e, (exact, sealed) in enumerate(zip(exact_models, sealed_models, strict=True)):
        if e == index:
            tallies["oracle"].add(exact, sealed, labels)
        routed[0][route_exact == e] = exact[route_exact == e]
        routed[1][route_sealed == e] = sealed[route_sealed == e]
    tallies["routed"].add(*routed, labels)


def _float(run: Run, params: Params, inputs: np.ndarray, used: int) -> Answer:
    cfg = run.config.model
    with jax.set_mesh(run.mesh):
        h, evidence = _float_trunk(
            cfg, params, jax.device_put(inputs, NamedSharding(run.mesh, P(DATA, None)))
        )

    def models() -> Iterator[np.ndarray]:
        for e in (None, *range(len(cfg.domains))):
            with jax.set_mesh(run.mesh):
                refined = h if e is None else _float_expert(cfg, params[f"expert{e}"], h)
                logits = np.asarray(_float_head(cfg, params, refined))
            yield _log_softmax(logits[:used].astype(np.float64))

    return route(_fixed(np.asarray(evidence)), cfg.routing_window)[:used].ravel(), models()


def _sealed(compute: Compute, inputs: np.ndarray, used: int) -> Answer:
    cfg, start = compute.cfg, np.zeros(len(inputs), np.int32)
    sessions = [Session(compute) for _ in inputs]
    prompts = [Prompt(tuple(row)) for row in inputs.tolist()]
    gates = [s.begin(p, Policy()) for s, p in zip(sessions, prompts, strict=True)]
    h, evidence, _ = compute.trunk(gates, inputs, start, compute.trunk_cache(*inputs.shape))

    def models() -> Iterator[np.ndarray]:
        with ExitStack() as ended:
            for session in sessions:
                ended.enter_context(session)
            for e in (None, *range(len(cfg.domains))):
                cache = None if e is None else compute.expert_cache(e, *inputs.shape)
                refined = h if cache is None else compute.expert(gates, e or 0, h, start, cache)[0]
                logits = compute.head(gates, refined)
                yield _log_softmax(logits[:used] / float(1 << LOGIT_BITS))

    return route(evidence, cfg.routing_window)[:used].ravel(), models()


@partial(jax.jit, static_argnums=0)
def _float_trunk(
    cfg: Architecture, params: Params, tokens: jax.Array
) -> tuple[jax.Array, jax.Array]:
    h = trunk_output(cfg, params, tokens)
    return h, router_logits(cfg, params, h)


_float_expert = partial(jax.jit, static_argnums=0)(expert_output)
_float_head = partial(jax.jit, static_argnums=0)(head)


def _fixed(evidence: np.ndarray) -> np.ndarray:
    """The float router's logits in the sealed one's format: one routing rule serves both."""
    return np.round(evidence * (1 << LOGIT_BITS)).astype(np.int32)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    """[B, T, V] → log-probabilities [B · T, V]."""
    flat = logits.reshape(-1, logits.shape[-1])
    flat = flat - flat.max(axis=-1, keepdims=True)
    return flat - np.log(np.exp(flat).sum(axis=-1, keepdims=True))
