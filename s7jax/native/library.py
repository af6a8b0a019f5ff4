"""The shared library: found, loaded, and its structures, as ``model.h`` has them."""

import ctypes
import os
import platform
import weakref
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_char_p, c_int, c_int32, c_void_p
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import numpy as np

from s7jax.devices import processors
from s7jax.errors import InputError, UsageError

_HERE = Path(__file__).parent
MOST_THREADS = 1024  # of one engine


class Scale(Structure):
    """m · 2^e."""

    _fields_ = (("m", c_int32), ("e", c_int32))


class Matrix(Structure):
    """int8 weights and one int32 scale per output channel, with their common exponent."""

    _fields_ = (
        ("weight", c_void_p),
        ("scale", c_void_p),
        *((name, c_int32) for name in ("inputs", "outputs", "exponent", "unused")),
    )


class Gain(Structure):
    """int32 mantissas of 15 bits and the exponent of one unit."""

    _fields_ = (("m", c_void_p), ("exponent", c_int32), ("unused", c_int32))


class Layer(Structure):
    """One layer; fields in the order of :data:`GAINS`, then :data:`MATRICES`."""


GAINS = ("attn_norm", "attn.q", "attn.k", "attn.o_proj", "ffn_norm", "ffn.fc2")
MATRICES = ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.o_proj", "ffn.fc1", "ffn.fc2")
Layer._fields_ = tuple(
    (f"{name}.{kind.__name__}", kind)
    for kind, names in ((Gain, GAINS), (Matrix, MATRICES))
    for name in names
)


class Stack(Structure):
    """The layers of a segment, its dimensions and constants."""

    _fields_ = (
        *((name, c_int32) for name in ("layers", "hidden", "heads", "ffn", "residual", "unused")),
        *((name, Scale) for name in ("rms", "head_rms", "score")),
        *((name, c_void_p) for name in ("layer", "cosine", "sine")),
    )


class Shared(Structure):
    """What every token goes through: tables, embedding, router, trunk."""

    _fields_ = (
        *((name, c_void_p) for name in ("exp2", "rsqrt", "gelu")),
        *((name, c_int32) for name in ("context", "vocab", "experts", "window")),
        ("embedding", Matrix),
        ("router", Matrix),
        ("final_norm", Gain),
        ("bias", Gain),
        ("stack", Stack),
    )


class Expert(Structure):
    """One expert."""

    _fields_ = (
        ("in_norm", Gain),
        ("out_norm", Gain),
        ("in_proj", Matrix),
        ("out_proj", Matrix),
        ("stack", Stack),
    )


class Row(Structure):
    """``count`` tokens from position ``start`` on, in slots of row ``row``."""

    _fields_ = (("row", c_int32), ("start", c_int32), ("count", c_int32))


class Caches(Structure):
    """Keys and values of every layer, int8 [rows, heads, slots, head]."""

    _fields_ = (
        ("keys", c_void_p),
        ("values", c_void_p),
        ("slots", c_int32),
        ("unused", c_int32),
    )


def pointer(array: np.ndarray[Any, Any]) -> int:
    """Address of a contiguous array, which must outlive its use."""
    assert array.flags.c_contiguous
    return array.ctypes.data


def path() -> Path:
    """The compiled library's file.

    Raises:
        InputError: it was not compiled when the package was installed.
    """
    found = next(
        (p for suffix in EXTENSION_SUFFIXES if (p := _HERE / f"_engine{suffix}").exists()), None
    )
    if found is None:
        raise InputError(
            "the native engine is not there: no C compiler when s7jax was installed. Install one "
            "and s7jax again, or take the other engine (engine='xla', --engine xla)"
        )
    return found


def is_arm() -> bool:
    """Whether this machine's code is AArch64."""
    return platform.machine() in ("aarch64", "arm64")


def rows_of(array: np.ndarray[Any, Any]) -> Any:
    """Addresses of an array's first axis, as a C array of pointers."""
    count, first = len(array), pointer(array)
    step = array.nbytes // count
    return (c_void_p * count)(*range(first, first + count * step, step))


@cache
def library() -> ctypes.CDLL:
    """The compiled library, loaded; raises as :func:`path`."""
    lib = ctypes.CDLL(str(path()))
    lib.s7_instructions.restype = c_char_p
    lib.s7_tuning.restype = c_char_p
    lib.s7_tuning.argtypes = (c_int, POINTER(c_int))
    lib.s7_engine_new.restype = c_void_p
    lib.s7_engine_new.argtypes = (c_char_p, c_int)
    lib.s7_engine_free.argtypes = (c_void_p,)
    rows = (POINTER(Row), c_int, POINTER(Caches))
    lib.s7_trunk.argtypes = (c_void_p, POINTER(Shared), c_void_p, c_int, *rows, c_void_p, c_void_p)
    lib.s7_expert.argtypes = (
        *(c_void_p, POINTER(Shared), POINTER(Expert), c_void_p, c_int),
        *(*rows, c_void_p),
    )
    lib.s7_head.argtypes = (c_void_p, POINTER(Shared), c_void_p, c_int, c_void_p)
    return lib


@cache
def available() -> bool:
    """Whether the library was compiled and can be loaded."""
    try:
        library()
    except (InputError, OSError):
        return False
    return True


def instructions() -> list[str]:
    """Instruction sets that run here, the best first; ``base`` is plain C."""
    found: list[str] = []
    while name := library().s7_instructions(len(found)):
        found.append(name.decode())
    return found


def tuning() -> dict[str, int]:
    """Sizes that decide speed (``tuning.h``; §8), by name."""
    found: dict[str, int] = {}
    value = c_int()
    while name := library().s7_tuning(len(found), ctypes.byref(value)):
        found[name.decode()] = value.value
    return found


class Engine:
    """Threads and working memory of the library; one call at a time.

    Args:
        threads: how many compute; none: one for each processor this process may use.
        isa: an instruction set of :func:`instructions`; none: the best.

    Raises:
        UsageError: the instruction set does not run here, or no threads.
    """

    def __init__(self, threads: int | None = None, isa: str | None = None) -> None:
        self._threads = processors() if threads is None else threads
        self._isa = isa or instructions()[0]
        if not 1 <= self._threads <= MOST_THREADS:
            raise UsageError(f"{self._threads} threads; expected 1 to {MOST_THREADS:,}")
        if self._isa not in instructions():
            raise UsageError(f"instructions {self._isa!r}; expected {', '.join(instructions())}")
        self._pid, self._handle = -1, 0

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        return self._isa

    @property
    def threads(self) -> int:
        """Threads asked for."""
        return self._threads

    def call(self, name: str, *arguments: Any) -> None:
        """One of the library's computations on this engine.

        Raises:
            MemoryError: there is not enough for its working memory.
        """
        if self._pid != os.getpid():  # threads do not survive a fork
            self._handle = library().s7_engine_new(self._isa.encode(), self._threads) or 0
            self._pid = os.getpid()
            weakref.finalize(self, _free, self._pid, self._handle).atexit = False
        if not self._handle or getattr(library(), name)(self._handle, *arguments):
            raise MemoryError("the native engine has no memory to work in")


def _free(pid: int, handle: int) -> None:
    if handle and pid == os.getpid():
        library().s7_engine_free(handle)


def array_of(kind: type[Structure], items: Sequence[Structure]) -> Any:
    """A C array of structures."""
    return (kind * len(items))(*items)
