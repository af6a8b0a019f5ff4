"""Look into a checkpoint or a sealed model: tensors, shapes, shardings, norms, digests.

Of a sealed model its own description is shown and no weight is read; --weights reads, and
so verifies, every tensor and adds norms and digests. With --diff the exit code is 1 if
anything differs.

Examples:
  s7jax inspect runs/demo/checkpoints/trunk_final
  s7jax inspect runs/demo/model/moe.s7l
  s7jax inspect runs/demo/model/moe.s7l --weights --json
  s7jax inspect runs/demo/model/moe.s7l --extract expert2 --out expert2.s7b
  s7jax inspect runs/demo/checkpoints/trunk_final --verify-data
  s7jax inspect --diff runs/a/model/moe.s7l runs/b/model/moe.s7l

A bundle made by --extract is verified alone, against the same root, by `s7jax verify`.
--verify-data draws every batch the checkpoint was trained on again and compares its receipt.
"""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from s7jax import s7l
from s7jax.errors import UsageError
from s7jax.runs.inspection import differences, list_seal, read
from s7jax.terminal.tables import show_seal, show_tensors
from s7jax.train.provenance import verify_data


def add_flags(parser: ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("path", type=Path, nargs="?", help="checkpoint folder or .s7l file")
    parser.add_argument("--diff", type=Path, nargs=2, metavar=("A", "B"), help="compare two")
    parser.add_argument("--json", action="store_true", help="JSON on standard output")
    parser.add_argument("--weights", action="store_true", help="norm and SHA-256 of each tensor")
    parser.add_argument("--extract", metavar="COMPONENT", help="write a bundle, e.g. of expert2")
    parser.add_argument("--out", type=Path, help="with --extract: the file to create")
    parser.add_argument("--verify-data", action="store_true", help="recompute the data receipt")
    parser.add_argument("--prepared", type=Path, metavar="DIR", help="data (default: the run's)")


def check(args: Namespace) -> None:
    """Refuse flags that do not go together."""
    if (args.path is None) == (args.diff is None):
        raise UsageError("give one path, or --diff A B")
    if (args.extract is None) != (args.out is None) or (args.extract and args.diff):
        raise UsageError("--extract COMPONENT and --out FILE go together, with one .s7l file")
    if (args.verify_data or args.prepared) and (args.diff or args.extract or args.path.is_file()):
        raise UsageError("--verify-data takes the folder of one checkpoint")


def main(args: Namespace) -> int:
    """Read, print."""
    check(args)
    if args.extract:
        seal = s7l.open(args.path)
        created = s7l.extract(seal, args.extract, args.out)
        print(f"{'written' if created else 'already there, identical'}: {args.out}")
        print(f"{args.extract} of root {seal.root.hex()}")
        return 0
    if args.verify_data:
        receipt = verify_data(args.path, args.prepared)
        print(json.dumps(receipt.to_json(), indent=1) if args.json else f"data verified: {receipt}")
        return 0
    if args.path and args.path.is_file() and not args.weights:
        listing = list_seal(args.path)
        print(json.dumps(listing, indent=1)) if args.json else show_seal(listing)
        return 0
    if args.diff:
        rows = differences(*(read(path) for path in args.diff))
        title = f"{len(rows)} tensors differ" if rows else "identical"
    else:
        rows = [entry.to_json() for entry in read(args.path)]
        title = f"{args.path}: {len(rows)} tensors, {sum(row['bytes'] for row in rows):,} bytes"
    print(json.dumps(rows, indent=1)) if args.json else show_tensors(title, rows)
    return int(bool(args.diff and rows))
