"""Completion of commands, flags and files, as a script for your shell.

Examples:
  s7jax completion bash > ~/.local/share/bash-completion/completions/s7jax
  s7jax completion zsh > ~/.zfunc/_s7jax          with ~/.zfunc in fpath
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

import shtab

from s7jax import commands


def add_flags(parser: ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS)


def main(args: Namespace) -> None:
    """Print the script."""
    print(shtab.complete(commands.front(_fill), args.shell))


def _fill(name: str, parser: ArgumentParser) -> None:
    """The command's flags; files are completed where a path is expected."""
    commands.load(name).add_flags(parser)
    for action in parser._actions:
        if action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined] # shtab's own attribute
