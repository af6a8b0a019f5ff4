"""Running from a checkout: each script finds the package and its environment, activated or not.

Any Python 3 can read this module, also one that is too old for the others.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def script(name: str) -> None:
    """Run a command as its script does, in the checkout's ``.venv`` if this Python lacks things.

    That is found out by importing the command, before anything has run.
    """
    lacking = _lacking(name)
    if lacking is None:
        from s7jax import commands  # noqa: PLC0415 a Python that lacks things cannot import it

        commands.run(name, sys.argv[1:], script=True)
        return
    own = ROOT / ".venv"
    python = own / "bin/python"
    if python.exists() and Path(sys.prefix).resolve() != own.resolve():
        os.execv(python, [str(python), *sys.argv])
    sys.exit(
        f"error: {sys.executable} lacks {lacking}: run `make .venv/installed` in {ROOT}, "
        f"which installs what is needed into {own}"
    )


def _lacking(name: str) -> str | None:
    """What keeps a command from being imported, if anything."""
    if sys.version_info < (3, 11):  # noqa: UP036 told to a person, not to the installer
        return "Python 3.11 or newer"
    from s7jax import commands  # noqa: PLC0415

    try:
        commands.load(name)
    except ModuleNotFoundError as e:
        if e.name is None or e.name.startswith("s7jax"):
            raise
        return f"the package {e.name}"
    return None
