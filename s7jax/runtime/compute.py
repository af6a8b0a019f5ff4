"""⟁COMPUTE_FOLD⟁, the sole execution authority: the only way to run a sealed model.

Every method that computes takes gates first and checks them before anything else; no other
module of the package holds a :class:`s7jax.integer.program.Program`
(``tests/test_imports.py``).
"""

from collections.abc import Iterable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from s7jax.architecture import Architecture
from s7jax.errors import InputError
from s7jax.integer.layers import Cache
from s7jax.integer.program import Program
from s7jax.runtime import gate
from s7jax.runtime.gate import Gate
from s7jax.s7l import Seal
from s7jax.s7l.contract import COMPUTE_FOLD

FOLD = COMPUTE_FOLD


class Compute:
    """The programs of one sealed model; every call needs a gate.

    A batch may hold rows of several sessions; ``gates`` are those of all of them.

    Raises:
        InputError: the seal's compute contract is not this module's, or its values are beyond
            what exact arithmetic holds.
    """

    def __init__(self, seal: Seal, pools: Sequence[Mesh]) -> None:
        if seal.contract["fold"] != FOLD:
            raise InputError(f"the seal wants {seal.contract['fold']}; this is {FOLD}")
        self.seal = seal
        self._program = Program(seal, pools)

    @property
    def cfg(self) -> Architecture:
        """The model's dimensions."""
        return self._program.cfg

    @property
    def groups(self) -> int:
        """Data groups: the rows of a batch must be divisible by them."""
        return self._program.mesh.shape["data"]

    def trunk(
        self, gates: Iterable[Gate], tokens_BT: np.ndarray, start_B: np.ndarray, cache: Cache
    ) -> tuple[jax.Array, np.ndarray, Cache]:
        """As :meth:`s7jax.integer.program.Program.trunk`; router logits as a NumPy array.

        Raises:
            GateError: a gate is missing, forged, foreign or spent.
        """
        self._check(gates)
        h, logits, cache = self._program.trunk(tokens_BT, start_B, cache)
        return h, np.asarray(logits), cache

    def expert(
        self, gates: Iterable[Gate], e: int, h_BTD: jax.Array, start_B: np.ndarray, cache: Cache
    ) -> tuple[jax.Array, Cache]:
        """As :meth:`s7jax.integer.program.Program.expert`; raises like :meth:`trunk`."""
        self._check(gates)
        return self._program.expert(e, h_BTD, start_B, cache)

    def head(self, gates: Iterable[Gate], h_BTD: jax.Array) -> np.ndarray:
        """Logits int32 [B, T, V]; raises like :meth:`trunk`."""
        self._check(gates)
        return np.asarray(self._program.head(h_BTD))

    def compiled(self, length: int) -> dict[str, str]:
        """Every program compiled for chunks of ``length`` tokens, as text; nothing is run."""
        lowered = self._program.lowered(self.groups, length, 2 * length)
        return {name: str(low.compile().as_text()) for name, low in lowered.items()}

    # What follows holds or moves what was computed, and computes nothing.

    def trunk_cache(self, rows: int, slots: int) -> Cache:
        """Room for ``rows`` sequences of ``slots`` positions in the trunk."""
        return self._program.trunk_cache(rows, slots)

    def expert_cache(self, e: int, rows: int, slots: int) -> Cache:
        """The same in one expert, where it lives."""
        return self._program.expert_cache(e, rows, slots)

    def history(self, rows: int, slots: int) -> jax.Array:
        """Room for the trunk's outputs."""
        return self._program.history(rows, slots)

    def remember(self, history: jax.Array, h_BTD: jax.Array, start_B: np.ndarray) -> jax.Array:
        """The history with a chunk of h; the old one is used up."""
        return self._program.remember(history, h_BTD, start_B)

    def recall(self, x_BTD: jax.Array, start_B: np.ndarray, length: int) -> jax.Array:
        """``length`` positions of x from ``start_B`` on."""
        return self._program.recall(x_BTD, start_B, length)

    def _check(self, gates: Iterable[Gate]) -> None:
        held = list(gates)
        gate.check(held[0] if held else None, self)
        for other in held[1:]:
            gate.check(other, self)
