"""The machine as §8 wants it used: which memory node holds which component.

The trunk, with what every token goes through, lives on the first node, experts go round robin.
A file's pages are put where the thread runs that reads them first, so a component is read with
memory asked for on its node. On one node, and where the system has no such call, nothing is done.
"""

import ctypes
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from s7jax.architecture import Architecture

NODES = Path("/sys/devices/system/node")
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237}  # system call numbers of Linux
_DEFAULT, _PREFERRED = 0, 1  # policies


def nodes(root: Path = NODES) -> list[int]:
    """Numbers of the memory nodes, in order; one where the system does not say."""
    found = (path.name.removeprefix("node") for path in root.glob("node[0-9]*"))
    return sorted(int(name) for name in found if name.isdecimal()) or [0]


def placement(cfg: Architecture, found: list[int]) -> dict[str, int]:
    """The memory node of every component (§8: trunk on the first, experts round robin)."""
    homes = dict.fromkeys(cfg.components, found[0])
    return homes | {f"expert{e}": found[e % len(found)] for e in range(len(cfg.domains))}


@contextmanager
def memory_on(node: int, found: list[int]) -> Iterator[None]:
    """Memory that this thread touches first comes from a node, if there are several."""
    number = _SET_MEMPOLICY.get(platform.machine())
    if len(found) < 2 or number is None or sys.platform != "linux":
        yield
        return
    call = ctypes.CDLL(None, use_errno=True).syscall
    mask = ctypes.c_ulong(1 << node)
    call(number, _PREFERRED, ctypes.byref(mask), 8 * ctypes.sizeof(mask))
    try:
        yield
    finally:
        call(number, _DEFAULT, None, 0)


def caches(root: Path = CACHES) -> dict[str, str]:
    """Sizes of the first processor's caches as the system tells them, such as L1 32K."""
    found = {}
    for path in sorted(root.glob("index*")):
        if (path / "type").read_text().strip() != "Instruction":
            found[f"L{(path / 'level').read_text().strip()}"] = (path / "size").read_text().strip()
    return found


def report(cfg: Architecture, engine: str, tuning: dict[str, int]) -> dict[str, Any]:
    """What the engine found and chose here."""
    found = nodes()
    return {
        "engine": engine,
        "caches": caches(),
        "memory nodes": found,
        "placement": placement(cfg, found),
        "sizes": tuning,
    }
