"""Phase 2: train the domain experts on the frozen trunk, each independently of the others.

Examples:
  s7jax experts                   all four experts of the newest run
  s7jax experts --domain math     one of them (they can be separate jobs)
  s7jax experts --mesh 4x2x2      all four at once, on pools of 2 × 2 devices
  s7jax experts --run demo --mesh 2x1

The order does not matter: an expert's weights depend on the trunk and its own domain alone.
Next: s7jax router.
"""

from argparse import ArgumentParser, Namespace

from s7jax.runs.opening import add_process_flags, add_run_flags, add_watch_flags, resume
from s7jax.runs.pipeline import train_experts


def add_flags(parser: ArgumentParser) -> None:
    """The command line."""
    add_run_flags(parser)
    add_process_flags(parser)
    add_watch_flags(parser)
    parser.add_argument(
        "--domain", nargs="+", action="extend", metavar="NAME", help="which (default: all)"
    )


def main(args: Namespace) -> None:
    """Open the run, train."""
    train_experts(resume(args, lambda run: run.final("trunk")), args.domain, args.resume_from)
