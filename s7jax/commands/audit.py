"""Check a run by redoing a part of it: was this model trained from this data by this recipe?

Reads the transcripts of all phases, draws all batches again, trains some parts again, drawn by
--seed, fits the router, quantises and seals again, and compares every bit. On any number of data
groups. Exit code 0 if all is as told, 1 if something is not: the first such step is named.

A run trained with --auditable keeps a checkpoint before every part; of others the parts begin at
the newest checkpoint before them, or at step 0. The seed must be something that whoever trained
the run could not know, such as the hash of a block that came later.

Examples:
  s7jax pipeline --run mine --auditable
  s7jax audit --run mine
  s7jax audit --run mine --segments 10 --seed "drand round 4711: 8a3f…" --mesh 4x1
"""

import json
import secrets
from argparse import ArgumentParser, Namespace

from s7jax.errors import UsageError
from s7jax.runs.audit import audit
from s7jax.runs.opening import add_run_flags, resume
from s7jax.terminal import cli


def add_flags(parser: ArgumentParser) -> None:
    """The command line."""
    add_run_flags(parser)
    parser.add_argument(
        "--segments", type=int, default=3, metavar="K", help="parts to train again (default: 3)"
    )
    parser.add_argument("--seed", metavar="TEXT", help="what draws them (default: a random one)")
    parser.add_argument("--phase", nargs="+", default=[], metavar="NAME", help="trunk, expert0 …")
    parser.add_argument("--no-seal", action="store_true", help="training alone, nothing after it")
    parser.add_argument("--json", action="store_true", help="print the report as JSON alone")


def main(args: Namespace) -> None:
    """Audit, tell."""
    if args.segments < 1:
        raise UsageError(f"--segments {args.segments}: expected at least 1")
    seed = secrets.token_hex(16) if args.seed is None else args.seed
    with cli.quiet(args.json):
        run = resume(args, lambda folder: folder.final("trunk"))
        report = audit(run, args.segments, seed, args.phase, reseal=not args.no_seal)
    if args.json:
        print(json.dumps(report, indent=1))
        return
    print(f"{run.folder.path}: as told")
    for name, root in report["transcripts"].items():
        print(f"  {name:<9}{root}")
    for segment in report["segments"]:
        print(f"  trained again, bit for bit: {segment}")
    print(f"  drawn by {seed!r}, {len(report['segments'])} of {report['of']}")
    for fraction, odds in report["caught"].items():
        print(f"  were {float(fraction):.0%} of them forged, one would be found with {odds:.1%}")
    if "root" in report:
        print(f"  router, INT8 and seal made again: root {report['root']}")
