"""Chunked loss, rematerialisation, precision: the same function, other memory and rounding."""

import re
from functools import cache

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from s7jax import mesh
from s7jax.config import ComputeConfig
from s7jax.model import parameters
from s7jax.train.phase import TRUNK
from s7jax.train.step import Stepper, expert_loss, gradient_program, initial_state, trunk_loss

pytestmark = pytest.mark.usefixtures("compiled_alike")

ROWS, CHUNK = 4, 8
EXACT = ComputeConfig()
CHUNKED = ComputeConfig(loss_chunk=CHUNK)
UNEVEN = ComputeConfig(loss_chunk=12)  # 32 = 2 × 12 + 8
REMAT = ComputeConfig(remat=True)
BF16 = ComputeConfig(precision="bf16", loss_chunk=CHUNK)


@pytest.fixture(scope="module")
def gradient(tiny):
    """``(loss, compute, mesh) → (compiled program, loss, gradient)`` of one microbatch."""
    cfg, rng = tiny.model, np.random.default_rng(0)
    tokens = rng.integers(0, cfg.vocab, (ROWS, cfg.context + 1), dtype=np.int32)
    # An expert that starts at zero has almost no gradient: move every weight a little.
    weights = jax.tree.map(
        lambda w: w + 0.05 * rng.standard_normal(w.shape, np.float32),
        parameters.host(parameters.initial(cfg, 0, mesh.make(mesh.SINGLE))),
    )

    @cache
    def run(loss, compute, shape="1x1"):
        made = mesh.make(mesh.parse(shape))
        params = parameters.put_on_mesh(weights, parameters.table(cfg), made)
        trunk = {name: params[name] for name in TRUNK}
        arguments = (trunk, {}) if loss is trunk_loss else (params["expert0"], trunk)
        with jax.set_mesh(made):
            batch = jax.device_put(tokens, NamedSharding(made, P("data", None)))
            program = gradient_program(cfg, loss, compute).lower(*arguments, batch).compile()
            value, grad = program(*arguments, batch)
        return program, value, grad

    return run


def temporary(program) -> int:
    return program.memory_analysis().temp_size_in_bytes


def assert_close(got, expected, tolerance):
    """Each tensor within ``tolerance`` of the largest entry of what it should be."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max()),
        parameters.host(got),
        parameters.host(expected),
    )


@pytest.mark.parametrize("loss", [trunk_loss, expert_loss])
@pytest.mark.parametrize("compute", [CHUNKED, UNEVEN, REMAT], ids=["chunked", "uneven", "remat"])
def test_loss_and_gradient_are_those_of_the_plain_program(gradient, loss, compute):
    _, expected_loss, expected = gradient(loss, EXACT)
    _, got_loss, got = gradient(loss, compute)
    assert float(got_loss) == pytest.approx(float(expected_loss), rel=1e-6)
    assert_close(got, expected, 1e-5)


@pytest.mark.parametrize("loss", [trunk_loss, expert_loss])
def test_in_chunks_the_logits_of_the_whole_never_exist(gradient, loss, tiny):
    T, V = tiny.model.context, tiny.model.vocab
    whole, chunk = ({f"f32[{ROWS},{t},{V}]", f"f32[{ROWS * t},{V}]"} for t in (T, CHUNK))

    def held(compute, shapes):
        text = gradient(loss, compute)[0].as_text()
        return {shape for shape in shapes if shape in text}

    assert held(EXACT, whole)
    assert not held(CHUNKED, whole)
    assert held(CHUNKED, chunk)
    assert temporary(gradient(loss, CHUNKED)[0]) < temporary(gradient(loss, EXACT)[0])


def test_logits_stay_split_over_the_model_axis(gradient, tiny):
    program, loss, grad = gradient(trunk_loss, CHUNKED, "1x2")
    text, V = program.as_text(), tiny.model.vocab
    assert f"[{ROWS},{CHUNK},{V // 2}]" in text or f"[{ROWS * CHUNK},{V // 2}]" in text
    assert f",{V}]" not in text
    _, expected_loss, expected = gradient(trunk_loss, CHUNKED)
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-6)
    assert_close(grad, expected, 1e-5)


def test_rematerialisation_needs_less_memory(gradient):
    for loss in (trunk_loss, expert_loss):
        assert temporary(gradient(loss, REMAT)[0]) < 0.75 * temporary(gradient(loss, EXACT)[0])


@pytest.mark.parametrize("loss", [trunk_loss, expert_loss])
def test_bf16_rounds_the_same_function_and_keeps_float32_gradients(gradient, loss):
    _, expected_loss, expected = gradient(loss, EXACT)
    _, got_loss, got = gradient(loss, BF16)
    assert float(got_loss) == pytest.approx(float(expected_loss), rel=2e-3)
    assert float(got_loss) != float(expected_loss)
    assert_close(got, expected, 0.1)
    assert {leaf.dtype for leaf in jax.tree.leaves((got_loss, got))} == {np.dtype(np.float32)}


def test_products_in_bf16_have_bf16_factors_and_scores_and_logits_are_float32(tiny):
    """In the gradient program as traced; ``(factor, factor, product)`` of each."""
    made, cfg = mesh.make(mesh.SINGLE), tiny.model
    with jax.set_mesh(made):
        trunk = parameters.initial(cfg, 0, made, TRUNK)
        tokens = np.zeros((ROWS, cfg.context + 1), np.int32)
        text = gradient_program(cfg, trunk_loss, BF16).lower(trunk, {}, tokens).as_text()
    products = [
        tuple(re.findall(r"tensor<([^>]*)>", line)[-3:])
        for line in text.splitlines()
        if "dot_general" in line
    ]
    B, T, V, H = ROWS, cfg.context, cfg.vocab, cfg.trunk.heads
    assert {out for *_, out in products if out.startswith(f"{B}x{CHUNK}x{V}x")} == {
        f"{B}x{CHUNK}x{V}xf32"
    }
    assert f"{B}x{H}x{T}x{T}xf32" in {out for *_, out in products}
    for *factors, out in products:
        attention = f"{T}x{T}" in "".join(factors)  # its backward goes on in float32
        assert attention or all(factor.endswith("bf16") for factor in factors), (factors, out)


def test_the_embedding_gradient_is_summed_over_chunks_in_float32(tiny):
    made, cfg = mesh.make(mesh.SINGLE), tiny.model
    with jax.set_mesh(made):
        trunk = parameters.initial(cfg, 0, made, TRUNK)
        tokens = np.zeros((ROWS, cfg.context + 1), np.int32)
        text = gradient_program(cfg, trunk_loss, BF16).lower(trunk, {}, tokens).as_text()
    table = f"tensor<{cfg.vocab}x{cfg.trunk.hidden}x"
    sums = [line for line in text.splitlines() if "stablehlo.add" in line and table in line]
    assert sums
    assert not [line for line in sums if f"{table}bf16>" in line]


def test_parameters_and_moments_stay_float32_in_bf16(tiny):
    made, cfg = mesh.make(mesh.SINGLE), tiny.model
    with jax.set_mesh(made):
        state = initial_state(tiny.trunk, parameters.initial(cfg, 0, made, TRUNK))
    before = {leaf.dtype for leaf in jax.tree.leaves(state)}
    stepper = Stepper(cfg, tiny.trunk, trunk_loss, made, state, {}, compute=BF16)
    batch = np.zeros((tiny.trunk.batch, cfg.context + 1), np.int32)
    metrics = stepper.step(batch, 1e-3)
    assert {leaf.dtype for leaf in jax.tree.leaves(stepper.state)} == before
    assert {leaf.dtype for leaf in metrics.values()} == {np.dtype(np.float32)}
