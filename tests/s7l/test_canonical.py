import math
import subprocess
import sys

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s7jax.s7l import SealError
from s7jax.s7l.canonical import MAX_DEPTH, decode, encode

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.binary()
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(), inner, max_size=20),
    max_leaves=40,
).filter(lambda tree: depth(tree) <= MAX_DEPTH)


def depth(tree):
    if isinstance(tree, dict):
        tree = list(tree.values())
    return 1 + max(map(depth, tree), default=0) if isinstance(tree, list) else 0


def same(a, b):
    """Equal also in type and in the sign of zero."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return a == b and math.copysign(1, a) == math.copysign(1, b)
    return a == b


@given(TREES)
def test_round_trip(tree):
    data = encode(tree)
    assert same(decode(data, "tree"), tree)
    assert same(msgpack.unpackb(data), tree)  # any msgpack reader sees the same


@given(st.dictionaries(st.text(), SCALARS, min_size=2))
def test_insertion_order_does_not_matter(tree):
    assert encode(dict(reversed(tree.items()))) == encode(tree)


@given(st.binary(max_size=64))
def test_any_bytes_are_canonical_or_refused(data):
    try:
        tree = decode(data, "tree")
    except SealError:
        return
    assert encode(tree) == data


@given(TREES, st.data())
def test_a_mutated_encoding_is_another_tree_or_refused(tree, draw):
    data = bytearray(encode(tree))
    at = draw.draw(st.integers(0, len(data) - 1))
    data[at] ^= draw.draw(st.integers(1, 255))
    try:
        found = decode(bytes(data), "tree")
    except SealError:
        return
    assert not same(found, tree)


@given(TREES)
def test_a_prefix_is_refused(tree):
    data = encode(tree)
    for end in range(min(len(data), 40)):
        with pytest.raises(SealError):
            decode(data[:end], "tree")


def nested(levels):
    tree = None
    for _ in range(levels):
        tree = [tree]
    return tree


def test_depth():
    assert decode(encode(nested(12)), "tree") == nested(12)
    with pytest.raises(SealError, match="deeper than 12"):
        encode(nested(13))
    with pytest.raises(SealError, match="deeper than 12"):
        decode(msgpack.packb(nested(13)), "tree")


@pytest.mark.parametrize(
    "tree",
    [
        *(float("nan"), float("inf"), 1 << 64, -(1 << 63) - 1, "\ud800", {1: 2}, {b"a": 1}),
        *((1, 2), {1}, bytearray(b"a"), [[float("-inf")]], {"a": {"b": object()}}),
    ],
)
def test_what_cannot_be_sealed(tree):
    with pytest.raises(SealError):
        encode(tree)


@pytest.mark.parametrize(
    "value", [0, 127, 128, 255, 256, 65_535, 65_536, -1, -32, -33, -128, -129, -32_769]
)
def test_only_the_shortest_integer(value):
    forms = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
    shortest = encode(value)
    for kind, size in forms.items():
        try:
            data = bytes([kind]) + value.to_bytes(size, "big", signed=kind >= 0xD0)
        except OverflowError:
            continue
        if data != shortest:
            with pytest.raises(SealError, match="shortest"):
                decode(data, "tree")


@pytest.mark.parametrize("tail", ["7ff8000000000000", "7ff0000000000000", "fff0000000000000"])
def test_only_finite_floats(tail):
    with pytest.raises(SealError, match="not a finite number"):
        decode(b"\x91\xcb" + bytes.fromhex(tail), "tree")


def test_memory_follows_the_input_not_its_claims():
    bomb = b"\xdd\x00\xff\xff\xff" * 11 + b"\xdd\xff\xff\xff\xff" + b"\xc0" * 1_000
    code = (
        "import sys, tracemalloc; from s7jax.s7l.canonical import decode; tracemalloc.start()\n"
        "try: decode(sys.stdin.buffer.read(), 'tree')\n"
        "except ValueError as e: print(tracemalloc.get_traced_memory()[1], e)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=bomb, capture_output=True, check=True)
    peak, error = done.stdout.decode().split(maxsplit=1)
    assert "ends inside" in error
    assert int(peak) < 1 << 20
