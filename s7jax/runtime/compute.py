"""⟁COMPUTE_FOLD⟁, the sole execution authority: the only way to run a sealed model.

Every method that computes takes gates first and checks them before anything else, and computes
the tokens of their sessions alone. No other module of the package holds the compiled program or
the specification (a test checks it on the syntax tree). One thread computes at a time; others
wait.
"""

import importlib.util
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from s7jax.architecture import Architecture
from s7jax.errors import InputError, UsageError
from s7jax.integer.specification import Specification, Watch
from s7jax.native import library
from s7jax.native.program import NativeProgram
from s7jax.runtime import gate as gates_
from s7jax.runtime.gate import Gate, GateError
from s7jax.runtime.session import Session
from s7jax.s7l import Seal
from s7jax.s7l.contract import COMPUTE_FOLD

if TYPE_CHECKING:  # the native engine does without
    from jax.sharding import Mesh

    from s7jax.integer.program import Program

FOLD = COMPUTE_FOLD
ENGINES = ("auto", "native", "xla")
# Sines of positions are made one by one with long integers: about 3 s for a million.
FREE_TURNS, BYTES_PER_TURN = 1 << 21, 64
Array = Any  # of NumPy or of JAX, as the engine has it
Cache = tuple[Array, Array]

Forward = Callable[
    [NDArray[np.int32], int],
    tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]],
]
"""Some implementation of the model on a whole sequence [T]: of every position from a first one
on, router logits [N, E], route [N], logits [N, V]."""


class Compute:
    """The programs of one sealed model, each call with its gates.

    On ``pools`` of devices by XLA, or by the native engine with so many ``threads`` where there
    are none; both give the same bits. A batch may hold rows of several sessions: ``gates`` has
    one for each row, or None for a row that is parked (it starts beyond the last cache slot and
    keeps nothing).

    Raises:
        InputError: the seal's compute contract is not this module's, its values are beyond
            what exact arithmetic holds, it has more angles than its size pays for, or the native
            engine is not there.
    """

    def __init__(
        self, seal: Seal, pools: Sequence["Mesh"] | None = None, threads: int | None = None
    ) -> None:
        _check_fold(seal)
        _check_turns(seal)
        self._seal = seal
        self._program = NativeProgram(seal, threads) if pools is None else _by_xla(seal, pools)
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
        return self._program.groups

    @property
    def engine(self) -> str:
        """Which engine computes, on what."""
        return self._program.engine

    @property
    def on_cpu(self) -> bool:
        """Whether CPUs compute."""
        return self._program.on_cpu

    def drafts(self, rows: int) -> int:
        """How many tokens are worth proposing at a time in a batch of ``rows``."""
        return self._program.drafts(rows)

    def machine(self) -> dict[str, Any]:
        """What the engine found and chose on this machine, as JSON types."""
        return self._program.machine()

    def chunk(self, length: int) -> int:
        """How long the arrays of a call are that takes up to ``length`` tokens of a row."""
        return self._program.chunk(length)

    def trunk(
        self,
        gates: Sequence[Gate | None],
        tokens_BT: NDArray[np.int32],
        start_B: NDArray[np.int32],
        cache: Cache,
    ) -> tuple[Array, NDArray[np.int32], Cache]:
        """As :meth:`s7jax.integer.program.Program.trunk`; router logits as a NumPy array.

        Raises:
            GateError: a gate is missing, forged, foreign or spent, or a row holds other tokens
                than its session's, or any without one.
        """
        sessions = self._check(gates, len(tokens_BT))
        slots, counts = cache[0].shape[3], []
        for session, row, start in zip(sessions, tokens_BT, start_B, strict=True):
            if session is None and (start < slots or np.any(row)):
                raise GateError(f"a row at position {start} has no gate: it is not parked")
            counts.append(_check_tokens(session, row, int(start)) if session else 0)
        with self._turn:
            h, logits, cache = self._program.trunk(tokens_BT, start_B, cache, counts)
            return h, np.asarray(logits), cache

    def expert(
        self,
        gates: Sequence[Gate | None],
        e: int,
        h_BTD: Array,
        start_B: NDArray[np.int32],
        cache: Cache,
    ) -> tuple[Array, Cache]:
        """As :meth:`s7jax.integer.program.Program.expert`; raises like :meth:`trunk`."""
        T = h_BTD.shape[1]
        counts = [
            len(session.tokens(int(start), int(start) + T)) if session else 0
            for session, start in zip(self._check(gates, len(h_BTD)), start_B, strict=True)
        ]
        with self._turn:
            return self._program.expert(e, h_BTD, start_B, cache, counts)

    def head(self, gates: Sequence[Gate | None], h_BTD: Array) -> NDArray[np.int32]:
        """Logits int32 [B, T, V] of the rows that have a gate; raises like :meth:`trunk`."""
        wanted = [session is not None for session in self._check(gates, len(h_BTD))]
        with self._turn:
            return np.asarray(self._program.head(h_BTD, wanted))

    def types(self) -> set[str]:
        """Every type of number that the programs hold, as they are compiled; nothing is run.

        Raises:
            InputError: the native library cannot be taken apart here.
        """
        return self._program.types()

    # What follows holds or moves what was computed, and computes nothing.

    def trunk_cache(self, rows: int, slots: int) -> Cache:
        """Room for ``rows`` sequences of ``slots`` positions in the trunk."""
        return self._program.trunk_cache(rows, slots)

    def expert_cache(self, e: int, rows: int, slots: int) -> Cache:
        """The same in one expert, where it lives."""
        return self._program.expert_cache(e, rows, slots)

    def history(self, rows: int, slots: int) -> Array:
        """Room for the trunk's outputs."""
        return self._program.history(rows, slots)

    def remember(self, history: Array, h_BTD: Array, start_B: NDArray[np.int32]) -> Array:
        """The history with a chunk of h; the old one is used up."""
        return self._program.remember(history, h_BTD, start_B)

    def recall(self, x_BTD: Array, start_B: NDArray[np.int32], length: int) -> Array:
        """``length`` positions of x from ``start_B`` on."""
        return self._program.recall(x_BTD, start_B, length)

    def require_own_process(self) -> None:
        """Refuse to go on after a fork, before waiting for a lock that nobody there holds.

        Raises:
            InputError: the model was opened in another process.
        """
        if os.getpid() != self._process:
            raise InputError(
                "the model was opened in another process, whose threads a fork lacks: start "
                "processes by spawn, and open it in each"
            )

    def _check(self, gates: Sequence[Gate | None], rows: int) -> list[Session | None]:
        self.require_own_process()
        if not any(held is not None for held in gates):
            gates_.check(None, self)
        sessions = [None if held is None else gates_.check(held, self) for held in gates]
        if len(sessions) != rows:
            raise GateError(f"{len(sessions)} gates for {rows} rows")
        return sessions


def _by_xla(seal: Seal, pools: Sequence["Mesh"]) -> "Program":
    # JAX takes seconds to import.
    from s7jax.integer.program import Program  # noqa: PLC0415
    from s7jax.runtime import programs  # noqa: PLC0415

    programs.keep()
    return Program(seal, pools)


def open_compute(
    seal: Seal, engine: str = "auto", mesh: str = "1x1", threads: int | None = None
) -> Compute:
    """The model on an engine: ``auto`` is native on a CPU with mesh 1x1 where it was compiled.

    Raises:
        UsageError: no such engine, mesh or number of threads, or one that does not go with
            another.
        InputError: as of :class:`Compute`.
    """
    if engine not in ENGINES:
        raise UsageError(f"engine {engine!r}; expected {', '.join(ENGINES)}")
    native = engine == "native" or (
        engine == "auto" and mesh == "1x1" and library.available() and not _accelerated()
    )
    if native:
        if mesh != "1x1":
            raise UsageError(f"the native engine has no devices: mesh {mesh} wants engine xla")
        return Compute(seal, threads=threads)
    if threads is not None:
        raise UsageError("threads are the native engine's: XLA takes what it finds")
    from s7jax import mesh as meshes  # noqa: PLC0415 JAX takes seconds

    shape = meshes.parse(mesh)
    meshes.check_model(shape, seal.manifest.dimensions)
    meshes.provision(shape)
    return Compute(seal, meshes.pools(shape))


def _accelerated() -> bool:
    """Whether JAX would compute on a GPU or TPU: its plugin and the device are both there."""
    if os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        return False
    plugins = "jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm60_plugin", "libtpu"
    devices = "/dev/nvidiactl", "/dev/kfd", "/dev/accel0", "/dev/vfio/0"
    return any(map(importlib.util.find_spec, plugins)) and any(Path(d).exists() for d in devices)


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


def _check_turns(seal: Seal) -> None:
    """A small file must not cost minutes of making tables of angles: context by head width."""
    d = seal.manifest.dimensions
    most = FREE_TURNS + seal.length // BYTES_PER_TURN
    turns = d.context * sum({d.trunk.head_dim, d.expert.head_dim}) // 2
    if turns > most:
        raise InputError(
            f"a context of {d.context:,} by head widths of {d.trunk.head_dim} and "
            f"{d.expert.head_dim} takes {turns:,} angles: a file of {seal.length:,} bytes may "
            f"have {most:,}"
        )


def _check_tokens(session: Session, row: NDArray[np.int32], start: int) -> int:
    """A row holds its session's tokens, and zeros after them; how many tokens."""
    own = session.tokens(start, start + len(row))
    if row.tolist() != own + [0] * (len(row) - len(own)):
        raise GateError(f"the row at position {start} does not hold the tokens of its session")
    return len(own)
