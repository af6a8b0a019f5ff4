"""Writing files so that nobody ever sees half of one, and never two writers at once."""

import fcntl
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from s7jax.errors import InputError


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold ``path`` as a lock file; it goes with the process, however that ends.

    Raises:
        InputError: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise InputError(
                f"{path.parent} is being written by another process (number {file.read()}): "
                "wait for it, or work on another run"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def read_regular(path: Path, most: int) -> bytes:
    """All bytes of a regular file of at most ``most``.

    Raises:
        InputError: it cannot be opened, is no regular file (a FIFO would hang), or is larger.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise InputError(f"{path}: not a regular file")
            data = file.read(most + 1)
    except OSError as e:
        raise InputError(f"{path}: cannot be opened: {e.strerror}") from e
    if len(data) > most:
        raise InputError(f"{path}: more than {most:,} bytes")
    return data


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file: a reader sees the old one or the whole new one, even after a crash.

    A link that is there is replaced, and what it leads to stays.

    Raises:
        InputError: a folder, device or pipe is there, which a file would take the place of.
        OSError: it cannot be written; it is named.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is there and no file; nothing was written")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    # A new file or none: a name that somebody has put there is not followed or written over.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(temporary, flags, 0o666)
    except OSError as e:
        raise OSError(e.errno, e.strerror, str(path)) from None
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as e:  # such as a full disk, which names no file
        raise OSError(e.errno, e.strerror, str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)


def link(path: Path, there: Path) -> None:
    """Have a file under another name too; a copy of it on another file system.

    A file that is there already is replaced.
    """
    temporary = there.with_name(f".{there.name}.{secrets.token_hex(8)}")
    try:
        try:
            temporary.hardlink_to(path)
        except OSError:
            shutil.copyfile(path, temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(there)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, tree: Any) -> None:
    """Write JSON as :func:`write_bytes` does."""
    write_bytes(path, (json.dumps(tree, indent=1, allow_nan=False) + "\n").encode())
