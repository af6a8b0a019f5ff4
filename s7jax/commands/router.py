"""The router: ridge regression from the frozen trunk's output to the domain, in closed form.

Examples:
  s7jax router                    the newest run
  s7jax router --run demo

Needs Phase 1 alone; the experts may still be training. Next: s7jax evaluate.
"""

from argparse import ArgumentParser, Namespace

from s7jax.runs.opening import add_run_flags, resume
from s7jax.runs.pipeline import fit_router


def add_flags(parser: ArgumentParser) -> None:
    """The command line."""
    add_run_flags(parser)


def main(args: Namespace) -> None:
    """Open the run, fit."""
    fit_router(resume(args, lambda run: run.final("trunk")))
