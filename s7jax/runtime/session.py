"""One prompt's life: the phases it goes through, the tokens it may compute, what it proves."""

from collections.abc import Sequence
from typing import Protocol, Self

from s7jax.runtime import cm1, policy
from s7jax.runtime.cm1 import Control, Phase
from s7jax.runtime.gate import Gate, GateError, issue
from s7jax.runtime.policy import Policy
from s7jax.runtime.prompt import Prompt
from s7jax.runtime.proof import Growing, Proof, Step, begin
from s7jax.s7l import Seal


class Fold(Protocol):
    """What computes; a session only knows of which seal."""

    @property
    def seal(self) -> Seal:
        """The open sealed file."""


class Session:
    """A state machine with a gate; use as a context manager, or through an engine."""

    def __init__(self, compute: Fold) -> None:
        self._compute = compute
        self._phase = Phase.VOID
        self._gate: Gate | None = None
        self._growing: Growing | None = None
        self._proof: Proof | None = None
        self._policy = Policy()
        self._prompt: Prompt = Prompt(())
        self._output: list[int] = []
        self._proposed: list[int] = []
        self._text, self._new = bytearray(), 0  # the bytes of the output, and of its last id
        self._expert: int | None = None
        self.control(Control.SOH)  # opening the seal verified it

    def __init_subclass__(cls) -> None:
        raise TypeError("a session cannot be subclassed: its gate trusts its phase and tokens")

    @property
    def compute(self) -> Fold:
        """What its gate opens."""
        return self._compute

    @property
    def phase(self) -> Phase:
        """Where it stands; only control events move it."""
        return self._phase

    @property
    def gate(self) -> Gate | None:
        """The right to compute, from STX on; None before."""
        return self._gate

    @property
    def policy(self) -> Policy:
        """The canonical policy that is bound, after STX."""
        return self._policy

    @property
    def output(self) -> Sequence[int]:
        """Ids of the answer so far."""
        return tuple(self._output)

    def tokens(self, start: int, stop: int) -> list[int]:
        """The ids that its gate may compute: prompt, answer, and what was proposed after it."""
        return [*self._prompt.ids, *self._output, *self._proposed][start:stop]

    @property
    def proof(self) -> Proof | None:
        """The whole proof, after ETX."""
        return self._proof

    def control(self, code: Control) -> None:
        """Let a control event move the phase.

        Raises:
            GateError: it leads to ILLEGAL, where the session now is for good.
        """
        before, self._phase = self._phase, cm1.after(self._phase, code)
        if self._phase is Phase.ILLEGAL:
            raise GateError(f"{code.name} in {before}: the session is ILLEGAL now")

    def begin(self, prompt: Prompt, how: Policy, trace: bool = False) -> Gate:
        """STX: bind prompt and decoding policy; returns the gate.

        Raises:
            GateError: the session is not in HEADER.
            UsageError: the policy is not one of this model; the session stays in HEADER.
        """
        dimensions = self._compute.seal.manifest.dimensions
        room = dimensions.context - len(prompt.ids)
        canonical = how.canonical(dimensions.vocab, room)
        growing = begin(self._compute.seal, prompt, canonical, trace)
        self.control(Control.STX)
        self._room, self._prompt, self._policy, self._growing = room, prompt, canonical, growing
        self._gate = issue(self)
        return self._gate

    def enter(self, expert: int) -> None:
        """SO, after SI if another expert was in: from here on this one answers."""
        if expert == self._expert:
            return
        if self._expert is not None:
            self.control(Control.SI)
        self.control(Control.SO)
        self._expert = expert

    def propose(self, token: int) -> None:
        """A draft that may be computed, to be confirmed or forgotten."""
        self._proposed.append(token)

    def settle(self) -> None:
        """Forget what was proposed and not confirmed."""
        self._proposed.clear()

    def record(self, step: Step) -> None:
        """One more token in the answer and its proof."""
        assert self._growing is not None
        self._growing.extend(step)
        if self._proposed and self._proposed[0] == step.token_out:
            del self._proposed[0]
        else:
            self._proposed.clear()
        self._output.append(step.token_out)
        words = self._compute.seal.vocabulary
        silent = step.token_out in (*self._policy.stop, *words.specials.values())
        new = b"" if silent else words.tokens[step.token_out]
        self._text += new
        self._new = len(new)

    def ending(self) -> str | None:
        """Why the answer ends here, or None if it continues."""
        return policy.ending(self._policy, self._room, self._output, self._text, self._new)

    def close(self, end: str, operators: Sequence[Sequence[bytes]] = ()) -> None:
        """ETX: no further forward pass; ``end`` says why."""
        self.control(Control.ETX)
        assert self._growing is not None
        answer = policy.cut(self._policy, self._text)
        self._proof = self._growing.close(answer, end, operators)

    def collapse(self) -> Proof:
        """EOT: caches are discarded, the proof is final."""
        self.control(Control.EOT)
        assert self._proof is not None
        return self._proof

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._phase is Phase.BODY:
            self.close("client")
        if self._phase is Phase.CLOSED:
            self.collapse()
