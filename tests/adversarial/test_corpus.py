"""The corpus: every mutation is refused by both verifiers, at its place, fast and cheaply."""

import contextlib
import re
import time
import tracemalloc

import pytest
import test_bundle
import test_files
import test_signature
from attacker import Forgery, forge, patch
from mutations import DATA, HONEST, REFUSED_ON_OPEN
from second import agree, second

from s7jax import s7l

CORPUS = [*REFUSED_ON_OPEN, *((name, place, forge(change)) for name, place, change in DATA)]


def params(rows):
    return [pytest.param(*row[1:], id=row[0]) for row in rows]


@pytest.fixture(scope="module")
def original(pristine):
    return (pristine / "moe.s7l").read_bytes()


@pytest.fixture(scope="module")
def allowance(pristine):
    """Eight times head and manifest of the file that was attacked."""
    return 8 * (4096 + s7l.open(pristine / "moe.s7l").head.lanes[3].length)


@pytest.mark.parametrize(("place", "mutate"), params(CORPUS))
def test_refused_by_both_at_its_place(original, allowance, tmp_path, place, mutate):
    path = tmp_path / "forged.s7l"
    data = mutate(original)
    path.write_bytes(data)
    with contextlib.suppress(s7l.SealError):
        s7l.open(path).verify()  # modules imported on first use are not the attacker's doing
    tracemalloc.start()
    start = time.perf_counter()
    try:
        with pytest.raises(s7l.SealError, match=re.escape(place)):
            s7l.open(path).verify()
        assert time.perf_counter() - start < 1
        # A manifest that the attacker made longer has bytes of its own.
        assert tracemalloc.get_traced_memory()[1] < allowance + 8 * max(
            0, len(data) - len(original)
        )
    finally:
        tracemalloc.stop()
    with pytest.raises(second.Refused):
        second.verify(str(path))
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(("place", "change"), params(DATA))
def test_damaged_data_opens_and_fails_the_rules(original, tmp_path, place, change):
    path = tmp_path / "forged.s7l"
    path.write_bytes(forge(change)(original))
    assert not s7l.check(s7l.open(path)).passed


@pytest.mark.parametrize("mutate", params(HONEST))
def test_an_honest_seal_of_something_else_needs_a_pin(original, pristine, tmp_path, mutate):
    root = s7l.open(pristine / "moe.s7l").root
    path = tmp_path / "other.s7l"
    path.write_bytes(mutate(original))
    found = agree(path)
    assert found is not None
    assert found != root
    with pytest.raises(s7l.SealError, match="expected " + root.hex()):
        s7l.open(path, root=root)


def test_control_bytes_in_text_move_no_phase(original, pristine, tmp_path):
    path = tmp_path / "control.s7l"
    path.write_bytes(dict(HONEST)["134 control bytes"](original))
    assert [f.verdict for f in s7l.check(s7l.open(path)).findings] == [
        f.verdict for f in s7l.check(s7l.open(pristine / "moe.s7l")).findings
    ]


def test_the_attacker_forges_well(original):
    # Without this, every refusal could be due to a mistake of the attacker.
    assert Forgery(original).rehash().build() == original


def test_the_original_is_accepted_by_both(pristine):
    assert agree(pristine / "moe.s7l") == s7l.open(pristine / "moe.s7l").root


def test_every_sampled_byte_is_bound(original, tmp_path):
    path = tmp_path / "flipped.s7l"
    for at in [*range(384), *range(384, len(original), 311), len(original) - 1]:
        path.write_bytes(patch(original, at, bytes([original[at] ^ 0x10]), hashed=False))
        assert agree(path) is None, at


@pytest.mark.parametrize("lists", [1 << 20, (4 << 20) - 5])
def test_the_worst_amplification_is_bounded(original, tmp_path, lists):
    # An empty list costs a byte encoded and 64 decoded; a lane holds at most 2^20 of them.
    def change(f):
        f.raw[4] = b"\xdd" + lists.to_bytes(4, "big") + b"\x90" * lists

    path = tmp_path / "lists.s7l"
    path.write_bytes(forge(change)(original))
    start = time.perf_counter()
    with pytest.raises(s7l.SealError, match="lists and maps"):
        s7l.open(path)
    assert time.perf_counter() - start < 1
    tracemalloc.start()
    with pytest.raises(s7l.SealError, match="lists and maps"):
        s7l.open(path)
    assert tracemalloc.get_traced_memory()[1] < 100 << 20
    tracemalloc.stop()
    with pytest.raises(second.Refused, match="lists and maps"):
        second.verify(str(path))


def test_the_whole_list_is_here():
    named = [row[0] for row in (*CORPUS, *HONEST)]
    assert len(set(named)) == len(named) >= 130
    named += [*test_bundle.CLAIMS, *test_signature.FORGED]
    for module in (test_signature, test_files):
        named += [name.removeprefix("test_").replace("_", " ") for name in vars(module)]
    numbers = {int(found[0]) for name in named if (found := re.match(r"\d+", name))}
    assert set(range(1, 135)) <= numbers
