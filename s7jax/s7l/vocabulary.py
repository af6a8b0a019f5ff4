"""The DICT lane: the byte-level BPE vocabulary, enough to encode and decode any bytes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from operator import add
from pathlib import Path
from types import MappingProxyType
from typing import Any

from s7jax.errors import show
from s7jax.s7l.contract import LANE_FOLDS, PATTERNS
from s7jax.s7l.schema import SealError, equal, integer, mapping, read_json, sequence, text

_MAX_TOKENS = 1 << 20
_KEYS = ("format", "version", "tokens", "merges", "specials", "pattern")


@dataclass(frozen=True)
class Vocabulary:
    """Tokens in id order, merges in rank order, specials by name, the splitting pattern."""

    tokens: tuple[bytes, ...]
    merges: tuple[tuple[int, int], ...]
    specials: Mapping[str, int]
    pattern: str

    def tree(self) -> dict[str, Any]:
        """The payload of the DICT lane."""
        return {
            "format": "s7-dict",
            "version": 1,
            "fold": LANE_FOLDS["DICT"],
            "tokens": list(self.tokens),
            "merges": [list(merge) for merge in self.merges],
            "specials": dict(self.specials),
            "pattern": self.pattern,
        }

    def file_tree(self) -> dict[str, Any]:
        """The content of the ``vocab.json`` that :func:`read_vocabulary` reads."""
        tree = {key: value for key, value in self.tree().items() if key != "fold"}
        tokens = [token.hex() for token in self.tokens]
        return {**tree, "format": "s7-vocab", "tokens": tokens}


def read_vocabulary(path: Path) -> Vocabulary:
    """The vocabulary in a ``vocab.json``, whose tokens are hexadecimal.

    Raises:
        SealError: the file does not hold a complete, unambiguous vocabulary.
    """
    place, tree = f"{path} ", read_json(path)
    mapping(tree, _KEYS, place)
    equal(tree["format"], "s7-vocab", f"{place}.format")
    equal(tree["version"], 1, f"{place}.version")
    tokens = sequence(tree["tokens"], f"{place}.tokens")
    tokens = [_from_hex(token, f"{place}.tokens[{i}]") for i, token in enumerate(tokens)]
    return _parse({**tree, "tokens": tokens}, place)


def _from_hex(token: Any, place: str) -> bytes:
    try:
        value = bytes.fromhex(token)
    except (TypeError, ValueError):
        value = b""
    if not value or value.hex() != token:
        raise SealError(place, f"found {show(token)}; expected bytes in lower-case hexadecimal")
    return value


def parse_vocabulary(tree: Any, place: str) -> Vocabulary:
    """The vocabulary in a decoded DICT lane.

    Raises:
        SealError: it is not a complete, unambiguous vocabulary.
    """
    mapping(tree, (*_KEYS, "fold"), place)
    equal(tree["format"], "s7-dict", f"{place}.format")
    equal(tree["version"], 1, f"{place}.version")
    equal(tree["fold"], LANE_FOLDS["DICT"], f"{place}.fold")
    return _parse(tree, place)


def _parse(tree: dict[str, Any], place: str) -> Vocabulary:
    tokens = sequence(tree["tokens"], f"{place}.tokens", 256, _MAX_TOKENS)
    specials = _specials(tree["specials"], tokens, f"{place}.specials")
    ids = _regular_ids(tokens, frozenset(specials.values()), f"{place}.tokens")
    merges = _merges(tree["merges"], tokens, ids, f"{place}.merges")
    pattern = tree["pattern"]
    if pattern not in PATTERNS:
        raise SealError(
            f"{place}.pattern", f"{show(pattern)} is not one of the {len(PATTERNS)} of the format"
        )
    return Vocabulary(tuple(tokens), merges, MappingProxyType(specials), pattern)


def _specials(tree: Any, tokens: list[Any], place: str) -> dict[str, int]:
    """Special tokens, each spelt by its own name."""
    if type(tree) is not dict:
        raise SealError(place, "expected a map of name to id")
    for name, number in tree.items():
        where = f"{place}[{name[:64]!a}]"
        text(name, r".{1,256}", where)
        integer(number, 0, len(tokens) - 1, where)
        if tokens[number] != name.encode(errors="replace"):
            raise SealError(where, f"token {number} is not spelt like its name")
    return tree


def _regular_ids(tokens: list[Any], special: frozenset[int], place: str) -> dict[bytes, int]:
    """Bytes → id of every token that is not special: unique, and all single bytes present."""
    ids: dict[bytes, int] = {}
    for i, token in enumerate(tokens):
        if type(token) is not bytes or not 1 <= len(token) <= 1 << 16:
            raise SealError(f"{place}[{i}]", "expected 1 to 65,536 bytes")
        if i in special:
            continue
        if token in ids:
            raise SealError(f"{place}[{i}]", f"the same bytes as token {ids[token]}")
        ids[token] = i
    for byte in range(256):
        if bytes([byte]) not in ids:
            raise SealError(place, f"the single byte 0x{byte:02x} is no token")
    return ids


def _merges(
    tree: Any, tokens: list[Any], ids: dict[bytes, int], place: str
) -> tuple[tuple[int, int], ...]:
    """Pairs of regular tokens whose concatenation is a regular token; no pair twice."""
    pairs = sequence(tree, place, 0, _MAX_TOKENS)
    regular = frozenset(ids.values())

    def require(holds: bool, rule: Callable[[Any], bool], expected: str) -> None:
        """All pairs are judged at once, which is fast; only a failure looks for its place."""
        if not holds:
            i = next(i for i, pair in enumerate(pairs) if not rule(pair))
            raise SealError(f"{place}[{i}]", f"found {show(pairs[i])}; expected {expected}")

    require(
        set(map(type, pairs)) <= {list} and set(map(len, pairs)) <= {2},
        lambda pair: type(pair) is list and len(pair) == 2,
        "two ids",
    )
    parts = list(chain.from_iterable(pairs))
    require(
        set(map(type, parts)) <= {int} and regular.issuperset(parts),
        lambda pair: set(map(type, pair)) == {int} and regular.issuperset(pair),
        "ids of regular tokens",
    )
    lefts, rights = parts[::2], parts[1::2]
    results = map(add, map(tokens.__getitem__, lefts), map(tokens.__getitem__, rights))
    require(
        all(map(ids.__contains__, results)),
        lambda pair: tokens[pair[0]] + tokens[pair[1]] in ids,
        "a pair whose result is a token",
    )
    merges = tuple(zip(lefts, rights, strict=True))
    if len(frozenset(merges)) != len(merges):
        first: dict[tuple[int, int], int] = {}
        i = next(i for i, pair in enumerate(merges) if first.setdefault(pair, i) != i)
        raise SealError(f"{place}[{i}]", f"the same pair as merge {first[merges[i]]}")
    return merges
