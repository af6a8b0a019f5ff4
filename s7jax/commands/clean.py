"""Remove what runs need no more: resumable checkpoints of phases that have ended, leftovers.

Final checkpoints, data, metrics and sealed models stay. With --whole a run goes altogether.

Examples:
  s7jax clean                     every run under runs/
  s7jax clean demo --dry-run      what would be removed
  s7jax clean demo --whole
"""

from argparse import ArgumentParser, Namespace

from rich.filesize import decimal

from s7jax.errors import UsageError
from s7jax.runs.upkeep import remove, size, spare, whole
from s7jax.train.folder import named, runs


def add_flags(parser: ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("runs", nargs="*", metavar="RUN", help="names or folders (default: all)")
    parser.add_argument("--whole", action="store_true", help="remove the named runs altogether")
    parser.add_argument("--dry-run", action="store_true", help="remove nothing, say what would be")


def main(args: Namespace) -> None:
    """Find, remove, say what was freed."""
    if args.whole and not args.runs:
        raise UsageError("--whole: name the runs that shall go")
    for run in [named(name) for name in args.runs] if args.runs else runs():
        paths = whole(run) if args.whole else spare(run)
        if args.dry_run:
            freed = sum(size(path) if path.is_dir() else path.stat().st_size for path in paths)
            found = f"{decimal(freed)} in {', '.join(p.name for p in paths)}"
            print(f"{run.path}: {found if paths else 'nothing'}")
        else:
            print(f"{run.path}: {decimal(remove(run, paths))} freed")
