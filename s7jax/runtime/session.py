"""One prompt's life: the phases it goes through, and what its proof will say."""

from collections.abc import Sequence
from typing import Self

from s7jax.runtime import cm1 as phases
from s7jax.runtime.cm1 import Control, Phase
from s7jax.runtime.compute import Compute
from s7jax.runtime.gate import Gate, GateError, issue
from s7jax.runtime.proof import Policy, Proof, Step, begin


class Session:
    """A state machine with a gate; use as a context manager, or through an engine.

    Attributes:
        phase: where it stands.
        gate: the right to compute, from STX on; None before.
        proof: what happened so far; complete after EOT.
    """

    def __init__(self, compute: Compute) -> None:
        self.compute = compute
        self.phase = Phase.VOID
        self.gate: Gate | None = None
        self.proof: Proof | None = None
        self._expert: int | None = None
        self.control(Control.SOH)  # opening the seal verified it

    def control(self, code: Control) -> None:
        """Let a control event move the phase.

        Raises:
            GateError: it leads to ILLEGAL, where the session now is for good.
        """
        before, self.phase = self.phase, phases.after(self.phase, code)
        if self.phase is Phase.ILLEGAL:
            raise GateError(f"{code.name} in {before}: the session is ILLEGAL now")

    def begin(self, prompt: Sequence[int], policy: Policy) -> Gate:
        """STX: bind prompt, decoding policy and limits; returns the gate."""
        self.control(Control.STX)
        self.proof = begin(self.compute.seal, prompt, policy)
        self.gate = issue(self)
        return self.gate

    def enter(self, expert: int) -> None:
        """SO, after SI if another expert was in: from here on this one answers."""
        if expert == self._expert:
            return
        if self._expert is not None:
            self.control(Control.SI)
        self.control(Control.SO)
        self._expert = expert

    def record(self, step: Step) -> None:
        """One more token in the proof."""
        assert self.proof is not None
        self.proof = self.proof.extend(step)

    def close(self, reason: str) -> None:
        """ETX: no further forward pass; ``reason`` says why."""
        self.control(Control.ETX)
        assert self.proof is not None
        self.proof = self.proof.close(reason)

    def collapse(self) -> Proof:
        """EOT: caches are discarded, the proof is final."""
        self.control(Control.EOT)
        assert self.proof is not None
        return self.proof

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.phase is Phase.BODY:
            self.close("abandoned")
        if self.phase is Phase.CLOSED:
            self.collapse()
