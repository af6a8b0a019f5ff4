"""A sealed model of pseudo-random weights whose activations are of ordinary size."""

import hashlib
import json

import numpy as np
import pytest
from tiny import vocab_tree, write_weights

from s7jax import s7l

STACK = {"layers": 1, "hidden": 32, "heads": 2, "ffn": 64}
MODEL = {
    "vocab": 288,
    "context": 512,
    "trunk": {"layers": 2, "hidden": 48, "heads": 2, "ffn": 80},
    "expert": STACK,
    "domains": ["code", "math", "reason", "general"],
    "routing_window": 8,
}
# Gains of 0 … 1 for norms, 127 over the size of keys, and back; what is not named stays at 2^-7.
EXPONENTS = {"attn.k.gain": 7, "attn.q.gain": -3, "norm.gain": 2, "o_proj.gain": -4, "fc2.gain": 1}


def write_model(root, model=MODEL, weight=lambda name, array: array):
    """``weights/`` and ``vocab.json`` below ``root``, each tensor as ``weight`` makes it."""
    folder = write_weights(root / "weights", model)
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, entry in manifest["tensors"].items():
        for ending, exponent in EXPONENTS.items():
            if name.endswith(ending):
                entry["exponent"] = exponent
        array = weight(name, np.load(folder / f"{name}.npy"))
        np.save(folder / f"{name}.npy", array)
        entry["sha256"] = hashlib.sha256(array.tobytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    tree = vocab_tree(model["vocab"])
    end = tree["specials"]["<|eod|>"]
    # As training has it: the end of a document is id 0, everything before it one further.
    tree["tokens"].insert(0, tree["tokens"].pop(end))
    moved = [[part + (part < end) for part in merge] for merge in tree["merges"]]
    tree |= {"specials": {"<|eod|>": 0}, "merges": moved}
    (root / "vocab.json").write_text(json.dumps(tree))


@pytest.fixture(scope="session")
def sealed(tmp_path_factory):
    """Path of the sealed synthetic model."""
    root = tmp_path_factory.mktemp("synthetic")
    write_model(root)
    s7l.seal(root / "weights", root / "vocab.json", root / "model.s7l")
    return root / "model.s7l"


@pytest.fixture(scope="session")
def seal(sealed):
    return s7l.open(sealed)


@pytest.fixture(scope="session")
def tokens():
    """512 ids, int32."""
    return np.random.default_rng(7).integers(0, MODEL["vocab"], 512).astype(np.int32)
