"""The integer model compiled for a mesh: what it answers for whole sequences."""

from collections.abc import Iterator
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from s7jax.config import ModelConfig, StackConfig
from s7jax.integer import model
from s7jax.integer.model import SPLIT
from s7jax.integer.parameters import LOGIT_BITS, Params, check_bounds, load, spec
from s7jax.mesh import DATA, MODEL
from s7jax.s7l import Seal


class Program:
    """A sealed model on a mesh of data × model devices.

    Raises:
        InputError: the seal's dimensions or values are beyond what exact arithmetic holds, or a
            tensor is not as sealed.
    """

    def __init__(self, seal: Seal, mesh: Mesh) -> None:
        self.mesh = mesh
        self.cfg = config(seal)
        check_bounds(self.cfg)
        self.params: Params = {
            component: load(self.cfg, seal, component, [t.name for t in tensors], mesh)
            for component, tensors in seal.manifest.components.items()
        }

    @cached_property
    def _specs(self) -> Any:
        def at(path: Any, leaf: jax.Array) -> P:
            keys = [str(getattr(key, "key", key)) for key in path if hasattr(key, "key")]
            return spec(".".join(keys)) if leaf.ndim and "rope" not in keys else P()

        return jax.tree_util.tree_map_with_path(at, self.params)

    @cached_property
    def _whole(self) -> Any:
        """Every model's logits for sequences from their start, jitted."""
        logits = P(None, DATA, None, MODEL)
        return jax.jit(
            jax.shard_map(
                partial(_answer, self.cfg),
                mesh=self.mesh,
                in_specs=(self._specs, P(DATA, None)),
                out_specs=(logits, P(DATA, None)),
                check_vma=False,
            )
        )

    def answer(self, tokens_BT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits int32 [1 + E, B, T, V] (trunk first) and the route int32 [B, T].

        B must be divisible by the mesh's data groups. Logits have 16 fraction bits.
        """
        placed = jax.device_put(tokens_BT.astype(np.int32), NamedSharding(self.mesh, P(DATA, None)))
        logits, route = self._whole(self.params, placed)
        return np.asarray(logits), np.asarray(route)


def _answer(cfg: ModelConfig, params: Params, tokens_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    B, T = tokens_BT.shape
    start_B = jnp.zeros(B, jnp.int32)
    cache = model.empty_cache(cfg.trunk, B, T, SPLIT)
    h, _ = model.trunk(cfg, params, tokens_BT, start_B, cache, SPLIT)
    outputs = [h]
    for e in range(len(cfg.domains)):
        cache = model.empty_cache(cfg.expert, B, T, SPLIT)
        p = params[f"expert{e}"]
        outputs.append(model.expert(cfg, params, p, h, start_B, cache, SPLIT)[0])
    logits_BTE = model.router(cfg, params, h)
    before = jnp.zeros((B, cfg.routing_window - 1, len(cfg.domains)), jnp.int32)
    route = model.route(model.evidence(cfg, logits_BTE, before))
    return jnp.stack([model.head(params, x) for x in outputs]), route


def config(seal: Seal) -> ModelConfig:
    """The model configuration of a seal's dimensions."""
    tree = seal.manifest.dimensions.tree()
    stacks: dict[str, Any] = {name: StackConfig(**tree.pop(name)) for name in ("trunk", "expert")}
    return ModelConfig(**tree | {"domains": tuple(tree["domains"])}, **stacks)


def batches(rows: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Rows in batches of exactly ``size``, the last filled with copies; and how many are real."""
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        filled = np.concatenate([batch, np.repeat(batch[:1], size - len(batch), axis=0)])
        yield filled, len(batch)


def nll(logits_BTV: np.ndarray, labels_BT: np.ndarray) -> np.ndarray:
    """Negative log-likelihood in nats, float64 [B, T], of fixed-point logits."""
    real = logits_BTV.astype(np.float64) / (1 << LOGIT_BITS)
    real -= real.max(axis=-1, keepdims=True)
    at = np.take_along_axis(real, labels_BT[..., None], axis=-1)[..., 0]
    return np.log(np.exp(real).sum(axis=-1)) - at
