"""Open a sealed file and verify as much of it as is asked for.

Opening reads the head and the four small lanes and touches no weight: every hash up to the
root is recomputed from the manifest's chunk hashes. A tensor is verified before its first
view leaves this module; a chunk, tensor, component or everything can be verified at will.
"""

import mmap
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from s7jax.s7l import merkle
from s7jax.s7l.canonical import decode, encode
from s7jax.s7l.contract import compute_contract
from s7jax.s7l.layout import HEAD_BYTES, LANES, PAGE, Head, Lane, align, check_zero, parse_head
from s7jax.s7l.manifest import Bindings, Manifest, Tensor, parse_dimensions, parse_manifest
from s7jax.s7l.schema import SealError, equal
from s7jax.s7l.stream import check_stream
from s7jax.s7l.values import check_values, little_endian
from s7jax.s7l.vocabulary import Vocabulary, parse_vocabulary


def open(path: Path | str, *, root: bytes | None = None) -> "Seal":
    """Open a sealed file without reading its weights.

    Args:
        path: the file; a link is followed, anything but a regular file is refused.
        root: the 32-byte root it must have; without it any honest seal is accepted.

    Raises:
        SealError: the file cannot be opened, is not a seal, or has another root.
    """
    try:
        # A FIFO would block without O_NONBLOCK before it could be refused.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            seal = Seal(fd)
        finally:
            os.close(fd)
    except SealError as e:
        raise SealError(f"{path}: {e.place}", e.problem) from e
    except (OSError, ValueError) as e:  # ValueError: a path with a NUL
        raise SealError(str(path), f"cannot be opened: {e}") from e
    if root is not None and seal.root != root:
        raise SealError(f"{path}: head[8:40]", f"root {seal.root.hex()}; expected {root.hex()}")
    return seal


class Seal:
    """An open sealed file; read-only, and alive as long as it or a view of it is referenced.

    Attributes:
        head: root hash and lane records.
        manifest: dimensions, tensor table, provenance and everything else of the EDGE lane.
        vocabulary: the DICT lane.
        stream: generation defaults and known answers, the LANE lane.
        contract: the BATCH lane.
        mode: permission bits of the file when it was opened.
    """

    head: Head
    manifest: Manifest
    vocabulary: Vocabulary
    stream: Mapping[str, Any]
    contract: Mapping[str, Any]
    mode: int

    def __init__(self, fd: int) -> None:
        """Map and check the file behind a descriptor, which may be closed afterwards."""
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise SealError("file", "not a regular file")
        self.mode = stat.S_IMODE(status.st_mode)
        self.head = parse_head(os.pread(fd, HEAD_BYTES, 0), status.st_size)
        self._map = mmap.mmap(fd, status.st_size, access=mmap.ACCESS_READ)
        self._bytes = memoryview(self._map)
        self._verified: set[str] = set()
        self._read_lanes()
        self._tensors = {tensor.name: tensor for tensor in self.manifest.tensors}
        starts = [self._field.offset + tensor.offset for tensor in self.manifest.tensors]
        self._next = dict(zip(self._tensors, [*starts[1:], self.head.lanes[2].offset], strict=True))

    @property
    def root(self) -> bytes:
        """SHA-256 that names the file's whole content."""
        return self.head.root

    @property
    def is_read_only(self) -> bool:
        """Whether the mapping, and with it every view, refuses writes."""
        return self._bytes.readonly

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The tensor table by name, in order of names."""
        return MappingProxyType(self._tensors)

    def tensor(self, name: str) -> np.ndarray[Any, Any]:
        """A read-only view of a tensor, verified on first touch: int8|int16|int32[shape].

        Raises:
            KeyError: no such tensor (see :attr:`tensors`).
            SealError: its bytes are not the sealed ones.
        """
        tensor = self._tensors[name]
        if name not in self._verified:
            self.verify_tensor(name)
        return self._view(tensor).reshape(tensor.spec.shape)

    def verify_chunk(self, name: str, index: int) -> None:
        """Hash one 1 MiB chunk of a tensor.

        Raises:
            KeyError, IndexError: no such tensor or chunk.
            SealError: the chunk's bytes are not the sealed ones.
        """
        tensor = self._tensors[name]
        expected = tensor.chunks[index]
        stored = self._stored(tensor)
        start = index % len(tensor.chunks) * merkle.CHUNK_BYTES
        if merkle.leaf(merkle.CHUNK, stored[start : start + merkle.CHUNK_BYTES]) != expected:
            raise SealError(f"FIELD tensor {name} chunk {index}", "bytes do not have their hash")

    def verify_tensor(self, name: str) -> None:
        """Hashes, padding, the gap behind it, and values of one tensor.

        Raises:
            KeyError: no such tensor.
            SealError: any of them is not as sealed.
        """
        self.verify_hashes(name)
        self.verify_zeros(name)
        self.verify_values(name)
        self._verified.add(name)

    def verify_hashes(self, name: str) -> None:
        """Every chunk of one tensor; raises like :meth:`verify_chunk`."""
        for index in range(len(self._tensors[name].chunks)):
            self.verify_chunk(name, index)

    def verify_zeros(self, name: str) -> None:
        """Padding of one tensor and the gap up to the next tensor or lane.

        Raises:
            KeyError: no such tensor.
            SealError: a byte is not zero.
        """
        tensor = self._tensors[name]
        check_zero(self._stored(tensor)[tensor.spec.size :], f"FIELD tensor {name} padding")
        start = self._field.offset + tensor.offset + tensor.stored
        check_zero(self._bytes[start : self._next[name]], f"FIELD gap behind tensor {name}")

    def verify_values(self, name: str) -> None:
        """No −128 in int8 and no negative scale.

        Raises:
            KeyError: no such tensor.
            SealError: there is one.
        """
        tensor = self._tensors[name]
        check_values(self._view(tensor), tensor.spec, f"FIELD tensor {name}")

    def verify_component(self, name: str) -> None:
        """Every tensor of a component; raises like :meth:`verify_tensor`."""
        for tensor in self.manifest.components[name]:
            self.verify_tensor(tensor.name)

    def verify(self) -> None:
        """Every byte of the file; raises like :meth:`verify_tensor`."""
        for name in self._tensors:
            self.verify_tensor(name)

    def raw(self, part: str) -> bytes:
        """The file's own bytes of ``head`` or of a lane by name."""
        if part == "head":
            return bytes(self._bytes[:HEAD_BYTES])
        lane = self.head.lanes[LANES.index(part)]
        return bytes(self._bytes[lane.offset : lane.end])

    @property
    def _field(self) -> Lane:
        return self.head.lanes[1]

    def _read_lanes(self) -> None:
        """Hash, decode and validate every lane but FIELD, and what FIELD's record says."""
        small = [lane for lane in self.head.lanes if lane is not self._field]
        trees = {lane.name: self._decode(lane) for lane in small}
        dictionary, field, stream, edge, batch = self.head.lanes
        equal(trees["BATCH"], compute_contract(), f"{batch.place} ")
        self.contract = trees["BATCH"]
        self.vocabulary = parse_vocabulary(trees["DICT"], f"{dictionary.place} ")
        dimensions = parse_dimensions(trees["EDGE"], f"{edge.place} ")
        found, rows = len(self.vocabulary.tokens), dimensions.vocab
        if found != rows:
            raise SealError(f"{dictionary.place} .tokens", f"{found} tokens; expected {rows}")
        self.stream = check_stream(trees["LANE"], dimensions, f"{stream.place} ")
        bindings = Bindings(dictionary.hash, batch.hash, self.stream["defaults"])
        self.manifest = parse_manifest(trees["EDGE"], dimensions, bindings, f"{edge.place} ")
        if field.length != self.manifest.field_bytes:
            raise SealError(
                f"{field.place} length", f"{field.length}; expected {self.manifest.field_bytes}"
            )
        if field.hash != self.manifest.field_root():
            raise SealError(f"{field.place} hash", "not the root of the manifest's chunk hashes")

    def _decode(self, lane: Lane) -> Any:
        payload = self.raw(lane.name)
        if merkle.leaf(merkle.PAYLOAD[lane.name], payload) != lane.hash:
            raise SealError(lane.place, "the payload does not have the hash of its record")
        gap = self._bytes[lane.end : min(align(lane.end, PAGE), self.head.length)]
        check_zero(gap, f"gap behind {lane.place}")
        return decode(payload, lane.place)

    def _stored(self, tensor: Tensor) -> memoryview:
        start = self._field.offset + tensor.offset
        return self._bytes[start : start + tensor.stored]

    def _view(self, tensor: Tensor) -> np.ndarray[Any, Any]:
        dtype = little_endian(tensor.spec.dtype)
        start = self._field.offset + tensor.offset
        return np.frombuffer(self._map, dtype, tensor.spec.size // dtype.itemsize, start)


def encodings(seal: Seal) -> dict[str, bytes]:
    """Head and small lanes encoded anew from what was parsed: equal to the file's bytes."""
    return {
        "head": seal.head.encode(),
        "DICT": encode(seal.vocabulary.tree()),
        "LANE": encode(dict(seal.stream)),
        "EDGE": encode(seal.manifest.tree()),
        "BATCH": encode(dict(seal.contract)),
    }
