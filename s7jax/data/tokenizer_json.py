"""Reading ``tokenizer.json``, the file of the ``tokenizers`` library: byte-level BPE by anyone."""

from collections.abc import Mapping, Sequence
from typing import Any

from s7jax.s7l.contract import PATTERNS


def _byte_symbols() -> list[str]:
    """The printable character that stands for each byte in byte-level BPE (GPT-2's table)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(b if b in printable else next(others)) for b in range(256)]


SYMBOLS = _byte_symbols()
BYTES = {symbol: byte for byte, symbol in enumerate(SYMBOLS)}

_NO_SUCH_MODEL = {  # settings of the BPE model under which its merges alone do not give the ids
    "dropout": "drops merges at random (dropout)",
    "continuing_subword_prefix": "marks the inner parts of words (continuing_subword_prefix)",
    "end_of_word_suffix": "marks the ends of words (end_of_word_suffix)",
    "byte_fallback": "falls back to bytes (byte_fallback)",
    "ignore_merges": "takes whole pieces without merging (ignore_merges)",
}

_MULTIPLE = 32  # of what a model's vocabulary must be


def parse(tree: Mapping[str, Any], eod: str) -> tuple[list[bytes], list[tuple[int, int]], str]:
    """Bytes of each token, merges as pairs of ids, and the pattern that splits text.

    The file's only special token becomes id 0, which ends documents; the others keep their order.
    If it is not called ``eod``, so that the file is of another maker, tokens that no text gives are
    added up to a multiple of 32.

    Raises:
        ValueError, KeyError, TypeError: the file needs what byte-level BPE here has not.
    """
    model = tree["model"]
    if model.get("type", "BPE") != "BPE":
        raise ValueError(f"its model is {model['type']}, expected BPE")
    for name, what in _NO_SUCH_MODEL.items():
        if model.get(name):
            raise ValueError(f"it {what}, which is not supported")
    if tree.get("normalizer"):
        kind = tree["normalizer"].get("type")
        raise ValueError(f"it changes text before splitting (normalizer {kind}), expected none")
    pattern = _pattern(tree["pre_tokenizer"])
    ids = {**model["vocab"], **{t["content"]: t["id"] for t in tree.get("added_tokens", [])}}
    names = sorted(ids, key=ids.__getitem__)
    if sorted(ids.values()) != list(range(len(names))):
        raise ValueError("expected ids from 0 without gaps, each of one token")
    end = _end(tree, names)
    names = [end, *(name for name in names if name != end)]
    order = {name: i for i, name in enumerate(names)}
    pairs = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
    merges = [(order[left], order[right]) for left, right in pairs]
    tokens = [b"", *map(_token_bytes, names[1:])]
    if end != eod:
        tokens += [f"<|unused{i}|>".encode() for i in range(-len(tokens) % _MULTIPLE)]
    return tokens, merges, pattern


def _pattern(tree: Any) -> str:
    """The regular expression by which a pre-tokenizer splits, one of :data:`PATTERNS`."""
    steps = tree["pretokenizers"] if (tree or {}).get("type") == "Sequence" else [tree or {}]
    kinds = [step.get("type") for step in steps]
    if kinds[-1] != "ByteLevel" or kinds[:-1] not in ([], ["Split"]):
        found = " and ".join(map(str, kinds))
        raise ValueError(f"it splits text by {found}, expected ByteLevel, after at most one Split")
    if steps[-1].get("add_prefix_space", True):
        raise ValueError("it puts a space before each text (add_prefix_space), expected none")
    if steps[-1].get("use_regex", True) != (len(steps) == 1):
        raise ValueError("it splits text twice, or never (use_regex), expected once")
    if len(steps) == 1:
        return PATTERNS[1]
    if (steps[0]["behavior"].lower(), steps[0].get("invert", False)) != ("isolated", False):
        raise ValueError(f"its Split is {steps[0]['behavior']}, expected Isolated")
    pattern: str = steps[0]["pattern"].get("Regex", "")
    if pattern not in PATTERNS:
        known = " or ".join(map(repr, PATTERNS))
        raise ValueError(
            f"it splits text by {pattern!r}, which a sealed file cannot; it can {known}"
        )
    return pattern


def _end(tree: Mapping[str, Any], names: Sequence[str]) -> str:
    """The token that ends documents: the only one that is no text."""
    added = [token["content"] for token in tree.get("added_tokens", [])]
    if len(added) > 1:
        shown = ", ".join(added[:5]) + (", …" if len(added) > 5 else "")
        raise ValueError(f"it has {len(added)} added tokens ({shown}), expected one: end of text")
    if not added:
        raise ValueError("it has no added token to end a document with, expected one")
    return added[0]


def _token_bytes(name: str) -> bytes:
    if odd := next((symbol for symbol in name if symbol not in BYTES), None):
        raise ValueError(f"token {name!r} is no bytes: {odd!r} stands for none in byte-level BPE")
    return bytes(BYTES[symbol] for symbol in name)
