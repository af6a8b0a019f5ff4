"""Seal quantised weights and their vocabulary into one read-only file.

Sealing is irreversible: an existing file is never overwritten. Without arguments the newest
run under runs/ is sealed.

Examples:
  python tools/pack.py
  python tools/pack.py --run demo
  python tools/pack.py --weights-dir model/weights/ --vocab model/vocab.json --out model/moe.s7l
"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from s7jax import cli, s7l
from s7jax.run import named, newest


def parse() -> argparse.Namespace:
    """The command line; paths not given come from the run."""
    p = cli.parser(__doc__)
    p.add_argument("--run", metavar="NAME", help="run under runs/, or a folder path")
    p.add_argument("--weights-dir", type=Path, help="folder of quantised weights")
    p.add_argument("--vocab", type=Path, help="vocab.json")
    p.add_argument("--out", type=Path, help="file to create")
    args = p.parse_args()
    if None in (args.weights_dir, args.vocab, args.out):
        run = named(args.run) if args.run else newest()
        args.weights_dir = args.weights_dir or run.weights
        args.vocab = args.vocab or run.vocab
        args.out = args.out or run.sealed
    return args


def main() -> None:
    """Seal, then show what was sealed."""
    args = parse()
    done = s7l.seal(args.weights_dir, args.vocab, args.out)
    seal = s7l.open(args.out, root=done.root)
    print(f"{'sealed' if done.created else 'already sealed, identical'}: {args.out}")
    print(f"root     {seal.root.hex()}")
    print(f"bytes    {seal.head.length:,}")
    print(f"tensors  {len(seal.tensors)}")
    table = Table("component", "tensors", "int8 bytes", "stored bytes")
    for name, tensors in seal.manifest.components.items():
        int8 = sum(t.spec.size for t in tensors if t.spec.dtype == "int8")
        stored = sum(t.stored for t in tensors)
        table.add_row(name, str(len(tensors)), f"{int8:,}", f"{stored:,}")
    Console().print(table)


if __name__ == "__main__":
    cli.main(main)
