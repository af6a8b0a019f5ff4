"""No float and no 64-bit number, from token ids to logits: in what is traced and what is run."""

import dataclasses
import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s7jax import mesh as meshes
from s7jax.errors import InputError, UsageError
from s7jax.integer import layers as model
from s7jax.integer import operators as op
from s7jax.integer.program import Program
from s7jax.integer.sealed import check_bounds
from tests.compiling import READ_ALONE

INTEGERS = {"int8", "int16", "int32", "uint32", "bool"}
# Every element type that XLA knows, as it is written in HLO: s8[4,2], f32[], pred[1].
TYPE = re.compile(r"\b(pred|[suf]\d+|bf16|f8e\w+|c64|c128|token|opaque)\[")


@pytest.fixture(scope="module")
def compiled(seal):
    """``length → {name: text of the compiled program}``."""
    program = Program(seal, meshes.pools(meshes.parse("1x2")))

    @cache
    def texts(length):
        lowered = program.lowered(rows=1, length=length, slots=16)
        return {name: low.compile(READ_ALONE).as_text() for name, low in lowered.items()}

    return texts


def types_of(jaxpr):
    for eqn in jaxpr.eqns:
        for var in (*eqn.invars, *eqn.outvars):
            if hasattr(var.aval, "dtype"):
                yield str(var.aval.dtype), eqn.primitive.name
        for value in eqn.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns"):
                    yield from types_of(inner)


def test_the_traced_program(seal):
    program = Program(seal, meshes.pools(meshes.parse("1x1")))
    traced = program.traced(rows=1, length=3, slots=16)
    assert set(traced) == {"trunk", "expert", "head"}
    for name, jaxpr in traced.items():
        seen = dict(types_of(jaxpr.jaxpr))
        assert seen, name
        assert set(seen) <= INTEGERS, (name, seen)


@pytest.mark.parametrize("length", [8, pytest.param(1, marks=pytest.mark.long(minutes=0.5))])
def test_the_compiled_program(compiled, length):
    """Of a prefill and of a decoding step."""
    for name, text in compiled(length).items():
        seen = set(TYPE.findall(text))
        assert seen <= {"pred", "s8", "s16", "s32", "u8", "u32"}, (name, seen)
        assert "s8" in seen, name


def test_collectives_are_integer_sums_and_maxima(compiled):
    text = compiled(8)["trunk"]
    reducers = set(re.findall(r"all-reduce(?:-start)?\(.*?to_apply=%?([\w.]+)", text))
    assert reducers
    for name in reducers:
        body = re.search(rf"%?{re.escape(name)} \(.*?\n}}", text, re.DOTALL)[0]
        root = re.search(r"ROOT .*? (\w+)\(", body)[1]
        assert root in {"add", "maximum"}, body


def test_a_float_would_be_found():
    traced = jax.make_jaxpr(lambda x: (x.astype(jnp.float32) * 2).astype(jnp.int32))(jnp.arange(3))
    assert not set(dict(types_of(traced.jaxpr))) <= INTEGERS


@pytest.mark.parametrize("width", [64, 768, 1_024, 2_048])
def test_sums_of_extremes_are_exact(width):
    """All ±127, the longest contractions: against Python's integers."""
    rng = np.random.default_rng(width)
    for a in (
        np.full((1, 2, width), op.WIDE),
        np.full((1, 2, width), -op.WIDE),
        rng.choice([-op.WIDE, op.WIDE], (1, 2, width)),
    ):
        w = rng.choice([-127, 127], (width, 4)).astype(np.int8)
        w[:, 0] = 127
        sums = model.accumulate(jnp.asarray(a, jnp.int32), jnp.asarray(w), width)
        exact = a.astype(object) @ w.astype(object)
        wanted = [(x * 2**sums.bits + 64) // 128 for x in exact.ravel()]
        assert np.asarray(sums.m).ravel().tolist() == wanted
        assert max(map(abs, wanted)) <= sums.bound < 2**30


def test_dimensions_beyond_the_bounds_are_refused(seal):
    cfg = seal.manifest.dimensions
    check_bounds(cfg)
    with pytest.raises(UsageError, match="context is 131072"):
        check_bounds(dataclasses.replace(cfg, context=1 << 17))
    wide = dataclasses.replace(cfg.trunk, ffn=1 << 17)
    with pytest.raises(InputError, match="products over trunk ffn"):
        check_bounds(dataclasses.replace(cfg, trunk=wide))
