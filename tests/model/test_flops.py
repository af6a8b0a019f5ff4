"""The operation count, against arithmetic done apart from it and against XLA's own count."""

import dataclasses

import jax
import numpy as np
import pytest

from s7jax import mesh
from s7jax.architecture import parameters
from s7jax.config import ComputeConfig, preset
from s7jax.model.flops import flops_per_token
from s7jax.model.parameters import table
from s7jax.train.step import expert_loss, gradient_program, trunk_loss

CFG = preset("s7-140m").model


@pytest.mark.parametrize(
    ("phase", "causal", "expected"),
    [("trunk", False, 368), ("trunk", True, 311), ("experts", False, 416), ("experts", True, 347)],
)
def test_of_the_specified_model_in_millions(phase, causal, expected):
    """The sizing arithmetic: 6 operations per trained parameter and 12·layers·hidden·context."""
    assert round(flops_per_token(CFG, phase == "trunk", causal) / 1e6) == expected


def test_phase_1_is_six_operations_a_parameter_and_the_palm_term():
    owners = ("embedding", "trunk")
    matrices = sum(p.size for p in parameters(CFG) if p.is_matrix and p.component in owners)
    attention = 12 * CFG.trunk.layers * CFG.trunk.hidden * CFG.context
    assert flops_per_token(CFG, training_trunk=True, causal=False) == 6 * matrices + attention


@pytest.mark.parametrize("phase", ["trunk", "experts"])
def test_it_is_what_xla_counts_in_products(tiny, phase):
    """With one layer a stack XLA's count is whole: a scan of one body, one loss chunk."""
    one = {n: dataclasses.replace(getattr(tiny.model, n), layers=1) for n in ("trunk", "expert")}
    cfg = dataclasses.replace(tiny.model, **one)
    params = table(cfg)
    trunk = {name: params[name] for name in ("embedding", "trunk")}
    rows = 4
    tokens = jax.ShapeDtypeStruct((rows, cfg.context + 1), np.int32)
    loss, arguments = (
        (trunk_loss, (trunk, {})) if phase == "trunk" else (expert_loss, (params["expert0"], trunk))
    )
    with jax.set_mesh(mesh.make(mesh.SINGLE)):
        program = gradient_program(cfg, loss, ComputeConfig()).lower(*arguments, tokens)
    counted = program.cost_analysis()["flops"] / (rows * cfg.context)
    # Beside products XLA counts every elementwise operation: many at so small a size.
    products = flops_per_token(cfg, phase == "trunk", causal=False)
    assert products < counted < 1.6 * products
