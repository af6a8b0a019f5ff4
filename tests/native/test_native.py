"""The native engine gives the specification's bits: any threads, instructions, batches, chunks."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import random_model
from synthetic import MODEL

from s7jax.architecture import Architecture, Stack
from s7jax.config import PRESETS
from s7jax.errors import UsageError
from s7jax.integer.specification import Specification
from s7jax.native import disassembly, library
from s7jax.native.program import NativeProgram

GOLDEN = "c46939e68263ad4ac05e502211390d33a06b3a45fc310369b949a0420f424040"  # of test_program.py
ISAS = library.instructions()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_the_golden_hash_of_512_positions(seal, tokens, isa, threads):
    logits, chosen = NativeProgram(seal, threads, isa).answer(tokens[None])
    routed = logits[1 + chosen[0], 0, np.arange(512)].astype("<i4")
    assert hashlib.sha256(routed.tobytes()).hexdigest() == GOLDEN


def answered(model, tokens):
    """Trunk's h and router, and logits of trunk and every expert, by the specification."""
    specification = Specification(model)
    h = specification.trunk(tokens)
    outputs = [h] + [
        specification.expert(e, h) for e in range(len(model.manifest.dimensions.domains))
    ]
    return h, specification.router(h), outputs, [specification.head(x) for x in outputs]


def agree(seed, isas, threads, most=11, cfg=None, least=1):
    """A random model over a batch of up to ``most`` rows, by each instruction set."""
    rng = np.random.default_rng(seed)
    model = random_model(rng, cfg)
    d = model.manifest.dimensions
    lengths = rng.integers(least, d.context + 1, rng.integers(1, most + 1))
    rows = [rng.integers(0, d.vocab, n).astype(np.int32) for n in lengths]
    wanted = [answered(model, row) for row in rows]
    for isa in isas:
        answers(NativeProgram(model, threads, isa), rows, wanted, np.random.default_rng(seed))


def answers(program, rows, wanted, rng):
    """What a program answers is what is wanted: in random chunks, experts late."""
    d, lengths = program.cfg, np.array([len(row) for row in rows])
    B, slots = len(rows), int(lengths.max()) + int(rng.integers(0, 3))
    trunk, e = program.trunk_cache(B, slots), int(rng.integers(len(d.domains)))
    history = program.history(B, slots)
    done = np.zeros(B, np.int32)
    while (done < lengths).any():
        most = int(rng.integers(1, 150))
        counts = np.minimum(lengths - done, rng.integers(0, most + 1, B))
        T = max(int(counts.max()), 1)
        chunk = np.zeros((B, T), np.int32)
        for b in range(B):
            chunk[b, : counts[b]] = rows[b][done[b] : done[b] + counts[b]]
        start = np.where(counts > 0, done, slots).astype(np.int32)
        h, router, trunk = program.trunk(chunk, start, trunk, counts.tolist())
        history = program.remember(history, h, start)
        for b in range(B):
            at, n = done[b], counts[b]
            np.testing.assert_array_equal(h[b, :n], wanted[b][0][at : at + n])
            np.testing.assert_array_equal(router[b, :n], wanted[b][1][at : at + n])
        done += counts.astype(np.int32)
    cache, seen = program.expert_cache(e, B, slots), np.zeros(B, np.int32)
    while (seen < lengths).any():
        T = int(rng.integers(1, 200))
        counts = np.minimum(lengths - seen, T)
        start = np.where(counts > 0, seen, slots).astype(np.int32)
        y, cache = program.expert(
            e, program.recall(history, start, T), start, cache, counts.tolist()
        )
        logits = program.head(y, (counts > 0).tolist())
        for b in range(B):
            at, n = seen[b], counts[b]
            np.testing.assert_array_equal(y[b, :n], wanted[b][2][1 + e][at : at + n])
            np.testing.assert_array_equal(logits[b, :n], wanted[b][3][1 + e][at : at + n])
        seen += counts.astype(np.int32)


@given(seed=st.integers(0, 2**32), threads=st.integers(1, 4))
@settings(max_examples=15, deadline=None)
def test_random_models_agree_with_the_specification(seed, threads):
    agree(seed, ISAS, threads)


@pytest.mark.parametrize("ffn", [1_024, 1_025, 2_300])
def test_more_products_than_int32_adds_up(ffn):
    """One run of 1,024 products, one more product, three runs."""
    stack = Stack(layers=1, hidden=24, heads=2, ffn=ffn)
    cfg = Architecture(
        vocab=64, context=60, trunk=stack, expert=stack, domains=("a",), routing_window=8
    )
    for seed in range(6):  # some of them have weights of ±127 alone
        agree(seed, ISAS, 2, most=2, cfg=cfg)


def test_more_positions_than_one_pass_over_keys_takes():
    """Keys in spans of 2,048, values in runs of 1,024."""
    stack = Stack(layers=1, hidden=12, heads=2, ffn=8)
    cfg = Architecture(
        vocab=64, context=2_300, trunk=stack, expert=stack, domains=("a",), routing_window=8
    )
    agree(0, ISAS, 2, most=1, cfg=cfg, least=2_100)


@pytest.mark.long(minutes=8)
@pytest.mark.parametrize("isa", ISAS)
def test_ten_thousand_random_models_agree(isa):
    for seed in range(10_000 // len(ISAS)):
        agree(seed + 1_000_000, [isa], 1 + seed % 3, most=2)


@pytest.mark.long(minutes=4)
@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_agree(name):
    """True dimensions, random weights: every model's logits of a few tokens."""
    rng = np.random.default_rng(5)
    model = random_model(rng, PRESETS[name].model)
    tokens = rng.integers(0, model.manifest.dimensions.vocab, 21).astype(np.int32)
    _, router, _, wanted = answered(model, tokens)
    route = Specification(model).route(router)
    for isa in ISAS:
        logits, chosen = NativeProgram(model, 2, isa).answer(tokens[None])
        assert np.array_equal(logits[:, 0], np.stack(wanted))
        assert np.array_equal(chosen[0], route)


def test_the_machine_code_holds_no_floating_point(tmp_path):
    if not disassembly.possible():
        pytest.skip("no objdump here")
    found = disassembly.instructions(library.path())
    assert len(found) > 5_000, "not taken apart"
    assert not disassembly.floating(found, library.is_arm())
    source = tmp_path / "control.c"
    source.write_text("float f(float x, int n) { return x * 3 + n; } int g(double x) { return x; }")
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", tmp_path / "c.so", source], check=True)
    found = disassembly.instructions(tmp_path / "c.so")
    assert len(disassembly.floating(found, library.is_arm())) >= 3


def test_weights_are_not_copied(seal):
    """A matrix is read where the file is mapped: the pointer lies in the mapping."""
    program = NativeProgram(seal)
    weight = seal.tensor("embedding.weight")
    assert program._shared.embedding.weight == weight.ctypes.data


def test_nothing_of_jax_is_imported(sealed):
    code = (
        "import sys, s7jax\n"
        f"with s7jax.open({str(sealed)!r}, engine='native') as m:\n"
        "    m.generate([1, 2, 3], max_new_tokens=3).text\n"
        "print(sorted({'jax', 'jaxlib', 'flax', 'orbax', 'optax'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_a_forked_process_computes_too(sealed):
    """Threads do not survive a fork; the child starts its own."""
    code = f"""
import os, numpy as np
from s7jax import s7l
from s7jax.native.program import NativeProgram
p = NativeProgram(s7l.open({str(sealed)!r}), 2)
tokens = np.arange(20, dtype=np.int32)[None]
before, _ = p.answer(tokens)
if (pid := os.fork()) == 0:
    os._exit(0 if np.array_equal(p.answer(tokens)[0], before) else 3)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "0\n", done.stderr


@pytest.mark.parametrize(("threads", "isa"), [(0, None), (-1, None), (1, "mmx")])
def test_what_cannot_be_is_refused(seal, threads, isa):
    with pytest.raises(UsageError, match=r"threads|instructions"):
        NativeProgram(seal, threads, isa)


def test_a_cache_of_another_shape_is_refused(seal):
    program = NativeProgram(seal, 1)
    tokens, start = np.zeros((1, 1), np.int32), np.zeros(1, np.int32)
    with pytest.raises(ValueError, match="cache"):
        program.trunk(tokens, start, program.trunk_cache(2, 8))
    with pytest.raises(IndexError, match="token"):
        program.trunk(tokens + MODEL["vocab"], start, program.trunk_cache(1, 8))
