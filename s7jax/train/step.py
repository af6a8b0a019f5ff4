"""The training step of both phases, as one compiled program each.

Phase 1 trains embedding and trunk. Phase 2 trains one expert on the frozen trunk: gradients
are taken with respect to the expert alone, so the program holds no trunk backward.
Shape suffixes: N microbatches, B sequences of one, T time, D hidden, V vocabulary.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from s7jax.config import ModelConfig, RecipeConfig
from s7jax.mesh import DATA
from s7jax.model.model import Params, expert_output, head, trunk_output
from s7jax.train.optimizer import adamw


class TrainState(NamedTuple):
    """What training changes: parameters (float32), Adam moments."""

    params: Params
    optimizer: Any


Step = Callable[
    [TrainState, Params, jax.Array, float | np.float32], tuple[TrainState, dict[str, jax.Array]]
]
Loss = Callable[[ModelConfig, Params, Params, jax.Array], jax.Array]


def cross_entropy(logits_BTV: jax.Array, labels_BT: jax.Array) -> jax.Array:
    """Negative log-likelihood per position in nats, float32 [B, T].

    Written as sums over the vocabulary, so that logits split over ``model`` stay split.
    """
    vocabulary = jnp.arange(logits_BTV.shape[-1])
    label_logit_BT = jnp.sum(
        jnp.where(vocabulary == labels_BT[..., None], logits_BTV, 0.0), axis=-1
    )
    return jax.nn.logsumexp(logits_BTV, axis=-1) - label_logit_BT


def trunk_loss(cfg: ModelConfig, params: Params, _: Params, tokens_BT: jax.Array) -> jax.Array:
    """Mean next-token loss of the trunk; ``tokens`` hold one more position than the context."""
    logits_BTV = head(cfg, params, trunk_output(cfg, params, tokens_BT[:, :-1]))
    return jnp.mean(cross_entropy(logits_BTV, tokens_BT[:, 1:]))


def expert_loss(
    cfg: ModelConfig, expert: Params, frozen: Params, tokens_BT: jax.Array
) -> jax.Array:
    """Mean next-token loss of an expert on the frozen trunk."""
    h_BTD = trunk_output(cfg, frozen, tokens_BT[:, :-1])
    logits_BTV = head(cfg, frozen, expert_output(cfg, expert, h_BTD))
    return jnp.mean(cross_entropy(logits_BTV, tokens_BT[:, 1:]))


def initial_state(recipe: RecipeConfig, params: Params) -> TrainState:
    """Fresh moments beside the parameters, sharded as they are."""
    return TrainState(params=params, optimizer=jax.jit(adamw(recipe).init)(params))


def microbatches(tokens: np.ndarray, microbatch: int, mesh: Mesh) -> jax.Array:
    """int32 [batch, T] → [N, B, T] on the mesh, each microbatch split over ``data``."""
    shaped = tokens.reshape(-1, microbatch, tokens.shape[1])
    return jax.device_put(shaped, NamedSharding(mesh, P(None, DATA, None)))


@cache
def make_step(cfg: ModelConfig, recipe: RecipeConfig, loss: Loss) -> Step:
    """The compiled step ``(state, frozen, tokens_NBT, learning_rate) → (state, metrics)``.

    Gradients are summed over the microbatches in order. ``metrics`` are float32 scalars:
    ``loss`` in nats per token and ``grad_norm`` before clipping.
    """
    optimizer = adamw(recipe)

    @partial(jax.jit, donate_argnums=0)
    def step(
        state: TrainState, frozen: Params, tokens_NBT: jax.Array, learning_rate: float
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        def add(total: Any, tokens_BT: jax.Array) -> tuple[Any, None]:
            one = jax.value_and_grad(partial(loss, cfg))(state.params, frozen, tokens_BT)
            return jax.tree.map(jnp.add, total, one), None

        zero = (jnp.float32(0), jax.tree.map(jnp.zeros_like, state.params))
        total, _ = jax.lax.scan(add, zero, tokens_NBT)
        mean_loss, gradient = jax.tree.map(lambda x: x / tokens_NBT.shape[0], total)
        update, moments = optimizer.update(gradient, state.optimizer, state.params)
        params = jax.tree.map(lambda p, u: p - learning_rate * u, state.params, update)
        metrics = {"loss": mean_loss, "grad_norm": optax.tree.norm(gradient)}
        return TrainState(params=params, optimizer=moments), metrics

    return step
