r"""Turn text into tokenised training data for one preset.

Without --data the built-in corpus is used. An interrupted run continues where it was.

  s7jax prepare --preset s7-nano --out data/nano
  s7jax prepare --preset s7-mini --out data/mini \
      --data code=src/ math='math/*.jsonl.zst' reason=s3://bucket/cot/ general=books/
  s7jax prepare --preset s7-140m --out data/140m --data data.toml \
      --against eval/ --near-duplicates 0.8 --memory 16GB
  s7jax prepare --preset s7-mini --grow data/mini --out data/mini-2 --data code=more/

A source is a file, a folder, a glob or a URL of any kind that docs/data.md lists: JSON lines, JSON,
CSV, Parquet, Arrow, tar, text. A domain may be given several times.
"""

from argparse import ArgumentParser, Namespace

from s7jax.data.prepared import SPLITS, Prepared
from s7jax.runs.preparing import add_prepare_flags, prepare_text
from s7jax.terminal.tables import show_table


def add_flags(parser: ArgumentParser) -> None:
    """The command line."""
    add_prepare_flags(parser)


def main(args: Namespace) -> None:
    """Prepare, report."""
    prepared = prepare_text(args)
    _show(prepared)
    for line in prepared.report():
        print(line)
    print(f"digest {prepared.digest}")


def _show(prepared: Prepared) -> None:
    m = prepared.manifest
    names = ("documents", "bytes", "tokens", "bytes/token", "train rows", "held-out rows")
    rows = []
    for d in m["domains"]:
        totals = [sum(d[s][key] for s in SPLITS) for key in ("documents", "bytes", "tokens")]
        ratio = f"{totals[1] / totals[2]:.2f}"
        rows.append([d["name"], *totals, ratio, *(d[s]["rows"] for s in SPLITS)])
    title = f"{prepared.path}: vocabulary {m['vocab']:,}, context {m['context']:,}"
    show_table(title, ("domain", *names), rows)
    stored = sum(x["bytes"] for d in m["domains"] for s in SPLITS for x in d[s]["shards"])
    print(f"shards {stored / 1e6:,.1f} MB")
