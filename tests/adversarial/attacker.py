"""An attacker who knows the format: changes anything, then recomputes every hash.

Built on the published rules alone, with hashlib and msgpack, so that a mistake of the writer
cannot hide behind the same mistake here.
"""

import hashlib
import struct

import msgpack

CHUNK = 1 << 20
TAGS = {1: b"S7L3DICT", 3: b"S7L3STRM", 4: b"S7L3EDGE", 5: b"S7L3BTCH"}


def sha(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def leaf(tag: bytes, data: bytes) -> bytes:
    return sha(b"\0", tag, data)


def tree(leaves: list[bytes]) -> bytes:
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return sha(b"\1", tree(leaves[:split]), tree(leaves[split:]))


def ordered(value):
    """The same tree with sorted keys, so that packing it is canonical."""
    if isinstance(value, dict):
        return {key: ordered(value[key]) for key in sorted(value)}
    return [ordered(item) for item in value] if isinstance(value, list) else value


def pack(value) -> bytes:
    return msgpack.packb(ordered(value), use_bin_type=True)


class Forgery:
    """A sealed file taken apart. Change what you like, then :meth:`build`."""

    def __init__(self, data: bytes):
        records = [struct.unpack(">B7xQQ32s8x", data[64 * i + 64 : 64 * i + 128]) for i in range(5)]
        self.payload = {number: data[at : at + size] for number, at, size, _ in records}
        self.edge = msgpack.unpackb(self.payload[4])
        self.dict = msgpack.unpackb(self.payload[1])
        self.stream = msgpack.unpackb(self.payload[3])
        self.batch = msgpack.unpackb(self.payload[5])
        self.field = bytearray(self.payload[2])
        self.raw = {}  # lane id → payload that replaces the packed tree

    def entry(self, name: str) -> dict:
        return next(t for t in self.edge["tensors"] if t["name"] == name)

    def swap(self, a: str, b: str, key: str) -> None:
        x, y = self.entry(a), self.entry(b)
        x[key], y[key] = y[key], x[key]

    def rehash(self) -> "Forgery":
        """Chunk hashes of every tensor anew from FIELD's bytes."""
        for t in self.edge["tensors"]:
            data = bytes(self.field[t["offset"] : t["offset"] + t["stored"]])
            spans = range(0, len(data), CHUNK)
            t["chunks"] = [leaf(b"S7L3CHNK", data[at : at + CHUNK]) for at in spans]
        return self

    def field_root(self) -> bytes:
        groups: dict[str, list[bytes]] = {}
        for t in self.edge["tensors"]:
            described = {k: v for k, v in t.items() if k not in ("offset", "chunks")}
            hashed = leaf(b"S7L3TENS", pack({**described, "root": tree(t["chunks"])}))
            groups.setdefault(t["name"].partition(".")[0], []).append(hashed)
        named = [{"name": name, "root": tree(leaves)} for name, leaves in groups.items()]
        return tree([leaf(b"S7L3COMP", pack(value)) for value in named])

    def bind(self, dictionary: bytes, batch: bytes) -> None:
        edge = self.edge
        keys = ("model", "routing", "provenance", "parent")
        meta = {"dictionary": dictionary, **{key: edge[key] for key in keys}}
        policy = {key: edge[key] for key in ("folds", "phases")}
        policy["defaults"] = self.stream["defaults"]
        edge["hashes"] = {
            "abi": batch,
            "policy": leaf(b"S7L3PLCY", pack(policy)),
            "meta": leaf(b"S7L3META", pack(meta)),
        }

    def build(self, *, bind: bool = True, field_hash: bytes | None = None) -> bytes:
        """The file, all hashes right for what it now holds."""
        trees = {1: self.dict, 3: self.stream, 5: self.batch}
        payload = {n: self.raw.get(n, pack(trees[n]) if n in trees else b"") for n in TAGS}
        hashes = {n: leaf(TAGS[n], payload[n]) for n in trees}
        if bind and 4 not in self.raw:
            self.bind(hashes[1], hashes[5])
        payload[4] = self.raw.get(4) or pack(self.edge)
        hashes[4] = leaf(TAGS[4], payload[4])
        payload[2] = bytes(self.field)
        hashes[2] = field_hash or (bytes(32) if 4 in self.raw else self.field_root())
        data = bytearray(4096)
        records = b""
        for n in range(1, 6):
            data += bytes(-len(data) % 4096)
            records += struct.pack(">B7xQQ32s8x", n, len(data), len(payload[n]), hashes[n])
            data += payload[n]
        data[:384] = struct.pack(">4sHBB32xQ16x", b"S7LM", 3, 2, 5, len(data)) + records
        return reroot(data)


def forge(change, **options):
    """A mutation that takes the file apart, changes a part and rebuilds every hash."""

    def mutate(data):
        forgery = Forgery(data)
        change(forgery)
        return forgery.build(**options)

    return mutate


def reroot(data: bytes | bytearray) -> bytes:
    """The same bytes with the root recomputed over whatever the head now says."""
    data = bytearray(data)
    leaves = [leaf(b"S7L3LREC", bytes(data[64 * i + 64 : 64 * i + 128])) for i in range(5)]
    data[8:40] = sha(b"S7L3SEAL", bytes(data[:8]), bytes(data[40:48]), tree(leaves))
    return bytes(data)


def patch(data: bytes, at: int, new: bytes, *, hashed: bool = True) -> bytes:
    """Overwrite bytes of the file, by default recomputing the root."""
    changed = data[:at] + new + data[at + len(new) :]
    return reroot(changed) if hashed else changed


def record_of(number: int, key: str) -> int:
    """Where a field of a lane record stands in the head."""
    return 64 * number + {"id": 0, "offset": 8, "length": 16, "hash": 24}[key]
