"""The corpus: every mutation is refused by both verifiers, at its place, and cheaply."""

import re

import pytest
import test_bundle
import test_files
import test_signature
from attacker import Forgery, forge, patch
from costs import costs
from mutations import DATA, HONEST, REFUSED_ON_OPEN
from second import agree

from s7jax import s7l

CORPUS = [*REFUSED_ON_OPEN, *((name, place, forge(change)) for name, place, change in DATA)]


def params(rows):
    return [pytest.param(*row[1:], id=row[0]) for row in rows]


@pytest.fixture(scope="module")
def original(pristine):
    return (pristine / "moe.s7l").read_bytes()


@pytest.fixture(scope="module")
def refusals(original, pristine, tmp_path_factory):
    """What each forgery costs, by its name, and under ``None`` what the original does."""
    folder, paths = tmp_path_factory.mktemp("forged"), {None: pristine / "moe.s7l"}
    for number, (name, _, mutate) in enumerate(CORPUS):
        paths[name] = folder / f"{number}.s7l"
        paths[name].write_bytes(mutate(original))
    found = zip(paths, costs(list(paths.values())), paths.values(), strict=True)
    return {name: (*cost, path.stat().st_size) for name, cost, path in found}


@pytest.mark.parametrize(("name", "place"), params((row[0], *row[:2]) for row in CORPUS))
def test_refused_by_both_at_its_place(refusals, pristine, name, place):
    library, second, size = refusals[name]
    honest, its_second, honest_size = refusals[None]
    assert honest.error is its_second.error is None
    assert place in library.error
    assert second.error is not None
    # Eight times head and manifest; what the attacker made longer has bytes of its own.
    allowance = 8 * (4096 + s7l.open(pristine / "moe.s7l").head.lanes[3].length)
    assert library.peak < allowance + 8 * max(0, size - honest_size)
    # To refuse is no more work than to accept.
    assert library.calls < 2 * honest.calls
    assert second.calls < 2 * its_second.calls


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


@pytest.mark.long(minutes=0.3)
@pytest.mark.parametrize("lists", [1 << 20, (4 << 20) - 5])
def test_the_worst_amplification_is_bounded(original, tmp_path, lists):
    # An empty list costs a byte encoded and 64 decoded; a lane holds at most 2^20 of them.
    def change(f):
        f.raw[4] = b"\xdd" + lists.to_bytes(4, "big") + b"\x90" * lists

    path = tmp_path / "lists.s7l"
    path.write_bytes(forge(change)(original))
    ((library, second),) = costs([path])
    assert "lists and maps" in library.error
    assert "lists and maps" in second.error
    assert max(library.peak, second.peak) < 100 << 20
    assert max(library.calls, second.calls) < 4 << 20


def test_the_whole_list_is_here():
    named = [row[0] for row in (*CORPUS, *HONEST)]
    assert len(set(named)) == len(named) >= 130
    named += [*test_bundle.CLAIMS, *test_signature.FORGED]
    for module in (test_signature, test_files):
        named += [name.removeprefix("test_").replace("_", " ") for name in vars(module)]
    numbers = {int(found[0]) for name in named if (found := re.match(r"\d+", name))}
    assert set(range(1, 135)) <= numbers
