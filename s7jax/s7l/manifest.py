"""The EDGE lane: the manifest that ties every other lane together.

Only a few of its values are free: dimensions, exponents, chunk hashes, provenance, parent.
Everything else follows from them, so a reader takes the free values, rebuilds the manifest
and requires the sealed one to be equal to it, key by key.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from types import MappingProxyType
from typing import Any, Final

from s7jax.architecture import Architecture, TensorSpec, sealed_count, sealed_tensors
from s7jax.errors import show
from s7jax.s7l import merkle
from s7jax.s7l.canonical import encode
from s7jax.s7l.contract import FOLDS, LANE_FOLDS, phases
from s7jax.s7l.dimensions import NAME, architecture_tree, parse_architecture, tensor_entry
from s7jax.s7l.layout import place_tensors
from s7jax.s7l.schema import SealError, digest, equal, integer, mapping, sequence, text

METHOD: Final = "per_row_int8"
MAX_EXPONENT: Final = 127
_KEYS = (
    *("format", "version", "method", "model", "tensors", "components", "routing"),
    *("lanes", "folds", "phases", "hashes", "provenance", "parent"),
)


@dataclass(frozen=True)
class Tensor:
    """One sealed tensor: what the dimensions demand, where it stands, its chunk hashes."""

    spec: TensorSpec
    offset: int  # in FIELD
    stored: int  # bytes with padding
    exponent: int | None
    chunks: tuple[bytes, ...]

    @property
    def name(self) -> str:
        """Full name, e.g. ``expert0.layer3.attn.q_proj.weight``."""
        return self.spec.name

    def leaf(self) -> bytes:
        """Hash of the tensor as its component sees it; binds no offset."""
        described = {**self._described(), "root": merkle.tree(self.chunks)}
        return merkle.leaf(merkle.TENSOR, encode(described))

    def tree(self) -> dict[str, Any]:
        """The entry in the manifest."""
        return {**self._described(), "offset": self.offset, "chunks": list(self.chunks)}

    def _described(self) -> dict[str, Any]:
        tree = {**tensor_entry(self.spec), "stored": self.stored}
        return tree if self.exponent is None else {**tree, "exponent": self.exponent}


@dataclass(frozen=True)
class Bindings:
    """What the manifest's three hashes are made of besides the manifest itself."""

    dictionary: bytes  # hash of the DICT lane
    batch: bytes  # hash of the BATCH lane
    defaults: Mapping[str, Any]  # generation defaults of the LANE lane


@dataclass(frozen=True)
class Manifest:
    """The parsed EDGE lane."""

    dimensions: Architecture
    tensors: tuple[Tensor, ...]
    provenance: Mapping[str, Any]
    parent: bytes | None
    bindings: Bindings

    @cached_property
    def components(self) -> Mapping[str, tuple[Tensor, ...]]:
        """Component → its tensors, both in order of names."""
        groups = groupby(self.tensors, key=lambda tensor: tensor.spec.component)
        return MappingProxyType({name: tuple(tensors) for name, tensors in groups})

    @property
    def field_bytes(self) -> int:
        """Length of the FIELD lane."""
        return self.tensors[-1].offset + self.tensors[-1].stored

    def component_root(self, name: str) -> bytes:
        """Tree over the component's tensor leaves: what proves one expert alone."""
        return self._component_roots[name]

    @cached_property
    def _component_roots(self) -> dict[str, bytes]:
        return {
            name: merkle.tree([tensor.leaf() for tensor in tensors])
            for name, tensors in self.components.items()
        }

    def field_root(self) -> bytes:
        """Hash of the FIELD lane."""
        named = [{"name": name, "root": self.component_root(name)} for name in self.components]
        return merkle.tree([merkle.leaf(merkle.COMPONENT, encode(tree)) for tree in named])

    def routing(self) -> list[dict[str, Any]]:
        """Which component answers for which domain."""
        return [
            {"expert": e, "component": f"expert{e}", "domain": domain}
            for e, domain in enumerate(self.dimensions.domains)
        ]

    def hashes(self) -> dict[str, bytes]:
        """The abi, policy and meta hashes that every proof binds.

        abi is the compute contract; policy the folds, phases and generation defaults; meta
        what the model is and where it comes from.
        """
        return dict(self._hashes)

    @cached_property
    def _hashes(self) -> dict[str, bytes]:
        """Made when the file is opened: no later change of a tree reaches a proof."""
        policy = {"folds": FOLDS, "phases": phases(), "defaults": dict(self.bindings.defaults)}
        meta = {
            "dictionary": self.bindings.dictionary,
            "model": architecture_tree(self.dimensions),
            "routing": self.routing(),
            "provenance": dict(self.provenance),
            "parent": self.parent,
        }
        return {
            "abi": self.bindings.batch,
            "policy": merkle.leaf(merkle.POLICY, encode(policy)),
            "meta": merkle.leaf(merkle.META, encode(meta)),
        }

    def tree(self) -> dict[str, Any]:
        """The payload of the EDGE lane."""
        return {**self.frame(), "tensors": [tensor.tree() for tensor in self.tensors]}

    def frame(self) -> dict[str, Any]:
        """The payload of the EDGE lane without its tensors, which are most of it."""
        return {
            "format": "s7-manifest",
            "version": 1,
            "method": METHOD,
            "model": architecture_tree(self.dimensions),
            "components": [
                {"name": name, "tensors": [tensor.name for tensor in tensors]}
                for name, tensors in self.components.items()
            ],
            "routing": self.routing(),
            "lanes": dict(LANE_FOLDS),
            "folds": dict(FOLDS),
            "phases": phases(),
            "hashes": self.hashes(),
            "provenance": dict(self.provenance),
            "parent": self.parent,
        }


def make_manifest(
    dimensions: Architecture,
    exponents: Mapping[str, int],
    chunks: Mapping[str, Sequence[bytes]],
    *,
    provenance: Mapping[str, Any],
    parent: bytes | None,
    bindings: Bindings,
) -> Manifest:
    """The manifest of a model: ``chunks`` for every tensor, ``exponents`` for the vectors."""
    table = sealed_tensors(dimensions)
    placed = place_tensors((spec.name, spec.size) for spec in table)
    tensors = tuple(
        Tensor(spec, offset, stored, exponents.get(spec.name), tuple(chunks[spec.name]))
        for spec, (offset, stored) in zip(table, placed, strict=True)
    )
    return Manifest(dimensions, tensors, provenance, parent, bindings)


def parse_dimensions(tree: Any, place: str) -> Architecture:
    """The model dimensions in a decoded EDGE lane; raises like :func:`parse_manifest`."""
    return parse_architecture(mapping(tree, _KEYS, place)["model"], f"{place}.model")


def parse_manifest(tree: Any, dimensions: Architecture, bindings: Bindings, place: str) -> Manifest:
    """The manifest in a decoded EDGE lane with these dimensions.

    Raises:
        SealError: any value differs from what the free values determine, or a free value
            is out of bounds.
    """
    mapping(tree, _KEYS, place)
    check_provenance(tree["provenance"], f"{place}.provenance")
    parent = tree["parent"]
    if parent is not None:
        digest(parent, f"{place}.parent")
    manifest = Manifest(
        dimensions,
        _parse_tensors(tree["tensors"], dimensions, f"{place}.tensors"),
        tree["provenance"],
        parent,
        bindings,
    )
    frame = {key: value for key, value in tree.items() if key != "tensors"}
    equal(frame, manifest.frame(), place)
    return manifest


def _parse_tensors(tree: Any, dimensions: Architecture, place: str) -> tuple[Tensor, ...]:
    """The tensors; exponents and chunk hashes are free, all else in an entry is determined."""
    count = sealed_count(dimensions)
    sequence(tree, place, count, count)
    table = sealed_tensors(dimensions)
    placed = place_tensors((spec.name, spec.size) for spec in table)
    tensors: list[Tensor] = []
    for entry, spec, (offset, stored) in zip(tree, table, placed, strict=True):
        where = f"{place}[{len(tensors)}]"
        if type(entry) is not dict or "name" not in entry:
            raise SealError(where, f"found {show(entry)}; expected a tensor with a name")
        text(entry["name"], NAME, f"{where}.name")
        equal(entry["name"], spec.name, f"{where}.name")
        keys = (*tensor_entry(spec), "stored", "offset", "chunks")
        mapping(entry, (*keys, "exponent") if spec.is_fixed_point else keys, where)
        count = -(-stored // merkle.CHUNK_BYTES)
        hashes = sequence(entry["chunks"], f"{where}.chunks", count, count)
        chunks = tuple(digest(h, f"{where}.chunks[{j}]") for j, h in enumerate(hashes))
        exponent = None
        if spec.is_fixed_point:
            exponent = check_exponent(entry["exponent"], spec.name, f"{where}.exponent")
        tensors.append(Tensor(spec, offset, stored, exponent, chunks))
        equal(entry, tensors[-1].tree(), where)
    return tuple(tensors)


def check_exponent(tree: Any, name: str, place: str) -> int:
    """An exponent of a fixed-point vector: −127..127, and 31 for a residual's whole number."""
    if name.endswith(".residual"):
        return integer(tree, 31, 31, place)
    return integer(tree, -MAX_EXPONENT, MAX_EXPONENT, place)


def check_provenance(tree: Any, place: str) -> dict[str, Any]:
    """A map of maps, lists, strings, numbers, bools and null; ten containers inside it at most.

    Raises:
        SealError: anything else.
    """
    if type(tree) is not dict:
        raise SealError(place, f"found {show(tree)}; expected a map")
    _check_plain(tree, place, 0)
    return tree


def _check_plain(tree: Any, place: str, depth: int) -> None:
    if depth > 10 and isinstance(tree, dict | list):
        raise SealError(place, "nested deeper than 10")
    if type(tree) is dict:
        for key, value in tree.items():
            _check_plain(value, f"{place}.{show(key)}", depth + 1)
    elif type(tree) is list:
        for i, value in enumerate(tree):
            _check_plain(value, f"{place}[{i}]", depth + 1)
    elif tree is not None and type(tree) not in (bool, int, float, str):
        raise SealError(place, f"found {show(tree)}; expected a plain value")
