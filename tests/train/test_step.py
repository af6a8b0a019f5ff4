import dataclasses
import json
import re
import subprocess
import sys
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from s7jax import mesh
from s7jax.config import Config
from s7jax.model import parameters
from s7jax.model.loss import cross_entropy
from s7jax.train import step
from s7jax.train.phase import TRUNK
from s7jax.train.step import (
    Stepper,
    everywhere,
    expert_loss,
    gradient_program,
    initial_state,
    place,
    trunk_loss,
    update_program,
)
from tests import compiling
from tests.compiling import READ_ALONE
from tests.train.training import train_trunk

pytestmark = pytest.mark.usefixtures("compiled_alike")


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


@cache
def stepped(tiny: Config, shape: str, microbatch: int, reduction: str = "tree", steps: int = 1):
    """Parameters on the host and last metrics after a few trunk steps."""
    made = mesh.make(mesh.parse(shape))
    recipe = dataclasses.replace(tiny.trunk, microbatch=microbatch)
    with jax.set_mesh(made):
        start = parameters.initial(tiny.model, 0, made, ("embedding", "trunk"))
        state = initial_state(recipe, start)
    stepper = Stepper(tiny.model, recipe, trunk_loss, made, state, {}, reduction)
    for _ in range(steps):
        metrics = stepper.step(tokens(tiny), 1e-3)
    return parameters.host(stepper.state.params), {k: float(v) for k, v in metrics.items()}


@pytest.mark.parametrize(
    ("shape", "reduction"),
    [
        pytest.param("2x2", "tree", marks=pytest.mark.long(minutes=0.4)),
        pytest.param("8x1", "psum", marks=pytest.mark.long(minutes=0.2)),
        ("2x1", "psum"),
    ],
)
def test_a_step_on_a_mesh_is_the_step_on_one_device_up_to_rounding(tiny, shape, reduction):
    expected, metrics = stepped(tiny, "1x1", 1, steps=2)
    got, got_metrics = stepped(tiny, shape, 1, reduction, steps=2)
    assert got_metrics == pytest.approx(metrics, rel=1e-5)
    # Adam divides by the gradient's own size: where that is near zero, rounding shows.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), got, expected)


@pytest.mark.parametrize("microbatch", [1, 2])
def test_microbatches_add_up_to_the_batch(tiny: Config, microbatch: int):
    _, whole = stepped(tiny, "1x1", 8)
    _, parts = stepped(tiny, "1x1", microbatch)
    assert parts == pytest.approx(whole, rel=1e-5)


def test_the_loss_before_training_is_that_of_a_guess(tiny: Config):
    _, metrics = stepped(tiny, "1x1", 8)
    assert metrics["loss"] == pytest.approx(np.log(tiny.model.vocab), rel=0.15)


def test_the_expert_program_holds_no_trunk_backward(tiny: Config, single):
    """The gradient program of Phase 2 has no product shaped like a trunk weight's gradient."""
    with jax.set_mesh(single):
        params = parameters.initial(tiny.model, 0, single)
        trunk = {name: params[name] for name in ("embedding", "trunk")}
        batch = jax.device_put(tokens(tiny), NamedSharding(single, P("data", None)))
        program = gradient_program(tiny.model, expert_loss)
        text = program.lower(params["expert0"], trunk, batch).as_text()
    produced = set(re.findall(r"stablehlo\.dot_general.*-> tensor<([^>]*)>", text))
    trunk_cfg, expert_cfg, vocab = tiny.model.trunk, tiny.model.expert, tiny.model.vocab
    assert weight_shapes(expert_cfg.hidden, expert_cfg.ffn) <= produced
    assert not weight_shapes(trunk_cfg.hidden, trunk_cfg.ffn) & produced
    assert not {f"{vocab}x{trunk_cfg.hidden}xf32", f"{trunk_cfg.hidden}x{vocab}xf32"} & produced


def weight_shapes(hidden: int, ffn: int) -> set[str]:
    """Results of the products that are weight gradients of a layer."""
    return {f"{a}x{b}xf32" for a, b in ((hidden, hidden), (hidden, ffn), (ffn, hidden))}


@pytest.fixture(scope="module")
def compiled(tiny: Config, single) -> dict[str, str]:
    """The text of what runs in a step: gradients of both phases, Muon's update of an expert."""
    recipe = dataclasses.replace(tiny.experts, optimizer="muon")
    params = parameters.initial(tiny.model, 0, single)
    trained, frozen = params["expert0"], {name: params[name] for name in TRUNK}
    with jax.set_mesh(single):
        batch, one = place(tokens(tiny), single), everywhere(np.float32(1), single)
        state, yes = initial_state(recipe, trained), everywhere(np.bool_(True), single)
        gradient = partial(gradient_program, tiny.model, compute=tiny.compute)
        programs = {
            "Trunk": gradient(trunk_loss).lower(frozen, {}, batch),
            "Expert": gradient(expert_loss).lower(trained, frozen, batch),
            "update": update_program(recipe).lower(state, (one, trained), one, one, yes),
        }
        return {k: program.compile(READ_ALONE).as_text() for k, program in programs.items()}


@pytest.mark.parametrize("trained", ["Trunk", "Expert"])
def test_nor_does_what_is_compiled_of_it(compiled, trained: str):
    """Told by the names that operations carry: what is differentiated stands under transpose.

    The norm in front of the tied head is passed through, but it is not the trunk's layers.
    """
    names = re.findall(r'op_name="([^"]*)"', compiled[trained])
    backward = {name for name in names if "transpose(" in name}
    assert backward
    stacks = ("Trunk", "Expert")
    assert [stack for stack in stacks if any(f"jvp({stack})" in n for n in backward)] == [trained]


def test_no_product_of_a_step_is_left_to_what_splits_its_sums_over_threads(compiled):
    """On CPUs: all go to the library that sums in one order, in Muon, backward and forward."""
    for text in compiled.values():
        given = set(re.findall(r"kind=kCustom, calls=(%\S+?),.*__ynn_fusion", text))
        computations = re.findall(r"^(?:ENTRY )?(%\S+) (\(.*?^})", text, re.M | re.S)
        assert given <= {name for name, _ in computations}
        own = [body for name, body in computations if name not in given]
        assert given
        assert not [line for body in own for line in body.splitlines() if " dot(" in line]


def test_what_a_step_moves_it_moves_explicitly(new_run, monkeypatch):
    """Anything else is refused: here the three scalars of a step, given as the host has them."""
    monkeypatch.setattr(step, "everywhere", lambda value, mesh: value)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        train_trunk(new_run("implicit"))


@pytest.mark.usefixtures("own_programs")
def test_the_loss_curve_is_the_golden_one():
    """To the last bit where compiler and kind of processor are the same, closely elsewhere.

    ``python tests/train/golden.py --update`` makes it anew after a change that is meant.
    """
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("golden.py")],
        env=compiling.full(),
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    golden = json.loads(Path(__file__).with_name("golden.json").read_text())
    if found["made_on"] == golden["made_on"]:
        assert found["losses"] == golden["losses"]
    losses, expected = ([float.fromhex(x) for x in tree["losses"]] for tree in (found, golden))
    assert losses == pytest.approx(expected, rel=1e-4)
    assert losses[-1] < losses[0] - 1
