"""The one error of the sealed file, and strict checks on decoded trees.

Nothing is coerced: a bool is no integer, a missing or unknown key is an error, and every
message names the place where the first deviation was found.
"""

import json
import re
from pathlib import Path
from types import MappingProxyType
from typing import Any

from s7jax.errors import InputError, show

DIGEST_BYTES = 32


class SealError(InputError):
    """A sealed file, or what was to be sealed, breaks the format.

    Places of trees read ``PLACE .path``: callers pass the place with a space after it.

    Attributes:
        place: where, e.g. ``head[48:64]`` or ``lane 4 (EDGE) .tensors[3].offset``.
        problem: what was found there and what was expected.
    """

    def __init__(self, place: str, problem: str) -> None:
        self.place = place.strip()
        super().__init__(f"{self.place}: {problem}")
        self.problem = problem


def mapping(tree: Any, keys: tuple[str, ...], place: str) -> dict[str, Any]:
    """``tree`` as a map with exactly these keys."""
    if type(tree) is not dict:
        raise SealError(place, f"found {show(tree)}; expected a map")
    if missing := [k for k in keys if k not in tree]:
        raise SealError(f"{place}.{missing[0]}", "missing")
    if unknown := [k for k in tree if k not in keys]:
        raise SealError(place, f"unknown key {show(unknown[0])}")
    return tree


def sequence(tree: Any, place: str, low: int = 0, high: int | None = None) -> list[Any]:
    """``tree`` as a list of ``low`` to ``high`` items."""
    if type(tree) is not list:
        raise SealError(place, f"found {show(tree)}; expected a list")
    if len(tree) < low or (high is not None and len(tree) > high):
        wanted = f"{low}" if low == high else f"{low} to {'any' if high is None else high}"
        raise SealError(place, f"{len(tree)} items; expected {wanted}")
    return tree


def integer(tree: Any, low: int, high: int, place: str) -> int:
    """``tree`` as an integer within ``low..high``; a bool is none."""
    if type(tree) is not int or not low <= tree <= high:
        raise SealError(place, f"found {show(tree)}; expected an integer in {low}..{high}")
    return tree


def text(tree: Any, pattern: str, place: str) -> str:
    """``tree`` as a string that matches ``pattern`` from its first to its last character."""
    if type(tree) is not str or re.fullmatch(pattern, tree, re.DOTALL) is None:
        raise SealError(place, f"found {show(tree)}; expected a string of the form {pattern}")
    return tree


def digest(tree: Any, place: str) -> bytes:
    """``tree`` as the 32 bytes of a SHA-256."""
    if type(tree) is not bytes or len(tree) != DIGEST_BYTES:
        raise SealError(place, f"found {show(tree)}; expected {DIGEST_BYTES} bytes")
    return tree


def equal(found: Any, expected: Any, place: str) -> None:
    """Compare two trees, type by type.

    Raises:
        SealError: they differ; the place is the path of the first difference.
    """
    if type(found) is not type(expected):
        raise SealError(place, f"found {show(found)}; expected {show(expected)}")
    if isinstance(expected, dict):
        mapping(found, tuple(expected), place)
        for key, value in expected.items():
            equal(found[key], value, f"{place}.{key}")
    elif isinstance(expected, list):
        sequence(found, place, len(expected), len(expected))
        for i, value in enumerate(expected):
            equal(found[i], value, f"{place}[{i}]")
    elif found != expected:
        raise SealError(place, f"found {show(found)}; expected {show(expected)}")


def frozen(tree: Any) -> Any:
    """A tree of maps and lists that nobody can change: maps as proxies, lists as tuples."""
    if isinstance(tree, dict):
        return MappingProxyType({key: frozen(value) for key, value in tree.items()})
    return tuple(map(frozen, tree)) if isinstance(tree, list) else tree


def read_json(path: Path) -> Any:
    """The JSON tree in a file.

    Raises:
        SealError: no such file, not UTF-8 JSON, a repeated key, NaN or an infinity.
    """
    try:
        return parse_json(path.read_bytes(), str(path))
    except OSError as e:
        raise SealError(str(path), e.strerror or str(e)) from e


def parse_json(data: bytes | str, place: str) -> Any:
    """The JSON tree in ``data``; raises like :func:`read_json`."""
    try:
        return json.loads(data, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as e:
        raise SealError(place, f"not the JSON expected here ({e})") from e


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) != len(pairs):
        raise ValueError("an object repeats a key")
    return tree


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")
