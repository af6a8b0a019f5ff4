"""Write the report of a run, one self-contained page and the same in Markdown; or compare runs.

Examples:
  s7jax report                        the newest run: report.html and report.md in its folder
  s7jax report runs/demo --out demo.html
  s7jax report runs/a runs/b --out comparison.html     side by side

Everything is read from the runs' folders; nothing is computed, no network is used.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from s7jax.errors import UsageError
from s7jax.report.write import compare, write
from s7jax.train.folder import RunFolder, named, newest


def add_flags(parser: ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("runs", nargs="*", metavar="RUN", help="names or folders")
    parser.add_argument("--out", type=Path, metavar="FILE.html", help="beside it: FILE.md")


def main(args: Namespace) -> None:
    """Find the runs, write."""
    if args.out and args.out.suffix != ".html":
        raise UsageError(f"--out {args.out}: expected a name that ends with .html")
    runs = [_run(name) for name in args.runs] or [newest(lambda run: run.metrics)]
    out = args.out or (runs[0].page if len(runs) == 1 else Path("comparison.html"))
    if out != runs[0].page and not out.exists() and out.with_suffix(".md").exists():
        raise UsageError(
            f"--out {out}: {out.with_suffix('.md')}, where its Markdown goes, is there without "
            "it; give another name"
        )
    written = write(runs[0], out) if len(runs) == 1 else compare(runs, out)
    print("\n".join(f"written: {path}" for path in written))


def _run(name: str) -> RunFolder:
    return named(name.rstrip("/") or name)
