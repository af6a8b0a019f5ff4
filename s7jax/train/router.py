"""The router, fitted in closed form: ridge regression from trunk output to domain.

A = XᵀX and B = XᵀY are accumulated in float64 over labelled training sequences in a fixed
order, and (A + λI) W = B is solved once: no gradient, no seed (after DUME,
arXiv 2603.29765). X is the normalised trunk output at every position with a constant 1
appended, Y the one-hot domain. The same sums give the nearest-centroid classifier that reports
compare it with; both are linear maps, and the routing rule applies to either.
"""

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from s7jax.architecture import Architecture
from s7jax.data.batching import group_rows
from s7jax.data.mixture import TrainingBatches
from s7jax.mesh import DATA
from s7jax.model import parameters
from s7jax.model.language_model import Params, normalize, trunk_output
from s7jax.terminal.progress import Progress
from s7jax.train import checkpoint
from s7jax.train.phase import ROUTERS
from s7jax.train.run import Run, inputs_record

RIDGE = 1e-2  # λ


@dataclass(frozen=True)
class Sums:
    """Sufficient statistics over positions, float64."""

    xx: np.ndarray  # [D + 1, D + 1]
    xy: np.ndarray  # [D + 1, E]; the last row counts positions per domain


def ridge(sums: Sums) -> Params:
    """Weight [D, E] and bias [E], float32, of the ridge regression."""
    identity = np.eye(len(sums.xx))
    solution = np.linalg.solve(sums.xx + RIDGE * identity, sums.xy)
    return _linear(solution[:-1], solution[-1])


def nearest_centroid(sums: Sums) -> Params:
    """The classifier by the nearest domain mean, as a linear map: x·c − |c|²/2."""
    centroids = sums.xy[:-1] / sums.xy[-1]
    return _linear(centroids, -0.5 * np.square(centroids).sum(axis=0))


def _linear(weight: np.ndarray, bias: np.ndarray) -> Params:
    return {"weight": weight.astype(np.float32), "bias": bias.astype(np.float32)}


def accumulate(run: Run, trunk: Params) -> Sums:
    """The sums over ``router_sequences`` training sequences of each domain, one after the other."""
    config, cfg = run.config, run.config.model
    D, E = cfg.trunk.hidden, len(cfg.domains)
    xx, xy = np.zeros((D + 1, D + 1)), np.zeros((D + 1, E))
    groups = run.mesh.shape[DATA]
    rows = groups * group_rows(cfg.context, config.router_sequences, groups)
    batches = -(-config.router_sequences // rows)
    with (
        jax.set_mesh(run.mesh),
        Progress("router", E * config.router_sequences, "sequences") as progress,
    ):
        for e, domain in enumerate(cfg.domains):
            data = TrainingBatches(run.prepared, shares={domain: 1}, batch=rows, seed=config.seed)
            for i in range(batches):
                tokens = data.batch(i).tokens[:, :-1]
                h_BTD = features(cfg, trunk, _split(tokens, run.mesh))
                keep = min(rows, config.router_sequences - i * rows)
                for h_TD in np.asarray(h_BTD)[:keep]:
                    x_TD = np.ones((len(h_TD), D + 1))
                    x_TD[:, :-1] = h_TD
                    xx += x_TD.T @ x_TD
                    xy[:, e] += x_TD.sum(axis=0)
                progress.advance(keep)
    return Sums(xx, xy)


@partial(jax.jit, static_argnums=0)
def features(cfg: Architecture, trunk: Params, tokens_BT: jax.Array) -> jax.Array:
    """The normalised trunk output [B, T, D] that the fit reads."""
    return normalize(cfg, trunk, trunk_output(cfg, trunk, tokens_BT))


def _split(tokens: np.ndarray, mesh: Mesh) -> jax.Array:
    return jax.device_put(tokens, NamedSharding(mesh, P(DATA, None)))


def fit(run: Run, trunk: Params) -> str:
    """Fit and save the router (and the centroids beside it); returns the SHA-256 of both.

    A router that was fitted to other domains or data is replaced: it costs one forward pass.
    """
    folder = run.folder.final("router")
    inputs = inputs_record(run, "router", trunk)
    if folder.is_dir() and (done := _fitted(folder, inputs)):
        print(f"router: already fitted, parameters sha256 {done}")
        return done
    sums = accumulate(run, trunk)
    params = {"router": ridge(sums), "nearest_centroid": nearest_centroid(sums)}
    record = {"phase": "router", "config": run.config.to_json(), "inputs": inputs}
    fresh = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    sha256 = checkpoint.save_final(fresh, params, record)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
    print(f"router: fitted in closed form, parameters sha256 {sha256}")
    return sha256


def _fitted(folder: Path, inputs: dict[str, Any]) -> str | None:
    """SHA-256 of a router that was fitted to these inputs; None if to others."""
    record = checkpoint.read_record(folder)
    if record["inputs"] == inputs:
        return str(record["params_sha256"])
    print(f"router: {folder} was fitted to other domains or data; it is fitted again")
    return None


def load_routers(run: Run) -> Params:
    """``router`` and ``nearest_centroid``, verified, on the mesh.

    Raises:
        InputError: not fitted, or damaged.
    """
    table = parameters.table(run.config.model)["router"]
    like = parameters.abstract(dict.fromkeys(ROUTERS, table), run.mesh)
    return checkpoint.restore_final(run.folder.final("router"), like)
