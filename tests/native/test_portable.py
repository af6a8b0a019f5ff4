"""The same bits on other processors, and a clean bill from the sanitizers.

The engine is built with a small driver and run by itself: under user-mode emulation for 64-bit ARM,
RISC-V and big-endian s390x, and here with the address, undefined-behaviour and thread sanitizers.
"""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from models import random_model

from s7jax.integer import tables
from s7jax.integer.specification import Specification
from s7jax.native import library
from s7jax.native.program import NativeProgram

ROOT = Path(__file__).parent.parent.parent
SOURCES = [Path(__file__).parent / "driver.c", *sorted((ROOT / "s7jax/native").glob("*.c"))]
FLAGS = ("-std=c11", "-O2", "-pthread", "-Wall", "-Wextra", "-Werror")
ARCHITECTURES = ("aarch64", "riscv64", "s390x")


def built(folder, compiler, *flags):
    """The driver, compiled and linked."""
    command = [compiler, *FLAGS, *flags, "-o", str(folder / "driver"), *map(str, SOURCES)]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "driver"


class Case:
    """A model and tokens as the driver reads them, and what the specification answers."""

    def __init__(self, model, tokens, chunk):
        d = model.manifest.dimensions
        program = NativeProgram(model, 1)
        program._cover(len(tokens))
        shared = program._shared
        self.parts = []
        self.numbers(d.context, d.vocab, len(d.domains), d.routing_window)
        self.matrix(shared.embedding)
        self.matrix(shared.router)
        self.gain(shared.final_norm, d.trunk.hidden)
        self.gain(shared.bias, len(d.domains))
        self.stack(shared.stack, len(tokens))
        self.numbers(len(tokens), chunk, *tokens)
        specification = Specification(model)
        h = specification.trunk(tokens)
        wanted = [h, specification.router(h), specification.head(h)]
        for e in range(len(d.domains)):
            expert = program._enter(e)
            self.gain(expert.in_norm, d.trunk.hidden)
            self.gain(expert.out_norm, d.expert.hidden)
            self.matrix(expert.in_proj)
            self.matrix(expert.out_proj)
            self.stack(expert.stack, len(tokens))
            wanted.append(specification.head(specification.expert(e, h)))
        self.wanted = b"".join(x.astype("<i4").tobytes() for x in wanted)

    def numbers(self, *values):
        self.parts.append(np.array(values, "<i4").tobytes())

    def vector(self, address, count):
        found = np.frombuffer(ctypes.string_at(address, 4 * count), np.int32)
        self.parts.append(found.astype("<i4").tobytes())

    def matrix(self, x):
        self.numbers(x.inputs, x.outputs, x.exponent)
        self.parts.append(ctypes.string_at(x.weight, x.inputs * x.outputs))
        self.vector(x.scale, x.outputs)

    def gain(self, x, width):
        self.numbers(x.exponent, width)
        self.vector(x.m, width)

    def stack(self, s, positions):
        self.numbers(s.layers, s.hidden, s.heads, s.ffn, s.residual)
        for scale in (s.rms, s.head_rms, s.score):
            self.numbers(scale.m, scale.e)
        turns = positions * (s.hidden // s.heads // 2)
        self.numbers(turns)
        self.vector(s.cosine, turns)
        self.vector(s.sine, turns)
        layers = (library.Layer * s.layers).from_address(s.layer)
        width = {"ffn.fc2": s.ffn}
        for layer in layers:
            for name in library.GAINS:
                self.gain(getattr(layer, f"{name}.Gain"), width.get(name, s.hidden))
            for name in library.MATRICES:
                self.matrix(getattr(layer, f"{name}.Matrix"))


def cases(seal, count):
    """The golden model, and random ones."""
    tokens = np.random.default_rng(7).integers(0, 288, 200).astype(np.int32)
    found = [Case(seal, tokens, 37)]
    for seed in range(count):
        rng = np.random.default_rng(seed)
        model = random_model(rng)
        d = model.manifest.dimensions
        length = int(rng.integers(1, min(d.context, 60) + 1))
        tokens = rng.integers(0, d.vocab, length).astype(np.int32)
        found.append(Case(model, tokens, int(rng.integers(1, 40))))
    return found


def same_bits(command, some, **options):
    """The driver answers every case as the specification does."""
    fixed = (tables.exp2(), tables.rsqrt(), tables.gelu())
    given = b"".join(table.astype("<i4").tobytes() for table in fixed)
    given += np.array(len(some), "<i4").tobytes() + b"".join(b"".join(c.parts) for c in some)
    done = subprocess.run(command, input=given, capture_output=True, check=False, **options)
    assert done.returncode == 0, done.stderr.decode()[-2_000:]
    assert done.stdout == b"".join(c.wanted for c in some)


@pytest.fixture(scope="module")
def some(seal):
    return cases(seal, 60)


@pytest.mark.parametrize("isa", library.instructions())
def test_by_itself_on_this_processor(tmp_path, some, isa):
    driver = built(tmp_path, "cc")
    for threads in ("1", "3"):
        same_bits([driver, threads, isa], some)


@pytest.mark.long(minutes=3)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_on_other_processors_under_emulation(tmp_path, some, architecture):
    compiler, emulator = f"{architecture}-linux-gnu-gcc", f"qemu-{architecture}"
    if not (shutil.which(compiler) and shutil.which(emulator)):
        pytest.skip(f"no {compiler} and {emulator} (Debian: gcc-*-linux-gnu, qemu-user)")
    driver = built(tmp_path, compiler, "-static")
    same_bits([emulator, driver, "2"], some)


@pytest.mark.long(minutes=3)
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
@pytest.mark.parametrize("isa", library.instructions())
def test_sanitizers_find_nothing(tmp_path, some, sanitizer, isa):
    flags = (f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", "-g")
    driver = built(tmp_path, "cc", *flags)
    same_bits([driver, "3", isa], some, env={"ASAN_OPTIONS": "detect_leaks=0"})


def test_a_seal_is_what_is_compared(seal):
    """Other weights give other bits: the comparison can fail."""
    tokens = np.arange(8, dtype=np.int32)
    one = Case(seal, tokens, 8)
    assert (
        one.wanted
        != Case(random_model(np.random.default_rng(0), seal.manifest.dimensions), tokens, 8).wanted
    )
