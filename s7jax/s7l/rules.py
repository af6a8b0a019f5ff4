"""The rules V0..V7, INT8, CM-1 and FOLD, each with the evidence for its verdict.

What a rule says about running the model cannot be seen in a file; those parts are reported
as not checked, never as passed.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from s7jax.architecture import SEALED_DTYPES
from s7jax.s7l.bundle import Bundle
from s7jax.s7l.canonical import decode
from s7jax.s7l.contract import COMPUTE_FOLD, FOLDS, LANE_FOLDS, phases
from s7jax.s7l.field import Field
from s7jax.s7l.layout import seal_root
from s7jax.s7l.reader import Seal, encodings
from s7jax.s7l.schema import SealError


class Verdict(StrEnum):
    """Outcome of one rule."""

    PASS = "PASS"
    FAIL = "FAIL"
    NOT_CHECKED = "not checked: needs inference"


@dataclass(frozen=True)
class Finding:
    """One rule's outcome."""

    rule: str
    verdict: Verdict
    evidence: str


@dataclass(frozen=True)
class Report:
    """All findings on one file, and how fast its bytes were hashed."""

    findings: tuple[Finding, ...]
    bytes_per_second: float

    @property
    def passed(self) -> bool:
        """Whether no rule failed."""
        return all(finding.verdict is not Verdict.FAIL for finding in self.findings)


def check(opened: Seal | Bundle) -> Report:
    """Check every rule on an open seal, or on a bundle those that its tensors can show.

    Reads every byte of the tensors once to hash it.
    """
    start = time.perf_counter()
    hashes = _first_failure(opened, opened.verify_hashes)
    stored = sum(tensor.stored for tensor in opened.tensors.values())
    speed = stored / (time.perf_counter() - start)
    zeros = _first_failure(opened, opened.verify_zeros)
    values = _first_failure(opened, opened.verify_values)
    if isinstance(opened, Bundle):
        return Report(_check_bundle(opened, hashes, zeros, values), speed)
    return Report(_check_seal(opened, hashes, zeros, values), speed)


def _check_seal(
    seal: Seal, hashes: SealError | None, zeros: SealError | None, values: SealError | None
) -> tuple[Finding, ...]:
    edge = decode(seal.raw("EDGE"), "lane 4 (EDGE)")  # as sealed, not as rebuilt
    return (
        _order(seal, zeros),
        _legal_folds(edge, seal.contract["operators"]),
        Finding(
            "V2",
            Verdict.NOT_CHECKED,
            f"the phase table allows compute in {phases()['compute']} alone; "
            "that no call gets round the gate shows at run time",
        ),
        Finding(
            "V3",
            Verdict.NOT_CHECKED,
            "seal, abi, policy and meta hashes are there to be carried; no output is in the file",
        ),
        _read_only(seal),
        _fold_map(edge),
        _same_bytes(seal, hashes),
        _bound_hashes(edge, seal),
        _integers(seal, values),
        _phase_table(edge),
        _authority(edge, seal),
    )


def _check_bundle(
    bundle: Bundle, hashes: SealError | None, zeros: SealError | None, values: SealError | None
) -> tuple[Finding, ...]:
    count, name = len(bundle.tensors), bundle.component
    chunks = sum(len(tensor.chunks) for tensor in bundle.tensors.values())
    order = f"{count} tensors of {name} in bytewise order of names; padding and gaps zero"
    proof = f"root {bundle.root.hex()} recomputed from {chunks} chunks of {name} and its proof"
    return (
        _finding("V0", zeros is None, str(zeros or order)),
        _finding("V6", hashes is None, str(hashes or proof)),
        _integers(bundle, values),
    )


def _first_failure(seal: Field, verify: Callable[[str], None]) -> SealError | None:
    for name in seal.tensors:
        try:
            verify(name)
        except SealError as e:
            return e
    return None


def _finding(rule: str, holds: bool, evidence: str) -> Finding:
    return Finding(rule, Verdict.PASS if holds else Verdict.FAIL, evidence)


def _order(seal: Seal, failure: SealError | None) -> Finding:
    if failure is not None:
        return _finding("V0", False, str(failure))
    names = [name.encode() for name in seal.tensors]
    parts = len(seal.manifest.components)
    return _finding(
        "V0",
        names == sorted(names),
        f"{len(names)} tensors in bytewise order of names in {parts} components; "
        "every offset as computed, padding and gaps zero, four lanes canonical",
    )


def _legal_folds(edge: dict[str, Any], operators: list[dict[str, str]]) -> Finding:
    holds = all(edge["folds"].get(fold) == lane for lane, fold in edge["lanes"].items())
    holds &= all(operator["fold"] == COMPUTE_FOLD for operator in operators)
    return _finding(
        "V1",
        holds and edge["lanes"] == LANE_FOLDS,
        f"{len(edge['lanes'])} lanes, each governed by one fold; "
        f"{len(operators)} operators, all of {COMPUTE_FOLD}",
    )


def _read_only(seal: Seal) -> Finding:
    return _finding(
        "V4",
        seal.is_read_only,
        f"mapping and views read-only, no mutator; file mode {seal.permissions:04o} (sealed 0444)",
    )


def _fold_map(edge: dict[str, Any]) -> Finding:
    folds = edge["folds"]
    shown = ", ".join(f"{fold} {lane}" for fold, lane in folds.items())
    return _finding("V5", folds == FOLDS, shown)


def _same_bytes(seal: Seal, failure: SealError | None) -> Finding:
    """Hashes from the bytes up to the root, and the small parts encoded anew."""
    if failure is not None:
        return _finding("V6", False, str(failure))
    root = seal_root(seal.head.lanes)
    differing = [name for name, again in encodings(seal).items() if seal.raw(name) != again]
    chunks = sum(len(tensor.chunks) for tensor in seal.manifest.tensors)
    return _finding(
        "V6",
        root == seal.root and not differing,
        f"root {root.hex()} recomputed from {chunks} chunks of {seal.manifest.field_bytes} bytes; "
        f"re-encoding {'differs in ' + ', '.join(differing) if differing else 'identical'}; "
        "identical logits not checked: needs inference",
    )


def _bound_hashes(edge: dict[str, Any], seal: Seal) -> Finding:
    hashes = seal.manifest.hashes()
    return _finding(
        "V7",
        edge["hashes"] == hashes,
        ", ".join(f"{name} {h.hex()}" for name, h in hashes.items()),
    )


def _integers(seal: Field, failure: SealError | None) -> Finding:
    if failure is not None:
        return _finding("INT8", False, str(failure))
    count = Counter(tensor.spec.dtype for tensor in seal.tensors.values())
    shown = ", ".join(f"{n} {dtype}" for dtype, n in sorted(count.items()))
    return _finding(
        "INT8",
        set(count) <= set(SEALED_DTYPES),
        f"{shown} tensors, no float; no -128 in int8, no negative scale; "
        "the compute program not checked: needs inference",
    )


def _phase_table(edge: dict[str, Any]) -> Finding:
    return _finding(
        "CM-1",
        edge["phases"] == phases(),
        f"phase table exact, {len(phases()['transitions'])} legal transitions, all else ILLEGAL; "
        "the gate itself not checked: needs inference",
    )


def _authority(edge: dict[str, Any], seal: Seal) -> Finding:
    bound = edge["hashes"]["abi"] == seal.head.lanes[4].hash
    return _finding(
        "FOLD",
        bound and seal.contract["fold"] == COMPUTE_FOLD,
        f"BATCH contract {seal.contract['scheme']} under {seal.contract['fold']}, "
        "bound by the abi hash",
    )
