"""Look into a checkpoint or a sealed model: tensors, shapes, shardings, norms, digests.

Examples:
  python tools/inspect_checkpoint.py runs/demo/checkpoints/trunk_final
  python tools/inspect_checkpoint.py runs/demo/checkpoints/trunk/100
  python tools/inspect_checkpoint.py runs/demo/model/moe.s7l --json
  python tools/inspect_checkpoint.py --diff runs/a/model/moe.s7l runs/b/model/moe.s7l

Reading a tensor of a sealed model verifies it. With --diff the exit code is 1 if anything
differs.
"""

import json
from pathlib import Path

from s7jax import cli
from s7jax.errors import UsageError
from s7jax.inspection import differences, read
from s7jax.report import show_tensors


def main() -> int:
    """Parse, read, print."""
    parser = cli.parser(__doc__)
    parser.add_argument("path", type=Path, nargs="?", help="checkpoint folder or .s7l file")
    parser.add_argument("--diff", type=Path, nargs=2, metavar=("A", "B"), help="compare two")
    parser.add_argument("--json", action="store_true", help="one JSON array on standard output")
    args = parser.parse_args()
    if (args.path is None) == (args.diff is None):
        raise UsageError("give one path, or --diff A B")
    if args.diff:
        rows = differences(*(read(path) for path in args.diff))
        title = f"{len(rows)} tensors differ" if rows else "identical"
    else:
        rows = [entry.to_json() for entry in read(args.path)]
        title = f"{args.path}: {len(rows)} tensors, {sum(row['bytes'] for row in rows):,} bytes"
    print(json.dumps(rows, indent=1)) if args.json else show_tensors(title, rows)
    return int(bool(args.diff and rows))


if __name__ == "__main__":
    cli.main(main)
