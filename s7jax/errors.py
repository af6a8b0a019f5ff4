"""The ways a program ends that are no fault of its own. Programmer errors are assertions."""

from typing import Any


class UsageError(ValueError):
    """The command line or configuration asks for something impossible (exit code 2).

    The message says which flag or field, what was given, what was expected and what to do.
    """


class InputError(ValueError):
    """A file or folder does not hold what it must (exit code 1).

    The message says where (path, and line or offset), what was found and what to do.
    """


class Stopped(Exception):
    """A signal asked to stop, and everything done is saved (exit code 128 + its number)."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


def show(value: Any) -> str:
    """A short, printable form of any decoded value; never echoes terminal controls."""
    if isinstance(value, dict):
        return f"a map of {len(value)} keys"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, bytes):
        return f"{len(value)} bytes {value[:8].hex()}{'…' if len(value) > 8 else ''}"
    if isinstance(value, str):
        return ascii(value[:64]) + ("…" if len(value) > 64 else "")
    return repr(value)[:64]
