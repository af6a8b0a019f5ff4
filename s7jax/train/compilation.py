"""One compilation for all data groups of a process.

What a group runs is compiled for the first; the others load the same machine code for their own
devices, as a program of JAX's compilation cache is loaded. That cache cannot serve them itself: it
keeps programs by their devices, and what it has loaded XLA cannot write once more.
"""

import io
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import jax
import numpy as np
from jax._src.compiler import get_compile_options
from jax.experimental import serialize_executable
from jax.sharding import Mesh


def for_groups(program: Any, groups: Sequence[Mesh], args: Any) -> list[Callable[..., Any]]:
    """A jitted program as each group is to call it.

    Args:
        program: what ``jax.jit`` gave.
        groups: submeshes of one shape.
        args: what the first group calls it with; later calls have those shapes, dtypes, layouts.

    Returns:
        One callable per group; on accelerators, with devices of other processes and with JAX's
        compilation cache the jitted program, which compiles for each.
    """
    devices = [device for group in groups for device in group.devices.flat]
    here = all(device.process_index == jax.process_index() for device in devices)
    config: Any = jax.config  # its type names no setting
    cached = config.jax_compilation_cache_dir and config.jax_enable_compilation_cache
    if len(groups) == 1 or jax.default_backend() != "cpu" or cached or not here:
        return [program] * len(groups)
    leaves, tree = jax.tree.flatten(args)
    forms = (jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for x in leaves)
    return compiled(program, tuple(groups), tree, tuple(forms))


@cache
def compiled(program: Any, groups: tuple[Mesh, ...], tree: Any, leaves: Any) -> list[Any]:
    """:func:`for_groups` of arguments as a tree and its leaves' forms, once in a process."""
    with jax.set_mesh(groups[0]):
        first = program.lower(*jax.tree.unflatten(tree, leaves)).compile()
    return [first, *_moved(first, groups)]


def _moved(first: jax.stages.Compiled, groups: tuple[Mesh, ...]) -> list[jax.stages.Compiled]:
    """The same machine code for the devices of all groups but the first."""
    data, arguments, results = serialize_executable.serialize(first)
    found = []
    for group in groups[1:]:
        executable, described, no_kwargs = _Moving(data, groups[0], group).load()
        described = arguments.unflatten(described)
        found.append(
            jax.stages.Compiled(executable.load(), [], described, results, no_kwargs=no_kwargs)
        )
    return found


class _Moving(serialize_executable._JaxPjrtUnpickler):
    """Reads a program that was written for one mesh as one for another."""

    def __init__(self, data: bytes, written: Mesh, read: Mesh) -> None:
        there = list(read.devices.flat)
        super().__init__(io.BytesIO(data), there[0].client, there)
        self._at = dict(zip((d.id for d in written.devices.flat), there, strict=True))
        ids = np.array([[device.id for device in there]])
        self._options = get_compile_options(1, len(there), device_assignment=ids)

    def persistent_load(self, pid: Any) -> Any:
        match pid:
            case ("device", number):
                return self._at[number]
            case ("exec", code):
                return self.backend.deserialize_executable(
                    code, self.execution_devices, self._options
                )
        return super().persistent_load(pid)
