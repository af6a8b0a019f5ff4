r"""The whole chain: tokenizer → trunk → four experts → router → INT8 → sealed .s7l → proven.

Examples:
  s7jax pipeline                  s7-nano on the built-in corpus
  s7jax pipeline --run mine --data code=src/ math=math.jsonl.zst \
      reason=reason.jsonl general=books/
  s7jax pipeline --run mine       resume where it was stopped

Each phase skips what is already done and valid. At the end the sealed model answers, an answer is
proven and computed again, every rule is checked, and runs/NAME/report.html shows all of it.
"""

import json
from argparse import ArgumentParser, Namespace

from s7jax.runs.opening import add_run_flags, add_start_flags, add_watch_flags, begin
from s7jax.runs.pipeline import run_all
from s7jax.terminal import cli
from s7jax.terminal.tables import show


def add_flags(parser: ArgumentParser) -> None:
    """The command line."""
    add_run_flags(parser)
    add_start_flags(parser)
    add_watch_flags(parser)
    parser.add_argument("--json", action="store_true", help="print the report as JSON alone")


def main(args: Namespace) -> None:
    """Open the run, run the chain, print the tables."""
    with cli.quiet(args.json):
        report = run_all(begin(args))
    print(json.dumps(report, indent=1)) if args.json else show(report)
