"""Merkle trees of RFC 6962 (section 2.1) with typed leaves.

leaf = SHA-256(0x00 ‖ 8-byte tag ‖ data), node = SHA-256(0x01 ‖ left ‖ right). A tree over n
leaves splits at the largest power of two below n; nothing is duplicated. The tag says what a
leaf is, so that no leaf of one kind can be shown as another. The empty tree is illegal.
"""

import hashlib
from collections.abc import Sequence
from typing import Final

from s7jax.s7l.schema import SealError

CHUNK: Final = b"S7L3CHNK"
TENSOR: Final = b"S7L3TENS"
COMPONENT: Final = b"S7L3COMP"
RECORD: Final = b"S7L3LREC"
POLICY: Final = b"S7L3PLCY"
META: Final = b"S7L3META"
PAYLOAD: Final = {
    "DICT": b"S7L3DICT",
    "LANE": b"S7L3STRM",
    "EDGE": b"S7L3EDGE",
    "BATCH": b"S7L3BTCH",
}
"""Tag of each small lane's payload; the FIELD lane's hash is a tree instead."""

CHUNK_BYTES: Final = 1 << 20


def leaf(tag: bytes, data: bytes | memoryview) -> bytes:
    """SHA-256(0x00 ‖ tag ‖ data): uint8[n] → uint8[32]."""
    state = hashlib.sha256(b"\x00" + tag)
    state.update(data)
    return state.digest()


def tree(leaves: Sequence[bytes]) -> bytes:
    """Root over leaf hashes: uint8[n][32] → uint8[32] (RFC 6962, section 2.1).

    Raises:
        SealError: there are no leaves.
    """
    if not leaves:
        raise SealError("hash tree", "a tree without leaves is illegal")
    if len(leaves) == 1:
        return leaves[0]
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\x01" + tree(leaves[:split]) + tree(leaves[split:])).digest()


def inclusion(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """Audit path of one leaf, from its sibling up: uint8[n][32] → uint8[≤ log2 n][32].

    RFC 6962, section 2.1.1.

    Raises:
        IndexError: there is no such leaf.
    """
    if not 0 <= index < len(leaves):
        raise IndexError(f"leaf {index} of {len(leaves)}")
    if len(leaves) == 1:
        return []
    split = 1 << (len(leaves) - 1).bit_length() - 1
    if index < split:
        return [*inclusion(leaves[:split], index), tree(leaves[split:])]
    return [*inclusion(leaves[split:], index - split), tree(leaves[:split])]


def included_root(
    leaf_hash: bytes, index: int, size: int, path: Sequence[bytes], place: str
) -> bytes:
    """Root of the tree of ``size`` leaves in which ``path`` puts a leaf at ``index``.

    RFC 9162, section 2.1.3.2. The caller compares the result with the root it trusts.

    Raises:
        SealError: no tree of that size has a path of that length at that index.
    """
    if not 0 <= index < size:
        raise SealError(place, f"leaf {index} of {size}")
    root, last = leaf_hash, size - 1
    for sibling in path:
        if last == 0:
            raise SealError(place, f"{len(path)} hashes are too many for leaf {index} of {size}")
        if index & 1 or index == last:
            root = hashlib.sha256(b"\x01" + sibling + root).digest()
            while not index & 1 and index:
                index, last = index >> 1, last >> 1
        else:
            root = hashlib.sha256(b"\x01" + root + sibling).digest()
        index, last = index >> 1, last >> 1
    if last:
        raise SealError(place, f"{len(path)} hashes are too few for a tree of {size}")
    return root


def chunks(data: bytes | memoryview) -> list[bytes]:
    """Leaf hashes of the 1 MiB chunks of a tensor's stored bytes; the last may be shorter."""
    view = memoryview(data)
    return [leaf(CHUNK, view[at : at + CHUNK_BYTES]) for at in range(0, len(view), CHUNK_BYTES)]
