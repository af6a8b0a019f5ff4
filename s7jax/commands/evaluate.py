"""Held-out quality: bits per byte of trunk, every expert, the routed model and the oracle.

Examples:
  s7jax evaluate                  the newest run
  s7jax evaluate --run demo --mesh 4x2
  s7jax evaluate --json > quality.json
  s7jax evaluate --sealed runs/demo/model/moe.s7l

The report is kept in runs/NAME/evaluation.json and sealed with the weights. With --sealed it is
the sealed integer model beside the float one on the same tokens, kept in runs/NAME/sealed.json.
"""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from s7jax.runs.opening import add_run_flags, resume
from s7jax.runs.pipeline import quality, sealed_quality
from s7jax.terminal import cli
from s7jax.terminal.tables import show


def add_flags(parser: ArgumentParser) -> None:
    """The command line."""
    add_run_flags(parser)
    parser.add_argument("--json", action="store_true", help="print the report as JSON alone")
    parser.add_argument("--sealed", type=Path, metavar="FILE", help="INT8 against FP32")


def main(args: Namespace) -> None:
    """Open the run, evaluate, print."""
    with cli.quiet(args.json):
        run = resume(args, lambda run: run.final("router"))
        report = sealed_quality(run, args.sealed) if args.sealed else {"quality": quality(run)}
    if args.json:
        print(json.dumps(report if args.sealed else report["quality"], indent=1))
    else:
        show(report)
