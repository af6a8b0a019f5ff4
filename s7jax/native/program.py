"""A sealed model on the native engine: the interface of :mod:`s7jax.integer.program`, in NumPy.

Matrices are read where they lie in the sealed file; what is copied are vectors. Only tokens of
rows that stand inside their caches are computed, as many as the caller says are real.
"""

import ctypes
from collections.abc import Sequence
from ctypes import byref
from math import isqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s7jax.architecture import Stack
from s7jax.errors import InputError
from s7jax.integer import tables
from s7jax.integer.fixed import constant
from s7jax.integer.operators import LOG2_E
from s7jax.integer.routing import route
from s7jax.integer.sealed import check_bounds, fraction_bits, short_gain
from s7jax.native import disassembly, machine
from s7jax.native import library as native
from s7jax.s7l import Seal

Ints = NDArray[np.int32]
Cache = tuple[NDArray[np.int8], NDArray[np.int8]]
"""Keys and values int8 [L, B, H, S, K]."""

CHUNK = 512  # most tokens of a row in one call: what h and logits of a call take stays small
DRAFTS = 4  # measured: benchmarks/generate.py


class NativeProgram:
    """A sealed model in the library of this package.

    Args:
        seal: the open sealed file; tensors are verified as they are touched.
        threads: how many compute; none: one for each processor.
        isa: an instruction set of :func:`s7jax.native.library.instructions`; none: the best.

    Raises:
        InputError: no library, or the seal's values are beyond what exact arithmetic holds.
        UsageError: no such instruction set, or no threads.
    """

    groups = 1  # rows are not divided

    def __init__(self, seal: Seal, threads: int | None = None, isa: str | None = None) -> None:
        self.cfg = seal.manifest.dimensions
        check_bounds(self.cfg)
        self._engine = native.Engine(threads, isa)
        self._seal = seal
        self._nodes = machine.nodes()
        self._homes = machine.placement(self.cfg, self._nodes)
        self._kept: list[object] = []  # what the library's pointers point at
        self._positions = 0  # that the rotation tables cover
        self._experts: dict[int, native.Expert] = {}
        with machine.memory_on(self._homes["trunk"], self._nodes):
            self._shared = self._load_shared()

    def _load_shared(self) -> native.Shared:
        d = self.cfg
        return native.Shared(
            exp2=self._address(tables.exp2()),
            rsqrt=self._address(tables.rsqrt()),
            gelu=self._address(tables.gelu()),
            context=d.context,
            vocab=d.vocab,
            experts=len(d.domains),
            window=d.routing_window,
            embedding=self._matrix("embedding", transposed=True),
            router=self._matrix("router"),
            final_norm=self._gain("trunk.final_norm"),
            bias=self._bias(),
            stack=self._stack("trunk", d.trunk),
        )

    on_cpu = True

    @property
    def engine(self) -> str:
        """What computes here."""
        return f"native {self._engine.isa}, {self._engine.threads} threads"

    def machine(self) -> dict[str, Any]:
        """What the engine found and chose here (§8)."""
        return machine.report(self.cfg, self.engine, native.tuning())

    def types(self) -> set[str]:
        """Types of numbers in the library: integers, and whatever floating its machine code has.

        Raises:
            InputError: there is no ``objdump`` to take it apart.
        """
        if not disassembly.possible():
            raise InputError("objdump is not there to take the native engine apart")
        found = disassembly.instructions(native.path())
        return {"s8", "s16", "s32", "s64"} | disassembly.floating(found, native.is_arm())

    def trunk_cache(self, rows: int, slots: int) -> Cache:
        """An empty cache of the trunk."""
        return _cache(self.cfg.trunk, rows, slots)

    def expert_cache(self, _e: int, rows: int, slots: int) -> Cache:
        """An empty cache of one expert."""
        return _cache(self.cfg.expert, rows, slots)

    def history(self, rows: int, slots: int) -> Ints:
        """Room for the trunk's outputs int32 [B, S, D], which a late expert reads."""
        return np.zeros((rows, slots, self.cfg.trunk.hidden), np.int32)

    def remember(self, history: Ints, h_BTD: Ints, start_B: Ints) -> Ints:
        """The history with a chunk of h at its positions; those beyond it are dropped."""
        slots, T = history.shape[1], h_BTD.shape[1]
        for row, h, start in zip(history, h_BTD, start_B, strict=True):
            row[start : start + T] = h[: max(0, slots - start)]
        return history

    def recall(self, x_BTD: Ints, start_B: Ints, length: int) -> Ints:
        """``length`` positions of x [B, T, D] from ``start_B`` on, clipped to its end."""
        positions = np.minimum(start_B[:, None] + np.arange(length), x_BTD.shape[1] - 1)
        return np.take_along_axis(x_BTD, positions[..., None], axis=1)

    def chunk(self, length: int) -> int:
        """How many of ``length`` tokens one call takes."""
        return min(length, CHUNK)

    def drafts(self, rows: int) -> int:
        """Tokens worth proposing at a time: with them all rows still pass over the weights once."""
        return max(0, min(DRAFTS, native.tuning()["few"] // rows - 1))

    def trunk(
        self,
        tokens_BT: Ints,
        start_B: Ints,
        cache: Cache,
        counts_B: Sequence[int] | None = None,
    ) -> tuple[Ints, Ints, Cache]:
        """Of each row the first ``counts_B[b]`` tokens (none: all), from ``start_B[b]`` on.

        Returns:
            h int32 [B, T, D], router logits int32 [B, T, E] (zero where nothing was computed),
            the cache, which has taken the new keys and values.
        """
        (B, T), d = tokens_BT.shape, self.cfg
        tokens = np.ascontiguousarray(tokens_BT, np.int32)
        if tokens.min(initial=0) < 0 or tokens.max(initial=0) >= d.vocab:
            raise IndexError(f"a token outside 0..{d.vocab - 1}")
        rows, caches = self._rows(d.trunk, start_B, counts_B, (B, T), cache)
        h, logits = (np.zeros((B, T, n), np.int32) for n in (d.trunk.hidden, len(d.domains)))
        self._engine.call(
            "s7_trunk",
            byref(self._shared),
            *(native.pointer(tokens), T, rows, len(rows), byref(caches)),
            *(native.pointer(h), native.pointer(logits)),
        )
        return h, logits, cache

    def expert(
        self,
        e: int,
        h_BTD: Ints,
        start_B: Ints,
        cache: Cache,
        counts_B: Sequence[int] | None = None,
    ) -> tuple[Ints, Cache]:
        """One expert's refinement of a chunk of h; as :meth:`trunk`."""
        B, T, _ = h_BTD.shape
        h, expert = np.ascontiguousarray(h_BTD, np.int32), self._enter(e)
        rows, caches = self._rows(self.cfg.expert, start_B, counts_B, (B, T), cache)
        y = np.zeros_like(h)
        self._engine.call(
            "s7_expert",
            byref(self._shared),
            byref(expert),
            *(native.pointer(h), T, rows, len(rows), byref(caches), native.pointer(y)),
        )
        return y, cache

    def head(self, h_BTD: Ints, wanted_B: Sequence[bool] | None = None) -> Ints:
        """h of trunk or expert → logits int32 [B, T, V], 16 fraction bits; zero if not wanted."""
        if wanted_B is not None and not all(wanted_B):
            spread = np.zeros((*h_BTD.shape[:-1], self.cfg.vocab), np.int32)
            spread[list(wanted_B)] = self.head(h_BTD[list(wanted_B)])
            return spread
        h = np.ascontiguousarray(h_BTD, np.int32)
        logits = np.empty((*h.shape[:-1], self.cfg.vocab), np.int32)
        count = h.size // h.shape[-1]
        arguments = native.pointer(h), count, native.pointer(logits)
        self._engine.call("s7_head", byref(self._shared), *arguments)
        return logits

    def answer(self, tokens_BT: Ints) -> tuple[Ints, Ints]:
        """Whole sequences by every model: logits int32 [1 + E, B, T, V], trunk first; route."""
        B, T = tokens_BT.shape
        start = np.zeros(B, np.int32)
        h, evidence, _ = self.trunk(tokens_BT, start, self.trunk_cache(B, T))
        outputs = [h]
        for e in range(len(self.cfg.domains)):
            outputs.append(self.expert(e, h, start, self.expert_cache(e, B, T))[0])
        return np.stack([self.head(x) for x in outputs]), route(evidence, self.cfg.routing_window)

    def _rows(
        self,
        stack: Stack,
        start_B: Ints,
        counts_B: Sequence[int] | None,
        shape: tuple[int, int],
        cache: Cache,
    ) -> tuple[ctypes.Array[native.Row], native.Caches]:
        """What is to be computed, and where; the rotation tables cover it afterwards."""
        (B, T), (keys, values) = shape, cache
        slots = keys.shape[3]
        expected = stack.cache_shape(B, slots)
        if keys.shape != expected or values.shape != expected or min(start_B, default=0) < 0:
            raise ValueError(f"a cache {keys.shape} for {expected}")
        counts = [T] * B if counts_B is None else counts_B
        rows = [
            native.Row(b, int(start), min(count, T, slots - int(start)))
            for b, (start, count) in enumerate(zip(start_B, counts, strict=True))
            if start < slots and count > 0
        ]
        self._cover(max((row.start + row.count for row in rows), default=0))
        k, v = (native.rows_of(held) for held in cache)
        caches = native.Caches(ctypes.addressof(k), ctypes.addressof(v), slots, 0)
        caches.arrays = k, v  # alive as long as the structure is
        return native.array_of(native.Row, rows), caches

    def _cover(self, positions: int) -> None:
        """Rotation tables for so many positions: a longer one starts as the shorter one does."""
        if positions > self._positions:
            self._positions = 1 << (positions - 1).bit_length()
            for stack in (self._shared.stack, *(e.stack for e in self._experts.values())):
                self._rotate(stack)

    def _rotate(self, stack: native.Stack) -> None:
        cosine, sine = tables.rope(max(self._positions, 1), stack.hidden // stack.heads)
        stack.cosine, stack.sine = self._address(cosine), self._address(sine)

    def _enter(self, e: int) -> native.Expert:
        """An expert's parameters, loaded and verified the first time."""
        if e not in self._experts:
            with machine.memory_on(self._homes[f"expert{e}"], self._nodes):
                self._experts[e] = self._load_expert(f"expert{e}")
        return self._experts[e]

    def _load_expert(self, name: str) -> native.Expert:
        return native.Expert(
            in_norm=self._gain(f"{name}.in_norm"),
            out_norm=self._gain(f"{name}.out_norm"),
            in_proj=self._matrix(f"{name}.in_proj"),
            out_proj=self._matrix(f"{name}.out_proj"),
            stack=self._stack(name, self.cfg.expert),
        )

    def _stack(self, name: str, s: Stack) -> native.Stack:
        layers = [native.Layer() for _ in range(s.layers)]
        for i, layer in enumerate(layers):
            for gain in native.GAINS:
                setattr(layer, f"{gain}.Gain", self._gain(f"{name}.layer{i}.{gain}"))
            for matrix in native.MATRICES:
                setattr(layer, f"{matrix}.Matrix", self._matrix(f"{name}.layer{i}.{matrix}"))
        array = native.array_of(native.Layer, layers)
        self._kept.append(array)
        residual = f"{name}.residual"
        mantissa, exponent = self._fixed(residual)
        score = _constant((LOG2_E << 40) // isqrt(s.head_dim << 80), 60)
        stack = native.Stack(
            layers=s.layers,
            hidden=s.hidden,
            heads=s.heads,
            ffn=s.ffn,
            residual=fraction_bits(residual, mantissa, exponent),
            rms=_root(s.hidden),
            head_rms=_root(s.head_dim),
            score=score,
            layer=ctypes.addressof(array),
        )
        self._rotate(stack)
        return stack

    def _matrix(self, name: str, transposed: bool = False) -> native.Matrix:
        weight = self._seal.tensor(f"{name}.weight")
        scale, exponent = self._fixed(f"{name}.scale")
        inputs, outputs = weight.shape[::-1] if transposed else weight.shape
        return native.Matrix(
            self._address(weight), self._address(scale), inputs, outputs, exponent, 0
        )

    def _gain(self, name: str) -> native.Gain:
        mantissa, exponent = self._fixed(f"{name}.gain")
        return native.Gain(self._address(short_gain(mantissa)), exponent - 15, 0)

    def _bias(self) -> native.Gain:
        mantissa, exponent = self._fixed("router.bias")
        return native.Gain(self._address(mantissa), exponent, 0)

    def _fixed(self, name: str) -> tuple[Ints, int]:
        exponent = self._seal.exponent(name)
        assert exponent is not None
        return np.ascontiguousarray(self._seal.tensor(name), np.int32), exponent

    def _address(self, array: np.ndarray) -> int:
        self._kept.append(array)
        return native.pointer(array)


def _cache(stack: Stack, rows: int, slots: int) -> Cache:
    shape = stack.cache_shape(rows, slots)
    return np.zeros(shape, np.int8), np.zeros(shape, np.int8)


def _constant(numerator: int, bits: int) -> native.Scale:
    """As :func:`s7jax.integer.fixed.constant` has it, for the library."""
    found = constant(numerator, bits, np.empty(0, np.int32))
    return native.Scale(int(found.m), int(found.e))


def _root(width: int) -> native.Scale:
    """√(width / 2^cut), which a root mean square of ``width`` values takes."""
    return _constant(isqrt(width << (100 - width.bit_length())), 50)
