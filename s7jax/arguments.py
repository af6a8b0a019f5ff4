"""Arguments of Python callers: checked where they come in, and made what the engine takes.

Numbers of NumPy are numbers; True is none, text is no sequence of its letters.
"""

import math
import operator
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from s7jax.errors import UsageError, show


def whole(name: str, value: Any) -> int:
    """A whole number; raises UsageError, naming the argument, as all of these do."""
    try:
        if isinstance(value, bool):
            raise TypeError
        found = operator.index(value)
    except TypeError:
        raise UsageError(f"{name} is {value!r}; expected a whole number") from None
    if (bits := found.bit_length()) > 64:
        raise UsageError(f"{name} is a number of {bits:,} bits; expected at most 64")
    return found


def wholes(name: str, values: Any) -> tuple[int, ...]:
    """Whole numbers, one after the other."""
    letters = isinstance(values, str | bytes | bytearray | memoryview | Mapping)
    if letters or (found := _each(values)) is None:
        raise UsageError(f"{name} is {values!r}; expected whole numbers in a list")
    return tuple(whole(name, value) for value in found)


def number(name: str, value: Any) -> float:
    """A finite number."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise UsageError(f"{name} is {value!r}; expected a number")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise UsageError(f"{name} is {show(value)}; expected a finite number")
    return found


def biases(values: Any) -> dict[int, float]:
    """What is added to the logits of some ids."""
    if not isinstance(values, Mapping):
        raise UsageError(f"logit_bias is {values!r}; expected numbers by id")
    return {whole("logit_bias", i): number(f"logit_bias[{i}]", b) for i, b in values.items()}


def texts(name: str, values: Any) -> tuple[str | bytes, ...]:
    """Texts; one may stand for itself."""
    found = _several(values, str | bytes)
    if any(not isinstance(v, str | bytes) for v in found):
        raise UsageError(f"{name} is {values!r}; expected texts in a list")
    return found


def paths(name: str, values: Any) -> tuple[Path, ...]:
    """Paths of files; one may stand for itself."""
    found = _several(values, str | Path)
    if any(not isinstance(v, str | Path) or v == "" for v in found):
        raise UsageError(f"{name} is {values!r}; expected paths in a list")
    return tuple(map(Path, found))


def _several(values: Any, one: Any) -> tuple[Any, ...]:
    """One value of a type, or what is not iterable, as several."""
    found = None if isinstance(values, one) else _each(values)
    return (values,) if found is None else found


def _each(values: Any) -> tuple[Any, ...] | None:
    """What an iterable gives; None if it is none, as an array of no dimension."""
    try:
        return tuple(values)
    except TypeError:
        return None


def root(value: Any) -> bytes:
    """The root of a sealed file: 32 bytes, or as hexadecimal digits."""
    try:
        found = bytes.fromhex(value) if isinstance(value, str) else value
    except ValueError:
        found = b""
    if not isinstance(found, bytes) or len(found) != 32:
        raise UsageError(f"root is {value!r}; expected 32 bytes or 64 hexadecimal digits")
    return found
