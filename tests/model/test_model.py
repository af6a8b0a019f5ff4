import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from s7jax import mesh
from s7jax.config import Config
from s7jax.model import language_model as model
from s7jax.model import parameters
from s7jax.model.attention import causal_attention
from s7jax.model.layers import rms_normalize, rope
from s7jax.model.loss import cross_entropy
from s7jax.train.optimizer import learning_rate
from s7jax.train.step import Stepper, initial_state, trunk_loss

pytestmark = pytest.mark.usefixtures("compiled_alike")


@functools.partial(jax.jit, static_argnums=0)
def logits(cfg, params, tokens):
    """Logits of the trunk and of every expert, [1 + E, B, T, V]."""
    h = model.trunk_output(cfg, params, tokens)
    refined = [model.expert_output(cfg, params[f"expert{e}"], h) for e in range(4)]
    return jnp.stack([model.head(cfg, params, x) for x in (h, *refined)])


def grown(params):
    """Parameters of a model whose experts no longer equal the trunk."""
    key = iter(jax.random.split(jax.random.key(9), 64))
    return params | {
        f"expert{e}": jax.tree.map(
            lambda w: w + 0.1 * jax.random.normal(next(key), w.shape), params[f"expert{e}"]
        )
        for e in range(4)
    }


@pytest.fixture(scope="module")
def single():
    with jax.set_mesh(mesh.make(mesh.SINGLE)) as made:
        yield made


@pytest.fixture(scope="module")
def params(tiny: Config):
    return parameters.host(parameters.initial(tiny.model, 0, mesh.make(mesh.SINGLE)))


def random_tokens(cfg, rows, length, seed=0):
    return np.random.default_rng(seed).integers(0, cfg.vocab, (rows, length), dtype=np.int32)


@pytest.mark.usefixtures("single")
def test_changing_a_token_changes_no_logits_before_it(tiny: Config, params):
    cfg, params = tiny.model, grown(params)
    tokens = random_tokens(cfg, 2, cfg.context)
    before = np.asarray(logits(cfg, params, tokens))
    for at in (0, 1, 17, cfg.context - 1):
        changed = tokens.copy()
        changed[:, at] = (changed[:, at] + 1) % cfg.vocab
        after = np.asarray(logits(cfg, params, changed))
        np.testing.assert_array_equal(after[:, :, :at], before[:, :, :at])
        assert (after[:, :, at] != before[:, :, at]).any(axis=(1, 2)).all()


@pytest.mark.usefixtures("single")
def test_gradient_with_respect_to_later_inputs_is_exactly_zero(tiny: Config, params):
    cfg = tiny.model

    def logit_sum(x_BTD, at):
        h = model.Trunk(cfg).apply({"params": params["trunk"]}, x_BTD)
        return model.head(cfg, params, h)[:, at].sum()

    x = np.random.default_rng(1).normal(size=(1, 16, cfg.trunk.hidden)).astype(np.float32)
    x = jax.device_put(x, P("data", None, None))
    gradient = np.asarray(jax.grad(logit_sum)(x, 7))
    assert (gradient[:, 8:] == 0).all()
    assert (gradient[:, :8] != 0).any(axis=(0, 2)).all()


@pytest.mark.usefixtures("single")
def test_an_untrained_expert_is_the_trunk_bit_for_bit(tiny: Config, params):
    out = np.asarray(logits(tiny.model, params, random_tokens(tiny.model, 2, 32)))
    for e in range(4):
        np.testing.assert_array_equal(out[1 + e].view(np.uint32), out[0].view(np.uint32))


@pytest.mark.usefixtures("single")
def test_experts_differ_once_their_weights_do(tiny: Config, params):
    out = np.asarray(logits(tiny.model, grown(params), random_tokens(tiny.model, 1, 32)))
    assert len({out[i].tobytes() for i in range(5)}) == 5


def test_rope_depends_on_relative_position_only():
    q, k = np.random.default_rng(0).normal(size=(2, 1, 1, 1, 16)).astype(np.float32)
    q, k = (np.asarray(rope(jnp.tile(x, (1, 64, 1, 1))))[0, :, 0] for x in (q, k))
    score = q @ k.T
    for offset in (-20, -3, 0, 1, 7, 40):
        diagonal = np.diagonal(score, offset)
        np.testing.assert_allclose(diagonal, diagonal[0], atol=2e-5)
    assert np.ptp([np.diagonal(score, o)[0] for o in range(-8, 8)]) > 0.1


def test_rope_rotates_and_leaves_position_zero_alone():
    x = np.random.default_rng(1).normal(size=(1, 8, 2, 16)).astype(np.float32)
    y = np.asarray(rope(jnp.asarray(x)))
    np.testing.assert_array_equal(y[:, 0], x[:, 0])
    np.testing.assert_allclose(np.square(y).sum(-1), np.square(x).sum(-1), rtol=1e-5)


@pytest.mark.parametrize("T", [9, 150], ids=["whole", "in-pieces"])
def test_attention_against_float64_numpy(T: int):
    rng = np.random.default_rng(2)
    q, k, v = rng.normal(size=(3, 2, T, 2, 8))
    expected = np.zeros_like(q)
    for t in range(T):
        score = np.einsum("bhk,bshk->bhs", q[:, t], k[:, : t + 1]) / np.sqrt(8)
        weight = np.exp(score - score.max(-1, keepdims=True))
        weight /= weight.sum(-1, keepdims=True)
        expected[:, t] = np.einsum("bhs,bshk->bhk", weight, v[:, : t + 1])
    got = jax.jit(causal_attention)(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)))
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_gradients_of_attention_are_those_of_the_whole_square():
    """Scores have a backward pass of their own; here beside what JAX derives from the formula."""

    def whole(q, k, v):
        score = jnp.einsum("bthk,bshk->bhts", q, k) * q.shape[3] ** -0.5
        visible = jnp.tril(jnp.ones(score.shape[2:], bool))[None, None]
        return jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(jnp.where(visible, score, -1e30)), v)

    qkv = np.random.default_rng(4).normal(size=(3, 2, 150, 2, 8)).astype(np.float32)
    found, expected = (
        jax.jit(jax.grad(lambda *qkv, f=f: jnp.sum(jnp.sin(f(*qkv))), (0, 1, 2)))(*qkv)
        for f in (causal_attention, whole)
    )
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_rms_normalize_gives_unit_mean_square():
    x = np.random.default_rng(3).normal(scale=50, size=(4, 64)).astype(np.float32)
    y = np.asarray(rms_normalize(jnp.asarray(x)))
    np.testing.assert_allclose(np.square(y).mean(-1), 1, rtol=1e-5)


@pytest.mark.parametrize("shape", ["8x1", "4x2"])
def test_a_mesh_computes_the_same_function(tiny: Config, params, shape: str):
    cfg, params = tiny.model, grown(params)
    tokens = random_tokens(cfg, 8, 16)
    with jax.set_mesh(mesh.make(mesh.SINGLE)):
        expected = logits(cfg, params, tokens)
    made = mesh.make(mesh.parse(shape))
    with jax.set_mesh(made):
        placed = parameters.put_on_mesh(params, parameters.table(cfg), made)
        got = logits(cfg, placed, jax.device_put(tokens, NamedSharding(made, P("data", None))))
    assert got.sharding.spec == P(None, "data", None, "model")
    np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.long(minutes=0.4)
def test_a_repeating_sequence_is_learnt_and_labels_are_shifted_exactly_once(tiny: Config):
    """Sequences of period 4: every token from the fifth on is the one four before it.

    Only with labels shifted exactly once is the fourth prediction the first that can be right.
    """
    cfg, symbols = tiny.model, 32
    recipe = dataclasses.replace(tiny.trunk, batch=16, microbatch=16)
    made = mesh.make(mesh.SINGLE)
    rng = np.random.default_rng(0)

    def sequences(rows):
        period = rng.integers(0, symbols, (rows, 4), dtype=np.int32)
        return np.tile(period, (1, 9))[:, : cfg.context + 1]

    with jax.set_mesh(made):
        state = initial_state(recipe, parameters.initial(cfg, 0, made, ("embedding", "trunk")))
        stepper = Stepper(cfg, recipe, trunk_loss, made, state, {})
        for i in range(300):
            stepper.step(sequences(16), learning_rate(recipe, i, 300))
        state = stepper.state
        tokens = sequences(64)
        out = model.head(cfg, state.params, model.trunk_output(cfg, state.params, tokens[:, :-1]))
        nll = np.asarray(cross_entropy(out, tokens[:, 1:])).mean(axis=0)
    assert nll[:3].min() > 3, nll  # tokens 2, 3, 4 are new: ln 32 = 3.5
    assert nll[3] < 1, nll  # token 5 is the first copy
    assert nll[4:].max() < 0.3, nll
