"""One model, one set of bits: NumPy, JAX, any batch, any chunks, any cache, any mesh."""

import hashlib
import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest
from synthetic import MODEL, write_model

from s7jax import mesh as meshes
from s7jax import s7l
from s7jax.integer import layers as model
from s7jax.integer.lowering import lowered
from s7jax.integer.program import Program, route
from s7jax.integer.specification import Specification

# A change of this hash is a change of the numeric scheme: sealed models would answer otherwise.
GOLDEN = "c46939e68263ad4ac05e502211390d33a06b3a45fc310369b949a0420f424040"
E = len(MODEL["domains"])


def on(seal, shape):
    return Program(seal, meshes.pools(meshes.parse(shape)))


@pytest.fixture(scope="module")
def program(seal):
    return on(seal, "1x1")


@pytest.fixture(scope="module")
def wanted(program, tokens):
    """Logits [1 + E, 512, V] and route [512] of the 512 positions."""
    logits, chosen = program.answer(tokens[None])
    return logits[:, 0], chosen[0]


def in_chunks(program, rows, lengths, slots, e=None):
    """Logits [B, T, V] of trunk or expert e and router logits, fed in chunks."""
    B = len(rows)
    trunk = program.trunk_cache(B, slots)
    expert = None if e is None else program.expert_cache(e, B, slots)
    at, logits, evidence = 0, [], []
    for n in lengths:
        start = np.full(B, at)
        h, found, trunk = program.trunk(rows[:, at : at + n], start, trunk)
        if e is not None:
            h, expert = program.expert(e, h, start, expert)
        logits.append(np.asarray(program.head(h)))
        evidence.append(np.asarray(found))
        at += n
    return np.concatenate(logits, axis=1), np.concatenate(evidence, axis=1)


def test_the_golden_hash_of_512_positions(wanted):
    logits, chosen = wanted
    assert logits.dtype == chosen.dtype == np.int32
    routed = logits[1 + chosen, np.arange(512)].astype("<i4")
    assert hashlib.sha256(routed.tobytes()).hexdigest() == GOLDEN


def test_the_model_is_alive(wanted):
    """Equal bits of a dead model would prove nothing."""
    logits, chosen = wanted
    assert len(set(chosen.tolist())) > 1
    assert len(set(logits[0].argmax(axis=-1).tolist())) > 20
    assert 1 < np.abs(logits / 65_536).max() < 1_000
    assert all(not np.array_equal(logits[0], logits[1 + e]) for e in range(E))


def test_the_specification_agrees(seal, tokens, wanted):
    specification, (logits, chosen) = Specification(seal), wanted
    h = specification.trunk(tokens)
    assert np.array_equal(specification.head(h), logits[0])
    for e in range(E):
        assert np.array_equal(specification.head(specification.expert(e, h)), logits[1 + e])
    assert np.array_equal(specification.route(specification.router(h)), chosen)
    assert np.array_equal(specification.logits(tokens), logits[1 + chosen, np.arange(512)])


def test_the_specification_needs_no_jax(sealed):
    code = (
        "import sys; from s7jax import s7l; from s7jax.integer.specification import Specification;"
        f"Specification(s7l.open({str(sealed)!r})).logits(__import__('numpy').arange(4));"
        "print('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param("2x1", marks=pytest.mark.long(minutes=0.5)),
        pytest.param("1x2", marks=pytest.mark.long(minutes=0.5)),
        pytest.param("4x2", marks=pytest.mark.long(minutes=0.5)),
        pytest.param("8x1", marks=pytest.mark.long(minutes=0.5)),
    ],
)
def test_on_every_mesh(seal, program, shape, tokens, wanted):
    rows = tokens.reshape(8, 64)  # 8 sequences, so that 8 data groups have one each
    logits, chosen = on(seal, shape).answer(rows)
    alone, _ = wanted
    assert np.array_equal(logits[:, 0], alone[:, :64])
    again, same = program.answer(rows)
    assert np.array_equal(logits, again)
    assert np.array_equal(chosen, same)


@pytest.mark.long(minutes=0.3)
@pytest.mark.usefixtures("quick_compiling")
def test_with_experts_spread_over_devices(seal, tokens, wanted):
    logits, _ = on(seal, "2x1x1").answer(tokens[None, :64])
    assert np.array_equal(logits[:, 0], wanted[0][:, :64])


@pytest.mark.usefixtures("quick_compiling")
@pytest.mark.parametrize(
    "lengths",
    [
        pytest.param([7] * 9 + [1], marks=pytest.mark.long(minutes=0.4)),
        pytest.param([64], marks=pytest.mark.long(minutes=0.4)),
        pytest.param([1] * 3 + [7] * 8 + [1] * 5, marks=pytest.mark.long(minutes=0.4)),
        [1] * 64,
    ],
)
def test_in_any_chunks(program, tokens, wanted, lengths):
    (logits, evidence), at = in_chunks(program, tokens[None], lengths, 96, e=1), sum(lengths)
    assert np.array_equal(logits[0], wanted[0][2, :at])
    assert np.array_equal(route(evidence, program.cfg.routing_window)[0], wanted[1][:at])


@pytest.mark.usefixtures("quick_compiling")
@pytest.mark.parametrize("slots", [64, 65])
def test_with_any_cache(program, tokens, wanted, slots):
    logits, _ = in_chunks(program, tokens[None], [64], slots)
    assert np.array_equal(logits[0], wanted[0][0, :64])


@pytest.mark.usefixtures("quick_compiling")
def test_beside_any_others(program, tokens, wanted):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, MODEL["vocab"], (8, 64)).astype(np.int32)
    rows[7] = tokens[:64]
    logits, _ = in_chunks(program, rows, [8] * 8, 64, e=3)
    assert np.array_equal(logits[7], wanted[0][4, :64])


@pytest.mark.usefixtures("quick_compiling")
def test_rows_of_different_lengths_and_padding(program, tokens, wanted):
    """Row 0 continues at position 20, others at 5; their chunks are padded with rubbish."""
    rows = np.stack([tokens[:32]] * 8)  # as many as beside any others: compiled there
    cache = program.trunk_cache(8, 64)
    for at in range(0, 32, 8):  # fills slots far beyond 20 and 5
        _, _, cache = program.trunk(rows[:, at : at + 8], np.full(8, at), cache)
    lengths = np.array([20] + [5] * 7)
    chunk = np.stack([tokens[20:28]] + [tokens[5:13]] * 7)
    chunk[:, 6:] = 99  # what stands after the sixth token is not part of the sequence
    h, _, cache = program.trunk(chunk, lengths, cache)
    logits = np.asarray(program.head(h))
    assert np.array_equal(logits[0, :6], wanted[0][0, 20:26])
    assert np.array_equal(logits[1, :6], wanted[0][0, 5:11])
    chunk = np.stack([tokens[26:34]] + [tokens[11:19]] * 7)
    h, _, cache = program.trunk(chunk, lengths + 6, cache)
    logits = np.asarray(program.head(h))
    assert np.array_equal(logits[0, 0], wanted[0][0, 26])
    assert np.array_equal(logits[1, 0], wanted[0][0, 11])


@pytest.mark.usefixtures("quick_compiling")
def test_a_late_expert_catches_up(program, tokens, wanted):
    """An expert that has seen nothing takes the trunk's outputs so far in one chunk."""
    cache, history = program.trunk_cache(1, 96), []
    for at in range(71):  # one token, 96 slots: compiled for the test of chunks
        h, _, cache = program.trunk(tokens[None, at : at + 1], np.full(1, at), cache)
        history.append(np.asarray(h))
    seen = np.concatenate(history[:64], axis=1)
    _, caught_up = program.expert(2, seen, np.zeros(1), program.expert_cache(2, 1, 96))
    for at in range(64, 71):
        y, caught_up = program.expert(2, history[at], np.full(1, at), caught_up)
        assert np.array_equal(np.asarray(program.head(y))[0, 0], wanted[0][3, at]), at


def test_what_is_compiled_does_not_grow_with_the_layers(seal):
    """The same text but for numbers: one loop, whose body is one layer."""
    cfg = seal.manifest.dimensions
    lines = {
        layers: {
            name: len(low.as_text().splitlines())
            for name, low in lowered(
                replace(
                    cfg,
                    trunk=replace(cfg.trunk, layers=layers),
                    expert=replace(cfg.expert, layers=layers),
                ),
                meshes.single(),
                rows=1,
                length=1,
                slots=8,
            ).items()
        }
        for layers in (1, 64)
    }
    assert lines[64] == lines[1]


@pytest.mark.long(minutes=0.3)
@pytest.mark.usefixtures("quick_compiling")
def test_without_jit(program, tokens, wanted):
    params, cfg = jax.tree.map(np.asarray, program.shared), program.cfg
    params = jax.tree.map(jax.numpy.asarray, params)
    cache = jax.tree.map(jax.numpy.asarray, jax.tree.map(np.asarray, program.trunk_cache(1, 8)))
    with jax.disable_jit():
        row, start = jax.numpy.asarray(tokens[None, :6]), jax.numpy.zeros(1, jax.numpy.int32)
        h, _ = model.trunk(cfg, params, row, start, cache, model.ALONE)
        logits = model.head(params, h.m).m
    assert np.array_equal(logits[0], wanted[0][0, :6])


@pytest.mark.usefixtures("quick_compiling")
@pytest.mark.parametrize("kind", ["largest", "spread"])
def test_extreme_weights_overflow_nowhere(tmp_path, kind):
    """Against the specification, whose products are taken in 64 bits."""

    def weight(name, array):
        rng = np.random.default_rng(len(name))
        if array.dtype == np.int8:
            return np.where(rng.integers(0, 2, array.shape), 127, -127).astype("i1")
        if name.endswith(".residual"):
            return array
        if kind == "largest":
            return np.full_like(array, 2**31 - 1)
        return (2 ** rng.integers(0, 31, array.shape)).astype("<i4")

    write_model(tmp_path, weight=weight)
    s7l.seal(tmp_path / "weights", tmp_path / "vocab.json", tmp_path / "m.s7l")
    seal = s7l.open(tmp_path / "m.s7l")
    row = np.tile(np.array([0, 0, 0, 287, 5], np.int32), 26)[:128]
    program, specification = on(seal, "1x1"), Specification(seal)
    h, _, _ = program.trunk(row[None], np.zeros(1), program.trunk_cache(1, 128))
    exact = specification.trunk(row)
    assert np.array_equal(np.asarray(h)[0], exact)
    y, _ = program.expert(3, h, np.zeros(1), program.expert_cache(3, 1, 128))
    assert np.array_equal(np.asarray(y)[0], specification.expert(3, exact))
    assert np.array_equal(np.asarray(program.head(y))[0], specification.head(np.asarray(y)[0]))
