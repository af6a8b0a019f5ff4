"""Random damage inside every lane, hashes recomputed: SealError or nothing."""

import random

import pytest
from attacker import Forgery, pack

from s7jax import s7l

WEIRD = [
    *(None, True, False, 0, -1, 1 << 63, -(1 << 63), 0.5, "", "x", "\u202e", b"", bytes(32)),
    *([], {}, [[]], {"": None}, [0] * 40, {"name": []}, "../x", 1e308),
]
LANES = {1: "dict", 3: "stream", 4: "edge", 5: "batch"}


def slots(tree):
    """Every (container, key) of a tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield tree, key
        if isinstance(value, dict | list):
            yield from slots(value)


def refused_or_equal(path, data, original):
    path.write_bytes(data)
    try:
        s7l.open(path).verify()
    except s7l.SealError:
        return
    assert data == original


@pytest.mark.parametrize("lane", LANES, ids=LANES.values())
def test_one_value_replaced(pristine, tmp_path, lane):
    original = (pristine / "moe.s7l").read_bytes()
    field_hash = Forgery(original).field_root()
    rng = random.Random(lane)
    for _ in range(150):
        forgery = Forgery(original)
        tree = getattr(forgery, LANES[lane])
        top = rng.random() < 0.5  # half of the changes near the top, where most code is
        places = [(tree, key) for key in tree] if top else list(slots(tree))
        container, key = rng.choice(places)
        container[key] = rng.choice(WEIRD)
        data = forgery.build(bind=False, field_hash=field_hash)
        refused_or_equal(tmp_path / "x.s7l", data, original)


@pytest.mark.parametrize("lane", LANES, ids=LANES.values())
def test_one_byte_replaced(pristine, tmp_path, lane):
    original = (pristine / "moe.s7l").read_bytes()
    field_hash = Forgery(original).field_root()
    rng = random.Random(lane)
    for _ in range(150):
        forgery = Forgery(original)
        payload = bytearray(pack(getattr(forgery, LANES[lane])))
        payload[rng.randrange(min(len(payload), 2_000))] = rng.randrange(256)
        forgery.raw[lane] = bytes(payload)
        data = forgery.build(bind=False, field_hash=field_hash)
        refused_or_equal(tmp_path / "x.s7l", data, original)
