"""Each rule that reads the manifest fails on its own when its part is wrong.

Opening refuses such files, so the manifest is changed between opening and checking.
"""

import pytest

from s7jax import s7l
from s7jax.s7l import rules


@pytest.mark.parametrize(
    ("path", "value", "failing"),
    [
        (("lanes", "BATCH"), "⟁UI_FOLD⟁", ["V1"]),
        (("folds", "⟁META_FOLD⟁"), "BATCH", ["V5"]),
        (("hashes", "meta"), bytes(32), ["V7"]),
        (("hashes", "abi"), bytes(32), ["V7", "FOLD"]),
        (("phases", "compute"), "CLOSED", ["CM-1"]),
        (("provenance", "seed"), 1, []),
    ],
)
def test_rules_read_what_is_sealed(pristine, monkeypatch, path, value, failing):
    decode = rules.decode

    def changed(data, place):
        tree = decode(data, place)
        tree[path[0]][path[1]] = value
        return tree

    monkeypatch.setattr(rules, "decode", changed)
    report = s7l.check(s7l.open(pristine / "moe.s7l"))
    assert [f.rule for f in report.findings if f.verdict is s7l.Verdict.FAIL] == failing
    assert report.passed is not bool(failing)


def test_what_is_not_checked_says_so(pristine):
    findings = {f.rule: f for f in s7l.check(s7l.open(pristine / "moe.s7l")).findings}
    for rule in ("V2", "V3"):
        assert findings[rule].verdict is s7l.Verdict.NOT_CHECKED
    for rule in ("V6", "INT8", "CM-1"):
        assert "not checked: needs inference" in findings[rule].evidence


def test_re_encoding_is_compared(pristine, monkeypatch):
    encodings = rules.encodings
    monkeypatch.setattr(rules, "encodings", lambda seal: {**encodings(seal), "EDGE": b""})
    report = s7l.check(s7l.open(pristine / "moe.s7l"))
    assert [f.rule for f in report.findings if f.verdict is s7l.Verdict.FAIL] == ["V6"]
