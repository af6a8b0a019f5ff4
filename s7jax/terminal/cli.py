"""What every script shares: its help text, and how errors become exit codes."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout

from s7jax.errors import InputError, Stopped, UsageError


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the script's docstring: what it does, then examples."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )


def main(run: Callable[[], int | None]) -> None:
    """Run a script and exit: 0 done, 1 failure, 2 usage, 128 + n stopped by signal n.

    A user's mistake is printed as one message on standard error, without a traceback;
    an error of the program keeps its traceback.
    """
    try:
        sys.exit(run() or 0)
    except UsageError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
    except (InputError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
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
