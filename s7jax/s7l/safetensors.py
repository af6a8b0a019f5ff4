"""Exchange with safetensors: sealed integers with what it takes to seal them again, and floats.

Layout: header length u64 little-endian, header as JSON, data. Tensors keep their bytes; the
weights folder's manifest and the vocabulary travel as strings in ``__metadata__``. The format
has no hashes of its own, so the manifest's SHA-256 of every tensor are checked on import.
Source: github.com/huggingface/safetensors, README, section Format.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from s7jax.architecture import TensorSpec, sealed_count, sealed_tensors
from s7jax.errors import show
from s7jax.s7l.dimensions import architecture_tree, parse_architecture, tensor_entry
from s7jax.s7l.manifest import METHOD
from s7jax.s7l.memory import Mode, load, read
from s7jax.s7l.publish import new_folder, unpublished
from s7jax.s7l.reader import Seal, opened
from s7jax.s7l.schema import SealError, equal, integer, mapping, parse_json, sequence
from s7jax.s7l.values import little_endian
from s7jax.s7l.vocabulary import read_vocabulary
from s7jax.s7l.weights_folder import read_weights, save_array

_DTYPES: Final = {"int8": "I8", "int16": "I16", "int32": "I32"}
_ALIGN: Final = 64  # of the data: a mapped file then needs no copy to be used
_MAX_HEADER: Final = 100_000_000  # as in the reference implementation
_METADATA: Final = ("manifest.json", "vocab.json")


def export_safetensors(seal: Seal, out: Path) -> bool:
    """Write every tensor of a seal, each verified, with manifest and vocabulary.

    Generation defaults, known answers and parent are left out: they are not weights.

    Returns:
        Whether the file is new; False if the identical one was already there.

    Raises:
        SealError: a tensor is not as sealed, or ``out`` exists with other content.
        OSError: the folder of ``out`` cannot be written.
    """
    specs = [tensor.spec for tensor in seal.tensors.values()]
    folder = (_manifest(seal), seal.vocabulary.file_tree())
    metadata = zip(_METADATA, (json.dumps(tree, sort_keys=True) for tree in folder), strict=True)
    data = (seal.stored(spec.name)[: spec.size] for spec in specs)
    return _write(out, {**_entries(specs), "__metadata__": dict(metadata)}, data)


def write_safetensors(
    out: Path, arrays: Mapping[str, NDArray[np.float32]], metadata: Mapping[str, str] | None = None
) -> bool:
    """Write float32 arrays under their names; returns as :func:`export_safetensors`.

    Args:
        out: the file to create.
        arrays: what it is to hold.
        metadata: strings for the header, if any.

    Raises:
        SealError: another type of numbers, or ``out`` exists with other content.
        OSError: the folder of ``out`` cannot be written.
    """
    for name, array in arrays.items():
        equal(array.dtype.name, "float32", f"{name}: dtype")
    entries = _float_entries({name: array.shape for name, array in arrays.items()})
    header = {**entries, **({"__metadata__": dict(metadata)} if metadata else {})}
    return _write(out, header, (arrays[name].astype("<f4").tobytes() for name in entries))


def read_safetensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, NDArray[np.float32]]:
    """The float32 arrays of a file that holds exactly these; they are views of the mapped file.

    Raises:
        SealError: the file is damaged, or holds other tensors.
    """
    tree, data = _read(path)
    tree.pop("__metadata__", None)
    wanted = _float_entries(shapes)
    spans = _spans(mapping(tree, tuple(wanted), "header "), wanted, len(data))
    return {
        name: np.frombuffer(data[begin:end], "<f4").reshape(shapes[name])
        for name, (begin, end) in spans.items()
    }


def _write(out: Path, header: dict[str, Any], data: Iterable[bytes | memoryview]) -> bool:
    """A file of a header and what it describes, in order; whether it is new."""
    head = json.dumps(header, sort_keys=True).encode()
    head = head.ljust(-(-(8 + len(head)) // _ALIGN) * _ALIGN - 8)  # blanks may follow
    with unpublished(out) as new:
        new.file.write(len(head).to_bytes(8, "little") + head)
        for part in data:
            new.file.write(part)
        return new.publish()


def import_safetensors(path: Path, out: Path) -> None:
    """Make ``out/weights`` and ``out/vocab.json``, ready to be sealed, of an exported seal.

    Raises:
        SealError: the file is damaged or does not come from a seal, or ``out`` exists.
        OSError: the folder of ``out`` cannot be written.
    """
    tree, data = _read(path)
    if "__metadata__" not in tree:
        raise SealError("header", "no __metadata__; only exports of a seal can be imported")
    metadata = mapping(tree.pop("__metadata__"), _METADATA, "header .__metadata__")
    if any(type(value) is not str for value in metadata.values()):
        raise SealError("header .__metadata__", "expected strings")
    place = "header .__metadata__.manifest.json"
    manifest = parse_json(metadata["manifest.json"], place)
    if type(manifest) is not dict or "model" not in manifest:
        raise SealError(place, "no model in it")
    dimensions = parse_architecture(manifest["model"], f"{place} .model")
    if len(tree) != sealed_count(dimensions):
        raise SealError("header", f"{len(tree)} tensors; the model has {sealed_count(dimensions)}")
    specs = sealed_tensors(dimensions)
    spans = _spans(tree, _entries(specs), len(data))
    with new_folder(out) as folder:
        (folder / "weights").mkdir()
        for name, parent in zip(_METADATA, (folder / "weights", folder), strict=True):
            (parent / name).write_text(metadata[name], encoding="utf-8")
        for spec in specs:
            begin, end = spans[spec.name]
            array = np.frombuffer(data[begin:end], little_endian(spec.dtype))
            save_array(folder / "weights" / f"{spec.name}.npy", array.reshape(spec.shape))
        read_vocabulary(folder / "vocab.json")
        read_weights(folder / "weights").verify()


def _read(path: Path) -> tuple[dict[str, Any], memoryview]:
    """Header and data of a file; the data is mapped, not read."""
    with opened(path) as fd:
        size = os.fstat(fd).st_size
        length = int.from_bytes(read(fd, size, 0, min(8, size)), "little")
        if not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise SealError("header length", f"{length} in a file of {size} bytes")
        tree = parse_json(read(fd, size, 8, 8 + length), "header")
        if type(tree) is not dict:
            raise SealError("header", f"found {show(tree)}; expected a map")
        return tree, load(fd, size, Mode.MMAP)[8 + length :]


def _entries(specs: Iterable[TensorSpec]) -> dict[str, Any]:
    """The header without metadata: sealed tensors in order, nothing between them."""
    return _laid_out((spec.name, _DTYPES[spec.dtype], spec.shape, spec.size) for spec in specs)


def _float_entries(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The same of float32 arrays, in order of their names."""
    return _laid_out(
        (name, "F32", shape, 4 * prod(shape)) for name, shape in sorted(shapes.items())
    )


def _laid_out(tensors: Iterable[tuple[str, str, tuple[int, ...], int]]) -> dict[str, Any]:
    """Entries of tensors one after the other: name, type, shape and bytes of each."""
    entries, at = {}, 0
    for name, dtype, shape, size in tensors:
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    return entries


def _spans(
    tree: dict[str, Any], wanted: Mapping[str, Any], size: int
) -> dict[str, tuple[int, int]]:
    """Where each wanted tensor's bytes are: in any order, without holes or overlaps."""
    spans, total = {}, 0
    for name, entry in wanted.items():
        place = f"header .{name}"
        if name not in tree:
            raise SealError(place, "missing")
        found = mapping(tree[name], ("dtype", "shape", "data_offsets"), place)
        for key in ("dtype", "shape"):
            equal(found[key], entry[key], f"{place}.{key}")
        offsets = sequence(found["data_offsets"], f"{place}.data_offsets", 2, 2)
        begin, end = (integer(at, 0, 1 << 62, f"{place}.data_offsets") for at in offsets)
        spans[name] = (begin, end)
        expected = entry["data_offsets"][1] - entry["data_offsets"][0]
        if end - begin != expected:
            raise SealError(f"{place}.data_offsets", f"{end - begin} bytes; expected {expected}")
        total += expected
    if size != total:
        raise SealError("file", f"{size} bytes of data; not what the header says")
    at = 0
    for begin, end in sorted(spans.values()):
        if begin != at:
            raise SealError("header data_offsets", f"a hole or an overlap at byte {at}")
        at = end
    return spans


def _manifest(seal: Seal) -> dict[str, Any]:
    """``manifest.json`` of the weights folder a seal was made of; verifies every tensor."""
    entries = {}
    for tensor in seal.tensors.values():
        seal.verify_tensor(tensor.name)
        entries[tensor.name] = _manifest_entry(seal, tensor.spec)
        if tensor.exponent is not None:
            entries[tensor.name]["exponent"] = tensor.exponent
    facts = {"format": "s7-weights", "version": 1, "method": METHOD, "tensors": entries}
    model, provenance = architecture_tree(seal.manifest.dimensions), dict(seal.manifest.provenance)
    return {**facts, "model": model, "provenance": provenance}


def _manifest_entry(seal: Seal, spec: TensorSpec) -> dict[str, Any]:
    data = seal.stored(spec.name)[: spec.size]
    entry = {key: value for key, value in tensor_entry(spec).items() if key != "name"}
    return {**entry, "sha256": hashlib.sha256(data).hexdigest()}
