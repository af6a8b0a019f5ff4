"""Held-out quality: bits per byte per domain for trunk, experts and routers.

Every model is scored on the same held-out sequences; the router rows are then only choices
among those scores, position by position.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from s7jax.config import ModelConfig
from s7jax.data.mixture import held_out
from s7jax.mesh import DATA
from s7jax.model.loss import cross_entropy
from s7jax.model.model import Params, expert_output, head, router_logits, trunk_output
from s7jax.model.routing import route
from s7jax.progress import Progress
from s7jax.train.phase import Experiment

ROWS = 4  # sequences per data-parallel group in one forward pass
WINDOW = 256  # positions over which router accuracy is counted
ROUTERS = ("router", "nearest_centroid")

Scores = dict[str, np.ndarray]


@partial(jax.jit, static_argnums=0)
def _score(cfg: ModelConfig, params: Params, tokens_BT: jax.Array) -> dict[str, jax.Array]:
    inputs_BT, labels_BT = tokens_BT[:, :-1], tokens_BT[:, 1:]
    h_BTD = trunk_output(cfg, params, inputs_BT)
    refined = [expert_output(cfg, params[f"expert{e}"], h_BTD) for e in range(len(cfg.domains))]
    nll = [cross_entropy(head(cfg, params, h), labels_BT) for h in (h_BTD, *refined)]
    evidence = {
        name: router_logits(cfg, params | {"router": params[name]}, h_BTD) for name in ROUTERS
    }
    routes = {f"{name}_route": route(evidence[name], cfg.routing_window) for name in ROUTERS}
    return {"nll": jnp.stack(nll), **evidence, **routes}


def score(cfg: ModelConfig, params: Params, tokens: np.ndarray, mesh: Mesh) -> Scores:
    """Score sequences int32 [N, context + 1] on a mesh.

    Returns:
        ``nll`` float32 [1 + E, N, T] in nats, trunk first; for each of :data:`ROUTERS` its
        evidence float32 [N, T, E], and ``…_route`` int32 [N, T].
    """
    rows = ROWS * mesh.shape[DATA]
    batches = []
    for start in range(0, len(tokens), rows):
        batch = tokens[start : start + rows]
        # The last batch is filled up with copies of its first row, dropped again below.
        filled = np.concatenate([batch, np.repeat(batch[:1], rows - len(batch), axis=0)])
        placed = jax.device_put(filled, NamedSharding(mesh, P(DATA, None)))
        result = jax.tree.map(np.asarray, _score(cfg, params, placed))
        batches.append({k: _rows(k, v, len(batch)) for k, v in result.items()})
    return {
        name: np.concatenate([b[name] for b in batches], axis=1 if name == "nll" else 0)
        for name in batches[0]
    }


def _rows(name: str, value: np.ndarray, count: int) -> np.ndarray:
    return value[:, :count] if name == "nll" else value[:count]


def evaluate(x: Experiment, params: Params) -> dict[str, Any]:
    """The quality report on held-out text, as JSON types.

    ``bits_per_byte[domain][model]`` for the trunk, each expert, the routed model, the oracle
    (the domain's own expert); ``routers[name]`` with accuracy on windows of up to
    :data:`WINDOW` tokens, confusion matrix (rows: true domain) and bits per byte per domain.
    """
    cfg = x.config.model
    lengths = x.prepared.tokenizer.token_lengths
    bits: dict[str, dict[str, float]] = {}
    routers: dict[str, dict[str, Any]] = {
        name: {"confusion": [], "bits_per_byte": {}} for name in ROUTERS
    }
    with jax.set_mesh(x.mesh), Progress("evaluate", len(cfg.domains), "domains") as progress:
        for index, domain in enumerate(cfg.domains):
            tokens = held_out(x.prepared, domain, x.config.eval_sequences)
            scores = score(cfg, params, tokens, x.mesh)
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
