"""The rules V0..V7, INT8, CM-1 and FOLD, each with the evidence for its verdict.

What a rule says about running the model cannot be seen in a file; those parts are reported
as not checked, never as passed. What opening has already refused in any other form cannot fail
here: it is reported as enforced, with what it is.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from s7jax.s7l.bundle import Bundle
from s7jax.s7l.contract import COMPUTE_FOLD, FOLDS, LANE_FOLDS, phases
from s7jax.s7l.field import Field
from s7jax.s7l.reader import Seal, encodings
from s7jax.s7l.schema import SealError


class Verdict(StrEnum):
    """Outcome of one rule."""

    PASS = "PASS"
    ENFORCED = "PASS (enforced by opening)"
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
    operators, transitions = seal.contract["operators"], phases()["transitions"]
    hashes_shown = ", ".join(f"{name} {h.hex()}" for name, h in seal.manifest.hashes().items())
    return (
        _order(seal, zeros),
        Finding(
            "V1",
            Verdict.ENFORCED,
            f"{len(LANE_FOLDS)} lanes, each governed by one fold; "
            f"{len(operators)} operators, all of {COMPUTE_FOLD}",
        ),
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
        Finding(
            "V5", Verdict.ENFORCED, ", ".join(f"{fold} {lane}" for fold, lane in FOLDS.items())
        ),
        _same_bytes(seal, hashes),
        Finding("V7", Verdict.ENFORCED, hashes_shown),
        _integers(seal, values),
        Finding(
            "CM-1",
            Verdict.ENFORCED,
            f"phase table exact, {len(transitions)} legal transitions, all else ILLEGAL; "
            "the gate itself not checked: needs inference",
        ),
        Finding(
            "FOLD",
            Verdict.ENFORCED,
            f"BATCH contract {seal.contract['scheme']} under {seal.contract['fold']}, "
            "bound by the abi hash",
        ),
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
    parts = len(seal.manifest.components)
    evidence = (
        f"{len(seal.tensors)} tensors in bytewise order of names in {parts} components; "
        "every offset as computed, padding and gaps zero, four lanes canonical"
    )
    return _finding("V0", failure is None, str(failure or evidence))


def _read_only(seal: Seal) -> Finding:
    return _finding(
        "V4",
        seal.is_read_only,
        f"mapping and views read-only, no mutator; file mode {seal.permissions:04o} (sealed 0444)",
    )


def _same_bytes(seal: Seal, failure: SealError | None) -> Finding:
    """Hashes from the bytes up to the root, and the small parts encoded anew."""
    if failure is not None:
        return _finding("V6", False, str(failure))
    differing = [name for name, again in encodings(seal).items() if seal.raw(name) != again]
    chunks = sum(len(tensor.chunks) for tensor in seal.manifest.tensors)
    return _finding(
        "V6",
        not differing,
        f"root {seal.root.hex()} recomputed from {chunks} chunks "
        f"of {seal.manifest.field_bytes} bytes; "
        f"re-encoding {'differs in ' + ', '.join(differing) if differing else 'identical'}; "
        "identical logits not checked: needs inference",
    )


def _integers(seal: Field, failure: SealError | None) -> Finding:
    count = Counter(tensor.spec.dtype for tensor in seal.tensors.values())
    shown = ", ".join(f"{n} {dtype}" for dtype, n in sorted(count.items()))
    evidence = (
        f"{shown} tensors, no float; no -128 in int8, no negative scale; "
        "the compute program not checked: needs inference"
    )
    return _finding("INT8", failure is None, str(failure or evidence))
