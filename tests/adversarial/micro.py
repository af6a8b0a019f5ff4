"""The smallest seal there can be, and mutants of it that an attacker has re-sealed.

Few tensors and no merges, so that a hundred thousand mutants can be tried in a minute.
"""

import json
import os
import struct
import tempfile
from pathlib import Path

from attacker import Forgery, leaf, pack, reroot
from second import second
from tiny import vocab_tree, write_weights

from s7jax import s7l

STACK = {"layers": 1, "hidden": 2, "heads": 1, "ffn": 1}
MODEL = {"vocab": 256, "context": 2, "trunk": STACK, "expert": STACK, "domains": ["a"]}
MODEL["routing_window"] = 1
WEIRD = [
    *(None, True, False, 0, 1, -1, 255, 256, 1 << 16, 1 << 31, 1 << 63, (1 << 64) - 1, -(1 << 63)),
    *(
        0.0,
        -0.0,
        0.5,
        1e308,
        float("nan"),
        float("inf"),
        "",
        "x",
        "\u202e",
        "\0",
        "expert0",
        "a" * 70,
    ),
    *(
        b"",
        bytes(31),
        bytes(32),
        bytes(33),
        [],
        {},
        [[]],
        {"": None},
        [0] * 40,
        {"name": []},
        "../x",
    ),
]
TAGS = {1: b"S7L3DICT", 3: b"S7L3STRM", 4: b"S7L3EDGE", 5: b"S7L3BTCH"}
TREES = {1: "dict", 3: "stream", 4: "edge", 5: "batch"}


def write_micro(root: Path) -> None:
    """``weights/`` and ``vocab.json`` of the smallest seal."""
    write_weights(root / "weights", MODEL)
    tree = vocab_tree(257)
    tree["tokens"], tree["specials"] = tree["tokens"][:256], {}
    (root / "vocab.json").write_text(json.dumps(tree))


def make() -> bytes:
    """The bytes of the smallest seal."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_micro(root)
        s7l.seal(root / "weights", root / "vocab.json", root / "moe.s7l")
        return (root / "moe.s7l").read_bytes()


def slots(tree):
    """Every (container, key) of a tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield tree, key
        if isinstance(value, dict | list):
            yield from slots(value)


class Mutants:
    """Mutants of one seal, drawn from a source of random numbers."""

    def __init__(self, data: bytes):
        self.data = data
        self.forgery = Forgery(data)
        self.packed = {n: pack(getattr(self.forgery, name)) for n, name in TREES.items()}
        self.slots = {n: list(slots(getattr(self.forgery, name))) for n, name in TREES.items()}
        self.tensors = self.forgery.edge["tensors"]

    def draw(self, rng) -> bytes:
        """One mutant; every kind keeps all hashes above the change right."""
        kind = rng.randrange(8)
        if kind == 0:
            return self.head(rng)
        if kind == 1:
            return self.weights(rng)
        lane = rng.choice((1, 3, 4, 4, 4, 5))
        if kind <= 3:
            return self.resealed(lane, self.bytes_of(lane, rng))
        return self.value_of(lane, rng)

    def head(self, rng) -> bytes:
        """A byte or a number of the head, the root made right again."""
        data = bytearray(self.data)
        if rng.random() < 0.5:
            data[rng.choice((rng.randrange(384), rng.randrange(4096)))] = rng.randrange(256)
        else:
            number = rng.choice((0, 1, 31, 4096, len(data), 1 << 32, (1 << 63) - 1, (1 << 64) - 1))
            at = rng.choice((40, *(64 * n + key for n in range(1, 6) for key in (8, 16))))
            data[at : at + 8] = number.to_bytes(8, "big")
        return reroot(data)

    def weights(self, rng) -> bytes:
        """A byte of FIELD, its chunk hashed again in half of the cases."""
        forgery, tensor = self.forgery, rng.choice(self.tensors)
        at = min(tensor["offset"] + rng.randrange(tensor["stored"] + 32), len(forgery.field) - 1)
        before, forgery.field[at] = forgery.field[at], rng.choice((0, 1, 0x7F, 0x80, 0xFF))
        chunks = [t["chunks"] for t in self.tensors]
        if rng.random() < 0.5:
            forgery.rehash()
        data = forgery.build()
        forgery.field[at] = before
        for tensor, kept in zip(self.tensors, chunks, strict=True):
            tensor["chunks"] = kept
        return data

    def bytes_of(self, lane, rng) -> bytes:
        """A lane's encoding with bytes replaced, inserted, removed or repeated."""
        payload = bytearray(self.packed[lane])
        at = rng.randrange(len(payload))
        kind = rng.randrange(4)
        if kind == 0:
            payload[at] = rng.randrange(256)
        elif kind == 1:
            payload[at:at] = rng.choice((b"\x90", b"\x80", b"\xc0", b"\xcc\x01", b"\xd9\x01a"))
        elif kind == 2:
            del payload[at : at + rng.randrange(1, 9)]
        else:
            payload[at:at] = payload[at : at + rng.randrange(1, 40)]
        return bytes(payload)

    def value_of(self, lane, rng) -> bytes:
        """A lane with one value of its tree replaced, dropped, swapped or added."""
        container, key = rng.choice(self.slots[lane])
        before = container[key]
        container[key] = rng.choice((*WEIRD, before, rng.choice(self.slots[lane])[1]))
        if isinstance(before, int) and rng.random() < 0.5:
            container[key] = before + rng.choice((-1, 1, 32, 64))
        try:
            payload = pack(getattr(self.forgery, TREES[lane]))
        finally:
            container[key] = before
        return self.resealed(lane, payload)

    def resealed(self, lane, payload) -> bytes:
        """The file with another payload, lanes moved and hashed as they must be."""
        payloads = {**self.forgery.payload, lane: payload}
        data, records = bytearray(4096), b""
        for n in range(1, 6):
            data += bytes(-len(data) % 4096)
            at = 64 * n + 24
            digest = leaf(TAGS[n], payloads[n]) if n == lane else self.data[at : at + 32]
            records += struct.pack(">B7xQQ32s8x", n, len(data), len(payloads[n]), digest)
            data += payloads[n]
        data[:384] = struct.pack(">4sHBB32xQ16x", b"S7LM", 3, 2, 5, len(data)) + records
        return reroot(data)


class Judge:
    """Both verifiers on bytes in memory."""

    def __init__(self):
        self.fd = os.memfd_create("mutant")
        self.path = f"/proc/self/fd/{self.fd}"

    def write(self, data: bytes) -> None:
        """Make ``data`` the file."""
        os.ftruncate(self.fd, len(data))
        os.pwrite(self.fd, data, 0)

    def library(self, data: bytes) -> bytes | None:
        """The root, or None if it is refused; any other error passes through."""
        self.write(data)
        try:
            seal = s7l.Seal(self.fd)
            seal.verify()
        except s7l.SealError:
            return None
        return seal.root

    def judged(self, mutants: Mutants, data: bytes, *, both: bool) -> bool:
        """Whether a mutant is accepted; by the second verifier too, which must give its root.

        With ``both`` the second verifier must also refuse what the library refuses.
        """
        root = self.library(data)
        if root is None:
            if both:
                try:
                    second.verify(self.path)
                except second.Refused:
                    return False
                raise AssertionError("the second verifier accepts what the library refuses")
            return False
        assert second.verify(self.path) == root
        assert (root == mutants.data[8:40]) == (data == mutants.data)
        return True
