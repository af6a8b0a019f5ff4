r"""Phase 1: train embedding and trunk on the mixture of the four domains.

Examples:
  s7jax trunk                     s7-nano on the built-in corpus
  s7jax trunk --mesh 4x2          4 data groups × 2 model-parallel devices
  s7jax trunk --preset s7-mini --run mini \
      --data code=src/ math=math.jsonl.zst reason=reason.jsonl general=books/
  s7jax trunk --tokens 5M --save-every 500k --run longer

Without an accelerator a mesh is made of virtual CPU devices. A run that was stopped resumes
from its newest checkpoint. Next: s7jax experts.
"""

from argparse import ArgumentParser, Namespace

from s7jax.runs.opening import (
    add_process_flags,
    add_run_flags,
    add_start_flags,
    add_watch_flags,
    begin,
)
from s7jax.runs.pipeline import train_trunk


def add_flags(parser: ArgumentParser) -> None:
    """The command line."""
    add_run_flags(parser)
    add_process_flags(parser)
    add_watch_flags(parser)
    add_start_flags(parser)


def main(args: Namespace) -> None:
    """Open the run, train."""
    train_trunk(begin(args), args.resume_from)
