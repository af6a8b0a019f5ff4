"""Held-out quality: bits per byte per domain for trunk, experts and routers.

Every model is scored on the same held-out sequences; the router rows are then only choices
among those scores, position by position.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from numpy.typing import NDArray

from s7jax.architecture import Architecture
from s7jax.config import ComputeConfig
from s7jax.data.batching import full_batches, group_rows
from s7jax.data.mixture import held_out
from s7jax.mesh import DATA
from s7jax.model.language_model import EXACT, Params, expert_output, router_logits, trunk_output
from s7jax.model.loss import losses
from s7jax.model.routing import route
from s7jax.terminal.progress import Progress
from s7jax.train.phase import ROUTERS, TRUNK, Phase
from s7jax.train.run import Run
from s7jax.train.step import place

WINDOW = 256  # positions over which router accuracy is counted
RESAMPLES = 2_000
CHUNK = 256  # positions whose logits exist at once, where the configuration wants all

Scores = dict[str, np.ndarray]


@partial(jax.jit, static_argnums=0)
def trunk_pass(
    cfg: Architecture, params: Params, tokens_BT: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What the trunk hands to the experts, and each router's evidence and route."""
    h_BTD = trunk_output(cfg, params, tokens_BT[:, :-1])
    evidence = {
        name: router_logits(cfg, params | {"router": params[name]}, h_BTD) for name in ROUTERS
    }
    routes = {f"{name}_route": route(evidence[name], cfg.routing_window) for name in ROUTERS}
    return h_BTD, evidence | routes


@partial(jax.jit, static_argnums=(0, 1))
def model_losses(
    cfg: Architecture,
    compute: ComputeConfig,
    shared: Params,
    expert: Params | None,
    h_BTD: jax.Array,
    tokens_BT: jax.Array,
) -> jax.Array:
    """Loss of every position of the trunk, or of an expert on it: all experts run one program."""
    refined_BTD = h_BTD if expert is None else expert_output(cfg, expert, h_BTD)
    return losses(cfg, compute, shared, refined_BTD, tokens_BT[:, 1:])


def exact(compute: ComputeConfig) -> ComputeConfig:
    """How scores are computed: in float32, never with all logits at once."""
    chunk = compute.loss_chunk or CHUNK
    return dataclasses.replace(compute, precision="fp32", loss_chunk=chunk)


def score(
    cfg: Architecture,
    params: Params,
    tokens: np.ndarray,
    mesh: Mesh,
    compute: ComputeConfig = EXACT,
) -> Iterator[Scores]:
    """Score sequences int32 [N, context + 1] on a mesh, in float32, batch after batch.

    One batch exists at a time, of one model at a time, and of its logits one chunk.

    Yields:
        Of B sequences in order: ``nll`` float32 [1 + E, B, T] in nats, trunk first; for each of
        :data:`ROUTERS` its evidence float32 [B, T, E], and ``…_route`` int32 [B, T].
    """
    full = exact(compute)
    shared = {name: params[name] for name in TRUNK}
    routed = shared | {name: params[name] for name in ROUTERS}
    models = [None, *(params[f"expert{e}"] for e in range(len(cfg.domains)))]
    for filled, counted in _batches(tokens, mesh):
        placed, count = place(filled, mesh), int(counted.sum())
        h_BTD, found = trunk_pass(cfg, routed, placed)
        nll = [model_losses(cfg, full, shared, model, h_BTD, placed) for model in models]
        scores = {name: np.asarray(value)[:count] for name, value in found.items()}
        yield {"nll": np.stack([np.asarray(x)[:count] for x in nll]), **scores}


def _batches(tokens: np.ndarray, mesh: Mesh) -> Iterator[tuple[np.ndarray, NDArray[np.bool_]]]:
    """Batches of sequences [N, context + 1], and which of their rows count."""
    groups, (count, length) = mesh.shape[DATA], tokens.shape
    return full_batches(tokens, groups * group_rows(length - 1, count, groups))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _losses(
    cfg: Architecture,
    compute: ComputeConfig,
    expert: bool,
    params: Params,
    frozen: Params,
    tokens_BT: jax.Array,
) -> jax.Array:
    """Loss of each position, of the trunk or of an expert on it, float32 [B, T], in nats."""
    shared = frozen if expert else params
    h_BTD = trunk_output(cfg, shared, tokens_BT[:, :-1], compute)
    if expert:
        h_BTD = expert_output(cfg, params, h_BTD, compute)
    nll_BT = losses(cfg, compute, shared, h_BTD, tokens_BT[:, 1:])
    # On every device, so that every process can read it.
    return jax.sharding.reshard(nll_BT, P())


def bits_per_byte(run: Run, phase: Phase, params: Params, frozen: Params) -> dict[str, float]:
    """Held-out bits per byte while training: of the trunk in every domain, of an expert in its own.

    Computed as training computes, on all of the run's mesh, whatever its processes.
    """
    cfg, expert = run.config.model, phase.expert is not None
    rows = held_out_rows(run, phase.shares if expert else cfg.domains)
    nats = _nats(run, run.config.compute, rows, params, frozen if expert else None)
    return {d: float(nats[d].sum()) / nats_per_bit(run, tokens) for d, tokens in rows.items()}


def trunk_nats(run: Run, trunk: Params) -> dict[str, np.ndarray]:
    """Loss of every held-out document of each domain, float64 [N] nats, of a trunk alone.

    In float32, as :func:`score` computes it.
    """
    rows = held_out_rows(run, run.config.model.domains)
    nats = _nats(run, exact(run.config.compute), rows, trunk)
    return {domain: _by_document(documents(run, rows[domain]), nats[domain]) for domain in rows}


def _nats(
    run: Run,
    compute: ComputeConfig,
    rows: dict[str, np.ndarray],
    params: Params,
    frozen: Params | None = None,
) -> dict[str, np.ndarray]:
    """Nats of every position by domain, float64 [N, T], of a trunk; with ``frozen`` of an expert.

    The expert stands on that trunk.
    """
    nats: list[np.ndarray] = []
    with jax.set_mesh(run.mesh):
        for filled, counted in _batches(np.concatenate(list(rows.values())), run.mesh):
            program = partial(_losses, run.config.model, compute, frozen is not None)
            losses_BT = program(params, frozen or {}, place(filled, run.mesh))
            nats += [*np.asarray(losses_BT)[counted].astype(np.float64)]
    left = iter(nats)
    return {domain: np.stack([*islice(left, len(tokens))]) for domain, tokens in rows.items()}


def held_out_rows(run: Run, domains: Iterable[str]) -> dict[str, np.ndarray]:
    """What evaluation reads, by domain; on a mesh they go in one stream, so that few fill it."""
    return {d: held_out(run.prepared, d, run.config.eval_sequences) for d in domains}


def documents(run: Run, tokens: np.ndarray) -> NDArray[np.int64]:
    """The document each predicted token is of, int64 [N, T], numbered from 0 in the order of text.

    Held-out sequences [N, context + 1] follow each other in the text, so a long document has
    positions in several. The token at its end is the document's.
    """
    last = tokens == run.prepared.tokenizer.eod
    before = np.cumsum(last).reshape(tokens.shape) - last
    _, numbers = np.unique(before[:, 1:], return_inverse=True)
    return np.asarray(numbers, np.int64).reshape(len(tokens), -1)


def nats_per_bit(run: Run, tokens: np.ndarray) -> float:
    """What divides a text's nats to give bits per byte."""
    return float(np.log(2) * run.prepared.tokenizer.token_lengths[tokens[:, 1:]].sum())


def evaluate(run: Run, params: Params) -> dict[str, Any]:
    """The quality report on held-out text, as JSON types.

    ``bits_per_byte[domain][model]`` for the trunk, each expert, the routed model, the oracle
    (the domain's own expert); ``gains[domain][model]`` of that expert and of the routed model: the
    change against the trunk, and its interval (:func:`paired_interval`); ``routers[name]`` with
    accuracy on windows of up to
    :data:`WINDOW` tokens, confusion matrix (rows: true domain) and bits per byte per domain.
    """
    cfg, E = run.config.model, len(run.config.model.domains)
    bits: dict[str, dict[str, float]] = {}
    gains: dict[str, dict[str, list[float]]] = {}
    routers: dict[str, dict[str, Any]] = {
        name: {"confusion": [], "bits_per_byte": {}} for name in ROUTERS
    }
    rows = held_out_rows(run, cfg.domains)
    sums = _summed(run, params, rows)
    for index, ((domain, tokens), total) in enumerate(zip(rows.items(), sums, strict=True)):
        per_byte = nats_per_bit(run, tokens)
        trunk, *experts = (total.nats[: 1 + E] / per_byte).tolist()
        bits[domain] = {"trunk": trunk}
        bits[domain] |= {f"expert{e}": value for e, value in enumerate(experts)}
        for name, nats in zip(ROUTERS, total.nats[1 + E :].tolist(), strict=True):
            routers[name]["bits_per_byte"][domain] = nats / per_byte
            routers[name]["confusion"].append(total.votes[name].tolist())
        bits[domain]["routed"] = routers["router"]["bits_per_byte"][domain]
        bits[domain]["oracle"] = experts[index]
        nats_DM = total.by_document
        gains[domain] = {
            name: paired_interval(nats_DM[:, 0], nats_DM[:, i])
            for name, i in (("oracle", 1 + index), ("routed", 1 + E))
        }
    for row in routers.values():
        confusion = np.array(row["confusion"])
        row["accuracy"] = float(np.trace(confusion) / confusion.sum())
    # What choosing an expert at random, once per sequence, gives on average.
    routers["random"] = {
        "accuracy": 1 / E,
        "bits_per_byte": {
            d: float(np.mean([bits[d][f"expert{e}"] for e in range(E)])) for d in cfg.domains
        },
    }
    routers["oracle"] = {
        "accuracy": 1.0,
        "bits_per_byte": {d: bits[d]["oracle"] for d in cfg.domains},
    }
    return {
        "domains": list(cfg.domains),
        "bits_per_byte": bits,
        "gains": gains,
        "routers": routers,
    }


def nats_by_document(run: Run, params: Params) -> dict[str, dict[str, np.ndarray]]:
    """Loss of every held-out document, float64 [N] nats, by domain and model.

    Models are the trunk, each expert, and what each of :data:`ROUTERS` chooses.
    """
    rows = held_out_rows(run, run.config.model.domains)
    names = ("trunk", *(f"expert{e}" for e in range(len(rows))), *ROUTERS)
    return {
        domain: dict(zip(names, total.by_document.T, strict=True))
        for domain, total in zip(rows, _summed(run, params, rows), strict=True)
    }


def _summed(run: Run, params: Params, rows: dict[str, np.ndarray]) -> list["_Sums"]:
    """Every model's scores on held-out text, of one domain after the other."""
    cfg = run.config.model
    domain_N = np.repeat(np.arange(len(rows)), [len(tokens) for tokens in rows.values()])
    sums = [_Sums(cfg, documents(run, tokens)) for tokens in rows.values()]
    with jax.set_mesh(run.mesh), Progress("evaluate", len(domain_N), "sequences") as progress:
        done, every = 0, np.concatenate(list(rows.values()))
        for scores in score(cfg, params, every, run.mesh, run.config.compute):
            domain_B = domain_N[done : done + scores["nll"].shape[1]]
            for index in np.unique(domain_B):
                sums[index].add(scores, domain_B == index)
            done += len(domain_B)
            progress.advance(len(domain_B))
    return sums


def paired_interval(before_N: np.ndarray, after_N: np.ndarray) -> list[float]:
    """Change of a sum from one model to another on the same documents, and where it may lie.

    Returns:
        after / before − 1; and the 2.5th and 97.5th percentile of it over :data:`RESAMPLES` draws
        of as many documents with replacement (paired bootstrap), the same draws every time.
    """
    return mean_interval([(before_N, after_N)])


def mean_interval(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[float]:
    """The mean of such changes over domains, each of which is drawn from by itself."""
    changes, changes_R = [], np.zeros(RESAMPLES)
    for seed, (before_N, after_N) in enumerate(pairs):
        draws = np.random.default_rng(seed)
        draws_RN = draws.integers(0, len(before_N), (RESAMPLES, len(before_N)))
        changes.append(after_N.sum() / before_N.sum() - 1)
        changes_R += (after_N[draws_RN].sum(1) / before_N[draws_RN].sum(1) - 1) / len(pairs)
    low, high = np.percentile(changes_R, [2.5, 97.5])
    return [float(np.mean(changes)), float(low), float(high)]


class _Sums:
    """What a report needs of one domain's scores, float64."""

    def __init__(self, cfg: Architecture, documents_NT: NDArray[np.int64]) -> None:
        models, experts = 1 + len(cfg.domains) + len(ROUTERS), len(cfg.domains)
        self._documents, self._done = documents_NT, 0
        # [D, 1 + E + R] nats: trunk, experts, routed
        self.by_document = np.zeros((documents_NT.max() + 1, models))
        self.votes = {name: np.zeros(experts, np.int64) for name in ROUTERS}

    @property
    def nats(self) -> NDArray[np.float64]:
        """Of all documents: trunk, experts, routed."""
        return self.by_document.sum(axis=0)

    def add(self, scores: Scores, mine_B: NDArray[np.bool_]) -> None:
        """Add those sequences of a batch that are the domain's, its next ones."""
        nll = scores["nll"][:, mine_B].astype(np.float64)
        documents_BT = self._documents[self._done : self._done + nll.shape[1]]
        self._done += len(documents_BT)
        models = [*nll]
        for name in ROUTERS:
            chosen = np.take_along_axis(nll[1:], scores[f"{name}_route"][mine_B][None], axis=0)
            self.votes[name] += _window_votes(scores[name][mine_B])
            models.append(chosen[0])
        for i, nats_BT in enumerate(models):
            self.by_document[:, i] += _by_document(documents_BT, nats_BT, len(self.by_document))


def _by_document(
    documents_NT: NDArray[np.int64], nats_NT: np.ndarray, least: int = 0
) -> NDArray[np.float64]:
    """Sums by document, of at least so many."""
    sums = np.bincount(documents_NT.ravel(), nats_NT.ravel(), least)
    return np.asarray(sums, np.float64)


def _window_votes(evidence_BTE: np.ndarray) -> NDArray[np.int64]:
    """How many windows go to each expert, by the evidence summed over the whole window."""
    _, T, E = evidence_BTE.shape
    window = min(WINDOW, T)
    used = T // window * window
    sums = evidence_BTE[:, :used].astype(np.float64).reshape(-1, window, E).sum(axis=1)
    return np.bincount(sums.argmax(axis=-1), minlength=E)
