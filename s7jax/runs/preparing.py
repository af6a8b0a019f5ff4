"""Preparing data for a preset, from flags: the sources, what is left out, how it is done."""

import argparse
from pathlib import Path

from s7jax import config
from s7jax.data.job import MEMORY, How
from s7jax.data.prepare import prepare
from s7jax.data.prepared import Prepared
from s7jax.data.sources import absolute, parse_data_flags, require_all
from s7jax.errors import UsageError
from s7jax.terminal import cli


def add_prepare_flags(flags: argparse.ArgumentParser) -> None:
    """Flags of ``s7jax prepare``."""
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


def prepare_text(args: argparse.Namespace) -> Prepared:
    """Prepare what the flags name; what is there already is checked and used.

    Raises:
        UsageError: flags that contradict each other, or the preset.
        InputError: data that cannot be used.
    """
    if args.out == Path():
        raise UsageError("--out: expected a folder to write")
    preset = config.override(config.preset(args.preset), args.set or [])
    model = preset.model
    sources = parse_data_flags(args.data or [], model.domains, args.field or [])
    if sources and not args.grow:
        require_all(sources, model.domains)
    return prepare(
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
