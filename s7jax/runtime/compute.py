"""⟁COMPUTE_FOLD⟁, the sole execution authority: the only way to run a sealed model.

Every method that computes takes gates first and checks them before anything else, and computes
the tokens of their sessions alone. No other module of the package holds the compiled program or
the specification (a test checks it on the syntax tree). One thread computes at a time; others
wait.
"""

import os
import threading
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from s7jax.architecture import Architecture
from s7jax.errors import InputError
from s7jax.integer.layers import Cache
from s7jax.integer.program import Program
from s7jax.integer.specification import Specification, Watch
from s7jax.runtime import gate as gates_
from s7jax.runtime.gate import Gate, GateError
from s7jax.runtime.session import Session
from s7jax.s7l import Seal
from s7jax.s7l.contract import COMPUTE_FOLD

FOLD = COMPUTE_FOLD
# Every layer of trunk and expert is compiled by itself, about a second of a core for each.
FREE_LAYERS, BYTES_PER_LAYER = 16, 1 << 16  # so many, and one more for so many bytes sealed
# Sines of positions are made one by one with long integers: about 3 s for a million.
FREE_TURNS, BYTES_PER_TURN = 1 << 21, 64

Forward = Callable[
    [NDArray[np.int32], int],
    tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]],
]
"""Some implementation of the model on a whole sequence [T]: of every position from a first one
on, router logits [N, E], route [N], logits [N, V]."""


class Compute:
    """The programs of one sealed model on devices, each call with its gates.

    A batch may hold rows of several sessions: ``gates`` has one for each row, or None for a row
    that is parked (it starts beyond the last cache slot and keeps nothing).

    Raises:
        InputError: the seal's compute contract is not this module's, its values are beyond
            what exact arithmetic holds, or it has more layers or angles than its size pays for.
    """

    def __init__(self, seal: Seal, pools: Sequence[Mesh]) -> None:
        _check_fold(seal)
        _check_layers(seal)
        _check_turns(seal)
        self._seal = seal
        self._program = Program(seal, pools)
        self._turn = threading.RLock()
        self._process = os.getpid()

    @property
    def seal(self) -> Seal:
        """The open sealed file."""
        return self._seal

    @property
    def cfg(self) -> Architecture:
        """The model's dimensions."""
        return self._program.cfg

    @property
    def groups(self) -> int:
        """Data groups: the rows of a batch must be divisible by them."""
        return self._program.mesh.shape["data"]

    def trunk(
        self,
        gates: Sequence[Gate | None],
        tokens_BT: NDArray[np.int32],
        start_B: NDArray[np.int32],
        cache: Cache,
    ) -> tuple[jax.Array, NDArray[np.int32], Cache]:
        """As :meth:`s7jax.integer.program.Program.trunk`; router logits as a NumPy array.

        Raises:
            GateError: a gate is missing, forged, foreign or spent, or a row holds other tokens
                than its session's, or any without one.
        """
        sessions = self._check(gates, len(tokens_BT))
        slots = cache[0][0].shape[2]
        for session, row, start in zip(sessions, tokens_BT, start_B, strict=True):
            if session is not None:
                _check_tokens(session, row, int(start))
            elif start < slots or np.any(row):
                raise GateError(f"a row at position {start} has no gate: it is not parked")
        with self._turn:
            h, logits, cache = self._program.trunk(tokens_BT, start_B, cache)
            return h, np.asarray(logits), cache

    def expert(
        self,
        gates: Sequence[Gate | None],
        e: int,
        h_BTD: jax.Array,
        start_B: NDArray[np.int32],
        cache: Cache,
    ) -> tuple[jax.Array, Cache]:
        """As :meth:`s7jax.integer.program.Program.expert`; raises like :meth:`trunk`."""
        self._check(gates, len(h_BTD))
        with self._turn:
            return self._program.expert(e, h_BTD, start_B, cache)

    def head(self, gates: Sequence[Gate | None], h_BTD: jax.Array) -> NDArray[np.int32]:
        """Logits int32 [B, T, V]; raises like :meth:`trunk`."""
        self._check(gates, len(h_BTD))
        with self._turn:
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

    def remember(
        self, history: jax.Array, h_BTD: jax.Array, start_B: NDArray[np.int32]
    ) -> jax.Array:
        """The history with a chunk of h; the old one is used up."""
        return self._program.remember(history, h_BTD, start_B)

    def recall(self, x_BTD: jax.Array, start_B: NDArray[np.int32], length: int) -> jax.Array:
        """``length`` positions of x from ``start_B`` on."""
        return self._program.recall(x_BTD, start_B, length)

    def _check(self, gates: Sequence[Gate | None], rows: int) -> list[Session | None]:
        if os.getpid() != self._process:
            raise InputError(
                "the model was opened in another process, whose threads a fork lacks: start "
                "processes by spawn, and open it in each"
            )
        if not any(held is not None for held in gates):
            gates_.check(None, self)
        sessions = [None if held is None else gates_.check(held, self) for held in gates]
        if len(sessions) != rows:
            raise GateError(f"{len(sessions)} gates for {rows} rows")
        return sessions


class Reference:
    """The executable specification in NumPy, with the same gate: for replay and known answers.

    Raises:
        InputError: the seal's compute contract is not this module's, or it has more angles
            than its size pays for.
    """

    def __init__(self, seal: Seal) -> None:
        _check_fold(seal)
        _check_turns(seal)
        self._seal = seal

    @property
    def seal(self) -> Seal:
        """The open sealed file."""
        return self._seal

    def answer(
        self, gate: Gate, first: int, watch: Watch | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
        """The session's own tokens: what :data:`Forward` gives, from position ``first`` on.

        Raises:
            GateError: the gate is missing, forged, foreign or spent.
        """
        session = gates_.check(gate, self)
        tokens = np.array(session.tokens(0, 1 << 62), np.int64)
        model = Specification(self._seal, watch) if watch else Specification(self._seal)
        h = model.trunk(tokens)
        router = model.router(h)
        route, router = model.route(router)[first:], router[first:]
        logits = np.empty((len(route), self._seal.manifest.dimensions.vocab), np.int32)
        for e in np.unique(route):
            refined = model.expert(int(e), h)[first:]
            # Who watches wants every position of every operator.
            mine = np.ones(len(route), bool) if watch else route == e
            logits[route == e] = model.head(refined[mine], f"expert{e}.head")[(route == e)[mine]]
        return router, route, logits


def _check_fold(seal: Seal) -> None:
    if seal.contract["fold"] != FOLD:
        raise InputError(f"the seal wants {seal.contract['fold']}; this is {FOLD}")


def _check_layers(seal: Seal) -> None:
    """A small file must not cost minutes of compiling."""
    d = seal.manifest.dimensions
    most = FREE_LAYERS + seal.length // BYTES_PER_LAYER
    if (layers := d.trunk.layers + d.expert.layers) > most:
        raise InputError(
            f"{layers} layers take about {layers} s to compile: a file of {seal.length:,} bytes "
            f"may have {most}"
        )


def _check_turns(seal: Seal) -> None:
    """Nor minutes of making tables of angles: context by head width."""
    d = seal.manifest.dimensions
    most = FREE_TURNS + seal.length // BYTES_PER_TURN
    turns = d.context * sum({d.trunk.head_dim, d.expert.head_dim}) // 2
    if turns > most:
        raise InputError(
            f"a context of {d.context:,} by head widths of {d.trunk.head_dim} and "
            f"{d.expert.head_dim} takes {turns:,} angles: a file of {seal.length:,} bytes may "
            f"have {most:,}"
        )


def _check_tokens(session: Session, row: NDArray[np.int32], start: int) -> None:
    """A row holds its session's tokens, and zeros after them."""
    own = session.tokens(start, start + len(row))
    if row.tolist() != own + [0] * (len(row) - len(own)):
        raise GateError(f"the row at position {start} does not hold the tokens of its session")
