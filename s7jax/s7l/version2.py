"""The original layout, version 2: read it, check what it can prove, take its lanes out.

```text
magic "S7LM" · version u16 = 2 · class u8 · flags u8 · root[32]
five lanes: id u8 · length u32 · payload · SHA-256(payload)[32]
```

Integers are big-endian. The root is a hash tree over the five lane hashes without domain
separation, an odd node paired with itself; it covers neither version, class, flags, ids nor
lengths. What the payloads hold was never laid down, and each tensor had one scale where
version 3 demands one per output channel: the weights cannot become a version 3 file, and are
not guessed at. Quantise the checkpoints anew.
"""

import hashlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from s7jax.s7l.layout import LANES
from s7jax.s7l.memory import Mode, load
from s7jax.s7l.publish import new_folder
from s7jax.s7l.reader import opened
from s7jax.s7l.schema import SealError

_HEAD: Final = struct.Struct(">4sHBB32s")
_LANE: Final = struct.Struct(">BI")
_DIGEST: Final = 32


@dataclass(frozen=True)
class Version2:
    """A parsed version 2 file: its root and the payloads by lane name."""

    root: bytes
    payloads: dict[str, bytes]


def is_version2(path: Path) -> bool:
    """Whether a file starts like version 2."""
    with opened(path) as fd:
        return os.read(fd, 6) == b"S7LM\x00\x02"


def read_version2(path: Path) -> Version2:
    """Read a version 2 file and check every hash it has.

    Raises:
        SealError: it is no such file, or is broken; the place is named.
    """
    with opened(path) as fd:
        size = os.fstat(fd).st_size
        if size < _HEAD.size:
            raise SealError("head", f"the file ends at byte {size}")
        data = load(fd, size, Mode.COPY)
        magic, version, kind, flags, root = _HEAD.unpack_from(data)
        if (magic, version) != (b"S7LM", 2):
            raise SealError("head[0:6]", "not version 2")
        if (kind, flags) != (2, 5):
            raise SealError("head[6:8]", f"class {kind}, flags {flags}; expected 2 and 5")
        payloads: dict[str, bytes] = {}
        at = _HEAD.size
        for number, name in enumerate(LANES, 1):
            place = f"lane {number} ({name})"
            if at + _LANE.size > size:
                raise SealError(place, f"the file ends at byte {size}")
            found, length = _LANE.unpack_from(data, at)
            start, end = at + _LANE.size, at + _LANE.size + length
            if found != number:
                raise SealError(place, f"lane id {found}; ids must be 1..5 in order, each once")
            if end + _DIGEST > size:
                raise SealError(place, f"{length} bytes; the file ends at {size}")
            payloads[name] = bytes(data[start:end])
            if hashlib.sha256(payloads[name]).digest() != data[end : end + _DIGEST]:
                raise SealError(place, "the payload does not have its SHA-256")
            at = end + _DIGEST
        if at != size:
            raise SealError(f"file[{at}:{size}]", "bytes after the last lane, bound by nothing")
        if root != _root([hashlib.sha256(payload).digest() for payload in payloads.values()]):
            raise SealError("head[8:40]", "not the root of the lane hashes")
    return Version2(root, payloads)


def extract_version2(path: Path, out: Path) -> Version2:
    """Write the checked lanes of a version 2 file as ``out/dict.bin`` and so on.

    Raises:
        SealError: the file is broken, or ``out`` exists.
        OSError: the folder of ``out`` cannot be written.
    """
    found = read_version2(path)
    with new_folder(out) as folder:
        for name, payload in found.payloads.items():
            (folder / f"{name.lower()}.bin").write_bytes(payload)
    return found


def _root(level: list[bytes]) -> bytes:
    """The original's tree: pairs hashed without domain, an odd node with itself."""
    while len(level) > 1:
        pairs = zip(level[::2], [*level[1::2], level[-1]], strict=False)
        level = [hashlib.sha256(left + right).digest() for left, right in pairs]
    return level[0]
