"""The CM-1 phases: when a sealed model may compute.

VOID –SOH→ HEADER –STX→ BODY –ETX→ CLOSED –EOT→ COLLAPSED; SO and SI enter and leave an expert
within BODY. Every other control code in every phase leads to ILLEGAL, which nothing leaves. The
table is that of the sealed manifest (:mod:`s7jax.s7l.contract`), made total here. Only control
*events* move the phase: bytes of text never do, whatever they are.
"""

from enum import IntEnum, StrEnum

from s7jax.s7l.contract import CONTROLS, TRANSITIONS


class Phase(StrEnum):
    """Where a session stands."""

    VOID = "VOID"  # nothing has happened
    HEADER = "HEADER"  # the seal is open and verified
    BODY = "BODY"  # prompt, policy and limits are bound: the one phase that may compute
    CLOSED = "CLOSED"  # no further forward pass
    COLLAPSED = "COLLAPSED"  # caches discarded, proof emitted
    ILLEGAL = "ILLEGAL"  # a control came that the phase does not know


class Control(IntEnum):
    """The C0 control codes and DEL, by their ASCII names."""

    NUL, SOH, STX, ETX, EOT, ENQ, ACK, BEL = range(8)
    BS, HT, LF, VT, FF, CR, SO, SI = range(8, 16)
    DLE, DC1, DC2, DC3, DC4, NAK, SYN, ETB = range(16, 24)
    CAN, EM, SUB, ESC, FS, GS, RS, US = range(24, 32)
    DEL = 127


_LEGAL = {(Phase(phase), Control[control]): Phase(after) for phase, control, after in TRANSITIONS}

TABLE: dict[tuple[Phase, Control], Phase] = {
    (phase, control): _LEGAL.get((phase, control), Phase.ILLEGAL)
    for phase in Phase
    for control in Control
}
"""(phase, control) → next phase, for every pair there is."""

assert all(Control[name] == code for name, code in CONTROLS.items())


def after(phase: Phase, control: Control) -> Phase:
    """The phase that a control leads to."""
    return TABLE[phase, control]
