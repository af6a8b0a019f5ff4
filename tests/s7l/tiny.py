"""Inputs of a tiny seal: a weights folder and a vocabulary."""

import hashlib
import json
from pathlib import Path

import numpy as np

from s7jax.architecture import sealed_tensors
from s7jax.s7l.contract import PATTERNS
from s7jax.s7l.dimensions import parse_architecture, tensor_entry

STACK = {"layers": 1, "hidden": 32, "heads": 2, "ffn": 64}
MODEL = {
    "vocab": 288,
    "context": 64,
    "trunk": {"layers": 2, "hidden": 48, "heads": 2, "ffn": 80},
    "expert": STACK,
    "domains": ["code", "math", "reason", "general"],
    "routing_window": 8,
}


def write_weights(folder: Path, model: dict, seed: int = 0) -> Path:
    """Every tensor that ``model`` demands, filled from a hash of its name and the seed."""
    folder.mkdir(parents=True)
    entries = {}
    for spec in sealed_tensors(parse_architecture(model, "model")):
        stream = hashlib.shake_256(f"{seed} {spec.name}".encode()).digest(spec.size)
        array = np.frombuffer(stream, np.dtype(spec.dtype).newbyteorder("<")).reshape(spec.shape)
        array = np.maximum(array, -127) if spec.dtype == "int8" else array & 0x3FFFFFFF
        if spec.name.endswith(".residual"):
            array = np.array([16], "<i4")  # fraction bits
        np.save(folder / f"{spec.name}.npy", array)
        entry = {k: v for k, v in tensor_entry(spec).items() if k != "name"}
        entry["sha256"] = hashlib.sha256(array.tobytes()).hexdigest()
        if spec.is_fixed_point:
            entry["exponent"] = 31 if spec.name.endswith(".residual") else -7
        entries[spec.name] = entry
    tree = {
        "format": "s7-weights",
        "version": 1,
        "method": "per_row_int8",
        "model": model,
        "tensors": entries,
        "provenance": {"seed": seed, "quality": {"math": 0.125}, "steps": [1, 2], "final": True},
    }
    (folder / "manifest.json").write_text(json.dumps(tree))
    return folder


def vocab_tree(size: int) -> dict:
    """Bytes 0..255, one special, and pairs of letters as merges."""
    pairs = [(left, right) for left in range(97, 123) for right in range(97, 123)]
    tokens = [bytes([b]) for b in range(256)] + [b"<|eod|>"]
    pairs = pairs[: size - len(tokens)]
    tokens += [tokens[left] + tokens[right] for left, right in pairs]
    return {
        "format": "s7-vocab",
        "version": 1,
        "tokens": [token.hex() for token in tokens],
        "merges": [list(pair) for pair in pairs],
        "specials": {"<|eod|>": 256},
        "pattern": PATTERNS[0],
    }


def write_inputs(root: Path, model: dict = MODEL, seed: int = 0) -> Path:
    """``weights/`` and ``vocab.json`` in ``root``."""
    write_weights(root / "weights", model, seed)
    (root / "vocab.json").write_text(json.dumps(vocab_tree(model["vocab"])))
    return root
