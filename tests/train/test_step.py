import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from s7jax import mesh
from s7jax.config import Config
from s7jax.model import parameters
from s7jax.train.step import (
    cross_entropy,
    expert_loss,
    initial_state,
    make_step,
    microbatches,
    trunk_loss,
)


def tokens(tiny: Config, rows: int = 8):
    shape = (rows, tiny.model.context + 1)
    return np.random.default_rng(0).integers(0, tiny.model.vocab, shape, dtype=np.int32)


def test_cross_entropy_is_the_textbook_formula():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(scale=5, size=(2, 3, 7)), rng.integers(0, 7, (2, 3))
    probability = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = -np.log(np.take_along_axis(probability, labels[..., None], -1)[..., 0])
    got = cross_entropy(jnp.asarray(logits, jnp.float32), jnp.asarray(labels))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("shape", ["8x1", "4x2", "1x2"])
def test_a_step_on_a_mesh_is_the_step_on_one_device_up_to_rounding(tiny: Config, shape: str):
    results = []
    for text in ("1x1", shape):
        made = mesh.make(mesh.parse(text))
        with jax.set_mesh(made):
            start = parameters.initial(tiny.model, 0, made, ("embedding", "trunk"))
            state = initial_state(tiny.trunk, start)
            step = make_step(tiny.model, tiny.trunk, trunk_loss)
            for _ in range(2):
                state, metrics = step(state, {}, microbatches(tokens(tiny), 8, made), 1e-3)
            results.append((parameters.host(state.params), float(metrics["loss"])))
    (expected, loss), (got, got_loss) = results
    assert got_loss == pytest.approx(loss, rel=1e-5)
    # Adam divides by the gradient's own size: where that is near zero, rounding shows.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), got, expected)


def test_microbatches_add_up_to_the_batch(tiny: Config, single):
    with jax.set_mesh(single):
        losses = []
        for size in (8, 2):
            start = parameters.initial(tiny.model, 0, single, ("embedding", "trunk"))
            step = make_step(tiny.model, tiny.trunk, trunk_loss)
            batch = microbatches(tokens(tiny), size, single)
            _, metrics = step(initial_state(tiny.trunk, start), {}, batch, 1e-3)
            losses.append((float(metrics["loss"]), float(metrics["grad_norm"])))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_expert_step_holds_no_trunk_backward(tiny: Config, single):
    """The compiled program of Phase 2 has no array of a trunk weight's gradient."""
    made = single
    with jax.set_mesh(made):
        params = parameters.initial(tiny.model, 0, made)
        trunk = {name: params[name] for name in ("embedding", "trunk")}
        state = initial_state(tiny.experts, params["expert0"])
        step = make_step(tiny.model, tiny.experts, expert_loss)
        batch = jax.device_put(tokens(tiny)[None], NamedSharding(made, P(None, "data", None)))
        text = step.lower(state, trunk, batch, 1e-3).as_text()
    produced = set(re.findall(r"stablehlo\.dot_general.*-> tensor<([^>]*)>", text))
    trunk_cfg, expert_cfg, vocab = tiny.model.trunk, tiny.model.expert, tiny.model.vocab
    assert weight_shapes(expert_cfg.hidden, expert_cfg.ffn) <= produced
    assert not weight_shapes(trunk_cfg.hidden, trunk_cfg.ffn) & produced
    assert not {f"{vocab}x{trunk_cfg.hidden}xf32", f"{trunk_cfg.hidden}x{vocab}xf32"} & produced


def weight_shapes(hidden: int, ffn: int) -> set[str]:
    """Results of the products that are weight gradients of a layer."""
    return {f"{a}x{b}xf32" for a, b in ((hidden, hidden), (hidden, ffn), (ffn, hidden))}
