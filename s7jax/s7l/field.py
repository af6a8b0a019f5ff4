"""The tensors of a sealed file or a bundle: each verified before its first view is handed out."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from s7jax.s7l import merkle
from s7jax.s7l.layout import check_zero
from s7jax.s7l.manifest import Tensor
from s7jax.s7l.schema import SealError
from s7jax.s7l.values import check_values, little_endian


class Field:
    """Tensors in read-only memory; alive as long as it or a view of it is referenced."""

    def __init__(self, memory: memoryview, start: int, end: int, tensors: Sequence[Tensor]) -> None:
        """Tensors whose offsets count from ``start``; the first byte after them is ``end``."""
        self._bytes = memory
        self._start = start
        self._verified: set[str] = set()
        self._tensors = {tensor.name: tensor for tensor in tensors}
        starts = [start + tensor.offset for tensor in tensors]
        self._next = dict(zip(self._tensors, [*starts[1:], end], strict=True))

    @property
    def is_read_only(self) -> bool:
        """Whether the memory, and with it every view, refuses writes."""
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

    def exponent(self, name: str) -> int | None:
        """Of a fixed-point vector, whose value is mantissa · 2^(exponent − 31); else None."""
        return self._tensors[name].exponent

    def stored(self, name: str) -> memoryview:
        """A tensor's bytes with padding as they stand in the file, not verified: uint8[stored].

        Raises:
            KeyError: no such tensor.
        """
        tensor = self._tensors[name]
        start = self._start + tensor.offset
        return self._bytes[start : start + tensor.stored]

    def verify_chunk(self, name: str, index: int) -> None:
        """Hash one 1 MiB chunk of a tensor.

        Raises:
            KeyError, IndexError: no such tensor or chunk.
            SealError: the chunk's bytes are not the sealed ones.
        """
        tensor = self._tensors[name]
        expected = tensor.chunks[index]
        stored = self.stored(name)
        start = index % len(tensor.chunks) * merkle.CHUNK_BYTES
        if merkle.leaf(merkle.CHUNK, stored[start : start + merkle.CHUNK_BYTES]) != expected:
            raise SealError(f"FIELD tensor {name} chunk {index}", "bytes do not have their hash")

    def verify_tensor(self, name: str) -> None:
        """Hashes, padding, the gap after it, and values of one tensor.

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
        check_zero(self.stored(name)[tensor.spec.size :], f"FIELD tensor {name} padding")
        start = self._start + tensor.offset + tensor.stored
        check_zero(self._bytes[start : self._next[name]], f"FIELD gap after tensor {name}")

    def verify_values(self, name: str) -> None:
        """No −128 in int8 and no negative scale.

        Raises:
            KeyError: no such tensor.
            SealError: there is one.
        """
        tensor = self._tensors[name]
        check_values(self._view(tensor), tensor.spec, f"FIELD tensor {name}")

    def verify(self) -> None:
        """Every tensor; raises like :meth:`verify_tensor`."""
        for name in self._tensors:
            self.verify_tensor(name)

    def _view(self, tensor: Tensor) -> np.ndarray[Any, Any]:
        dtype = little_endian(tensor.spec.dtype)
        start = self._start + tensor.offset
        return np.frombuffer(self._bytes, dtype, tensor.spec.size // dtype.itemsize, start)
