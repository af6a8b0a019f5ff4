"""Whether experts are worth it: a finished run beside dense models that cost as much to train.

Examples:
  s7jax controls                  the newest run, beside four dense models
  s7jax controls --run demo --equal flops tokens
  s7jax controls --json

A dense model is the trunk alone, trained for longer: equal to the whole run in FLOPs; in tokens;
in the seconds of its steps; or in FLOPs and, being deeper, in the parameters that read a token.
Each takes about as long as the run did, lies in runs/NAME/controls, and goes on where it stopped.
All models are scored on the same held-out text, into runs/NAME/controls.json and `s7jax report`.
"""

import json
from argparse import ArgumentParser, Namespace

from s7jax.runs.controls import controls
from s7jax.runs.opening import add_run_flags, add_watch_flags, resume
from s7jax.terminal import cli
from s7jax.terminal.tables import control_rows, show_table
from s7jax.train.folder import CONTROLS


def add_flags(parser: ArgumentParser) -> None:
    """The command line."""
    add_run_flags(parser)
    add_watch_flags(parser)
    parser.add_argument(
        "--equal", nargs="+", action="extend", choices=CONTROLS, help="in what (default: all)"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON alone")


def main(args: Namespace) -> None:
    """Open the run, train what is not there, compare, print."""
    with cli.quiet(args.json):
        run = resume(args, lambda run: run.final("router"))
        report = controls(run, list(dict.fromkeys(args.equal or CONTROLS)))
    if args.json:
        print(json.dumps(report, indent=1))
    else:
        show_table(*control_rows(report))
