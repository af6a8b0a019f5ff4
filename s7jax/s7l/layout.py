"""Where every byte of a sealed file stands: head, lane records, lanes, tensors.

Nothing here is free: given the lengths, every offset is determined, and a reader requires the
stored value to equal the computed one.
"""

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from s7jax.s7l import merkle
from s7jax.s7l.schema import SealError

HEAD_BYTES: Final = 4_096
PAGE: Final = 4_096  # lanes and components start at multiples of it
TENSOR_ALIGN: Final = 64  # what a zero-copy hand-over to XLA on CPU needs
PAD: Final = 32  # stored bytes are a multiple of it: one AVX2 register (§8 of the sizing spec)

PREFIX: Final = struct.pack(">4sHBB", b"S7LM", 3, 2, 5)
"""head[0:8]: magic, version 3, class 2, flags 5 (1 INT8 | 4 MoE)."""

LANES: Final = ("DICT", "FIELD", "LANE", "EDGE", "BATCH")
"""Names of lanes 1..5."""

CAPS: Final = {"DICT": 16 << 20, "LANE": 4 << 20, "EDGE": 4 << 20, "BATCH": 1 << 20}
"""Most bytes a small lane may have; FIELD is bounded by its tensor table."""

_OTHERS = {
    b"S7LB": "a bundle of one component (.s7b)",
    b"\x87\xa6an": "a proof (.s7p)",
    b"\x88\xa6an": "a proof with a trace (.s7p)",
    b"GGUF": "a model for llama.cpp (GGUF)",
}
"""What else a file may be, by its first four bytes."""

_FIXED = struct.Struct(">8s32sQ16s")  # prefix, root, file length, zeros: head[0:64]
_RECORD = struct.Struct(">B7sQQ32s8s")  # id, zeros, offset, length, hash, zeros
_RECORDS_END = _FIXED.size + len(LANES) * _RECORD.size
_FIELDS = ((0, 4, "magic"), (4, 6, "version"), (6, 7, "class"), (7, 8, "flags"))


@dataclass(frozen=True)
class Lane:
    """One lane record: offset and length in bytes of the file, hash of the payload."""

    id: int
    offset: int
    length: int
    hash: bytes

    @property
    def name(self) -> str:
        """DICT, FIELD, LANE, EDGE or BATCH."""
        return LANES[self.id - 1]

    @property
    def place(self) -> str:
        """How error messages call this lane."""
        return f"lane {self.id} ({self.name})"

    @property
    def end(self) -> int:
        """First byte of the file after the payload."""
        return self.offset + self.length

    def record(self) -> bytes:
        """The 64 bytes that stand in the head."""
        return _RECORD.pack(self.id, bytes(7), self.offset, self.length, self.hash, bytes(8))


@dataclass(frozen=True)
class Head:
    """The parsed head: root hash and the five lanes in id order."""

    root: bytes
    lanes: tuple[Lane, ...]

    @property
    def length(self) -> int:
        """Bytes of the whole file, which ends with the last payload."""
        return self.lanes[-1].end

    def encode(self) -> bytes:
        """The 4,096 bytes of the head."""
        fixed = _FIXED.pack(PREFIX, self.root, self.length, bytes(16))
        records = b"".join(lane.record() for lane in self.lanes)
        return (fixed + records).ljust(HEAD_BYTES, b"\x00")


def align(at: int, step: int) -> int:
    """The first multiple of ``step`` at or after ``at``."""
    return -(-at // step) * step


def make_head(payloads: Iterable[tuple[int, bytes]]) -> Head:
    """The head for five lanes given as (length, hash) in id order."""
    lanes: list[Lane] = []
    for number, (length, digest) in enumerate(payloads, 1):
        offset = align(lanes[-1].end, PAGE) if lanes else HEAD_BYTES
        lanes.append(Lane(number, offset, length, digest))
    return Head(seal_root(lanes), tuple(lanes))


def seal_root(lanes: Iterable[Lane]) -> bytes:
    """Root of a file with these lanes; the last one ends it."""
    lanes = tuple(lanes)
    directory = merkle.tree([merkle.leaf(merkle.RECORD, lane.record()) for lane in lanes])
    return root_of_directory(directory, lanes[-1].end)


def root_of_directory(directory: bytes, length: int) -> bytes:
    """H("S7L3SEAL" ‖ head[0:8] ‖ file length ‖ tree over the lane records)."""
    return hashlib.sha256(b"S7L3SEAL" + PREFIX + length.to_bytes(8, "big") + directory).digest()


def parse_head(head: bytes, size: int) -> Head:
    """The head of a file of ``size`` bytes, every byte of it checked.

    Raises:
        SealError: any byte differs from what the lengths and hashes determine.
    """
    if other := _OTHERS.get(head[:4]):
        raise SealError("head[0:4]", f"this is {other}; expected a sealed model (.s7l)")
    if len(head) < HEAD_BYTES:
        raise SealError(f"head[{len(head)}:{HEAD_BYTES}]", f"the file ends at byte {len(head)}")
    _, root, length, _ = _FIXED.unpack_from(head)
    for start, end, name in _FIELDS:
        if head[start:end] != PREFIX[start:end]:
            raise SealError(
                f"head[{start}:{end}]",
                f"{name} is {head[start:end].hex()}; expected {PREFIX[start:end].hex()}",
            )
    if length != size:
        raise SealError("head[40:48]", f"file length {length}; the file has {size} bytes")
    check_zero(head[48:64], "head[48:64]")
    lanes: list[Lane] = []
    for number in range(1, len(LANES) + 1):
        offset = align(lanes[-1].end, PAGE) if lanes else HEAD_BYTES
        lanes.append(_parse_record(head, number, offset, size))
    if lanes[-1].end != size:
        raise SealError(f"file[{lanes[-1].end}:{size}]", "bytes after the last lane")
    check_zero(head[_RECORDS_END:HEAD_BYTES], f"head[{_RECORDS_END}:{HEAD_BYTES}]")
    if root != seal_root(lanes):
        raise SealError("head[8:40]", "root hash does not match the lane directory")
    return Head(root, tuple(lanes))


def _parse_record(head: bytes, number: int, expected: int, size: int) -> Lane:
    start = _FIXED.size + (number - 1) * _RECORD.size
    found, zeros, offset, length, digest, tail = _RECORD.unpack_from(head, start)
    lane = Lane(number, offset, length, digest)
    if found != number:
        raise SealError(f"head[{start}:{start + 1}]", f"lane id {found}; expected {number}")
    check_zero(zeros, f"head[{start + 1}:{start + 8}]")
    check_zero(tail, f"head[{start + 56}:{start + 64}]")
    if offset != expected:
        raise SealError(f"{lane.place} offset", f"{offset}; expected {expected}")
    if not 1 <= length <= CAPS.get(lane.name, size):
        raise SealError(
            f"{lane.place} length", f"{length}; expected 1..{CAPS.get(lane.name, size)}"
        )
    if lane.end > size:
        raise SealError(f"{lane.place} length", f"ends at {lane.end}, beyond the file's {size}")
    return lane


def check_zero(data: bytes | memoryview, place: str) -> None:
    """Require reserved bytes, padding or a gap to be zero.

    Raises:
        SealError: one is not.
    """
    if any(data):
        at = next(i for i, byte in enumerate(data) if byte)
        raise SealError(place, f"byte {at} is {data[at]}; expected zeros")


def place_tensors(sizes: Iterable[tuple[str, int]]) -> list[tuple[int, int]]:
    """Offset in FIELD and stored bytes of each tensor, given (name, data bytes) in order.

    A component (first segment of the name) starts at a multiple of 4,096, a tensor at a
    multiple of 64, and stored bytes are the data bytes rounded up to 32.
    """
    placed: list[tuple[int, int]] = []
    end, component = 0, ""
    for name, size in sizes:
        first = name.partition(".")[0]
        offset = align(end, TENSOR_ALIGN if first == component else PAGE)
        placed.append((offset, align(size, PAD)))
        end, component = offset + placed[-1][1], first
    return placed
