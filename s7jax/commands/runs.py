"""List the runs under runs/: how far each has come, its size, its bits per byte.

Examples:
  s7jax runs
  s7jax runs --json
"""

import json
import sys
from argparse import ArgumentParser, Namespace

from rich.filesize import decimal

from s7jax.runs.upkeep import overview
from s7jax.terminal.tables import show_table
from s7jax.train.folder import ROOT, runs


def add_flags(parser: ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("--json", action="store_true", help="JSON on standard output")


def main(args: Namespace) -> None:
    """Look, print; the newest run comes last."""
    found = [overview(run) for run in runs()]
    if args.json:
        print(json.dumps(found, indent=1))
    elif found:
        headings = ("run", "preset", "state", "size", "bits per byte")
        rows = [
            [
                *(run["name"], run["preset"] or "", run["state"], decimal(run["bytes"])),
                "" if run["bits_per_byte"] is None else f"{run['bits_per_byte']:.4f}",
            ]
            for run in found
        ]
        show_table(f"Runs under {ROOT}/, the newest last", headings, rows)
        for problem in filter(None, (run["problem"] for run in found)):
            print(f"damaged: {problem}", file=sys.stderr)
    else:
        print(f"no run under {ROOT}/: `s7jax pipeline` starts one")
