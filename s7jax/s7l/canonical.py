"""Canonical msgpack: one tree, one encoding.

Map keys are strings in ascending byte order; every value has its shortest encoding; floats
are 64-bit and finite; no extension types; at most 12 containers deep. Decoding first walks
the bytes without building anything, so that no claimed length is believed, and re-encoding
must give the same bytes.
Source: the msgpack specification (github.com/msgpack/msgpack, spec.md).
"""

import math
from itertools import chain
from typing import Any

import msgpack

from s7jax.errors import show
from s7jax.s7l.schema import SealError

MAX_DEPTH = 12
"""Containers around the innermost value."""

MAX_CONTAINERS = 1 << 20
"""Lists and maps in one tree; an empty one takes a byte encoded and 64 decoded."""

_BUFFER = 1 << 10  # grows by itself; the library's own first buffer has 256 KiB
_TYPES = frozenset((type(None), bool, int, float, str, bytes, list, dict))


class _Malformed(Exception):
    """Raised inside the decoder: the problem."""


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
    end = _measure(data, place)
    if end != len(data):
        raise SealError(f"{place} byte {end}", "expected the end of the lane here")
    try:
        tree = _build(data)
        _check(tree)
    except _Malformed as e:
        raise SealError(place, str(e)) from e
    except UnicodeDecodeError as e:
        raise SealError(place, "a string is not UTF-8") from e
    except ValueError as e:  # a timestamp out of its range
        raise SealError(place, f"cannot be decoded: {e}") from e
    again = _pack(tree)
    if again != data:
        pairs = enumerate(zip(again, data, strict=False))
        at = next(i for i, (a, b) in pairs if a != b)  # a longer header differs in its type byte
        raise SealError(f"{place} byte {at}", "not the shortest encoding, or a 32-bit float")
    return tree


def _measure(data: bytes, place: str) -> int:
    """Where the first value ends. Nothing is built: memory does not follow claimed lengths."""
    unpacker = msgpack.Unpacker(max_buffer_size=max(len(data), 1))
    unpacker.feed(data)
    try:
        unpacker.skip()
    except msgpack.OutOfData as e:
        raise SealError(f"{place} byte {len(data)}", "ends inside a value") from e
    except msgpack.StackError as e:
        raise SealError(place, f"nested deeper than {MAX_DEPTH}") from e
    except (msgpack.FormatError, ValueError) as e:
        raise SealError(f"{place} byte {unpacker.tell()}", "no msgpack value") from e
    end: int = unpacker.tell()
    return end


def _build(data: bytes) -> Any:
    """The tree in a complete encoding; maps in order, nothing but lists, maps and scalars."""
    containers = 0

    def count() -> None:
        nonlocal containers
        containers += 1
        if containers > MAX_CONTAINERS:
            raise _Malformed(f"more than {MAX_CONTAINERS} lists and maps")

    def in_order(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
        count()
        last: str | None = None
        for key, _ in pairs:
            if type(key) is not str:
                raise _Malformed(f"map key {show(key)} is not a string")
            if last is not None and key <= last:
                raise _Malformed(f"map key {show(key)} repeats or is out of order")
            last = key
        return dict(pairs)

    def counted(items: list[Any]) -> list[Any]:
        count()
        return items

    def refuse(code: int, _: bytes) -> None:
        raise _Malformed(f"extension type {code} is not allowed")

    return msgpack.unpackb(
        data,
        object_pairs_hook=in_order,
        list_hook=counted if len(data) > MAX_CONTAINERS else None,  # a container has its byte
        ext_hook=refuse,
        strict_map_key=False,  # in_order says which key
    )


def _check(tree: Any) -> None:
    """Depth, finite floats, and no type that msgpack has and a sealed tree has not."""
    level = [tree]
    for _ in range(MAX_DEPTH + 1):
        kinds = set(map(type, level))
        if not kinds <= _TYPES:
            raise _Malformed("a timestamp (extension type -1) is not allowed")
        if float in kinds and not all(math.isfinite(x) for x in level if type(x) is float):
            raise _Malformed("a float is not a finite number")
        if kinds.isdisjoint((list, dict)):
            return
        inner: list[Any] = [x for x in level if type(x) is list] if list in kinds else []
        if dict in kinds:
            inner += [x.values() for x in level if type(x) is dict]
        level = list(chain.from_iterable(inner))
    raise _Malformed(f"nested deeper than {MAX_DEPTH}")


def _pack(tree: Any) -> bytes:
    packed: bytes = msgpack.Packer(buf_size=_BUFFER).pack(tree)
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
