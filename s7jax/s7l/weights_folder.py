"""The weights folder: what a quantiser leaves and the writer seals. Both ends of it.

One ``<tensor name>.npy`` per tensor and a ``manifest.json`` with each tensor's dtype, shape,
SHA-256 and quantisation attributes, the model's dimensions and the provenance of the weights.
"""

import errno
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from s7jax.architecture import Architecture, TensorSpec, sealed_tensors
from s7jax.errors import show
from s7jax.s7l.canonical import encode
from s7jax.s7l.dimensions import parse_architecture, tensor_entry
from s7jax.s7l.manifest import METHOD, check_exponent, check_provenance
from s7jax.s7l.schema import SealError, equal, mapping, read_json, text
from s7jax.s7l.values import check_values, little_endian

FORMAT, VERSION = "s7-weights", 1
# NumPy parses a header as Python, and CPython 3.11's parser fails when threads take turns in it.
_PARSER = threading.Lock()


def save_array(path: Path, array: np.ndarray[Any, Any]) -> None:
    """Write a ``.npy``; NumPy's own error of a full disk names neither file nor reason.

    Raises:
        OSError: with the file's name.
    """
    try:
        np.save(path, array, allow_pickle=False)
    except OSError as e:
        reason = e.strerror or os.strerror(errno.ENOSPC)
        raise OSError(e.errno or errno.ENOSPC, reason, str(path)) from None


def write_weights(
    folder: Path,
    model: Mapping[str, Any],
    tensors: Iterable[tuple[str, np.ndarray[Any, Any], Mapping[str, Any]]],
    provenance: Mapping[str, Any],
) -> int:
    """Write a weights folder, replacing one that is there; it appears complete or not at all.

    Its bytes are a pure function of the arguments, whatever the order of the tensors.

    Args:
        folder: where it is to be.
        model: the dimensions, as JSON.
        tensors: name, integer array and attributes (``axis`` and ``scale``, or ``exponent``), one
            at a time, so that all of them need never be in memory together.
        provenance: where the weights come from, as JSON.

    Returns:
        The number of tensors written.
    """
    entries: dict[str, dict[str, Any]] = {}
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for name, array, attributes in tensors:
        little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        save_array(unfinished / f"{name}.npy", little)
        entries[name] = {
            "dtype": array.dtype.name,
            "shape": list(array.shape),
            "sha256": hashlib.sha256(little.tobytes()).hexdigest(),
            **attributes,
        }
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "method": METHOD,
        "model": model,
        "tensors": {name: entries[name] for name in sorted(entries)},
        "provenance": provenance,
    }
    text = json.dumps(manifest, indent=1, allow_nan=False)
    (unfinished / "manifest.json").write_text(f"{text}\n")
    if folder.exists():
        shutil.rmtree(folder)
    unfinished.rename(folder)
    return len(entries)


@dataclass(frozen=True)
class Weights:
    """A weights folder whose ``manifest.json`` has been checked."""

    folder: Path
    dimensions: Architecture
    exponents: Mapping[str, int]
    digests: Mapping[str, str]  # SHA-256 of the raw little-endian data, hexadecimal
    provenance: Mapping[str, Any]

    def data(self, spec: TensorSpec) -> bytes:
        """The tensor's raw little-endian bytes in row-major order.

        Raises:
            SealError: the file is missing, no plain ``.npy``, of another shape or dtype, does
                not have the listed digest, or holds a value that must not be sealed.
        """
        path = self.folder / f"{spec.name}.npy"
        array = _load(path)
        if array.shape != spec.shape or array.dtype != little_endian(spec.dtype):
            raise SealError(
                str(path),
                f"{array.dtype.str} {list(array.shape)}; "
                f"expected {little_endian(spec.dtype).str} {list(spec.shape)}",
            )
        data = array.tobytes()
        if hashlib.sha256(data).hexdigest() != self.digests[spec.name]:
            raise SealError(str(path), "the data does not have the SHA-256 of manifest.json")
        check_values(np.frombuffer(data, array.dtype), spec, str(path))
        return data

    def verify(self) -> None:
        """Read every tensor.

        Raises:
            SealError: one of them is not what the manifest says.
        """
        for spec in sealed_tensors(self.dimensions):
            self.data(spec)


def read_weights(folder: Path) -> Weights:
    """The weights folder, every key of its ``manifest.json`` checked; no tensor is read yet.

    Raises:
        SealError: the manifest does not list exactly the tensors that its model demands.
    """
    path = folder / "manifest.json"
    place, tree = f"{path} ", read_json(path)
    mapping(tree, ("format", "version", "method", "model", "tensors", "provenance"), place)
    equal(tree["format"], FORMAT, f"{place}.format")
    equal(tree["version"], VERSION, f"{place}.version")
    equal(tree["method"], METHOD, f"{place}.method")
    dimensions = parse_architecture(tree["model"], f"{place}.model")
    encode(check_provenance(tree["provenance"], f"{place}.provenance"), f"{place}.provenance")
    table = sealed_tensors(dimensions)
    entries = mapping(tree["tensors"], tuple(spec.name for spec in table), f"{place}.tensors")
    exponents, digests = {}, {}
    for spec in table:
        where = f"{place}.tensors[{spec.name}]"
        expected = {k: v for k, v in tensor_entry(spec).items() if k != "name"}
        free = ("sha256", "exponent") if spec.is_fixed_point else ("sha256",)
        entry = mapping(entries[spec.name], (*expected, *free), where)
        equal({k: entry[k] for k in expected}, expected, where)
        digests[spec.name] = text(entry["sha256"], r"[0-9a-f]{64}", f"{where}.sha256")
        if spec.is_fixed_point:
            exponents[spec.name] = check_exponent(entry["exponent"], spec.name, f"{where}.exponent")
    return Weights(folder, dimensions, exponents, digests, tree["provenance"])


def _load(path: Path) -> np.ndarray[Any, Any]:
    try:
        if not path.is_file():
            raise SealError(str(path), "no such file")
        with _PARSER:
            return np.lib.format.open_memmap(path, mode="r")
    except SealError:
        raise
    except OSError as e:
        raise SealError(str(path), e.strerror or str(e)) from e
    except Exception as e:  # whatever NumPy's header parser makes of a broken header
        raise SealError(str(path), f"not a plain .npy array: {show(str(e))}") from e
