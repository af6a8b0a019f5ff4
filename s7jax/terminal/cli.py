"""What every program shares: its help text, and how errors become exit codes."""

import argparse
import gc
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from s7jax import arguments
from s7jax.errors import InputError, Stopped, UsageError


def parser(doc: str | None, program: str | None = None) -> argparse.ArgumentParser:
    """A parser whose help is the given text: what the program does, then examples."""
    return argparse.ArgumentParser(
        prog=program,
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def size(text: str) -> int:
    """Bytes, such as ``2GB`` or ``512MB``; for ``type=``."""
    number = text.strip().upper().removesuffix("B")
    unit = {"K": 10, "M": 20, "G": 30, "T": 40}.get(number[-1:], 0)
    try:
        return int(float(number[:-1] if unit else number) * (1 << unit))
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r}: expected such as 2GB") from None


def root(text: str) -> bytes:
    """The root of a sealed file, in hex; for ``type=``."""
    try:
        return arguments.root(text)
    except UsageError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected 64 hexadecimal digits") from None


def add_trust_flags(parser: argparse.ArgumentParser) -> None:
    """Which sealed file it must be, or whose."""
    parser.add_argument("--root", type=root, metavar="HEX", help="the root it must have")
    add_signers_flag(parser)


def add_sign_flag(parser: argparse._ActionsContainer, of: str = "") -> None:
    """Whose signatures to make; ``of`` says of what."""
    parser.add_argument(
        "--sign",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY",
        help=f"private keys, PEM{of}",
    )


def add_signers_flag(parser: argparse._ActionsContainer) -> None:
    """Whose file it must be."""
    parser.add_argument(
        "--trust",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="PUBKEY",
        help="one of these must have signed it",
    )


@contextmanager
def importing() -> Iterator[None]:
    """While modules are imported an interrupt ends the process at once, and nothing is collected.

    Python's own handler would raise inside of somebody's import: a trace that says nothing, or
    an interrupt that is swallowed there. The garbage collector would go through JAX's modules
    again and again, a sixth of the time of importing them, and find nothing.
    """
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
        signal.signal(signal.SIGINT, handler)


def content(path: Path, most: int) -> bytes:
    """The first ``most`` bytes of a file, or of standard input for ``-``.

    Raises:
        UsageError: standard input is closed.
        OSError: the file cannot be read.
    """
    if str(path) != "-":
        with path.open("rb") as file:
            return file.read(most)
    if sys.stdin is None:
        raise UsageError("-: standard input is closed")
    return sys.stdin.buffer.read(most)


def require_new(path: Path, flag: str) -> None:
    """A file that is to be written later must not be there yet, its folder must.

    Raises:
        UsageError: naming the flag.
    """
    if path.exists():
        raise UsageError(f"{flag} {path}: exists; nothing is overwritten")
    if not path.parent.is_dir():
        raise UsageError(f"{flag} {path}: there is no folder {path.parent}")


def main(run: Callable[[], int | None], say: Callable[[str], str] = str) -> None:
    """Run a program and exit: 0 done, 1 failure, 2 usage, 128 + n stopped by signal n.

    A user's mistake is printed as one message on standard error, in the words that ``say`` makes
    of it, without a traceback; an error of the program keeps its traceback.
    """
    # Closed, as by `>&-`; what is printed to no standard error would go to standard output.
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115 until the process ends
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):  # what the encoding lacks is no failure
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            code = run() or 0
        finally:
            sys.stdout.flush()
        sys.exit(code)
    except UsageError as e:
        print(f"error: {say(str(e))}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader has read enough: `s7jax generate … | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nothing is left to be said
        sys.exit(128 + signal.SIGPIPE)
    except (InputError, OSError) as e:
        print(f"error: {say(str(e))}", file=sys.stderr)
        sys.exit(1)
    except MemoryError as e:
        print(f"error: there is not enough memory: {e or 'ask for less'}", file=sys.stderr)
        sys.exit(1)
    except Stopped as e:
        sys.exit(128 + e.number)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


@contextmanager
def quiet(machine: bool) -> Iterator[None]:
    """With ``--json``, what is meant for people goes to standard error."""
    if not machine:
        yield
        return
    with redirect_stdout(sys.stderr):
        yield
