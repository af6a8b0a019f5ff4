"""Open a sealed file and verify as much of it as is asked for.

Opening reads the head and the four small lanes and touches no weight: every hash up to the
root is recomputed from the manifest's chunk hashes. A tensor is verified before its first
view leaves this module; a chunk, tensor, component or everything can be verified at will.
"""

import gc
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from s7jax.s7l import memory, merkle
from s7jax.s7l.canonical import decode, encode
from s7jax.s7l.contract import OLD_SCHEME, SCHEME, compute_contract
from s7jax.s7l.field import Field
from s7jax.s7l.layout import HEAD_BYTES, LANES, PAGE, Head, align, check_zero, parse_head
from s7jax.s7l.manifest import Bindings, Manifest, parse_dimensions, parse_manifest
from s7jax.s7l.memory import Mode, default_mode
from s7jax.s7l.schema import SealError, equal, frozen
from s7jax.s7l.stream import check_stream
from s7jax.s7l.vocabulary import Vocabulary, parse_vocabulary

_CONTRACTS = {scheme: encode(compute_contract(scheme)) for scheme in (SCHEME, OLD_SCHEME)}


_OLD = (
    f"sealed under numeric scheme {OLD_SCHEME}, whose draws were unfair; its weights are sound: "
    "seal it again with `s7jax pack --reseal OLD.s7l --out NEW.s7l`"
)


def open(
    path: Path | str,
    *,
    root: bytes | None = None,
    mode: Mode | None = None,
    scheme: str = SCHEME,
) -> "Seal":
    """Open a sealed file without reading its weights.

    Args:
        path: the file; a link is followed, anything but a regular file is refused.
        root: the 32-byte root it must have; without it any honest seal is accepted.
        mode: ``mmap``, ``memfd`` or ``copy``; a copy is made by default where another user
            could change the file.
        scheme: numeric scheme it must be sealed under.

    Raises:
        SealError: the file cannot be opened, is not a seal, or has another root.
    """
    with opened(path) as fd:
        seal = Seal(fd, default_mode(fd) if mode is None else Mode(mode), scheme)
    if root is not None and seal.root != root:
        raise SealError(f"{path}: head[8:40]", f"root {seal.root.hex()}; expected {root.hex()}")
    return seal


@contextmanager
def opened(path: Path | str) -> Iterator[int]:
    """A descriptor of a file; every error inside names the path.

    Raises:
        SealError: the file cannot be opened or read.
    """
    try:
        # A FIFO would block without O_NONBLOCK before it could be refused.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            yield fd
        finally:
            os.close(fd)
    except SealError as e:
        raise SealError(f"{path}: {e.place}", e.problem) from e
    except (OSError, ValueError) as e:  # ValueError: a path with a NUL
        raise SealError(str(path), f"cannot be opened: {getattr(e, 'strerror', None) or e}") from e


class Seal(Field):
    """An open sealed file; read-only, and alive as long as it or a view of it is referenced.

    Attributes:
        head: root hash and lane records.
        manifest: dimensions, tensor table, provenance and everything else of the EDGE lane.
        vocabulary: the DICT lane.
        stream: generation defaults and known answers, the LANE lane; nobody can change them.
        contract: the BATCH lane.
        permissions: permission bits of the file when it was opened.
        mode: how its bytes are held in memory.
    """

    head: Head
    manifest: Manifest
    vocabulary: Vocabulary
    stream: Mapping[str, Any]
    contract: Mapping[str, Any]
    permissions: int
    mode: Mode

    def __init__(self, fd: int, mode: Mode = Mode.MMAP, scheme: str = SCHEME) -> None:
        """Check and load the file of a descriptor, which may be closed afterwards."""
        self._scheme = scheme
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise SealError("file", "not a regular file")
        size = status.st_size
        self.permissions = stat.S_IMODE(status.st_mode)
        self.mode = mode
        # Nothing is mapped or copied before head and manifest have been checked: a hostile
        # length costs nothing, and a file truncated meanwhile is an error and no signal.
        self.head = parse_head(memory.read(fd, size, 0, HEAD_BYTES), size)
        with _uncollected():
            self._parse(_payloads(self.head, partial(memory.read, fd, size)))
        loaded = memory.load(fd, size, mode)
        _, field, stream, _, _ = self.head.lanes
        super().__init__(loaded, field.offset, stream.offset, self.manifest.tensors)
        if mode is not Mode.MMAP:  # the copy is what was checked, not the file behind it
            if self.raw("head") != self.head.encode():
                raise SealError("head", "changed while the file was copied")
            _payloads(self.head, lambda start, end: bytes(loaded[start:end]))

    @property
    def root(self) -> bytes:
        """SHA-256 that names the file's whole content."""
        return self.head.root

    @property
    def length(self) -> int:
        """Bytes of the file."""
        return self.head.length

    def verify_component(self, name: str) -> None:
        """Every tensor of a component; raises like :meth:`s7jax.s7l.field.Field.verify_tensor`."""
        for tensor in self.manifest.components[name]:
            self.verify_tensor(tensor.name)

    def raw(self, part: str) -> bytes:
        """The file's own bytes of ``head`` or of a lane by name."""
        if part == "head":
            return bytes(self._bytes[:HEAD_BYTES])
        lane = self.head.lanes[LANES.index(part)]
        return bytes(self._bytes[lane.offset : lane.end])

    def _parse(self, payloads: dict[str, bytes]) -> None:
        """Decode and validate every lane but FIELD, and what FIELD's record says."""
        dictionary, field, stream, edge, batch = self.head.lanes
        self.contract = compute_contract(self._scheme)
        if payloads["BATCH"] != _CONTRACTS[self._scheme]:  # decoded only to say what is wrong
            if payloads["BATCH"] == _CONTRACTS[OLD_SCHEME]:
                raise SealError(batch.place, _OLD)
            equal(decode(payloads["BATCH"], batch.place), self.contract, f"{batch.place} ")
        small = (dictionary, stream, edge)
        trees = {lane.name: decode(payloads.pop(lane.name), lane.place) for lane in small}
        self.vocabulary = parse_vocabulary(trees["DICT"], f"{dictionary.place} ")
        dimensions = parse_dimensions(trees["EDGE"], f"{edge.place} ")
        found, rows = len(self.vocabulary.tokens), dimensions.vocab
        if found != rows:
            raise SealError(f"{dictionary.place} .tokens", f"{found} tokens; expected {rows}")
        self._stream = check_stream(trees["LANE"], dimensions, f"{stream.place} ")
        self.stream = frozen(self._stream)
        bindings = Bindings(dictionary.hash, batch.hash, self._stream["defaults"])
        self.manifest = parse_manifest(trees["EDGE"], dimensions, bindings, f"{edge.place} ")
        if field.length != self.manifest.field_bytes:
            raise SealError(
                f"{field.place} length", f"{field.length}; expected {self.manifest.field_bytes}"
            )
        if field.hash != self.manifest.field_root():
            raise SealError(f"{field.place} hash", "not the root of the manifest's chunk hashes")


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage collection: a large vocabulary is a hundred thousand objects, none garbage."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _payloads(head: Head, read: Callable[[int, int], bytes]) -> dict[str, bytes]:
    """The small lanes by name, their hashes and the gaps after them checked."""
    payloads = {}
    for lane in head.lanes:
        if lane.name not in merkle.PAYLOAD:
            continue
        payload = read(lane.offset, lane.end)
        if merkle.leaf(merkle.PAYLOAD[lane.name], payload) != lane.hash:
            raise SealError(lane.place, "the payload does not have the hash of its record")
        gap = read(lane.end, min(align(lane.end, PAGE), head.length))
        check_zero(gap, f"gap after {lane.place}")
        payloads[lane.name] = payload
    return payloads


def encodings(seal: Seal) -> dict[str, bytes]:
    """Head and small lanes encoded anew from what was parsed: equal to the file's bytes."""
    return {
        "head": seal.head.encode(),
        "DICT": encode(seal.vocabulary.tree()),
        "LANE": encode(seal._stream),
        "EDGE": encode(seal.manifest.tree()),
        "BATCH": encode(dict(seal.contract)),
    }
