"""Each rule is true of what it says: it fails, is not checked, or opening has refused the rest."""

import pytest
from attacker import forge

from s7jax import s7l
from s7jax.s7l import rules
from s7jax.s7l.contract import LANE_FOLDS


def edge(*path, to):
    """One value of the manifest changed, and every hash made right again but those it holds."""

    def change(forgery):
        *parents, last = path
        node = forgery.edge
        for key in parents:
            node = node[key]
        node[last] = to

    return forge(change, bind=path[0] != "hashes")


def operator(forgery):
    forgery.batch["operators"][0]["fold"] = "⟁UI_FOLD⟁"


def authority(forgery):
    forgery.batch["fold"] = "⟁UI_FOLD⟁"


# Rule, mutation of a file, what opening it names.
BROKEN = [
    *(("V1", edge("lanes", lane, to="⟁NO_FOLD⟁"), f".lanes.{lane}") for lane in LANE_FOLDS),
    ("V1", edge("lanes", "BATCH", to=["⟁COMPUTE_FOLD⟁", "⟁UI_FOLD⟁"]), ".lanes.BATCH"),
    ("V1", forge(operator), ".operators[0].fold"),
    ("V5", edge("folds", "⟁META_FOLD⟁", to="BATCH"), ".folds.⟁META_FOLD⟁"),
    ("V5", edge("folds", "⟁NEW_FOLD⟁", to="BATCH"), ".folds"),
    *(
        ("V7", edge("hashes", name, to=bytes(32)), f".hashes.{name}")
        for name in ("abi", "policy", "meta")
    ),
    ("CM-1", edge("phases", "compute", to="CLOSED"), ".phases.compute"),
    ("CM-1", edge("phases", "transitions", 1, 0, to="VOID"), ".phases.transitions[1][0]"),
    ("FOLD", forge(authority), "lane 5 (BATCH) .fold"),
    ("FOLD", edge("hashes", "abi", to=bytes(32)), ".hashes.abi"),
]


@pytest.mark.parametrize(("rule", "mutate", "place"), BROKEN)
def test_opening_refuses_what_would_break_an_enforced_rule(pristine, tmp_path, rule, mutate, place):
    path = tmp_path / "forged.s7l"
    path.write_bytes(mutate((pristine / "moe.s7l").read_bytes()))
    with pytest.raises(s7l.SealError) as refused:
        s7l.open(path)
    assert f"{place}: " in str(refused.value)


def test_what_opening_enforces_says_so_and_is_all_tried_here(pristine):
    report = s7l.check(s7l.open(pristine / "moe.s7l"))
    found = {f.rule for f in report.findings if f.verdict is s7l.Verdict.ENFORCED}
    assert found == {rule for rule, *_ in BROKEN}
    assert report.passed


def test_what_is_not_checked_says_so(pristine):
    findings = {f.rule: f for f in s7l.check(s7l.open(pristine / "moe.s7l")).findings}
    for rule in ("V2", "V3"):
        assert findings[rule].verdict is s7l.Verdict.NOT_CHECKED
    for rule in ("V6", "INT8", "CM-1"):
        assert "not checked: needs inference" in findings[rule].evidence


def test_memory_that_can_be_written_is_noticed(pristine):
    seal = s7l.open(pristine / "moe.s7l")
    seal._bytes = memoryview(bytearray(seal._bytes))
    report = s7l.check(seal)
    assert [f.rule for f in report.findings if f.verdict is s7l.Verdict.FAIL] == ["V4"]


def test_re_encoding_is_compared(pristine, monkeypatch):
    encodings = rules.encodings
    monkeypatch.setattr(rules, "encodings", lambda seal: {**encodings(seal), "EDGE": b""})
    report = s7l.check(s7l.open(pristine / "moe.s7l"))
    assert [f.rule for f in report.findings if f.verdict is s7l.Verdict.FAIL] == ["V6"]
