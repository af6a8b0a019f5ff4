"""The model: tied embedding, shared trunk, residual experts, linear router.

Parameters are one plain dictionary whose keys are the components of the sealed file:
``embedding``, ``trunk``, ``expert0`` …, ``router``. Every function here is pure and takes the
dictionary (any part of it that holds what the function needs).
Shape suffixes as in :mod:`s7jax.model.layers`, and V vocabulary, E experts.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from s7jax import architecture
from s7jax.architecture import Architecture, Parameter
from s7jax.config import ComputeConfig
from s7jax.model.layers import (
    ACTIVATIONS,
    SPLIT_ACTIVATIONS,
    Linear,
    RMSNorm,
    parameter,
    stack,
)

Params = dict[str, Any]

EXACT = ComputeConfig()  # float32, everything kept
DTYPES = {"fp32": jnp.float32, "bf16": jnp.bfloat16}


def table_products(x_BTD: jax.Array, weight_VD: jax.Array) -> jax.Array:
    """Products of x with every row of the table, float32 [B, T, V], split over the vocabulary.

    Multiplied in the dtype of x, accumulated in float32. Training takes no gradient through
    this: see :mod:`s7jax.model.loss`.
    """
    return jnp.einsum(
        "BTD,VD->BTV",
        x_BTD,
        weight_VD.astype(x_BTD.dtype),
        preferred_element_type=jnp.float32,
        out_sharding=SPLIT_ACTIVATIONS,
    )


class Embedding(nn.Module):
    """Token table, tied with the LM head; split over the vocabulary."""

    cfg: Architecture

    def setup(self) -> None:
        """The table of the architecture."""
        (weight,) = architecture.embedding(self.cfg)
        self.weight = parameter(self, weight)

    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        """int32 [B, T] → [B, T, D]."""
        return self.weight.at[tokens_BT].get(out_sharding=ACTIVATIONS)

    def attend(self, x_BTD: jax.Array) -> jax.Array:
        """[B, T, D] → float32 logits [B, T, V], split over the vocabulary."""
        return table_products(x_BTD, self.weight)


class Trunk(nn.Module):
    """The shared layers, and the final norm that trunk and experts share."""

    cfg: Architecture
    remat: bool = False

    def setup(self) -> None:
        """The layers of the architecture."""
        self.layers = stack(self.cfg.trunk, "layers", self.remat)
        self.final_norm = RMSNorm(_table(architecture.trunk(self.cfg))["final_norm.gain"])

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """Embedded tokens → the residual stream h, before the final norm."""
        return self.layers(x_BTD, None)[0]

    def normalize(self, h_BTD: jax.Array) -> jax.Array:
        """The final norm."""
        return self.final_norm(h_BTD)


class Expert(nn.Module):
    """Residual on the trunk: h + out_proj(norm(layers(in_proj(norm(h))))).

    ``out_proj`` starts at zero, so an untrained expert is the trunk. The two projections are
    replicated: they are a thirtieth of the expert.
    """

    cfg: Architecture
    remat: bool = False

    @nn.compact
    def __call__(self, h_BTD: jax.Array) -> jax.Array:
        """[B, T, trunk hidden] → [B, T, trunk hidden]."""
        table = _table(architecture.expert(self.cfg))
        x = RMSNorm(table["in_norm.gain"], name="in_norm")(h_BTD)
        x = Linear(table["in_proj.weight"], name="in_proj")(x)
        x = stack(self.cfg.expert, "layers", self.remat)(x, None)[0]
        x = RMSNorm(table["out_norm.gain"], name="out_norm")(x)
        return h_BTD + Linear(table["out_proj.weight"], name="out_proj")(x)


class Router(nn.Module):
    """Linear map from the normalised trunk output to one logit per expert.

    Fitted in closed form (:mod:`s7jax.train.router`), never by gradient.
    """

    cfg: Architecture

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """[B, T, D] → [B, T, E]."""
        weight, bias = (parameter(self, p) for p in architecture.router(self.cfg))
        return jnp.einsum("BTD,DE->BTE", x_BTD, weight, out_sharding=ACTIVATIONS) + bias[None, None]


def trunk_output(
    cfg: Architecture, params: Params, tokens_BT: jax.Array, compute: ComputeConfig = EXACT
) -> jax.Array:
    """int32 [B, T] → h [B, T, D], what the trunk hands to the experts.

    Its dtype is that of ``compute.precision``; whatever reads h computes in it.
    """
    x_BTD = Embedding(cfg).apply({"params": params["embedding"]}, tokens_BT)
    x_BTD = x_BTD.astype(DTYPES[compute.precision])
    return Trunk(cfg, compute.remat).apply({"params": params["trunk"]}, x_BTD)


def expert_output(
    cfg: Architecture, expert: Params, h_BTD: jax.Array, compute: ComputeConfig = EXACT
) -> jax.Array:
    """One expert's parameters and h [B, T, D] → its refined h [B, T, D]."""
    return Expert(cfg, compute.remat).apply({"params": expert}, h_BTD)


def normalize(cfg: Architecture, params: Params, h_BTD: jax.Array) -> jax.Array:
    """The shared final norm; what head and router read."""
    return Trunk(cfg).apply({"params": params["trunk"]}, h_BTD, method="normalize")


def head(cfg: Architecture, params: Params, h_BTD: jax.Array) -> jax.Array:
    """h [B, T, D] of trunk or expert → float32 logits [B, T, V]."""
    x_BTD = normalize(cfg, params, h_BTD)
    return Embedding(cfg).apply({"params": params["embedding"]}, x_BTD, method="attend")


def router_logits(cfg: Architecture, params: Params, h_BTD: jax.Array) -> jax.Array:
    """h [B, T, D] of the trunk → the router's evidence per position [B, T, E]."""
    x_BTD = normalize(cfg, params, h_BTD)
    return Router(cfg).apply({"params": params["router"]}, x_BTD)


def _table(parameters: Iterator[Parameter]) -> dict[str, Parameter]:
    return {p.name: p for p in parameters}


def initialize(cfg: Architecture, component: str, key: jax.Array) -> Params:
    """Initial parameters of one component, a pure function of (cfg, kind of component, key).

    Runs under the ambient mesh; see :func:`s7jax.model.parameters.initial`.
    """
    tokens_BT = jnp.zeros((1, 2), jnp.int32)
    h_BTD = jnp.zeros((1, 2, cfg.trunk.hidden), jnp.float32, out_sharding=ACTIVATIONS)

    def run_trunk(module: Trunk, x_BTD: jax.Array) -> jax.Array:
        return module.normalize(module(x_BTD))

    match component.rstrip("0123456789"):
        case "embedding":
            variables = Embedding(cfg).init(key, tokens_BT)
        case "trunk":
            variables = Trunk(cfg).init(key, h_BTD, method=run_trunk)
        case "expert":
            variables = Expert(cfg).init(key, h_BTD)
        case "router":
            variables = Router(cfg).init(key, h_BTD)
        case _:
            raise AssertionError(component)
    return variables["params"]
