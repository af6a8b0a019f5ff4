"""Changed tensor data: the file opens, and verification names tensor and chunk."""

import re

import pytest
from attacker import Forgery, forge, patch

from s7jax import s7l

Q = "expert0.layer0.attn.q_proj.weight"
K = "expert0.layer0.attn.k_proj.weight"
LAST = "trunk.layer1.ffn_norm.gain"  # '.' sorts below '_': behind ffn.fc2


def set_byte(name, index, value):
    """Change one stored byte of a tensor; −1 is the last."""

    def change(f):
        e = f.entry(name)
        f.field[e["offset"] + index % e["stored"]] = value

    return change


def swap_experts(f):
    for e in f.edge["tensors"]:
        if e["name"].startswith("expert0."):
            other = f.entry(e["name"].replace("expert0", "expert1"))
            a, b = (slice(t["offset"], t["offset"] + t["stored"]) for t in (e, other))
            f.field[a], f.field[b] = f.field[b], f.field[a]


def gap_byte(f):
    e = f.entry("router.weight")  # the last of its component: a page boundary follows
    f.field[e["offset"] + e["stored"]] = 1


def rehashed(change):
    def mutate(f):
        change(f)
        f.rehash()

    return mutate


DATA = [
    ("100 q and k hashes", f"{K} chunk 0", lambda f: f.swap(Q, K, "chunks")),
    ("101 weight bit", f"{Q} chunk 0", set_byte(Q, 5, 0x77)),
    ("102 first byte", "embedding.scale chunk 0", set_byte("embedding.scale", 0, 0x77)),
    ("103 last byte", f"{LAST} chunk 0", set_byte(LAST, -1, 0x77)),
    ("104 negative scale", "router.scale: scale 0", rehashed(set_byte("router.scale", 3, 0x80))),
    ("106 padding", "router.bias padding", rehashed(set_byte("router.bias", -1, 1))),
    ("107 gap", "gap behind tensor router.weight", rehashed(gap_byte)),
    ("108 experts swapped", "expert0.", swap_experts),
    ("111 -128", f"{Q}: value 5", rehashed(set_byte(Q, 5, 0x80))),
]


@pytest.mark.parametrize(
    ("place", "change"), [pytest.param(place, change, id=name) for name, place, change in DATA]
)
def test_verify_refuses_data(pristine, tmp_path, place, change):
    path = tmp_path / "forged.s7l"
    path.write_bytes(forge(change)((pristine / "moe.s7l").read_bytes()))
    seal = s7l.open(path)
    with pytest.raises(s7l.SealError, match=re.escape(place)):
        seal.verify()
    assert not s7l.check(seal).passed


@pytest.mark.parametrize("size", [-32, 32])
def test_field_of_another_length(pristine, tmp_path, size):
    forgery = Forgery((pristine / "moe.s7l").read_bytes())
    forgery.field = forgery.field[:size] if size < 0 else forgery.field + bytes(size)
    (tmp_path / "forged.s7l").write_bytes(forgery.build())
    with pytest.raises(s7l.SealError, match=r"lane 2 \(FIELD\) length"):
        s7l.open(tmp_path / "forged.s7l")


def test_honest_reseal_has_another_root(pristine, tmp_path):
    # Only a pinned root can refuse what is well-formed in itself.
    original = s7l.open(pristine / "moe.s7l")
    forgery = Forgery((pristine / "moe.s7l").read_bytes())
    set_byte(Q, 5, 0x11)(forgery)
    path = tmp_path / "forged.s7l"
    path.write_bytes(forgery.rehash().build())
    s7l.open(path).verify()
    with pytest.raises(s7l.SealError, match="expected " + original.root.hex()):
        s7l.open(path, root=original.root)


def test_every_sampled_byte_is_bound(pristine, tmp_path):
    data = (pristine / "moe.s7l").read_bytes()
    path = tmp_path / "flipped.s7l"
    for at in [*range(384), *range(384, len(data), 311), len(data) - 1]:
        path.write_bytes(patch(data, at, bytes([data[at] ^ 0x10]), hashed=False))
        with pytest.raises(s7l.SealError):
            s7l.open(path).verify()
