"""Packages that only some commands need: how the person at the keyboard installs them."""

import shlex
import sys
from importlib.metadata import PackageNotFoundError, requires


def how_to_install(extra: str) -> str:
    """The command that installs an extra of this package into the Python that runs."""
    try:
        declared = requires("s7jax") or []
    except PackageNotFoundError:  # a checkout that was never installed
        return f"pip install -e '.[{extra}]' in the checkout"
    packages = [line.split(";")[0].strip() for line in declared if f'extra == "{extra}"' in line]
    return shlex.join([sys.executable, "-m", "pip", "install", *packages])
