"""What is run beside training, compiled: memory by hand, kernels by hand, no float in a seal."""

import importlib.util

import pytest

from s7jax.architecture import counts
from s7jax.config import override, preset
from s7jax.devices import DEVICES
from s7jax.mesh import MeshShape, parse
from s7jax.sizing import process
from s7jax.sizing.compiled import Compiled, compile_use
from s7jax.sizing.plan import platform_of
from s7jax.sizing.schedule import jobs
from s7jax.sizing.uses import Executable, kernels
from s7jax.train.phase import TRUNK

NANO = preset("s7-nano")

TEXT = """HloModule jit_run

%fused_computation (p.0: s32[8]) -> s32[8] {
  %p.0 = s32[8]{0} parameter(0)
  %add.1 = s32[8]{0} add(%p.0, %p.0)
  ROOT %negate.1 = s32[8]{0} negate(%add.1)
}

%body.2 (arg: (s32[], s32[8])) -> (s32[], s32[8]) {
  %arg = (s32[], s32[8]{0}) parameter(0)
  %g.0 = s32[] get-tuple-element(%arg), index=0
  %one = s32[] constant(1)
  %next = s32[]{:T(128)} add(%g.0, %one)
  %g.1 = s32[8]{0} get-tuple-element(%arg), index=1
  %f.1 = s32[8]{0:T(128)} fusion(%g.1), kind=kLoop, calls=%fused_computation
  ROOT %t = (s32[], s32[8]{0}) tuple(%next, %f.1)
}

%condition.3 (arg.1: (s32[], s32[8])) -> pred[] {
  %arg.1 = (s32[], s32[8]{0}) parameter(0)
  %g.2 = s32[] get-tuple-element(%arg.1), index=0
  ROOT %less = pred[] compare(%g.2, %g.2), direction=LT
}

ENTRY %main (a: s32[8]) -> s32[8] {
  %a = s32[8]{0} parameter(0)
  %zero = s32[] constant(0)
  %copy-start = (s32[8]{0}, s32[8]{0:T(128)S(1)}, u32[]{:S(2)}) copy-start(%a)
  %copy-done = s32[8]{0} copy-done(%copy-start)
  %start = (s32[], s32[8]{0}) tuple(%zero, %copy-done)
  %loop = (s32[], s32[8]{0}) while(%start), condition=%condition.3, body=%body.2
  %out = s32[8]{0} get-tuple-element(%loop), index=1
  %f.2 = s32[1]{0} fusion(%out), kind=kInput, calls=%fused_computation
  ROOT %call = s32[8]{0} custom-call(%f.2), custom_call_target="gemm"
}
"""


def test_kernels_are_what_is_launched():
    """A copy, the loop's one fusion, a fusion to a scalar, a library call; no scalar arithmetic."""
    assert kernels(TEXT) == 4


def test_floats_are_told_from_integers():
    found = Executable("decode 1", "head", 0, 0, 0, {}, 0, 0, ["pred", "s8", "u32", "bf16"])
    assert found.floats == ["bf16"]


def test_the_memory_of_a_router_pass_by_hand():
    """Weights, inputs and results are what shapes say, on each of two model-parallel devices."""
    (found,) = compile_use(NANO, "router", parse("1x2"))
    cfg, rows = NANO.model, 8  # of 256 tokens: 2,048 positions
    split = cfg.vocab * 128 + cfg.trunk.layers * (4 * 128**2 + 2 * 128 * 192)
    gains = cfg.trunk.layers * 2 * 128 + 128
    tokens = rows * cfg.context
    assert found["arguments"] == pytest.approx(4 * (split / 2 + gains + tokens), rel=0.01)
    assert found["outputs"] == 4 * tokens * 128
    assert found["collectives"]["all-reduce"] > 0
    assert found["floats"] == ["f32"]


@pytest.mark.long(minutes=2)
@pytest.mark.parametrize(
    ("target", "module"), [("cpu", "jax"), ("v5e", "libtpu"), ("h100", "jax_cuda12_plugin")]
)
def test_the_sealed_model_has_no_float_on_any_target(target, module):
    """In the optimised program, as tests/integer shows it for the processor at hand."""
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    found = compile_use(NANO, "decode 1", MeshShape(data=4, model=1), platform_of(DEVICES[target]))
    assert [program["program"] for program in found] == ["trunk", "expert", "head"]
    for program in found:
        assert program["floats"] == [], program
        assert "s8" in program["types"]
        assert program["kernels"] > 0


def test_what_a_process_of_virtual_devices_holds():
    """By hand: states of all groups, then sums being exchanged, or as many temporaries as cores."""
    config = override(NANO, ["trunk.batch=8", "trunk.microbatch=1"])
    base = process.JAX + process.COMPILER
    found = Compiled(100, 0, 200, 100, 0, 500, {}, 0)
    (job,) = jobs(config, parse("1x1"), "trunk")
    assert process.training(found, job, cores=2) == base + 300 + 2 * 100 + 500
    (job,) = jobs(config, parse("8x1"), "trunk")  # one microbatch in each group
    assert process.training(found, job, cores=2) == base + 8 * (300 + 3 * 100)
    big = Compiled(100, 0, 200, 100, 0, 10_000, {}, 0)
    assert process.training(big, job, cores=2) == base + 8 * (300 + 100) + 2 * 10_000
    (job,) = jobs(config, parse("4x2"), "trunk")
    assert process.training(big, job, cores=2) == base + 8 * (300 + 200) + 4 * 10_000
    two = process.training(big, job, pools=2, cores=2)
    assert two == base + process.COMPILER + 16 * (300 + 200) + 4 * 10_000


def test_what_a_process_holds_that_runs_the_experts_side_by_side():
    programs = [{"temporaries": 70, "outputs": 30}, {"temporaries": 1_000, "outputs": 0}]
    trunk = 4 * sum(n for name, n in counts(NANO.model).items() if name in TRUNK)

    def held(mesh, together):
        found = process.using(programs, NANO, TRUNK, parse(mesh), together, cores=2)
        return found - process.JAX

    assert held("1x1", 1) == trunk + 1_000
    assert held("1x1", 4) == trunk + 2 * 1_000  # as many as cores
    assert held("2x2", 4) == 4 * (trunk // 2) + 4 * 1_000  # each with the other of its group
