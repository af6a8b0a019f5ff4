"""What is in a checkpoint or a sealed file: every tensor with its numbers, and differences."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from s7jax import s7l
from s7jax.digests import tensor_digest
from s7jax.errors import InputError
from s7jax.model import parameters
from s7jax.s7l.dimensions import architecture_tree
from s7jax.train.checkpoint import read_record, readable


@dataclass(frozen=True)
class Entry:
    """One stored tensor."""

    name: str
    array: np.ndarray
    sharding: str  # as it was saved; empty where the format has none

    @property
    def sha256(self) -> str:
        """SHA-256 of the raw little-endian bytes."""
        return tensor_digest(self.array)

    def to_json(self) -> dict[str, Any]:
        """Shape, dtype, sharding, Euclidean norm of the stored values, bytes, SHA-256."""
        return {
            "name": self.name,
            "shape": list(self.array.shape),
            "dtype": self.array.dtype.name,
            "sharding": self.sharding,
            "norm": float(np.linalg.norm(self.array.astype(np.float64))),
            "bytes": self.array.nbytes,
            "sha256": self.sha256,
        }


def read(path: Path) -> list[Entry]:
    """Every tensor of an Orbax checkpoint (a step's or a final one) or of a sealed file.

    Raises:
        InputError: neither, or damaged.
    """
    if path.is_file():
        seal = s7l.open(path)
        return [Entry(name, seal.tensor(name), "") for name in seal.tensors]
    return list(_checkpoint(path))


def list_seal(path: Path) -> dict[str, Any]:
    """What a sealed file says of itself; no weight is read.

    Raises:
        InputError: not a sealed file, or damaged outside its weights.
    """
    seal = s7l.open(path)
    manifest = seal.manifest
    return {
        "file": {"root": seal.root.hex(), "bytes": seal.length, "mode": f"{seal.permissions:04o}"},
        "model": architecture_tree(manifest.dimensions),
        "tensors": [_listed(tensor) for tensor in seal.tensors.values()],
        "components": [
            {
                "name": name,
                "tensors": len(tensors),
                "bytes": sum(tensor.stored for tensor in tensors),
                "root": manifest.component_root(name).hex(),
            }
            for name, tensors in manifest.components.items()
        ],
        "routing": manifest.routing(),
        "folds": manifest.frame()["folds"],
        "hashes": {name: value.hex() for name, value in manifest.hashes().items()},
        "parent": manifest.parent.hex() if manifest.parent else None,
        "provenance": dict(manifest.provenance),
    }


def _listed(tensor: s7l.Tensor) -> dict[str, Any]:
    """A row of the tensor table."""
    return {
        "name": tensor.name,
        "shape": list(tensor.spec.shape),
        "dtype": tensor.spec.dtype,
        "exponent": tensor.exponent,
        "scale": tensor.spec.scale,
        "bytes": tensor.spec.size,
        "chunks": len(tensor.chunks),
    }


def differences(a: list[Entry], b: list[Entry]) -> list[dict[str, Any]]:
    """Tensors that are not the same bytes in both: name, and how they differ."""
    left, right = ({entry.name: entry for entry in entries} for entries in (a, b))
    return [
        {"name": name, "difference": difference}
        for name in sorted(left | right)
        if (difference := _difference(left.get(name), right.get(name)))
    ]


def _difference(a: Entry | None, b: Entry | None) -> str | None:
    if a is None or b is None:
        return "only in the second" if a is None else "only in the first"
    x, y = a.array, b.array
    if (x.shape, x.dtype) != (y.shape, y.dtype):
        return f"{x.dtype}{list(x.shape)} against {y.dtype}{list(y.shape)}"
    if a.sha256 == b.sha256:
        return None
    unequal = int((x != y).sum())
    largest = float(np.abs(x.astype(np.float64) - y.astype(np.float64)).max())
    return f"{unequal:,} of {x.size:,} values, by at most {largest:.3g}"


def _checkpoint(path: Path) -> Iterator[Entry]:
    item = next((name for name in ("params", "state") if (path / name).is_dir()), None)
    if item is None:
        if not path.exists():
            raise InputError(f"{path}: does not exist")
        raise InputError(
            f"{path}: neither a sealed file nor a checkpoint folder (no params/ or state/ in it)"
        )
    stored, arrays = readable(path / item, lambda: _restore(path, item))
    if item == "params" and parameters.digest(arrays) != read_record(path).get("params_sha256"):
        raise InputError(f"{path}: damaged: the parameters are not those that its record tells of")
    shardings = jax.tree.map(lambda leaf: _sharding(leaf.sharding), stored)
    specs = jax.tree.leaves(shardings)
    for (keys, array), spec in zip(jax.tree_util.tree_leaves_with_path(arrays), specs, strict=True):
        name = jax.tree_util.keystr(keys, simple=True, separator=".")
        yield Entry(name, np.asarray(array), spec)


def _restore(path: Path, item: str) -> tuple[Any, Any]:
    """Metadata and NumPy arrays of one item, as trees."""
    handler = ocp.CompositeCheckpointHandler(
        **{item: ocp.PyTreeCheckpointHandler(), "record": ocp.JsonCheckpointHandler()}
    )
    with ocp.Checkpointer(handler) as reader:
        stored = reader.metadata(path.resolve()).item_metadata[item].tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
        wanted = ocp.args.Composite(**{item: ocp.args.PyTreeRestore(restore_args=as_numpy)})
        return stored, reader.restore(path.resolve(), args=wanted)[item]


def _sharding(saved: Any) -> str:
    """``4x2 (None, 'model')``: the mesh it was saved from, and the partition spec."""
    if saved is None or getattr(saved, "partition_spec", None) is None:
        return ""
    mesh = "x".join(str(size) for size in saved.shape)
    return f"{mesh} {tuple(saved.partition_spec)}"
