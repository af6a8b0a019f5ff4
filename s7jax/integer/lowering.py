"""The integer programs of an architecture, from shapes alone: to be inspected, never run.

There is no sealed model and no weight, so nothing can be computed with what is given.
"""

from types import SimpleNamespace
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh

from s7jax.architecture import Architecture, TensorSpec, sealed_tensors
from s7jax.integer.program import Program
from s7jax.mesh import on_devices
from s7jax.s7l import Seal


def lowered(
    cfg: Architecture, mesh: Mesh, rows: int, length: int, slots: int
) -> dict[str, jax.stages.Lowered]:
    """``trunk``, ``expert`` and ``head`` on chunks of ``length`` tokens, lowered for a mesh.

    Args:
        cfg: the dimensions.
        mesh: of devices that need not be there; the CPU has to offer as many, to arrange zeros on.
        rows: sequences, divisible by the mesh's data groups.
        length: tokens of each.
        slots: positions of each cache.
    """
    here = np.array(jax.devices("cpu")[: mesh.size]).reshape(mesh.devices.shape)
    blank = cast(Seal, _Blank(cfg))
    return Program(blank, [on_devices(here)]).lowered(rows, length, slots, mesh)


class _Blank:
    """What a program reads of a seal, all of its numbers zero."""

    def __init__(self, cfg: Architecture) -> None:
        self._specs = {spec.name: spec for spec in sealed_tensors(cfg)}
        components: dict[str, list[TensorSpec]] = {}
        for spec in self._specs.values():
            components.setdefault(spec.component, []).append(spec)
        self.manifest = SimpleNamespace(dimensions=cfg, components=components)

    def tensor(self, name: str) -> np.ndarray[Any, Any]:
        return np.zeros(self._specs[name].shape, self._specs[name].dtype)

    def exponent(self, name: str) -> int | None:
        return 31 if self._specs[name].is_fixed_point else None
