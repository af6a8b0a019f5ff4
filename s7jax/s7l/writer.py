"""Seal a weights folder: write once, verify, publish without overwriting anything.

The bytes are a pure function of the inputs. Until the file is complete, verified and on disk
it has no name (or, where the file system knows no nameless files, a temporary one), so a
failure or an interrupt leaves nothing behind.
"""

import os
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from s7jax.s7l import merkle
from s7jax.s7l.canonical import encode
from s7jax.s7l.contract import compute_contract
from s7jax.s7l.dimensions import tensor_table
from s7jax.s7l.layout import CAPS, HEAD_BYTES, PAGE, align, make_head, place_tensors
from s7jax.s7l.manifest import Bindings, make_manifest
from s7jax.s7l.reader import Seal
from s7jax.s7l.schema import SealError
from s7jax.s7l.stream import check_stream, default_policy, make_stream
from s7jax.s7l.vocabulary import Vocabulary, read_vocabulary
from s7jax.s7l.weights import Weights, read_weights


@dataclass(frozen=True)
class Sealed:
    """What :func:`seal` did: the root hash, and whether the file is new."""

    root: bytes
    created: bool  # False: the identical file was already there


def seal(
    weights: Path,
    vocabulary: Path,
    out: Path,
    *,
    defaults: Mapping[str, Any] | None = None,
    answers: Sequence[Mapping[str, Any]] = (),
    parent: bytes | None = None,
) -> Sealed:
    """Seal a weights folder and a ``vocab.json`` into one read-only file.

    Args:
        weights: folder with ``manifest.json`` and one ``.npy`` per tensor.
        vocabulary: the ``vocab.json``.
        out: the file to create; its folder must exist.
        defaults: generation defaults; greedy decoding when not given.
        answers: known-answer transcript.
        parent: root of the seal this one descends from.

    Raises:
        SealError: an input is wrong, or ``out`` exists and is not byte-identical.
        OSError: the folder of ``out`` cannot be written.
    """
    if not out.parent.is_dir():
        raise SealError(str(out.parent), "no such folder")
    source = read_weights(weights)
    words = read_vocabulary(vocabulary)
    if len(words.tokens) != source.dimensions.vocab:
        raise SealError(
            f"{vocabulary} .tokens",
            f"{len(words.tokens)} tokens; the embedding has {source.dimensions.vocab} rows",
        )
    policy = default_policy(source.dimensions, words) if defaults is None else defaults
    stream = check_stream(make_stream(policy, answers), source.dimensions, "stream ")
    with _unpublished(out.parent) as (file, name):
        _write(file, source, words, stream, parent)
        file.flush()
        written = Seal(file.fileno())
        written.verify()
        os.fchmod(file.fileno(), 0o444)
        os.fsync(file.fileno())
        created = _publish(name, out)
        if not created and not _same(file, out):
            raise SealError(str(out), "exists with other content; a seal is never overwritten")
    return Sealed(written.root, created)


def _write(
    file: IO[bytes],
    weights: Weights,
    vocabulary: Vocabulary,
    stream: dict[str, Any],
    parent: bytes | None,
) -> None:
    """Lanes in order, the head last; gaps are holes and read as zeros."""
    dictionary = _payload("DICT", vocabulary.tree())
    batch = _payload("BATCH", compute_contract())
    field_start = align(HEAD_BYTES + len(dictionary), PAGE)
    manifest = make_manifest(
        *(weights.dimensions, weights.exponents, _write_field(file, field_start, weights)),
        provenance=weights.provenance,
        parent=parent,
        bindings=Bindings(_hash("DICT", dictionary), _hash("BATCH", batch), stream["defaults"]),
    )
    small = {
        "DICT": dictionary,
        "LANE": _payload("LANE", stream),
        "EDGE": _payload("EDGE", manifest.tree()),
        "BATCH": batch,
    }
    sized = {name: (len(payload), _hash(name, payload)) for name, payload in small.items()}
    field = (manifest.field_bytes, manifest.field_root())
    head = make_head([sized["DICT"], field, sized["LANE"], sized["EDGE"], sized["BATCH"]])
    for lane in head.lanes:
        if lane.name in small:
            file.seek(lane.offset)
            file.write(small[lane.name])
    file.seek(0)
    file.write(head.encode())


def _write_field(file: IO[bytes], start: int, weights: Weights) -> dict[str, list[bytes]]:
    """Every tensor at its place, one in memory at a time; chunk hashes by name."""
    table = tensor_table(weights.dimensions)
    chunks: dict[str, list[bytes]] = {}
    placed = place_tensors((spec.name, spec.size) for spec in table)
    for spec, (offset, stored) in zip(table, placed, strict=True):
        data = weights.data(spec).ljust(stored, b"\x00")
        chunks[spec.name] = merkle.chunks(data)
        file.seek(start + offset)
        file.write(data)
    return chunks


def _payload(lane: str, tree: dict[str, Any]) -> bytes:
    payload = encode(tree, lane)
    if len(payload) > CAPS[lane]:
        raise SealError(lane, f"{len(payload)} bytes; at most {CAPS[lane]} fit")
    return payload


def _hash(lane: str, payload: bytes) -> bytes:
    return merkle.leaf(merkle.PAYLOAD[lane], payload)


@contextmanager
def _unpublished(folder: Path) -> Iterator[tuple[IO[bytes], str]]:
    """A new file in ``folder`` and the path to link it by; gone afterwards unless linked."""
    fd = _nameless(folder)
    if fd is None:
        with tempfile.NamedTemporaryFile(dir=folder.resolve(), prefix=".seal-") as named:
            yield named.file, named.name
    else:
        with os.fdopen(fd, "w+b") as file:
            yield file, f"/proc/self/fd/{fd}"


def _nameless(folder: Path) -> int | None:
    """A file that vanishes with its process, where system and file system know such files."""
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except (OSError, AttributeError):
        return None


def _publish(name: str, out: Path) -> bool:
    """Give the file its name, atomically and only if nothing has that name yet."""
    folder = os.open(out.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # A folder descriptor makes this linkat(2), which follows /proc/self/fd links.
        os.link(name, out.name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=True)
        os.fsync(folder)
    except FileExistsError:
        return False
    finally:
        os.close(folder)
    return True


def _same(file: IO[bytes], out: Path) -> bool:
    """Whether ``out`` is a regular file with the same bytes."""
    if not stat.S_ISREG(os.lstat(out).st_mode):
        return False
    file.seek(0)
    with out.open("rb") as other:
        while block := file.read(1 << 20):
            if other.read(1 << 20) != block:
                return False
        return not other.read(1)
