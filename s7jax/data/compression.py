"""Compressed files: their content as it is read, every damage of any library one error."""

import bz2
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Callable
from functools import partial
from typing import IO, Any

from s7jax.errors import InputError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
_BUFFER, _PART = 1 << 20, 1 << 16


class DamagedFile(InputError):
    """From here on nothing of the file can be read."""


def decompressed(compression: str, file: IO[bytes], limit: int) -> IO[bytes]:
    """The content of an open file that is compressed in one of :data:`COMPRESSIONS`.

    ``limit`` is an eighth of the memory there is.

    Raises:
        DamagedFile: on any read.
    """
    return io.BufferedReader(_Decompressed(compression, file, limit), _BUFFER)


class _Decompressed(io.RawIOBase):
    """Decompressed bytes; every error of every library is a damaged file with its reason."""

    def __init__(self, compression: str, file: IO[bytes], limit: int) -> None:
        self._stream: Any
        if compression == ".gz":
            self._stream = gzip.GzipFile(fileobj=file)
        elif compression == ".bz2":
            self._stream = _Streams(file, bz2.BZ2Decompressor)
        elif compression == ".xz":
            most = max(1 << 27, 4 * limit)  # half of the memory, as of zstd
            self._stream = _Streams(file, partial(lzma.LZMADecompressor, memlimit=most))
        else:
            self._stream = _zstd(file, limit)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data: bytes = self._stream.read(len(buffer))
        except (zstd.ZstdError, zlib.error, lzma.LZMAError, OSError, EOFError) as e:
            if "Memory usage limit" in str(e):
                raise DamagedFile(
                    ": needs more memory to be decompressed than --memory leaves; give more, or "
                    "compress it again with a smaller dictionary"
                ) from e
            raise DamagedFile(f": damaged or cut off: {e}") from e
        buffer[: len(data)] = data
        return len(data)


class _Streams:
    """Streams of bzip2 or xz, one after the other, to the end of the file.

    The library's own readers take a damaged one for something that follows the last.
    """

    def __init__(self, file: IO[bytes], new: Callable[[], Any]) -> None:
        self._file, self._new, self._stream = file, new, new()

    def read(self, size: int) -> bytes:
        """At most so many bytes; none at the end of the last stream."""
        while True:
            data = b""
            if self._stream.eof:  # zeros may pad what follows
                data = self._stream.unused_data.lstrip(b"\0")
                while not data:
                    if not (read := self._file.read(_PART)):
                        return b""
                    data = read.lstrip(b"\0")
                self._stream = self._new()
            elif self._stream.needs_input and not (data := self._file.read(_PART)):
                raise EOFError("the file ends before its last stream does")
            if piece := self._stream.decompress(data, size):
                return bytes(piece)


def _zstd(file: IO[bytes], limit: int) -> Any:
    """A zstd stream of any window that fits the limit."""
    most = min(31, max(27, limit.bit_length() + 1))  # half of the memory, limit being an eighth
    head = io.BufferedReader(Joined(b"", file), _BUFFER)
    start = head.peek(18)[:18]
    if (size := _window(start)) > 1 << most:
        raise DamagedFile(
            f": needs a zstd window of {size / 2**20:,.0f} MiB, more than the {2 ** (most - 20)} "
            "MiB that --memory leaves; give more memory or compress it again without --long"
        )
    options = {int(zstd.DecompressionParameter.window_log_max): most}
    return zstd.ZstdFile(head, options=options)


def _window(head: bytes) -> int:
    """Bytes of the window that a zstd frame asks for (RFC 8878, 3.1.1.1.2); 0 if it has none."""
    if len(head) < 6 or head[:4] != b"\x28\xb5\x2f\xfd" or head[4] & 0x20:
        return 0
    base = 1 << (10 + (head[5] >> 3))
    return base + (base >> 3) * (head[5] & 7)


class Joined(io.RawIOBase):
    """Bytes that were read already, and the file they came from."""

    def __init__(self, head: bytes, file: IO[bytes]) -> None:
        self._head, self._file = io.BytesIO(head), file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._head.read(len(buffer)) or self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
