"""One component shipped alone, proven against the root of the whole."""

import re

import msgpack
import numpy as np
import pytest
from attacker import pack, patch

from s7jax import s7l
from s7jax.s7l.bundle import extract, open_bundle

Q = "expert2.layer0.attn.q_proj.weight"


@pytest.fixture
def sealed(pristine):
    return s7l.open(pristine / "moe.s7l")


@pytest.fixture
def bundle(sealed, tmp_path):
    extract(sealed, "expert2", tmp_path / "expert2.s7b")
    return tmp_path / "expert2.s7b"


def spoilt(pristine, tmp_path, name):
    """A copy of the seal with one bit of one tensor flipped."""
    seal = s7l.open(pristine / "moe.s7l")
    at = seal.head.lanes[1].offset + seal.tensors[name].offset
    data = (pristine / "moe.s7l").read_bytes()
    (tmp_path / "spoilt.s7l").write_bytes(patch(data, at, bytes([data[at] ^ 1]), hashed=False))
    return s7l.open(tmp_path / "spoilt.s7l")


def redescribe(data, change):
    """The bundle with its description changed and encoded anew."""
    size = int.from_bytes(data[8:16], "big")
    tree = msgpack.unpackb(data[16 : 16 + size])
    change(tree)
    described = pack(tree)
    head = data[:8] + len(described).to_bytes(8, "big") + described
    start, new = (-(-n // 4096) * 4096 for n in (16 + size, len(head)))
    return head.ljust(new, b"\0") + data[start:]


@pytest.mark.parametrize("component", ["embedding", "expert0", "expert2", "router", "trunk"])
def test_every_component_alone_has_the_root_of_the_whole(sealed, tmp_path, component):
    path = tmp_path / "one.s7b"
    assert extract(sealed, component, path)
    one = open_bundle(path, root=sealed.root)
    one.verify()
    assert one.component == component
    assert list(one.tensors) == [t.name for t in sealed.manifest.components[component]]
    for name in one.tensors:
        np.testing.assert_array_equal(one.tensor(name), sealed.tensor(name), strict=True)
        assert one.tensor(name).ctypes.data % 64 == 0
        assert one.tensors[name].exponent == sealed.tensors[name].exponent
    assert path.stat().st_mode & 0o777 == 0o444


def test_a_bundle_is_never_overwritten(sealed, bundle):
    before = bundle.read_bytes()
    assert not extract(sealed, "expert2", bundle)
    with pytest.raises(s7l.SealError, match="never overwritten"):
        extract(sealed, "expert1", bundle)
    assert bundle.read_bytes() == before


def test_damage_elsewhere_is_no_obstacle_until_touched(pristine, tmp_path, sealed):
    broken = spoilt(pristine, tmp_path, "expert1.in_proj.weight")
    extract(broken, "expert2", tmp_path / "expert2.s7b")
    open_bundle(tmp_path / "expert2.s7b", root=sealed.root).verify()
    with pytest.raises(s7l.SealError, match=r"expert1\.in_proj\.weight chunk 0"):
        extract(broken, "expert1", tmp_path / "expert1.s7b")
    assert not (tmp_path / "expert1.s7b").exists()


def test_another_root_and_another_component_are_refused(bundle, sealed, tmp_path):
    with pytest.raises(s7l.SealError, match="expected 0000"):
        open_bundle(bundle, root=bytes(32))
    with pytest.raises(s7l.SealError, match=r"no expert9; there are embedding, expert0"):
        extract(sealed, "expert9", tmp_path / "x.s7b")


def test_a_damaged_weight_is_named(bundle):
    data = bundle.read_bytes()
    at = len(data) - 1
    bundle.chmod(0o644)
    bundle.write_bytes(patch(data, at, bytes([data[at] ^ 1]), hashed=False))
    with pytest.raises(s7l.SealError, match=r"FIELD tensor expert2\.residual chunk 0"):
        open_bundle(bundle).verify()


@pytest.mark.parametrize(
    ("at", "to", "failed"),
    [("weight", 0x55, ["V6"]), ("weight", 0x80, ["V6", "INT8"]), ("padding", 1, ["V0", "V6"])],
)
def test_the_rules_tell_what_was_damaged(bundle, at, to, failed):
    data = bytearray(bundle.read_bytes())
    tensors = open_bundle(bundle).tensors
    start = len(data) - sum(t.stored for t in tensors.values())  # one after the other
    first = next(iter(tensors.values())).offset
    padded = next(t for t in tensors.values() if t.spec.size < t.stored)
    places = {"weight": tensors[Q].offset, "padding": padded.offset + padded.spec.size}
    data[start + places[at] - first] = to
    bundle.chmod(0o644)
    bundle.write_bytes(data)
    found = s7l.check(open_bundle(bundle))
    assert [f.rule for f in found.findings if f.verdict is s7l.Verdict.FAIL] == failed


def test_every_byte_is_bound(bundle, sealed, tmp_path):
    data = bundle.read_bytes()
    described = 16 + int.from_bytes(data[8:16], "big")
    path = tmp_path / "flipped.s7b"
    for at in [*range(0, described, 3), *range(described, len(data), 97)]:
        path.write_bytes(patch(data, at, bytes([data[at] ^ 0x10]), hashed=False))
        with pytest.raises(s7l.SealError):
            open_bundle(path, root=sealed.root).verify()


def rename(tree, old="expert2", new="expert1"):
    tree["component"] = new
    for entry in tree["tensors"]:
        entry["name"] = entry["name"].replace(old, new)
        if "scale" in entry:
            entry["scale"] = entry["scale"].replace(old, new)


def swap_roots(tree):
    a, b = tree["components"][2:4]
    a["root"], b["root"] = b["root"], a["root"]


CLAIMS = {
    "123 proof of expert2 shown for expert1": (".components.expert1", rename),
    "123 named expert1": (".tensors[0].name", lambda t: t.update(component="expert1")),
    "122 missing hash": (".path", lambda t: t["path"].pop()),
    "122 extra hash": (".path", lambda t: t["path"].append(bytes(32))),
    "122 duplicated hash": (".path", lambda t: t["path"].append(t["path"][-1])),
    "122 no hashes": (".path", lambda t: t["path"].clear()),
    "122 hash of 31 bytes": (".path[0]", lambda t: t["path"].__setitem__(0, bytes(31))),
    "122 swapped hashes": ("expected", lambda t: t["path"].reverse()),
    "122 other length": ("expected", lambda t: t.update(length=t["length"] + 1)),
    "122 other offset": ("expected", lambda t: t["field"].update(offset=8192 * 4)),
    "component dropped": (".components[", lambda t: t["components"].pop()),
    "component added": (
        ".components[5].name",
        lambda t: t["components"].append({"name": "expert4", "root": bytes(32)}),
    ),
    "roots swapped": (".components.expert2", swap_roots),
    "tensor dropped": ("bundle:", lambda t: t["tensors"].pop()),
    "tensor twice": (".tensors[1].name", lambda t: t["tensors"].insert(0, t["tensors"][0])),
    "huge shape": (".shape[0]", lambda t: t["tensors"][0].update(shape=[1 << 40])),
    "no tensors": (".tensors", lambda t: t.update(tensors=[])),
    "float dtype": (".dtype", lambda t: t["tensors"][0].update(dtype="float32")),
    "exponent": (".components.expert2", lambda t: t["tensors"][0].update(exponent=3)),
    "unknown key": ("unknown key", lambda t: t.update(note=1)),
    "format": (".format", lambda t: t.update(format="s7-manifest")),
}


@pytest.mark.parametrize(("place", "change"), CLAIMS.values(), ids=CLAIMS)
def test_a_forged_claim_is_refused(bundle, sealed, tmp_path, place, change):
    path = tmp_path / "forged.s7b"
    path.write_bytes(redescribe(bundle.read_bytes(), change))
    with pytest.raises(s7l.SealError, match=re.escape(place)):
        open_bundle(path, root=sealed.root)


def test_an_unchanged_claim_is_the_bundle_itself(bundle):
    assert redescribe(bundle.read_bytes(), lambda tree: None) == bundle.read_bytes()


@pytest.mark.parametrize("size", [0, 3, 15, 16, 100, -1])
def test_a_cut_bundle_is_refused(bundle, tmp_path, size):
    (tmp_path / "cut").write_bytes(bundle.read_bytes()[:size])
    with pytest.raises(s7l.SealError):
        open_bundle(tmp_path / "cut")


def test_a_seal_is_no_bundle_and_the_other_way_round(bundle, pristine):
    with pytest.raises(s7l.SealError, match=r"bundle\[0:8\]"):
        open_bundle(pristine / "moe.s7l")
    with pytest.raises(s7l.SealError, match="this is a bundle"):
        s7l.open(bundle)
