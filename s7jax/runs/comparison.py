"""A sealed model beside the float one it was made from, on the same held-out tokens.

Of every model the refined positions are kept, and logits of a few positions at a time.
Shape suffixes: B batch, T time, N positions, D hidden, V vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from s7jax.architecture import Architecture
from s7jax.data.batching import full_batches, group_rows
from s7jax.data.mixture import held_out
from s7jax.errors import InputError
from s7jax.integer.routing import route
from s7jax.integer.sealed import LOGIT_BITS
from s7jax.mesh import DATA
from s7jax.model.language_model import Params, expert_output, head, router_logits, trunk_output
from s7jax.runtime import Compute, Session
from s7jax.runtime.compute import open_compute
from s7jax.runtime.policy import Policy
from s7jax.runtime.prompt import Prompt
from s7jax.s7l import Seal
from s7jax.terminal.progress import Progress
from s7jax.train.run import Run

CHUNK = 128  # positions of a sequence whose logits exist at once
MODELS = ("trunk", "oracle", "routed")


@dataclass(frozen=True)
class Answer:
    """What one side gives for a batch."""

    route: np.ndarray  # int32 [B, T]
    models: int  # trunk, expert 0, 1, …
    logits: Callable[[int, int], np.ndarray]  # (model, start) → [B, CHUNK or T, V], in nats


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


def require_same(run: Run, compute: Compute) -> None:
    """A sealed model must be of a run's architecture and tokenizer.

    Raises:
        InputError: it is not.
    """
    if compute.cfg != run.config.model:
        raise InputError(
            f"the sealed model is {compute.cfg}; expected that of {run.folder.path}: "
            f"{run.config.model}"
        )
    if list(compute.seal.vocabulary.tokens[1:]) != run.prepared.tokenizer.token_bytes[1:]:
        raise InputError(f"the sealed vocabulary is not that of {run.prepared.path}")


def compare(run: Run, params: Params, seal: Seal, sequences: int) -> dict[str, Any]:
    """Quality of the sealed model and of the float parameters, per domain, as JSON types.

    ``sealed[domain][model]`` for the trunk, the oracle (the domain's own expert) and the routed
    model, on as many held-out ``sequences``: bits per byte of both, ``perplexity_ratio``,
    ``agreement`` (share of positions with the same most likely token) and mean ``kl`` in nats.

    Raises:
        InputError: the seal is of another architecture or tokenizer.
    """
    cfg, tokenizer = run.config.model, run.prepared.tokenizer
    alone = len(run.pools) == 1 and run.mesh.size == 1
    compute = open_compute(seal) if alone else Compute(seal, run.pools)
    require_same(run, compute)
    report: dict[str, Any] = {}
    rows = {d: held_out(run.prepared, d, sequences) for d in cfg.domains}
    with Progress("compare", sum(map(len, rows.values())), "sequences") as progress:
        for index, domain in enumerate(cfg.domains):
            tallies = {name: Tally() for name in MODELS}
            groups = run.mesh.shape[DATA]
            size = groups * group_rows(cfg.context, len(rows[domain]), groups)
            for batch, counted in full_batches(rows[domain], size):
                used, inputs = int(counted.sum()), batch[:, :-1]
                with _sealed(compute, inputs) as sealed:
                    answers = _float(run, params, inputs), sealed
                    _tally(tallies, answers, index, batch[:used, 1:])
                progress.advance(used)
            size = int(tokenizer.token_lengths[rows[domain][:, 1:]].sum())
            report[domain] = {name: tally.figures(size) for name, tally in tallies.items()}
    facts = {"root": seal.root.hex(), "domains": list(cfg.domains), "sequences": sequences}
    return {**facts, "sealed": report}


def _tally(
    tallies: dict[str, Tally], answers: tuple[Answer, Answer], index: int, labels_BT: np.ndarray
) -> None:
    """Add the sequences that have labels, chunk by chunk."""
    used, T = labels_BT.shape
    size = min(CHUNK, T)
    for first in range(0, T, size):
        start = min(first, T - size)  # the last chunk ends where the sequence does
        new = slice(first - start, None)
        labels = labels_BT[:, first : start + size].ravel()
        routes = [a.route[:used, first : start + size].ravel() for a in answers]
        routed = [np.empty((len(labels), 0)) for _ in answers]
        for model in range(answers[0].models):
            expert = model - 1
            whole = expert in (-1, index)
            if not whole and not any((chosen == expert).any() for chosen in routes):
                continue
            found = [a.logits(model, start)[:used, new] for a in answers]
            exact, sealed = (x.reshape(len(labels), -1) for x in found)
            if whole:
                name = "trunk" if model == 0 else "oracle"
                tallies[name].add(_log_softmax(exact), _log_softmax(sealed), labels)
            for side, (chosen, logits) in enumerate(zip(routes, (exact, sealed), strict=True)):
                if model == 0:
                    routed[side] = np.empty_like(logits)
                routed[side][chosen == expert] = logits[chosen == expert]
        exact, sealed = map(_log_softmax, routed)
        tallies["routed"].add(exact, sealed, labels)


def _float(run: Run, params: Params, inputs: np.ndarray) -> Answer:
    cfg, mesh = run.config.model, run.mesh
    with jax.set_mesh(mesh):
        tokens = jax.device_put(inputs, NamedSharding(mesh, P(DATA, None)))
        h, evidence = _float_trunk(cfg, params, tokens)
        experts = [params[f"expert{e}"] for e in range(len(cfg.domains))]
        refined = [h, *(_float_expert(cfg, expert, h) for expert in experts)]

    def logits(model: int, start: int) -> np.ndarray:
        with jax.set_mesh(mesh):
            return np.asarray(_float_head(cfg, params, refined[model], np.int32(start)))

    return Answer(route(_fixed(np.asarray(evidence)), cfg.routing_window), len(refined), logits)


@contextmanager
def _sealed(compute: Compute, inputs: np.ndarray) -> Iterator[Answer]:
    cfg, (B, T) = compute.cfg, inputs.shape
    with ExitStack() as ended:
        sessions = [ended.enter_context(Session(compute)) for _ in inputs]
        prompts = [Prompt(tuple(row)) for row in inputs.tolist()]
        gates = [s.begin(p, Policy()) for s, p in zip(sessions, prompts, strict=True)]
        zero = np.zeros(B, np.int32)
        h, evidence, _ = compute.trunk(gates, inputs, zero, compute.trunk_cache(B, T))
        refined = [h]
        for e in range(len(cfg.domains)):
            refined.append(compute.expert(gates, e, h, zero, compute.expert_cache(e, B, T))[0])

        def logits(model: int, start: int) -> np.ndarray:
            chunk = compute.recall(refined[model], zero + np.int32(start), min(CHUNK, T))
            return compute.head(gates, chunk) / float(1 << LOGIT_BITS)

        yield Answer(route(evidence, cfg.routing_window), len(refined), logits)


@partial(jax.jit, static_argnums=0)
def _float_trunk(
    cfg: Architecture, params: Params, tokens: jax.Array
) -> tuple[jax.Array, jax.Array]:
    h = trunk_output(cfg, params, tokens)
    return h, router_logits(cfg, params, h)


_float_expert = partial(jax.jit, static_argnums=0)(expert_output)


@partial(jax.jit, static_argnums=0)
def _float_head(cfg: Architecture, params: Params, h_BTD: jax.Array, start: jax.Array) -> jax.Array:
    size = min(CHUNK, h_BTD.shape[1])
    return head(cfg, params, jax.lax.dynamic_slice_in_dim(h_BTD, start, size, axis=1))


def _fixed(evidence: np.ndarray) -> np.ndarray:
    """The float router's logits in the sealed one's format: one routing rule serves both."""
    return np.round(evidence * (1 << LOGIT_BITS)).astype(np.int32)


def _log_softmax(logits_NV: np.ndarray) -> np.ndarray:
    """Log-probabilities, float64."""
    shifted = logits_NV.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted
