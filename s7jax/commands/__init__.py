"""The commands: ``s7jax NAME``, each a module with its help, its flags and what it does."""

import ast
import re
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import s7jax
from s7jax.errors import UsageError
from s7jax.fields import nearest
from s7jax.terminal import cli

# In the order of the chain; beside each its script in a checkout.
SCRIPTS = {
    "pipeline": "experiments/pipeline.py",
    "prepare": "tools/prepare.py",
    "trunk": "experiments/trunk.py",
    "experts": "experiments/experts.py",
    "router": "experiments/router.py",
    "evaluate": "experiments/evaluate.py",
    "quantize": "tools/quantize.py",
    "pack": "tools/pack.py",
    "verify": "tools/verify.py",
    "generate": "tools/generate.py",
    "serve": "tools/serve.py",
    "selftest": "tools/selftest.py",
    "dispute": "tools/dispute.py",
    "audit": "tools/audit.py",
    "inspect": "tools/inspect_checkpoint.py",
    "convert": "tools/convert.py",
    "plan": "tools/plan.py",
}
COMMANDS = (*SCRIPTS, "controls", "provenance", "report", "runs", "clean", "config", "completion")


def main() -> None:
    """The command ``s7jax``."""
    words = sys.argv[1:]
    if words and words[0] in COMMANDS:
        run(words[0], words[1:])
    else:
        cli.main(partial(_no_command, words))


def run(name: str, words: Sequence[str], *, script: bool = False) -> None:
    """Run one command and exit; as a script it calls itself and the others by their scripts."""
    with cli.importing():
        module = load(name)
    say = _as_scripts if script else str
    parser = cli.parser(say(module.__doc__ or ""), say(f"s7jax {name}"))
    module.add_flags(parser)
    cli.main(lambda: module.main(parser.parse_args(words)), say)


def load(name: str) -> ModuleType:
    """The module of a command: ``add_flags(parser)`` and ``main(args)``."""
    return import_module(f"{__name__}.{name}")


def front(fill: Callable[[str, ArgumentParser], None] | None = None) -> ArgumentParser:
    """The parser of ``s7jax`` itself: each command by name and first sentence.

    Nothing of a command is imported for that; ``fill`` may give their parsers more.
    """
    parser = cli.parser((s7jax.__doc__ or "").split("\n")[0], "s7jax")
    parser.epilog = "s7jax COMMAND --help has the flags of each, and examples."
    parser.add_argument("--version", action="version", version=f"s7jax {s7jax.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, dest="command")
    for name in COMMANDS:
        one = commands.add_parser(name, help=_summary(name))
        if fill:
            fill(name, one)
    return parser


def _no_command(words: Sequence[str]) -> int:
    """Help, version, or what was wrong about the command."""
    if not words:
        front().print_help(sys.stderr)
        return 2
    known = (*COMMANDS, "--help", "--version")
    if words[0] not in (*known, "-h"):
        hint = nearest(words[0], known) or f"; expected one of {', '.join(COMMANDS)}"
        raise UsageError(f"no command {words[0]!r}{hint}")
    front().parse_args(words)  # says it, and exits
    return 0


def _summary(name: str) -> str:
    """The first sentence of a command's help."""
    spec = find_spec(f"{__name__}.{name}")
    assert spec is not None
    assert spec.origin is not None
    doc = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
    return doc.split("\n\n")[0].replace("\n", " ")


def _as_scripts(text: str) -> str:
    """The text with ``python tools/pack.py`` for ``s7jax pack``."""
    return re.sub(
        rf"\bs7jax ({'|'.join(SCRIPTS)})\b", lambda found: f"python {SCRIPTS[found[1]]}", text
    )
