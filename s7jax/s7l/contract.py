"""What a sealed file fixes about its execution: folds, the CM-1 phases, the compute contract.

All of it is data. A file that names other folds, phases or operators is refused: a change of
any of them is a new numeric scheme or a new version of the format.
"""

from typing import Any, Final

from s7jax.s7l.layout import LANES

COMPUTE_FOLD: Final = "⟁COMPUTE_FOLD⟁"
"""The sole execution authority."""

FOLDS: Final = {
    "⟁DATA_FOLD⟁": "DICT",
    "⟁META_FOLD⟁": "DICT",
    "⟁STORAGE_FOLD⟁": "FIELD",
    "⟁UI_FOLD⟁": "LANE",
    "⟁EVENTS_FOLD⟁": "LANE",
    "⟁CONTROL_FOLD⟁": "EDGE",
    COMPUTE_FOLD: "BATCH",
}
"""Fold → the one lane it may use."""

LANE_FOLDS: Final = {
    "DICT": "⟁DATA_FOLD⟁",
    "FIELD": "⟁STORAGE_FOLD⟁",
    "LANE": "⟁EVENTS_FOLD⟁",
    "EDGE": "⟁CONTROL_FOLD⟁",
    "BATCH": COMPUTE_FOLD,
}
"""Lane → the one fold that governs it."""

CONTROLS: Final = {"SOH": 1, "STX": 2, "ETX": 3, "EOT": 4, "SO": 14, "SI": 15}
"""Control → its C0 code."""

TRANSITIONS: Final = (
    ("VOID", "SOH", "HEADER"),  # open and verify the seal
    ("HEADER", "STX", "BODY"),  # bind prompt, policy and limits
    ("BODY", "SO", "BODY"),  # enter an expert
    ("BODY", "SI", "BODY"),  # leave it
    ("BODY", "ETX", "CLOSED"),  # no further forward
    ("CLOSED", "EOT", "COLLAPSED"),  # caches discarded, proof emitted
)
"""(phase, control, next phase); every other pair leads to ILLEGAL, which absorbs."""

SCHEME: Final = "s7-int8-2"
"""The numeric scheme. ``s7-int8-1`` differed in how tokens are drawn, and drew unfairly."""

PATTERNS: Final = (
    r"'(?:[sdmt]|ll|ve|re)|\p{N}{1,2}| ?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2's
)
"""Regular expressions that may split text before merging: no file brings one of its own."""

OPERATORS: Final = (
    "argmax",
    "attention_exp2",
    "attention_scores",
    "attention_values",
    "embedding",
    "gelu",
    "gumbel_sample",
    "logits",
    "matmul",
    "max_reduce",
    "qk_norm",
    "requantize",
    "residual_add",
    "rms_norm",
    "rope",
    "route",
    "rsqrt",
    "sum_reduce",
)
"""The closed operator vocabulary of the numeric scheme, in order."""


TABLES: Final = {
    "exp": "7ca54f79023dcda5c9fc1598e97471a54223a36152bf9e7be46c466f6ff91131",
    "exp2": "c8092381bc18188e17108ddccd791b8c269adbd89e9841b412caec4d8aa843e7",
    "gelu": "003b249e754b8abb013006416a1d1d4bf98e2421982c444908964ad9c68e25ac",
    "ln": "1af0362beb46051f4e625513c4f05ed769227d5737e841c73cde392289f69a66",
    "rsqrt": "567aa80d74773ab848a58a0c0410291bb89a7d725e9f3791f9acd8b500d92b0a",
}
"""Constant table of the numeric scheme → SHA-256 of its int32 little-endian entries."""


OLD_SCHEME: Final = "s7-int8-1"
"""Read to be sealed again: its matrices are the same, its draws were unfair in the tail."""

OLD_TABLES: Final = {name: TABLES[name] for name in ("exp2", "gelu")} | {
    "gumbel": "a889e57916f8c35c05a6cfaeba01c62323c73f353e27cdcd985c8000229d0c1a",
    "rsqrt": TABLES["rsqrt"],
}


def phases() -> dict[str, Any]:
    """The CM-1 phase table as it stands in the manifest."""
    return {
        "controls": dict(CONTROLS),
        "start": "VOID",
        "compute": "BODY",
        "otherwise": "ILLEGAL",
        "transitions": [list(transition) for transition in TRANSITIONS],
    }


def compute_contract(scheme: str = SCHEME) -> dict[str, Any]:
    """The payload of the BATCH lane: what an implementation must do, never its state."""
    return {
        "format": "s7-compute",
        "version": 1,
        "scheme": scheme,
        "fold": COMPUTE_FOLD,
        "endianness": "little",
        "types": ["int8", "int16", "int32"],
        "rounding": "rsr(a, k) = (a + (1 << (k - 1))) >> k",
        "max_contraction": 1_024,
        "tables": dict(TABLES if scheme == SCHEME else OLD_TABLES),
        "operators": [{"name": name, "fold": COMPUTE_FOLD} for name in OPERATORS],
    }


assert tuple(LANE_FOLDS) == LANES
assert all(FOLDS[fold] == lane for lane, fold in LANE_FOLDS.items())
