"""Check a run by redoing a part of it: was this model trained from this data by this recipe?

Reads the transcripts of all phases, draws all batches again, trains some parts again, drawn by
--seed, fits the router, quantises and seals again, and compares every bit. On any number of data
groups. Exit code 0 if all is as told, 1 if something is not: the first such step is named.

A run trained with --auditable keeps a checkpoint before every part; of others the parts begin at
the newest checkpoint before them, or at step 0. The seed must be something that whoever trained
the run could not know, such as the hash of a block that came later.

Examples:
  s7jax pipeline --run mine --auditable
  s7jax audit runs/mine
  s7jax audit --run mine --segments 10 --seed "drand round 4711: 8a3f…" --mesh 4x1
  s7jax audit --run mine --report mine.s7a --sign me.pem      what was found, signed
  s7jax audit --read mine.s7a --trust me.pem.pub              what somebody found
"""

import json
import secrets
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from s7jax.errors import InputError, UsageError
from s7jax.runs.audit import AS_TOLD, report, sign, signed
from s7jax.runs.opening import add_run_flags, resume
from s7jax.s7l import note
from s7jax.terminal import cli
from s7jax.terminal.tables import ascii_safe


def add_flags(parser: ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("which", nargs="?", metavar="RUN", help="as --run")
    add_run_flags(parser)
    parser.add_argument(
        "--segments", type=int, default=3, metavar="K", help="parts to train again (default: 3)"
    )
    parser.add_argument("--seed", metavar="TEXT", help="what draws them (default: a random one)")
    parser.add_argument(
        "--phase", nargs="+", action="extend", default=[], metavar="NAME", help="trunk, expert0 …"
    )
    parser.add_argument("--no-seal", action="store_true", help="training alone, nothing after it")
    parser.add_argument("--json", action="store_true", help="print the report as JSON alone")
    group = parser.add_argument_group("signed reports")
    group.add_argument("--report", type=Path, metavar="FILE.s7a", help="write the report, signed")
    cli.add_sign_flag(group)
    group.add_argument("--read", type=Path, metavar="FILE.s7a", help="somebody's report; no audit")
    cli.add_signers_flag(group)


def main(args: Namespace) -> None:
    """Audit, tell."""
    if (args.report is None) != (not args.sign) or (args.read is None) != (not args.trust):
        raise UsageError("--report FILE goes with --sign KEY, --read FILE with --trust PUBKEY")
    if args.which is not None:
        if args.run is not None:
            raise UsageError(f"{args.which}, --run {args.run}: give one of them")
        args.run = args.which
    if args.read is not None:
        found, signers = signed(args.read, args.trust)
        _print(args, str(args.read), found)
        if not args.json:
            print(f"  signed by {', '.join(map(str, signers))}")
        return
    if args.report is not None:
        cli.require_new(args.report, "--report")
        note.require_keys(args.sign)
    if args.segments < 1:
        raise UsageError(f"--segments {args.segments}: expected at least 1")
    seed = secrets.token_hex(16) if args.seed is None else args.seed
    with cli.quiet(args.json):
        run = resume(args, lambda folder: folder.final("trunk"))
        found = report(run, args.segments, seed, args.phase, reseal=not args.no_seal)
        if args.report is not None:
            sign(found, args.report, args.sign)
    _print(args, str(run.folder.path), found)


def _print(args: Namespace, what: str, found: dict[str, Any]) -> None:
    """A report, to be read or as JSON; what is not as told is an error."""
    told = found["outcome"] == AS_TOLD
    if args.json:
        print(json.dumps(found, indent=1))
    if not told:
        raise InputError(f"{what}: not as told: {ascii_safe(found['outcome'])[1:-1]}")
    if args.json:
        return
    print(f"{what}: {AS_TOLD}")
    for name, root in found["transcripts"].items():
        print(f"  {name:<9}{root}")
    if found["sealed"] is not None:
        print(f"  {'seal':<9}{found['sealed']}")
    for segment in found["segments"]:
        print(f"  trained again, bit for bit: {segment}")
    print(f"  drawn by {found['seed']!r}, {len(found['segments'])} of {found['of']}")
    for fraction, odds in found["caught"].items():
        print(f"  were {float(fraction):.0%} of them forged, one would be found with {odds:.1%}")
    if "root" in found:
        print("  router, INT8 and seal made again: the same root")
    elif found["sealed"] is None:
        print("  nothing is sealed: what follows training was not checked")
    else:
        print("  router, INT8 and seal were not made again")
