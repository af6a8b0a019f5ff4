"""Publish a file once: whole or not at all, read-only, and never over another.

Until the file is complete and on disk it has no name (or, where the file system knows no
nameless files, a temporary one), so a failure or an interrupt leaves nothing behind.
"""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from s7jax.s7l.schema import SealError


@contextmanager
def unpublished(out: Path) -> Iterator["Unpublished"]:
    """A new file in the folder of ``out``; gone afterwards unless it was published.

    Raises:
        SealError: there is no such folder.
        OSError: the folder cannot be written, or the disk is full; it names ``out``.
    """
    if not out.parent.is_dir():
        raise SealError(str(out.parent), "no such folder")
    try:
        yield from _unnamed(out)
    except OSError as e:
        if e.errno and e.filename is None:  # as of a write
            raise OSError(e.errno, e.strerror, str(out)) from e
        raise


def _unnamed(out: Path) -> Iterator["Unpublished"]:
    fd = _nameless(out.parent)
    if fd is None:
        with tempfile.NamedTemporaryFile(dir=out.parent.resolve(), prefix=".seal-") as named:
            yield Unpublished(named.file, named.name, out)
    else:
        with os.fdopen(fd, "w+b") as file:
            yield Unpublished(file, f"/proc/self/fd/{fd}", out)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes ``out`` when all went well; else nothing is left.

    Raises:
        SealError: ``out`` exists already, or its parent does not.
        OSError: the parent cannot be written.
    """
    if not out.parent.is_dir():
        raise SealError(str(out.parent), "no such folder")
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".seal-") as folder:
        filled = Path(folder) / "filled"
        filled.mkdir()
        yield filled
        if out.exists() or out.is_symlink():
            raise SealError(str(out), "exists; nothing is overwritten")
        filled.rename(out)


class Unpublished:
    """A file that has no name yet. Write to ``file``, then :meth:`publish`."""

    def __init__(self, file: IO[bytes], name: str, out: Path) -> None:
        self.file = file
        self._name = name
        self._out = out

    def publish(self) -> bool:
        """Give the file its name, with mode 0444; False if the identical file has it already.

        Raises:
            SealError: another file has the name.
            OSError: the file cannot be made durable.
        """
        self.file.flush()
        os.fchmod(self.file.fileno(), 0o444)
        os.fsync(self.file.fileno())
        created = _link(self._name, self._out)
        if not created and not _same(self.file, self._out):
            raise SealError(
                str(self._out), "exists with other content; a sealed file is never overwritten"
            )
        return created


def _nameless(folder: Path) -> int | None:
    """A file that vanishes with its process, where system and file system know such files."""
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except (OSError, AttributeError):
        return None


def _link(name: str, out: Path) -> bool:
    """Give the file its name, atomically and only if nothing has that name yet."""
    folder = os.open(out.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # A folder descriptor makes this linkat(2), which follows /proc/self/fd links.
        os.link(name, out.name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=True)
        os.fsync(folder)
    except FileExistsError:
        return False
    finally:
        os.close(folder)
    return True


def _same(file: IO[bytes], out: Path) -> bool:
    """Whether ``out`` is a regular file with the same bytes."""
    if not stat.S_ISREG(os.lstat(out).st_mode):
        return False
    file.seek(0)
    with out.open("rb") as other:
        while block := file.read(1 << 20):
            if other.read(1 << 20) != block:
                return False
        return not other.read(1)
