"""Floating-point operations of training, counted from the model's own shapes.

Only matrix products count, a multiplication and an addition each (PaLM, arXiv 2204.02311,
appendix B): norms, GELU, softmax and the optimizer do not, nor does what rematerialisation
computes twice. XLA's own count is no use here: it counts the body of a scan once.
"""

from dataclasses import dataclass

from s7jax.architecture import Architecture, Stack, layer


@dataclass(frozen=True)
class Flops:
    """Operations per token of one part of the model: forward, and both halves of backward."""

    forward: int
    input_gradient: int = 0
    weight_gradient: int = 0

    @property
    def total(self) -> int:
        """All three."""
        return self.forward + self.input_gradient + self.weight_gradient


def breakdown(cfg: Architecture, training_trunk: bool, causal: bool) -> dict[str, Flops]:
    """Operations per trained token of each part of the model, in a full context.

    Phase 1 trains everything it runs. In Phase 2 the trunk only runs forward, and the tied
    head gives its input's gradient but none of its own.

    Args:
        cfg: the model.
        training_trunk: Phase 1; else Phase 2 of an expert.
        causal: count attention's products over the visible half of the keys only; False
            counts the whole square, as PaLM does.
    """
    table = 2 * cfg.vocab * cfg.trunk.hidden
    trunk = {
        "trunk matrices": _trained(_matrices(cfg.trunk), training_trunk),
        "trunk attention": _attention(cfg.trunk, cfg.context, causal, training_trunk),
    }
    if training_trunk:
        return trunk | {"head": _trained(table)}
    projection = 2 * cfg.trunk.hidden * cfg.expert.hidden
    return trunk | {
        "in_proj": Flops(projection, weight_gradient=projection),  # what it reads is frozen
        "expert matrices": _trained(_matrices(cfg.expert)),
        "expert attention": _attention(cfg.expert, cfg.context, causal, True),
        "out_proj": _trained(projection),
        "head": Flops(table, input_gradient=table),
    }


def flops_per_token(cfg: Architecture, training_trunk: bool, causal: bool) -> int:
    """Operations per trained token in all; see :func:`breakdown`."""
    return sum(part.total for part in breakdown(cfg, training_trunk, causal).values())


def _matrices(stack: Stack) -> int:
    """Forward products with the weights of a stack: q, k, v, o, fc1, fc2."""
    return 2 * stack.layers * sum(p.size for p in layer(stack) if p.is_matrix)


def _trained(forward: int, training: bool = True) -> Flops:
    return Flops(forward, forward, forward) if training else Flops(forward)


def _attention(stack: Stack, context: int, causal: bool, training: bool) -> Flops:
    """Scores and weighted sums; backward each factor of both products has a gradient."""
    forward = stack.layers * 4 * context * stack.hidden // (2 if causal else 1)
    return Flops(forward, 2 * forward) if training else Flops(forward)
