"""Listing a seal reads no weight; one component is taken out by the tool."""

import json

import pytest
from attacker import patch

from s7jax import s7l


@pytest.fixture
def hollow(pristine, tmp_path):
    """The seal with a FIELD of zeros: every weight is wrong."""
    seal = s7l.open(pristine / "moe.s7l")
    field = seal.head.lanes[1]
    data = (pristine / "moe.s7l").read_bytes()
    path = tmp_path / "hollow.s7l"
    path.write_bytes(patch(data, field.offset, bytes(field.length), hashed=False))
    return path


def test_listing_reads_no_weight(tool, hollow, pristine, tmp_path):
    done = tool("inspect", hollow, "--json")
    assert done.returncode == 0, done.stderr
    listing, seal = json.loads(done.stdout), s7l.open(pristine / "moe.s7l")
    assert listing["file"]["root"] == seal.root.hex()
    assert [row["name"] for row in listing["tensors"]] == list(seal.tensors)
    assert [row["name"] for row in listing["components"]] == list(seal.manifest.components)
    assert listing["folds"]["⟁COMPUTE_FOLD⟁"] == "BATCH"
    assert listing["provenance"] == dict(seal.manifest.provenance)
    shown = tool("inspect", hollow)
    assert shown.returncode == 0, shown.stderr
    assert seal.root.hex() in shown.stdout
    weights = tool("inspect", hollow, "--weights")
    assert (weights.returncode, "chunk 0" in weights.stderr) == (1, True)


def test_extract(tool, pristine, hollow, tmp_path):
    args = ("--extract", "expert2", "--out", tmp_path / "expert2.s7b")
    done = tool("inspect", pristine / "moe.s7l", *args)
    assert done.returncode == 0, done.stderr
    root = s7l.open(pristine / "moe.s7l").root
    assert root.hex() in done.stdout
    good = tool("verify", tmp_path / "expert2.s7b", "--root", root.hex())
    assert good.returncode == 0, good.stderr
    bad = tool("verify", tmp_path / "expert2.s7b", "--root", "00" * 32)
    assert bad.returncode == 1
    args = ("--extract", "expert1", "--out", tmp_path / "expert1.s7b")
    damaged = tool("inspect", hollow, *args)
    assert damaged.returncode == 1
    assert "FIELD tensor expert1." in damaged.stderr
    assert not (tmp_path / "expert1.s7b").exists()
    for wrong in (("--extract", "expert2"), ("--out", "x"), ("--extract", "expert9", "--out", "x")):
        refused = tool("inspect", pristine / "moe.s7l", *wrong)
        assert refused.returncode == (1 if "expert9" in wrong else 2)
        assert "Traceback" not in refused.stderr
