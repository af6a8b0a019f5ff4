"""AdamW and Muon with a warmup and a decay of the learning rate, as pure functions."""

import math
from functools import partial
from typing import Any

import jax
import optax
from jax.sharding import PartitionSpec as P

from s7jax.config import Recipe


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Learning rate of a step: linear warmup, then cosine to ``final_lr`` of the peak (§3).

    Short runs warm up over a tenth of their steps at most. Computed on the host in float64
    and given to the step as an argument, so that the compiled step does not depend on the
    length of the run.
    """
    warmup = min(recipe.warmup, steps // 10)
    if step < warmup:
        return recipe.peak_lr * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return recipe.peak_lr * (recipe.final_lr + (1 - recipe.final_lr) * cosine)


def optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """What turns gradients into changes, which still want multiplying by minus the rate.

    The gradient's global norm is clipped; weight decay is decoupled (arXiv 1711.05101).
    ``adamw`` treats all parameters alike. ``muon`` gives it embedding and gains alone: each
    hidden matrix moves along its momentum made orthogonal, at ``muon_rate`` times the rate.
    """
    adamw = optax.chain(
        optax.scale_by_adam(*recipe.betas),
        optax.add_decayed_weights(
            recipe.weight_decay, mask=partial(jax.tree.map_with_path, _decays)
        ),
    )
    if recipe.optimizer == "adamw":
        return optax.chain(optax.clip_by_global_norm(recipe.clip), adamw)
    muon = optax.chain(
        optax.trace(MUON_MOMENTUM, nesterov=True),
        optax.stateless_with_tree_map(lambda update, _: orthogonal(update)),
        optax.add_decayed_weights(recipe.weight_decay),
        optax.scale(recipe.muon_rate),
    )
    labels = partial(jax.tree.map_with_path, _label)
    return optax.chain(
        optax.clip_by_global_norm(recipe.clip),
        optax.partition({"adamw": adamw, "muon": muon}, labels),
    )


MUON_MOMENTUM = 0.95
_NEWTON_SCHULZ = optax.contrib.scale_by_muon(
    beta=0.0,  # the momentum is kept outside, split over devices as the weights are
    nesterov=False,
    weight_dimension_numbers=optax.contrib.MuonDimensionNumbers(-2, -1),
)


def orthogonal(update: jax.Array) -> jax.Array:
    """Matrices [..., in, out] to nearly orthogonal ones, times √max(1, out/in).

    Five Newton-Schulz steps (Muon, https://kellerjordan.github.io/posts/muon). They contract over
    both axes, so every device of a model group computes them whole.
    """
    whole = jax.sharding.reshard(update, P())
    tall = update.shape[-2] > update.shape[-1]
    if tall:
        # A copy: read as columns XLA on CPUs splits the sums of XᵀX by its number of threads.
        whole = jax.lax.optimization_barrier(whole.mT)
    made, _ = _NEWTON_SCHULZ.update(whole, _NEWTON_SCHULZ.init(whole))
    scale = math.sqrt(max(1.0, update.shape[-1] / update.shape[-2]))
    made = scale * (made.mT if tall else made)
    return jax.sharding.reshard(made, jax.typeof(update).sharding.spec)


def _decays(path: tuple[Any, ...], _: Any) -> bool:
    # By name, not by rank: stacked norm gains have rank 2.
    return bool(path[-1].key == "weight")


def _label(path: tuple[Any, ...], _: Any) -> str:
    hidden = _decays(path, None) and path[0].key != "embedding"
    return "muon" if hidden else "adamw"
