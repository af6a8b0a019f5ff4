"""One component of a sealed file, with the proof that it belongs to its root.

The component's tensors, the roots of all components, the FIELD lane record and its audit path
in the lane directory: enough to recompute the seal's root without any other tensor, and
nothing in it is free that the root does not bind.
"""

import os
import re
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from s7jax.architecture import SEALED_DTYPES, TensorSpec
from s7jax.s7l import memory, merkle
from s7jax.s7l.canonical import decode, encode
from s7jax.s7l.dimensions import NAME
from s7jax.s7l.field import Field
from s7jax.s7l.layout import (
    CAPS,
    LANES,
    PAD,
    PAGE,
    Lane,
    align,
    check_zero,
    place_tensors,
    root_of_directory,
)
from s7jax.s7l.manifest import Tensor, check_exponent
from s7jax.s7l.memory import Mode, default_mode
from s7jax.s7l.publish import unpublished
from s7jax.s7l.reader import Seal, opened
from s7jax.s7l.schema import SealError, digest, equal, integer, mapping, sequence, text

MAGIC: Final = b"S7LB"
_PREFIX = struct.Struct(">4sHHQ")  # magic, version, zeros, bytes of the description
_VERSION = 3
_FIELD_INDEX = LANES.index("FIELD")
_KEYS = ("format", "version", "component", "components", "tensors", "field", "path", "length")


@dataclass(frozen=True)
class Claim:
    """What a bundle says of the sealed file it was taken from."""

    component: str
    components: dict[str, bytes]  # name → root, all of the file, in order of names
    tensors: tuple[Tensor, ...]  # of the component; offsets count from its start
    field: Lane
    path: tuple[bytes, ...]  # audit path of FIELD's record in the lane directory
    length: int  # bytes of the sealed file

    def root(self) -> bytes:
        """Root of the sealed file, recomputed from the tensors' chunk hashes up.

        Raises:
            SealError: the tensors are not those of the component.
        """
        found = merkle.tree([tensor.leaf() for tensor in self.tensors])
        if found != self.components.get(self.component):
            raise SealError(f"bundle .components.{self.component}", "not the root of its tensors")
        record = merkle.leaf(merkle.RECORD, self.field.record())
        count = len(LANES)
        directory = merkle.included_root(record, _FIELD_INDEX, count, self.path, "bundle .path")
        return root_of_directory(directory, self.length)

    def tree(self) -> dict[str, Any]:
        """The description at the start of a bundle."""
        return {
            "format": "s7-bundle",
            "version": 1,
            "component": self.component,
            "components": [{"name": n, "root": root} for n, root in self.components.items()],
            "tensors": [
                {k: v for k, v in tensor.tree().items() if k not in ("offset", "stored")}
                for tensor in self.tensors
            ],
            "field": {"offset": self.field.offset, "length": self.field.length},
            "path": list(self.path),
            "length": self.length,
        }


class Bundle(Field):
    """An open bundle: the tensors of one component, verified like those of a seal.

    Attributes:
        component: its name, e.g. ``expert2``.
        root: root of the sealed file it was taken from, as the bundle itself proves.
        length: bytes of that file.
        mode: how the bytes are held in memory.
    """

    def __init__(self, fd: int, mode: Mode) -> None:
        """Check and load the bundle behind a descriptor, which may be closed afterwards."""
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise SealError("file", "not a regular file")
        size = status.st_size
        head = memory.read(fd, size, 0, _PREFIX.size)
        if len(head) < _PREFIX.size or head[:8] != _PREFIX.pack(MAGIC, _VERSION, 0, 0)[:8]:
            raise SealError("bundle[0:8]", f"found {head[:8].hex()}; no bundle of version 3")
        described = _PREFIX.unpack(head)[3]
        if not 1 <= described <= CAPS["EDGE"]:
            raise SealError("bundle[8:16]", f"{described}; expected 1..{CAPS['EDGE']}")
        end = _PREFIX.size + described
        start = align(end, PAGE)
        claim = _parse(decode(memory.read(fd, size, _PREFIX.size, end), "bundle description"))
        last = claim.tensors[-1]
        if size != start + last.offset + last.stored:
            raise SealError("bundle", f"{size} bytes; expected {start + last.offset + last.stored}")
        check_zero(memory.read(fd, size, end, start), "gap after the bundle's description")
        self.component, self.length, self.mode = claim.component, claim.length, mode
        self.root = claim.root()
        super().__init__(memory.load(fd, size, mode), start, size, claim.tensors)


def open_bundle(path: Path | str, *, root: bytes | None = None, mode: Mode | None = None) -> Bundle:
    """Open a bundle without reading its weights.

    Args:
        path: the bundle.
        root: the root of the seal it must belong to. Without it the bundle proves only that
            it is whole, not what it is part of.
        mode: as in :func:`s7jax.s7l.open`.

    Raises:
        SealError: it cannot be opened, is no bundle, or belongs to another seal.
    """
    with opened(path) as fd:
        bundle = Bundle(fd, default_mode(fd) if mode is None else Mode(mode))
    if root is not None and bundle.root != root:
        raise SealError(f"{path}: bundle", f"of root {bundle.root.hex()}; expected {root.hex()}")
    return bundle


def is_bundle(path: Path) -> bool:
    """Whether a regular file starts like a bundle."""
    with opened(path) as fd:
        return stat.S_ISREG(os.fstat(fd).st_mode) and os.pread(fd, len(MAGIC), 0) == MAGIC


def extract(seal: Seal, component: str, out: Path) -> bool:
    """Write one component of a seal, verified, as a bundle; the rest of the seal is not read.

    Returns:
        Whether the file is new; False if the identical bundle was already there.

    Raises:
        SealError: no such component, its bytes are not the sealed ones, or ``out`` exists
            and is not byte-identical.
        OSError: the folder of ``out`` cannot be written.
    """
    manifest = seal.manifest
    if component not in manifest.components:
        raise SealError("component", f"no {component}; there are {', '.join(manifest.components)}")
    tensors = manifest.components[component]
    seal.verify_component(component)
    start = tensors[0].offset
    records = [merkle.leaf(merkle.RECORD, lane.record()) for lane in seal.head.lanes]
    claim = Claim(
        component,
        {name: manifest.component_root(name) for name in manifest.components},
        tensors,
        seal.head.lanes[_FIELD_INDEX],
        tuple(merkle.inclusion(records, _FIELD_INDEX)),
        seal.head.length,
    )
    described = encode(claim.tree())
    with unpublished(out) as new:
        new.file.write(_PREFIX.pack(MAGIC, _VERSION, 0, len(described)) + described)
        data = align(new.file.tell(), PAGE)
        for tensor in tensors:
            new.file.seek(data + tensor.offset - start)
            new.file.write(seal.stored(tensor.name))
        new.file.flush()
        written = Bundle(new.file.fileno(), Mode.MMAP)
        written.verify()
        assert written.root == seal.root
        return new.publish()


def _parse(tree: Any) -> Claim:
    place = "bundle "
    mapping(tree, _KEYS, place)
    equal(tree["format"], "s7-bundle", f"{place}.format")
    equal(tree["version"], 1, f"{place}.version")
    components = _parse_components(tree["components"], f"{place}.components")
    component = text(tree["component"], "|".join(components), f"{place}.component")
    tensors = _parse_tensors(tree["tensors"], component, f"{place}.tensors")
    mapping(tree["field"], ("offset", "length"), f"{place}.field")
    offset = integer(tree["field"]["offset"], PAGE, 1 << 62, f"{place}.field.offset")
    length = integer(tree["field"]["length"], PAD, 1 << 62, f"{place}.field.length")
    named = [{"name": name, "root": root} for name, root in components.items()]
    leaves = [merkle.leaf(merkle.COMPONENT, encode(value)) for value in named]
    path = [
        digest(h, f"{place}.path[{i}]")
        for i, h in enumerate(sequence(tree["path"], f"{place}.path"))
    ]
    return Claim(
        component,
        components,
        tensors,
        Lane(_FIELD_INDEX + 1, offset, length, merkle.tree(leaves)),
        tuple(path),
        integer(tree["length"], 1, 1 << 62, f"{place}.length"),
    )


def _parse_components(tree: Any, place: str) -> dict[str, bytes]:
    """Name → root of every component: exactly those of a model with some number of experts."""
    experts = [f"expert{e}" for e in range(len(sequence(tree, place, 4, 19)) - 3)]
    names = sorted(("embedding", "router", "trunk", *experts))
    components = {}
    for i, (entry, name) in enumerate(zip(tree, names, strict=True)):
        mapping(entry, ("name", "root"), f"{place}[{i}]")
        equal(entry["name"], name, f"{place}[{i}].name")
        components[name] = digest(entry["root"], f"{place}[{i}].root")
    return components


def _parse_tensors(tree: Any, component: str, place: str) -> tuple[Tensor, ...]:
    """The component's tensors, each of a possible form; only the root says they are all."""
    parsed: list[tuple[TensorSpec, int | None, tuple[bytes, ...]]] = []
    for i, entry in enumerate(sequence(tree, place, 1)):
        where = f"{place}[{i}]"
        fixed = type(entry) is dict and "exponent" in entry
        more = ("exponent",) if fixed else ("axis", "scale")
        mapping(entry, ("name", "shape", "dtype", "chunks", *more), where)
        spec = _parse_spec(entry, component, where)
        if parsed and spec.name.encode() <= parsed[-1][0].name.encode():
            raise SealError(f"{where}.name", "repeats or is out of order")
        exponent = (
            check_exponent(entry["exponent"], spec.name, f"{where}.exponent") if fixed else None
        )
        count = -(-align(spec.size, PAD) // merkle.CHUNK_BYTES)
        hashes = sequence(entry["chunks"], f"{where}.chunks", count, count)
        chunks = [digest(value, f"{where}.chunks[{j}]") for j, value in enumerate(hashes)]
        parsed.append((spec, exponent, tuple(chunks)))
    placed = place_tensors((spec.name, spec.size) for spec, _, _ in parsed)
    return tuple(
        Tensor(spec, offset, stored, exponent, chunks)
        for (spec, exponent, chunks), (offset, stored) in zip(parsed, placed, strict=True)
    )


def _parse_spec(entry: dict[str, Any], component: str, place: str) -> TensorSpec:
    name = text(entry["name"], NAME, f"{place}.name")
    text(name, rf"{re.escape(component)}\..+", f"{place}.name")
    dtype = text(entry["dtype"], "|".join(SEALED_DTYPES), f"{place}.dtype")
    shape = sequence(entry["shape"], f"{place}.shape", 1, 4)
    sizes = [integer(size, 1, 1 << 24, f"{place}.shape[{i}]") for i, size in enumerate(shape)]
    if "exponent" in entry:
        return TensorSpec(name=name, shape=tuple(sizes), dtype=dtype)
    axis = integer(entry["axis"], 0, len(sizes) - 1, f"{place}.axis")
    scale = text(entry["scale"], NAME, f"{place}.scale")
    return TensorSpec(name=name, shape=tuple(sizes), dtype=dtype, axis=axis, scale=scale)
