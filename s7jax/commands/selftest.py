"""Reproduce the known answers sealed with a model: does this machine compute what was sealed?

First every byte is verified. Exit code 0 if every token and every logit is as sealed,
1 if one differs (the first is named) or the file is damaged, 2 for a wrong command.

Examples:
  s7jax selftest                        the newest run's model
  s7jax selftest model.s7l
  s7jax selftest model.s7l --engine native      by the native engine instead of NumPy
  s7jax selftest model.s7l --engine xla --mesh 4x2
  s7jax selftest model.s7l --machine            what the engine chose on this machine
"""

import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

from s7jax import s7l
from s7jax.errors import InputError
from s7jax.runtime import answers
from s7jax.runtime.compute import open_compute
from s7jax.runtime.model import REPLAYERS, by_engine
from s7jax.terminal import cli, compiling
from s7jax.train.folder import newest_seal


def add_flags(parser: ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("file", type=Path, nargs="?", help="sealed model (default: newest run's)")
    parser.add_argument("--engine", choices=REPLAYERS, default="numpy")
    parser.add_argument("--mesh", default="1x1", metavar="[PxDx]M", help="XLA devices")
    cli.add_trust_flags(parser)
    parser.add_argument("--machine", action="store_true", help="say what the engine chose here")


def main(args: Namespace) -> None:
    """Open, compute, compare."""
    began = time.monotonic()
    path = args.file or newest_seal()
    seal = s7l.open_trusted(path, root=args.root, trust=args.trust)
    if args.machine:
        engine = "auto" if args.engine == "numpy" else args.engine
        for name, value in open_compute(seal, engine, args.mesh).machine().items():
            print(f"{name}: {_plain(value)}")
        return
    seal.verify()  # what no answer touches must be whole too
    known = seal.stream["answers"]
    if not known:
        raise InputError(f"{path}: sealed without known answers")
    forward = by_engine(seal, args.engine, args.mesh)
    compiling.announce()
    answers.check(known, forward)
    steps = sum(len(answer["output"]) for answer in known)
    print(
        f"{path}: {steps} tokens in {len(known)} domains and all their logits as sealed "
        f"({time.monotonic() - began:.1f} s)"
    )


def _plain(value: object) -> str:
    """A value of the machine's report on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {found}" for name, found in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
