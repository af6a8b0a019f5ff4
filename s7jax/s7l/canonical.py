"""Canonical msgpack: one tree, one encoding.

Map keys are strings in ascending byte order; every value has its shortest encoding; floats
are 64-bit and finite; no extension types; at most 12 containers deep. Decoding never
allocates more than the input's own size justifies, and re-encoding must give the same bytes.
Source: the msgpack specification (github.com/msgpack/msgpack, spec.md).
"""

import math
import struct
from typing import Any

import msgpack

from s7jax.s7l.schema import SealError, show

MAX_DEPTH = 12
"""Containers around the innermost value."""

_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS = {
    kind: struct.Struct(">" + code)
    for kind, code in zip(
        (0xCB, 0xCC, 0xCD, 0xCE, 0xCF, 0xD0, 0xD1, 0xD2, 0xD3), "dBHIQbhiq", strict=True
    )
}
_SIZED = {  # kind → family, bytes of the length
    **{0xC4: ("bin", 1), 0xC5: ("bin", 2), 0xC6: ("bin", 4)},
    **{0xD9: ("str", 1), 0xDA: ("str", 2), 0xDB: ("str", 4)},
    **{0xDC: ("list", 2), 0xDD: ("list", 4), 0xDE: ("map", 2), 0xDF: ("map", 4)},
}


class _Malformed(Exception):
    """Raised inside the decoder: (byte offset, problem)."""


def encode(tree: Any, place: str = "tree") -> bytes:
    """The canonical encoding of a tree of None, bool, int, float, str, bytes, list and dict.

    Raises:
        SealError: the tree has no canonical encoding (other types, non-string keys, NaN,
            an integer beyond 64 bits, nesting beyond 12, a lone surrogate).
    """
    try:
        return _pack(_normal(tree, 0))
    except (ValueError, OverflowError) as e:  # UnicodeEncodeError is a ValueError
        raise SealError(place, f"cannot be encoded: {e}") from e


def decode(data: bytes, place: str) -> Any:
    """The tree whose canonical encoding is ``data``.

    Raises:
        SealError: ``data`` is not the canonical encoding of any tree.
    """
    try:
        tree, end = _value(data, 0, 0)
    except _Malformed as e:
        raise SealError(f"{place} byte {e.args[0]}", e.args[1]) from e
    except (IndexError, struct.error) as e:
        raise SealError(f"{place} byte {len(data)}", "ends inside a value") from e
    if end != len(data):
        raise SealError(f"{place} byte {min(end, len(data))}", "expected the end of the lane here")
    again = _pack(tree)
    if again != data:
        pairs = enumerate(zip(again, data, strict=False))
        at = next(i for i, (a, b) in pairs if a != b)  # a longer header differs in its type byte
        raise SealError(f"{place} byte {at}", "not the shortest encoding of this value")
    return tree


def _pack(tree: Any) -> bytes:
    packed: bytes = msgpack.packb(tree, use_bin_type=True)
    return packed


def _normal(tree: Any, depth: int) -> Any:
    """The same tree with keys in order, checked for everything msgpack would let through."""
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    if type(tree) is dict:
        if any(type(key) is not str for key in tree):
            raise ValueError("a map key is not a string")
        # Code-point order is the byte order of UTF-8.
        return {key: _normal(tree[key], depth + 1) for key in sorted(tree)}
    if type(tree) is list:
        return [_normal(value, depth + 1) for value in tree]
    if type(tree) is float and not math.isfinite(tree):
        raise ValueError(f"{tree} is not a finite number")
    if tree is not None and type(tree) not in (bool, int, float, str, bytes):
        raise ValueError(f"{type(tree).__name__} has no place in a sealed tree")
    return tree


def _value(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    """The value at ``at`` inside ``depth`` containers, and where the next one starts."""
    kind = data[at]
    if kind < 0x80 or kind >= 0xE0:
        return kind if kind < 0x80 else kind - 0x100, at + 1
    if kind in _CONSTANTS:
        return _CONSTANTS[kind], at + 1
    if kind in _NUMBERS:
        return _number(data, at, _NUMBERS[kind])
    family, size, start = _header(data, at, kind)
    if family in ("bin", "str"):
        return _string(data, start, size, family)
    if depth == MAX_DEPTH:
        raise _Malformed(at, f"nested deeper than {MAX_DEPTH}")
    if family == "list":
        return _list(data, start, size, depth)
    return _map(data, start, size, depth)


def _header(data: bytes, at: int, kind: int) -> tuple[str, int, int]:
    """Family, size and start of the content of a string or container."""
    if kind < 0x90:
        return "map", kind & 0x0F, at + 1
    if kind < 0xA0:
        return "list", kind & 0x0F, at + 1
    if kind < 0xC0:
        return "str", kind & 0x1F, at + 1
    if kind not in _SIZED:
        raise _Malformed(at, f"type byte 0x{kind:02x} (extension or 32-bit float) is not allowed")
    family, width = _SIZED[kind]
    return family, int.from_bytes(data[at + 1 : at + 1 + width], "big"), at + 1 + width


def _number(data: bytes, at: int, form: struct.Struct) -> tuple[int | float, int]:
    (number,) = form.unpack_from(data, at + 1)
    if type(number) is float and not math.isfinite(number):
        raise _Malformed(at, f"{number} is not a finite number")
    return number, at + 1 + form.size


def _string(data: bytes, start: int, size: int, family: str) -> tuple[bytes | str, int]:
    end = start + size
    if end > len(data):
        raise IndexError
    content = data[start:end]
    if family == "bin":
        return content, end
    try:
        return content.decode(), end
    except UnicodeDecodeError as e:
        raise _Malformed(start + e.start, "not UTF-8") from e


def _list(data: bytes, at: int, size: int, depth: int) -> tuple[list[Any], int]:
    items = []
    for _ in range(size):
        item, at = _value(data, at, depth + 1)
        items.append(item)
    return items, at


def _map(data: bytes, at: int, size: int, depth: int) -> tuple[dict[str, Any], int]:
    tree: dict[str, Any] = {}
    last: str | None = None
    for _ in range(size):
        start = at
        key, at = _value(data, at, depth + 1)
        if type(key) is not str:
            raise _Malformed(start, f"map key {show(key)} is not a string")
        if last is not None and key <= last:
            raise _Malformed(start, f"map key {show(key)} repeats or is out of order")
        tree[key], at = _value(data, at, depth + 1)
        last = key
    return tree, at
