"""The integer model: the same logits on any mesh and in any batch."""

import hashlib
import json

import numpy as np
import pytest
from tiny import vocab_tree, write_weights

from s7jax import mesh as meshes
from s7jax import s7l
from s7jax.integer.program import Program

STACK = {"layers": 1, "hidden": 32, "heads": 2, "ffn": 64}
MODEL = {"vocab": 288, "context": 32, "trunk": STACK, "expert": STACK, "domains": ["a"]}
MODEL["routing_window"] = 8


@pytest.fixture(scope="module")
def seal(tmp_path_factory):
    root = tmp_path_factory.mktemp("seal")
    write_weights(root / "weights", MODEL)
    for name in ("trunk", "expert0"):
        path = root / f"weights/{name}.residual.npy"
        np.save(path, np.array([16], np.int32))
    manifest = json.loads((root / "weights/manifest.json").read_text())
    for name in ("trunk", "expert0"):
        entry = manifest["tensors"][f"{name}.residual"]
        entry["sha256"] = hashlib.sha256(np.array([16], "<i4").tobytes()).hexdigest()
        entry["exponent"] = 31
    (root / "weights/manifest.json").write_text(json.dumps(manifest))
    (root / "vocab.json").write_text(json.dumps(vocab_tree(288)))
    s7l.seal(root / "weights", root / "vocab.json", root / "m.s7l")
    return s7l.open(root / "m.s7l")


def test_the_same_bits_on_every_mesh_and_in_every_batch(seal):
    tokens = np.random.default_rng(0).integers(0, 288, (4, 16))
    logits, route = Program(seal, meshes.make(meshes.parse("1x1"))).answer(tokens)
    assert logits.dtype == np.int32
    assert len(np.unique(logits)) > 1_000
    for shape in ("2x1", "1x2", "2x2"):
        again = Program(seal, meshes.make(meshes.parse(shape))).answer(tokens)
        assert np.array_equal(again[0], logits), shape
        assert np.array_equal(again[1], route), shape
    alone, _ = Program(seal, meshes.make(meshes.parse("1x1"))).answer(tokens[2:3, :9])
    assert np.array_equal(alone[:, 0], logits[:, 2, :9])
