"""Packages that only some commands need: how the person at the keyboard installs them."""

import shlex
import sys
from importlib.metadata import PackageNotFoundError, requires


def how_to_install(extra: str) -> str:
    """The command that installs an extra of this package into the Python that runs."""
    try:
        declared = requires("s7jax") or []
    except PackageNotFoundError:
        declared = []
    packages = [line.split(";")[0].strip() for line in declared if f'extra == "{extra}"' in line]
    if not packages:  # a checkout that was never installed, or has become newer since
        return f"pip install -e '.[{extra}]' in the checkout"
    return shlex.join([sys.executable, "-m", "pip", "install", *packages])
