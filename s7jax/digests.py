"""SHA-256 of canonical JSON, of tensors and of files: one way each, in hexadecimal."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np


def json_digest(tree: Any) -> str:
    """Of plain JSON types: keys sorted, no spaces, ASCII."""
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def little_endian(array: np.ndarray) -> np.ndarray:
    """The array in row-major order and little-endian bytes, as it is hashed and stored."""
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))


def tensor_digest(array: np.ndarray) -> str:
    """Of the raw little-endian bytes, in row-major order."""
    return hashlib.sha256(little_endian(array).tobytes()).hexdigest()


def named_digest(tensors: Any) -> str:
    """Of ``(name, array)`` pairs in their order: name, dtype, shape and bytes of each."""
    sha = hashlib.sha256()
    for name, tensor in tensors:
        array = little_endian(tensor)
        sha.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def tensor_digests(tensors: Iterable[tuple[str, Any]]) -> dict[str, bytes]:
    """Of each of ``(name, array)`` pairs: SHA-256 of name, dtype, shape and bytes."""
    named = list(tensors)
    with ThreadPoolExecutor() as threads:  # hashing large arrays holds no lock
        found = threads.map(lambda pair: bytes.fromhex(named_digest([pair])), named)
        return dict(zip((name for name, _ in named), found, strict=True))


def tree_digest(digests: Mapping[str, bytes]) -> bytes:
    """Of a tree of tensors: SHA-256 of the digests of its tensors, in their order.

    So one tensor can be shown to be part of the tree without the others.
    """
    return hashlib.sha256(b"".join(digests.values())).digest()


def file_digest(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
