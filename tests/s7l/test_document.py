"""The worked example of docs/s7l.md, recomputed with hashlib and msgpack alone."""

import re
import struct
from pathlib import Path

from attacker import leaf, pack, sha, tree

from s7jax import s7l
from s7jax.architecture import SEALED_DTYPES
from s7jax.s7l import contract
from s7jax.s7l.contract import compute_contract
from s7jax.s7l.dimensions import NAME

TEXT = (Path(s7l.__file__).parents[2] / "docs/s7l.md").read_text()
HEX = re.sub(r"\s", "", TEXT)  # long values are broken over lines


def test_worked_example():
    stored = struct.pack("<4i", 1, -2, 3, 4) + bytes(16)
    chunk = leaf(b"S7L3CHNK", stored)
    entry = {"name": "router.bias", "shape": [4], "dtype": "int32", "exponent": -7, "stored": 32}
    described = pack({**entry, "root": chunk})
    tensor = leaf(b"S7L3TENS", described)
    named = pack({"name": "router", "root": tensor})
    field = leaf(b"S7L3COMP", named)
    hashes = [b"\x11" * 32, field, b"\x33" * 32, b"\x44" * 32, b"\x55" * 32]
    starts = [4_096, 8_192, 12_288, 16_384, 20_480]
    records = [
        struct.pack(">B7xQQ32s8x", n, at, length, digest)
        for n, at, length, digest in zip(
            range(1, 6), starts, [100, 32, 50, 200, 910], hashes, strict=True
        )
    ]
    directory = tree([leaf(b"S7L3LREC", record) for record in records])
    root = sha(b"S7L3SEAL", b"S7LM\0\3\2\5", (21_390).to_bytes(8, "big"), directory)
    for value in (stored, chunk, described, tensor, named, field, records[1], directory, root):
        assert value.hex() in HEX


def test_constants():
    payload = pack(compute_contract())
    assert f"Its payload has {len(payload)} bytes" in TEXT
    assert leaf(b"S7L3BTCH", payload).hex() in TEXT
    words = [*contract.OPERATORS, *contract.FOLDS, *contract.CONTROLS, *SEALED_DTYPES]
    for word in words:
        assert word in TEXT
    for phase, control, after in contract.TRANSITIONS:
        assert f"[{phase}, {control}, {after}]" in TEXT
    for lane, fold in contract.LANE_FOLDS.items():
        assert f"{lane} `{fold}`" in TEXT
    for fold, lane in contract.FOLDS.items():
        assert f"`{fold}` {lane}" in TEXT


def test_name_rule():
    assert f"`{NAME}`" in TEXT
