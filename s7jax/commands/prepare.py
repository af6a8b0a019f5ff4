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
from pathlib import Path

from s7jax import config
from s7jax.data.prepare import MEMORY, How, prepare
from s7jax.data.prepared import SPLITS, Prepared
from s7jax.data.sources import absolute, parse_data_flags, require_all
from s7jax.terminal import cli
from s7jax.terminal.tables import show_table


def add_flags(flags: ArgumentParser) -> None:
    """The command line."""
    flags.add_argument("--preset", required=True, help=", ".join(config.PRESETS))
    flags.add_argument("--out", required=True, type=Path, help="folder to write")
    flags.add_argument("--data", nargs="+", action="extend", metavar="DOMAIN=PATH|FILE.toml")
    flags.add_argument(
        "--field", nargs="+", action="extend", metavar="[DOMAIN=]NAME", help="default: text"
    )
    flags.add_argument("--on-bad", choices=("stop", "skip"), default="stop", help="unreadable data")
    flags.add_argument("--held-out", type=float, default=0.05, help="fraction not trained on")
    flags.add_argument("--seed", type=int, default=0, help="decides the order of documents")
    flags.add_argument(
        "--against", nargs="+", action="extend", metavar="PATH", help="evaluation sets to keep out"
    )
    flags.add_argument("--near-duplicates", type=float, default=0.0, help="likeness, such as 0.8")
    flags.add_argument("--tokenizer", type=Path, metavar="FILE", help="a tokenizer.json to use")
    flags.add_argument(
        "--grow", type=Path, metavar="DIR", help="finished data that --data is added to, in --out"
    )
    flags.add_argument(
        "--set",
        nargs="+",
        action="extend",
        metavar="FIELD=VALUE",
        help="override the preset as a run will, such as model.vocab=4096",
    )
    flags.add_argument("--workers", type=int, help="processes; default: one for each core")
    flags.add_argument(
        "--memory", type=cli.size, default=MEMORY, metavar="BYTES", help="in all; default: 2GB"
    )
    flags.add_argument("--cluster", metavar="ADDRESS", help="of a Ray cluster that sees --out")


def main(args: Namespace) -> None:
    """Prepare, report."""
    preset = config.override(config.preset(args.preset), args.set or [])
    model = preset.model
    sources = parse_data_flags(args.data or [], model.domains, args.field or [])
    if sources and not args.grow:
        require_all(sources, model.domains)
    prepared = prepare(
        {domain: [absolute(source) for source in given] for domain, given in sources.items()},
        args.out.absolute(),
        domains=preset.domains,
        vocab=model.vocab,
        context=model.context,
        seed=args.seed,
        held_out=args.held_out,
        workers=args.workers,
        how=How(
            skip_bad=args.on_bad == "skip",
            against=tuple(args.against or []),
            near=args.near_duplicates,
            tokenizer=args.tokenizer,
            memory=args.memory,
            cluster=args.cluster,
            grow=args.grow,
        ),
    )
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
