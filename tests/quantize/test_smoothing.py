"""Smoothing moves factors between neighbours: same function, better integers."""

import math

import numpy as np
import pytest
from integers import quantised_outputs
from reference import CFG, Reference, lively, tokens

from s7jax.model.parameters import host, named_tensors
from s7jax.quantize import smoothing
from s7jax.quantize.calibrate import Ranges, calibrate
from s7jax.quantize.rounding import fixed_point
from s7jax.quantize.smoothing import group_of, smoothed

pytestmark = pytest.mark.usefixtures("compiled_alike")

ROWS = tokens(6)


def every_group(named, ranges):
    result = {}
    for group in sorted({group_of(name) for name in named}):
        members = [(name, x) for name, x in named.items() if group_of(name) == group]
        result |= smoothed(group, members, ranges)
    return result


@pytest.fixture(scope="module")
def params():
    return lively()


@pytest.fixture(scope="module")
def named(params):
    return dict(named_tensors(host(params)))


@pytest.fixture(scope="module")
def ranges(params):
    return calibrate(CFG, params, {"rows": ROWS})


@pytest.fixture(scope="module")
def exact(named):
    return Reference(named).outputs(ROWS[:, :-1])


def test_the_smoothed_function_is_the_original(named, ranges, exact):
    """To float64 rounding, with every gain that smoothing adds in its place."""
    tensors = every_group(named, ranges)
    assert tensors.keys() - named.keys() == {
        name
        for s, stack in (("trunk", CFG.trunk), ("expert0", CFG.expert), ("expert1", CFG.expert))
        for name in (
            f"{s}.residual",
            *(
                f"{s}.layer{i}.{gained}.gain"
                for i in range(stack.layers)
                for gained in ("attn.q", "attn.k", "attn.o_proj", "ffn.fc2")
            ),
        )
    }
    found = Reference(tensors).outputs(ROWS[:, :-1])
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-11 * np.abs(exact).max())


def test_it_does_change_every_matrix_of_a_layer(named, ranges):
    tensors = every_group(named, ranges)
    for name in named:
        moved = not np.array_equal(tensors[name], named[name])
        assert moved == (name.split(".")[0] not in ("embedding", "router") and "final" not in name)


def test_smoothing_balances_what_enters_a_matrix_with_its_weights(named, ranges):
    """α = ½: afterwards activation and weight of a channel are equally large, up to one factor."""
    tensors = every_group(named, ranges)
    for name, gained in (("layer0.ffn.fc1", "layer0.ffn_norm"), ("layer1.attn.o_proj",) * 2):
        before = named.get(f"trunk.{gained}.gain", 1.0)
        if gained.endswith("o_proj"):
            before = smoothing._static_scale(ranges.usual["trunk.layer1.attn.v"])
            activation = ranges.largest[f"trunk.{name}"] / before
        else:
            activation = ranges.largest[f"trunk.{name}"] / before
        after = activation * tensors[f"trunk.{gained}.gain"]
        ratio = after / np.abs(tensors[f"trunk.{name}.weight"]).max(axis=1)
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-9)


def test_keys_and_values_are_static_and_fill_int8(named, ranges):
    tensors = every_group(named, ranges)
    for layer in ("trunk.layer0", "expert1.layer0"):
        k, q = tensors[f"{layer}.attn.k.gain"], tensors[f"{layer}.attn.q.gain"]
        np.testing.assert_allclose(k * ranges.usual[f"{layer}.attn.k"], 127, rtol=1e-12)
        np.testing.assert_allclose(k * q, 1, rtol=1e-12)
    seen = Reference(tensors)
    seen.outputs(ROWS[:, :-1])
    for name in (f"{s}.layer0.attn.v" for s in ("trunk", "expert0")):
        largest = np.abs(np.concatenate(seen.seen[name])).max(axis=0)
        assert (largest <= 127.001).all()
        assert (largest > 100).all()


def test_residual_streams_have_room_for_eight_times_what_was_seen(named, ranges):
    tensors = every_group(named, ranges)
    for segment, peak in ranges.streams.items():
        bits = int(tensors[f"{segment}.residual"][0])
        largest = peak * 8 * 2.0**bits
        assert 2**28 <= largest < 2**29


@pytest.mark.parametrize("peak", [0.0, 1e-9, 1e-3, 1.0, 3.9, 1e6])
def test_fraction_bits_stay_where_the_integer_model_takes_them(peak):
    ranges = Ranges({}, {}, {"trunk": peak}, {})
    bits = int(smoothed("trunk", [], ranges)["trunk.residual"][0])
    assert -16 <= bits <= 26
    assert peak * 8 * 2.0**bits < 2**30


def outliers(named):
    """Channels whose activations are tiny and whose weights are huge: the same function at first.

    Such rows set the scale of every output channel, and leave the others' weights few of their
    eight bits.
    """
    for layer in ("trunk.layer0", "trunk.layer1", "expert0.layer0", "expert1.layer0"):
        for norm, matrices in (
            ("attn_norm", ["attn.q", "attn.k", "attn.v"]),
            ("ffn_norm", ["ffn"]),
        ):
            named[f"{layer}.{norm}.gain"][::9] /= 1_000
            for matrix in matrices:
                name = f"{layer}.{matrix}{'.fc1' if matrix == 'ffn' else '_proj'}.weight"
                named[name][::9] *= 1_000


def error(params):
    """Root mean square error of the quantised model's logits against the float64 model's."""
    exact = Reference(dict(named_tensors(host(params)))).outputs(ROWS[:, :-1])
    found = quantised_outputs(CFG, params, ROWS)
    return math.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2))


def test_the_quantised_model_is_close_and_smoothing_makes_outliers_harmless(params, monkeypatch):
    plain, spiky = error(params), error(lively(change=outliers))
    assert plain < 0.03
    assert spiky < 1.5 * plain
    monkeypatch.setattr(smoothing, "_sigma", lambda activations, rows: np.ones(len(rows)))
    assert error(lively(change=outliers)) > 5 * spiky


def test_a_zero_channel_costs_the_others_nothing():
    """A dead FFN unit, a dead value, a dead pair of keys: every other gain keeps its bits."""

    def kill(named):
        named["trunk.layer0.ffn.fc1.weight"][:, 5] = 0
        named["trunk.layer0.attn.v_proj.weight"][:, 3] = 0
        named["trunk.layer0.attn.k_proj.weight"][:, [2, 2 + CFG.trunk.head_dim // 2]] = 0

    params = lively(change=kill)
    tensors = every_group(dict(named_tensors(host(params))), calibrate(CFG, params, {"rows": ROWS}))
    for name, dead in (("ffn.fc2", [5]), ("attn.o_proj", [3]), ("attn.k", [2, 10])):
        gain = tensors[f"trunk.layer0.{name}.gain"]
        _, exponent = fixed_point(gain)
        assert exponent == fixed_point(np.delete(gain, dead))[1], name
    assert error(params) < 0.03
