"""How training is saved and watched: nothing here changes a weight."""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Self

from s7jax.errors import UsageError
from s7jax.train.phase import Phase, states_every

_SUFFIX = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def parse_tokens(text: str, flag: str) -> int:
    """``50B`` → 50,000,000,000; suffixes k, M, B, T, decimal.

    Raises:
        UsageError: not of that form, below one, or no whole number.
    """
    match = re.fullmatch(r"([0-9]{1,30}(?:\.[0-9]{1,30})?)([kMBT]?)", text)
    tokens = Fraction(match[1]) * _SUFFIX[match[2]] if match else Fraction(0)
    if tokens < 1 or tokens.denominator != 1:
        raise UsageError(
            f"{flag} {text!r}: expected a number of tokens, such as 2000000, 50B, 2.5M"
        )
    return int(tokens)


@dataclass(frozen=True)
class Every:
    """An interval of training, in tokens or in optimizer steps."""

    tokens: int = 0
    steps: int = 0

    @classmethod
    def parse(cls, text: str, flag: str) -> Self:
        """``5B`` (tokens) or ``500steps``.

        Raises:
            UsageError: neither.
        """
        if match := re.fullmatch(r"([1-9][0-9]{0,29})steps", text):
            return cls(steps=int(match[1]))
        try:
            return cls(tokens=parse_tokens(text, flag))
        except UsageError as e:
            raise UsageError(f"{e}, or of steps, such as 500steps") from None

    def in_steps(self, tokens_per_step: int) -> int:
        """The interval in whole steps, at least one."""
        return self.steps or max(1, self.tokens // tokens_per_step)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Flags of the training scripts beside those that decide the trained bytes."""

    save_every: Every | None = None  # None: as the recipe says
    keep_last: int = 2  # resumable checkpoints
    keep_every: Every | None = None  # and for good, one of each such interval
    evaluate_every: Every | None = None  # held-out text; None: with every save
    step_timeout: float = 1_800  # seconds after which a step counts as stuck; 0: never
    profile: int = 0  # steps to trace, after the first
    auditable: bool = False  # keep a checkpoint at every digest of the state in the transcript
    log_to: tuple[str, ...] = ("tensorboard",)  # of s7jax.train.watch.trackers

    def save_steps(self, phase: Phase) -> int:
        """Steps between two checkpoints."""
        if self.auditable:
            return states_every(phase.steps)
        every = self.save_every or Every(tokens=phase.recipe.checkpoint)
        return every.in_steps(phase.tokens_per_step)

    def keep_steps(self, phase: Phase) -> int | None:
        """Steps between two checkpoints that are never removed: a whole number of saves."""
        if self.auditable:
            return self.save_steps(phase)
        if self.keep_every is None:
            return None
        saves = self.save_steps(phase)
        return saves * max(1, round(self.keep_every.in_steps(phase.tokens_per_step) / saves))

    def evaluate_steps(self, phase: Phase) -> int:
        """Steps between two measurements on held-out text."""
        if self.evaluate_every is None and not self.auditable:
            return self.save_steps(phase)
        every = self.evaluate_every or Every(tokens=phase.recipe.checkpoint)
        return every.in_steps(phase.tokens_per_step)
