"""How a sealed file gets into memory: mapped, or copied where nobody else can change it.

A mapped file that another process truncates kills its reader (SIGBUS), and one that is
overwritten changes under a verified view. A copy costs memory and one pass over the file, and
is the default only where another user could do that.
"""

import fcntl
import mmap
import os
import stat
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from s7jax.errors import InputError
from s7jax.s7l.schema import SealError
from s7jax.storage import read_regular as whole

_SEALS = ("F_SEAL_WRITE", "F_SEAL_GROW", "F_SEAL_SHRINK", "F_SEAL_SEAL")


class Mode(StrEnum):
    """Load mode of a sealed file."""

    MMAP = "mmap"  # the file itself; pages are read when touched
    MEMFD = "memfd"  # a copy that the kernel lets nobody change, this process included
    COPY = "copy"  # a copy in private memory


def default_mode(fd: int) -> Mode:
    """``mmap``, or a copy if a user who is neither root nor this one could change the open file.

    Judged on the descriptor: the name may stand for another file by now.
    """
    if not _others_can_write(os.fstat(fd)):
        return Mode.MMAP
    return Mode.MEMFD if hasattr(os, "memfd_create") else Mode.COPY


def load(fd: int, size: int, mode: Mode) -> memoryview:
    """The file's bytes, read-only and aligned to a page: uint8[size].

    Raises:
        SealError: the file became shorter meanwhile, or ``memfd`` is not known here.
        OSError: there is not enough memory.
    """
    if mode is Mode.MMAP:
        return memoryview(mmap.mmap(fd, size, access=mmap.ACCESS_READ))
    if mode is Mode.COPY:
        memory = mmap.mmap(-1, size)
        _fill(size, lambda at: os.preadv(fd, [memoryview(memory)[at:]], at))
        return memoryview(memory).toreadonly()
    if not hasattr(os, "memfd_create"):
        raise SealError("file", "load mode memfd needs Linux; take copy")
    copy = os.memfd_create("s7l", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        _fill(size, lambda at: os.sendfile(copy, fd, at, size - at))
        seals = (getattr(fcntl, name) for name in _SEALS)
        fcntl.fcntl(copy, fcntl.F_ADD_SEALS, sum(seals))
        # Private, because older kernels refuse any shared mapping of a write-sealed file.
        return memoryview(mmap.mmap(copy, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ))
    finally:
        os.close(copy)


def read(fd: int, size: int, start: int, end: int) -> bytes:
    """Bytes ``start..end`` of an open file of ``size`` bytes, without mapping it.

    Raises:
        SealError: the file became shorter meanwhile.
    """
    data = os.pread(fd, end - start, start)
    if len(data) != min(end, size) - start:
        raise SealError("file", f"has fewer than {min(end, size)} bytes: truncated meanwhile")
    return data


def read_regular(path: Path | str, most: int) -> bytes:
    """All bytes of a regular file of at most ``most``.

    Raises:
        SealError: it cannot be opened, is no regular file (a FIFO would hang), or is larger.
    """
    try:
        return whole(Path(path), most)
    except InputError as e:
        raise SealError(str(path), str(e).removeprefix(f"{Path(path)}: ")) from e


def _fill(size: int, step: Callable[[int], int]) -> None:
    """Copy from the start; ``step`` copies from an offset and says how many bytes."""
    done = 0
    while done < size:
        count = step(done)
        if count == 0:
            raise SealError("file", f"has fewer than {size} bytes: truncated meanwhile")
        done += count


def _others_can_write(status: os.stat_result) -> bool:
    own = status.st_uid in (0, os.geteuid())
    return not own or bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
