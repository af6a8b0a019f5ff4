"""Held-out quality: bits per byte per domain for trunk, experts and routers.

Every model is scored on the same held-out sequences; the router rows are then only choices
among those scores, position by position.
"""

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from s7jax.architecture import Architecture
from s7jax.config import ComputeConfig
from s7jax.data.batching import full_batches
from s7jax.data.mixture import held_out
from s7jax.mesh import DATA
from s7jax.model.language_model import EXACT, Params, expert_output, router_logits, trunk_output
from s7jax.model.loss import losses
from s7jax.model.routing import route
from s7jax.terminal.progress import Progress
from s7jax.train.phase import Phase
from s7jax.train.run import Run
from s7jax.train.step import place

ROWS = 4  # sequences per data-parallel group in one forward pass
WINDOW = 256  # positions over which router accuracy is counted
ROUTERS = ("router", "nearest_centroid")

Scores = dict[str, np.ndarray]


@partial(jax.jit, static_argnums=(0, 1))
def _score(
    cfg: Architecture, compute: ComputeConfig, params: Params, tokens_BT: jax.Array
) -> dict[str, jax.Array]:
    inputs_BT, labels_BT = tokens_BT[:, :-1], tokens_BT[:, 1:]
    h_BTD = trunk_output(cfg, params, inputs_BT)
    refined = [expert_output(cfg, params[f"expert{e}"], h_BTD) for e in range(len(cfg.domains))]
    nll = [losses(cfg, compute, params, h, labels_BT) for h in (h_BTD, *refined)]
    evidence = {
        name: router_logits(cfg, params | {"router": params[name]}, h_BTD) for name in ROUTERS
    }
    routes = {f"{name}_route": route(evidence[name], cfg.routing_window) for name in ROUTERS}
    return {"nll": jnp.stack(nll), **evidence, **routes}


def score(
    cfg: Architecture,
    params: Params,
    tokens: np.ndarray,
    mesh: Mesh,
    compute: ComputeConfig = EXACT,
) -> Scores:
    """Score sequences int32 [N, context + 1] on a mesh, in float32.

    Returns:
        ``nll`` float32 [1 + E, N, T] in nats, trunk first; for each of :data:`ROUTERS` its
        evidence float32 [N, T, E], and ``…_route`` int32 [N, T].
    """
    exact, batches = dataclasses.replace(compute, precision="fp32"), []
    for filled, counted in _batches(tokens, mesh):
        result = jax.tree.map(np.asarray, _score(cfg, exact, params, place(filled, mesh)))
        batches.append({k: _rows(k, v, int(counted.sum())) for k, v in result.items()})
    return {
        name: np.concatenate([b[name] for b in batches], axis=1 if name == "nll" else 0)
        for name in batches[0]
    }


def _batches(tokens: np.ndarray, mesh: Mesh) -> Iterator[tuple[np.ndarray, NDArray[np.bool_]]]:
    """Batches of :data:`ROWS` per group, and which of their rows count."""
    return full_batches(tokens, ROWS * mesh.shape[DATA])


@partial(jax.jit, static_argnums=(0, 1, 2))
def _total_loss(
    cfg: Architecture,
    compute: ComputeConfig,
    expert: bool,
    params: Params,
    frozen: Params,
    tokens_BT: jax.Array,
    counted_B: jax.Array,
) -> jax.Array:
    """Loss over the rows that count, of the trunk or of an expert on it, float32, in nats."""
    shared = frozen if expert else params
    h_BTD = trunk_output(cfg, shared, tokens_BT[:, :-1], compute)
    if expert:
        h_BTD = expert_output(cfg, params, h_BTD, compute)
    nll_BT = losses(cfg, compute, shared, h_BTD, tokens_BT[:, 1:])
    return jnp.sum(nll_BT * counted_B[:, None])


def bits_per_byte(run: Run, phase: Phase, params: Params, frozen: Params) -> dict[str, float]:
    """Held-out bits per byte while training: of the trunk in every domain, of an expert in its own.

    Computed as training computes, on all of the run's mesh, whatever its processes.
    """
    cfg, found = run.config.model, {}
    lengths = run.prepared.tokenizer.token_lengths
    with jax.set_mesh(run.mesh):
        for domain in cfg.domains if phase.expert is None else phase.shares:
            tokens, nats = held_out(run.prepared, domain, run.config.eval_sequences), 0.0
            for filled, counted in _batches(tokens, run.mesh):
                weights = counted.astype(np.float32)
                placed = place(filled, run.mesh), place(weights, run.mesh)
                nats += float(
                    _total_loss(
                        cfg, run.config.compute, phase.expert is not None, params, frozen, *placed
                    )
                )
            found[domain] = nats / (np.log(2) * float(lengths[tokens[:, 1:]].sum()))
    return found


def _rows(name: str, value: np.ndarray, count: int) -> np.ndarray:
    return value[:, :count] if name == "nll" else value[:count]


def evaluate(run: Run, params: Params) -> dict[str, Any]:
    """The quality report on held-out text, as JSON types.

    ``bits_per_byte[domain][model]`` for the trunk, each expert, the routed model, the oracle
    (the domain's own expert); ``routers[name]`` with accuracy on windows of up to
    :data:`WINDOW` tokens, confusion matrix (rows: true domain) and bits per byte per domain.
    """
    cfg = run.config.model
    lengths = run.prepared.tokenizer.token_lengths
    bits: dict[str, dict[str, float]] = {}
    routers: dict[str, dict[str, Any]] = {
        name: {"confusion": [], "bits_per_byte": {}} for name in ROUTERS
    }
    with jax.set_mesh(run.mesh), Progress("evaluate", len(cfg.domains), "domains") as progress:
        for index, domain in enumerate(cfg.domains):
            tokens = held_out(run.prepared, domain, run.config.eval_sequences)
            scores = score(cfg, params, tokens, run.mesh, run.config.compute)
            per_byte = np.log(2) * lengths[tokens[:, 1:]].sum()
            nll = scores["nll"].astype(np.float64)
            trunk, *experts = (nll.sum(axis=(1, 2)) / per_byte).tolist()
            bits[domain] = {"trunk": trunk}
            bits[domain] |= {f"expert{e}": value for e, value in enumerate(experts)}
            for name in ROUTERS:
                chosen = np.take_along_axis(nll[1:], scores[f"{name}_route"][None], axis=0)
                routers[name]["bits_per_byte"][domain] = float(chosen.sum() / per_byte)
                routers[name]["confusion"].append(_window_votes(scores[name]))
            bits[domain]["routed"] = routers["router"]["bits_per_byte"][domain]
            bits[domain]["oracle"] = experts[index]
            progress.advance(1)
    for row in routers.values():
        confusion = np.array(row["confusion"])
        row["accuracy"] = float(np.trace(confusion) / confusion.sum())
    E = len(cfg.domains)
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
    return {"domains": list(cfg.domains), "bits_per_byte": bits, "routers": routers}


def _window_votes(evidence_NTE: np.ndarray) -> list[int]:
    """How many windows go to each expert, by the evidence summed over the whole window."""
    _, T, E = evidence_NTE.shape
    window = min(WINDOW, T)
    used = T // window * window
    sums = evidence_NTE[:, :used].astype(np.float64).reshape(-1, window, E).sum(axis=1)
    return np.bincount(sums.argmax(axis=-1), minlength=E).tolist()
