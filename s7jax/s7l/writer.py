"""Seal a weights folder: write once, verify, publish without overwriting anything.

The bytes are a pure function of the inputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from s7jax.architecture import sealed_tensors
from s7jax.s7l import merkle
from s7jax.s7l.canonical import encode
from s7jax.s7l.contract import compute_contract
from s7jax.s7l.layout import CAPS, HEAD_BYTES, PAGE, align, make_head, place_tensors
from s7jax.s7l.manifest import Bindings, make_manifest
from s7jax.s7l.publish import unpublished
from s7jax.s7l.reader import Seal
from s7jax.s7l.schema import SealError
from s7jax.s7l.stream import check_stream, default_policy, make_stream
from s7jax.s7l.vocabulary import Vocabulary, read_vocabulary
from s7jax.s7l.weights_folder import Weights, read_weights


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
    source = read_weights(weights)
    words = read_vocabulary(vocabulary)
    if len(words.tokens) != source.dimensions.vocab:
        raise SealError(
            f"{vocabulary} .tokens",
            f"{len(words.tokens)} tokens; the embedding has {source.dimensions.vocab} rows",
        )
    policy = default_policy(source.dimensions, words) if defaults is None else defaults
    stream = check_stream(make_stream(policy, answers), source.dimensions, "stream ")
    with unpublished(out) as new:
        _write(new.file, source, words, stream, parent)
        new.file.flush()
        written = Seal(new.file.fileno())
        written.verify()
        created = new.publish()
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
    table = sealed_tensors(weights.dimensions)
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
