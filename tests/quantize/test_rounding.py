from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from s7jax.errors import InputError
from s7jax.quantize.rounding import fixed_point, per_row_int8, round_tensor

finite = st.floats(-1e3, 1e3, width=32)
matrices = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=finite
)


@given(matrices)
def test_the_specifications_formula_in_exact_rationals(weight):
    """§5, column by column: scale = max|W[:, j]| / 127, round, clamp."""
    quantised, scale = per_row_int8(weight, axis=1)
    assert quantised.dtype == np.int8
    for j in range(weight.shape[1]):
        largest = max(abs(Fraction(float(w))) for w in weight[:, j])
        exact = largest / 127
        assert scale[j] == pytest.approx(float(exact), rel=1e-15)
        for i in range(weight.shape[0]):
            ratio = Fraction(float(weight[i, j])) / exact if exact else 0
            # Half-way cases may fall either way by the last bit of the float64 division.
            assert abs(quantised[i, j] - ratio) <= Fraction(1, 2) + Fraction(1, 10**9)


@given(matrices)
def test_minus_128_never_occurs_and_the_largest_of_each_column_is_127(weight):
    quantised, _ = per_row_int8(weight, axis=1)
    assert np.abs(quantised.astype(int)).max(axis=0).tolist() == [
        127 if column.any() else 0 for column in weight.T
    ]


def test_a_zero_column_costs_the_others_nothing():
    """Its scale is 0, so the shared exponent of all scales is that of the others."""
    weight = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32) * 1e-3
    without = round_tensor("x.weight", weight)
    dead = np.insert(weight, 2, 0.0, axis=1)
    tensors = round_tensor("x.weight", dead)
    assert not tensors["x.weight"][0][:, 2].any()
    assert tensors["x.scale"][0][2] == 0
    assert tensors["x.scale"][1] == without["x.scale"][1]
    for name in ("x.weight", "x.scale"):
        assert np.array_equal(np.delete(tensors[name][0], 2, axis=-1), without[name][0])
    nothing = round_tensor("x.weight", np.zeros((3, 2), np.float32))
    assert not any(array.any() for array, _ in nothing.values())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_by_name(value):
    matrix = np.ones((3, 2), np.float32)
    matrix[1, 1] = value
    for name, tensor in (("trunk.x.weight", matrix), ("trunk.x.gain", matrix[1])):
        with pytest.raises(InputError, match=rf"^{name}: 1 of {tensor.size} values are NaN"):
            round_tensor(name, tensor)


def test_rounding_is_half_to_even():
    weight = np.array([[127.0], [0.5], [1.5], [2.5], [-0.5], [-1.5]], np.float32)
    assert per_row_int8(weight, axis=1)[0].ravel().tolist() == [127, 0, 2, 2, 0, -2]


def test_the_embedding_has_one_scale_per_token():
    table = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
    tensors = round_tensor("embedding.weight", table)
    assert tensors["embedding.weight"][1] == {"axis": 0, "scale": "embedding.scale"}
    assert tensors["embedding.scale"][0].shape == (64,)
    assert np.abs(tensors["embedding.weight"][0]).max(axis=1).tolist() == [127] * 64


@given(hnp.arrays(np.float64, st.integers(1, 8), elements=st.floats(-1e6, 1e6)))
def test_fixed_point_is_as_close_as_the_format_allows(values):
    mantissa, exponent = fixed_point(values)
    assert mantissa.dtype == np.int32
    back = np.ldexp(mantissa.astype(np.float64), exponent - 31)
    np.testing.assert_allclose(back, values, rtol=0, atol=np.abs(values).max() * 2**-30)
    if values.any():
        assert np.abs(mantissa.astype(np.int64)).max() >= 2**30


@pytest.mark.parametrize("value", [1.0, np.nextafter(1.0, 0), np.nextafter(2.0, 0), 1e-30])
def test_fixed_point_at_the_edges_of_a_power_of_two(value):
    mantissa, exponent = fixed_point(np.array([value, -value]))
    assert mantissa[0] == -mantissa[1] > 0
    assert np.ldexp(float(mantissa[0]), exponent - 31) == pytest.approx(value, rel=2**-30)
