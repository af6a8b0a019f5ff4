"""AdamW with a warmup-cosine schedule, as pure functions."""

import math

import jax
import optax

from s7jax.config import Recipe
from s7jax.model.language_model import Params


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


def adamw(recipe: Recipe) -> optax.GradientTransformation:
    """Clip by global norm, Adam moments, decoupled decay on matrices (arXiv 1711.05101).

    The result still wants multiplying by minus the learning rate.
    """
    return optax.chain(
        optax.clip_by_global_norm(recipe.clip),
        optax.scale_by_adam(*recipe.betas),
        optax.add_decayed_weights(recipe.weight_decay, mask=_is_matrix),
    )


def _is_matrix(params: Params) -> Params:
    # By name, not by rank: stacked norm gains have rank 2.
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "weight", params)
