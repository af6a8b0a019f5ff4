"""The phases of training as data: what each trains, on what, for how long.

Phase 1 is ``trunk``; Phase 2 is ``expert0`` …, each independent of the others. Training runs
them, the planner sizes them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from s7jax.config import Config, Recipe
from s7jax.errors import InputError

TRUNK = ("embedding", "trunk")  # the components Phase 1 trains and Phase 2 freezes
STATES = 64  # digests of the training state in the transcript of a phase, or a few more
ROUTERS = ("router", "nearest_centroid")  # what is fitted, and what reports compare it with


@dataclass(frozen=True)
class Phase:
    """One phase of a run: Phase 1, or Phase 2 of one expert."""

    config: Config
    expert: int | None = None  # None: Phase 1

    @property
    def name(self) -> str:
        """``trunk`` or ``expert0`` …: also of its checkpoints."""
        return "trunk" if self.expert is None else f"expert{self.expert}"

    @property
    def recipe(self) -> Recipe:
        """How it is trained."""
        return self.config.trunk if self.expert is None else self.config.experts

    @property
    def shares(self) -> Mapping[str, int]:
        """Sequences of each domain per cycle: the mixture, or the expert's own domain alone."""
        if self.expert is None:
            return self.config.shares
        return {self.config.domains[self.expert].name: 1}

    @property
    def first(self) -> int:
        """The expert's first sequence of its domain: after those that Phase 1 has seen.

        Phase 1 is counted in whole cycles of its mixture. Past the last sequence there is the next
        epoch, shuffled anew.
        """
        if self.expert is None:
            return 0
        trunk, shares = Phase(self.config), self.config.shares
        cycles = -(-trunk.steps * trunk.recipe.batch // sum(shares.values()))
        return cycles * self.config.domains[self.expert].share

    @property
    def tokens(self) -> int:
        """Tokens to train on."""
        if self.expert is None:
            return self.config.trunk.tokens
        return self.config.domains[self.expert].tokens

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step."""
        return self.recipe.batch * self.config.model.context

    @property
    def steps(self) -> int:
        """Optimizer steps that see at least that many tokens."""
        return -(-self.tokens // self.tokens_per_step)

    @property
    def trained(self) -> tuple[str, ...]:
        """Components that change."""
        return TRUNK if self.expert is None else (self.name,)

    @property
    def frozen(self) -> tuple[str, ...]:
        """Components that are only read."""
        return () if self.expert is None else TRUNK


def states_every(steps: int) -> int:
    """Steps between two digests of the training state, so many that hashing costs little."""
    return max(1, steps // STATES)


def phases(config: Config) -> list[Phase]:
    """Phase 1, then Phase 2 of every expert."""
    return [Phase(config), *(Phase(config, e) for e in range(len(config.domains)))]


def phase_of(config: Config, name: str) -> Phase:
    """The phase called so.

    Raises:
        InputError: nothing is trained under that name.
    """
    found = {phase.name: phase for phase in phases(config)}
    if name not in found:
        raise InputError(f"{name!r} sees no training data step by step")
    return found[name]
