"""Print a configuration as a file for --config: every field with its range and unit.

Flags change it as they change a run: flags over the file over the preset.

Examples:
  s7jax config --preset s7-mini > run.toml
  s7jax config --config run.toml --tokens 50M --seed 1 > longer.toml
  s7jax pipeline --config longer.toml --run longer
"""

from argparse import ArgumentParser, Namespace

from s7jax.config_file import dump
from s7jax.runs.opening import add_config_flags, configured


def add_flags(parser: ArgumentParser) -> None:
    """The command line."""
    add_config_flags(parser)


def main(args: Namespace) -> None:
    """Check, print."""
    print(dump(configured(args)), end="")
