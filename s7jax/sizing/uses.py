"""What is run beside training, as programs to be compiled: router, evaluation, calibration, seal.

Each is the very program that runs, lowered from shapes alone for a mesh whose devices need not be
there. The sealed model is compiled for one data group: its rows are independent.
"""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from s7jax.config import Config
from s7jax.data.batching import POSITIONS
from s7jax.integer.lowering import lowered
from s7jax.mesh import DATA
from s7jax.model import parameters
from s7jax.quantize import calibrate
from s7jax.sizing.compiled import SEALED
from s7jax.train import evaluate, router
from s7jax.train.phase import ROUTERS, TRUNK

# Every element type that XLA knows, as it is written in HLO: s8[4,2], f32[], pred[1].
_TYPE = re.compile(r"\b(pred|[suf]\d+|bf16|f8e\w+|c64|c128|token|opaque)\[")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = .*? ([a-z][\w\-]*)\(")
# A scalar's arithmetic runs where control does (on TPUs it stands between the kernels).
_SCALAR = re.compile(
    r"^\s+(?:ROOT )?%?[\w.\-]+ = \w+\[(?:1,)*1?\]\S* (?!fusion|custom-call|call)[a-z][\w\-]*\("
)
_CALLED = re.compile(r"(?:body|condition|to_apply|called_computations)=\{?%?([\w.\-]+)")
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("while", "call", "conditional", "partition-id", "replica-id", "opt-barrier"),
}


@dataclass(frozen=True)
class Executable:
    """One compiled program: bytes per device, kernels, element types."""

    use: str
    program: str
    arguments: int  # weights, caches, inputs
    outputs: int  # beyond what takes an argument's place
    temporaries: int
    collectives: dict[str, int]  # kind → bytes of a call, a loop's body counted once
    kernels: int  # launched by one call, a loop's body (every program's layers) counted once
    attention: int  # calls of a fused attention kernel
    types: list[str]  # of every element in the optimised program

    @property
    def peak(self) -> int:
        """Bytes of a device while it runs."""
        return self.arguments + self.outputs + self.temporaries

    @property
    def floats(self) -> list[str]:
        """Floating-point types in it: none in a sealed model's."""
        return [t for t in self.types if not re.fullmatch(r"pred|[su]\d+|token", t)]

    def to_json(self) -> dict[str, Any]:
        """With peak and floats."""
        return asdict(self) | {"peak": self.peak, "floats": self.floats}


def programs(config: Config, use: str, mesh: Mesh) -> Iterator[tuple[str, jax.stages.Lowered]]:
    """Name and lowered form of every program of a use."""
    cfg, table = config.model, parameters.table(config.model)
    if use in SEALED:
        rows, tokens = SEALED[use]
        length = tokens or cfg.context
        yield from lowered(cfg, mesh, rows, length, cfg.context).items()
        return
    tree = {**table, **dict.fromkeys(ROUTERS, table["router"])}
    shardings = parameters.shardings(tree, mesh)
    params: Any = jax.tree.map(
        lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), tree, shardings
    )
    shared = {name: params[name] for name in TRUNK}
    group = calibrate.ROWS if use == "calibrate" else max(1, POSITIONS // cfg.context)
    B, T, D = group * mesh.shape[DATA], cfg.context, cfg.trunk.hidden

    def rows_of(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(DATA)))

    h, tokens_BT = rows_of((B, T, D), np.float32), rows_of((B, T), np.int32)
    longer, counted = rows_of((B, T + 1), np.int32), rows_of((B,), np.bool_)
    with jax.set_mesh(mesh):
        match use:
            case "router":
                yield "trunk", router.features.lower(cfg, shared, tokens_BT)
            case "evaluate":
                exact = evaluate.exact(config.compute)
                routed = shared | {name: params[name] for name in ROUTERS}
                yield "trunk", evaluate.trunk_pass.lower(cfg, routed, longer)
                expert = shared, params["expert0"], h, longer
                yield "expert", evaluate.model_losses.lower(cfg, exact, *expert)
            case "calibrate":
                yield "trunk", calibrate.observe_trunk.lower(cfg, shared, tokens_BT, counted)
                expert0 = params["expert0"]
                yield "expert", calibrate.observe_expert.lower(cfg, expert0, h, counted)
            case _:
                raise AssertionError(use)


def executable(
    use: str, name: str, made: Any, collectives: dict[str, int], attention: int
) -> Executable:
    """What a compiled program says of itself."""
    memory, text = made.memory_analysis(), made.as_text()
    return Executable(
        use=use,
        program=name,
        arguments=int(memory.argument_size_in_bytes),
        outputs=int(memory.output_size_in_bytes - memory.alias_size_in_bytes),
        temporaries=int(memory.temp_size_in_bytes),
        collectives=collectives,
        kernels=kernels(text),
        attention=attention,
        types=sorted(set(_TYPE.findall(text))),
    )


def kernels(text: str) -> int:
    """Instructions of an optimised program that are launched, those inside of fusions not."""
    bodies: dict[str, list[str]] = {}
    entry = current = ""
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = header[2]
            bodies[current] = []
            entry = current if header[1] else entry
        elif current:
            bodies[current].append(line)
    count, waiting, seen = 0, [entry], set()
    while waiting:
        at = waiting.pop()
        if at in seen or at not in bodies:
            continue
        seen.add(at)
        for line in bodies[at]:
            found = _INSTRUCTION.match(line)
            if found is None:
                continue
            opcode = found[1]
            if opcode in ("while", "call", "conditional"):
                waiting += _CALLED.findall(line)
            launched = opcode not in _FREE and not opcode.endswith("-done")
            count += launched and not _SCALAR.match(line)
    return count
