"""Two proofs of one question that disagree: find the step, and the operator, and who is right.

Examples:
  s7jax dispute a.s7p b.s7p model.s7l
  s7jax dispute a.s7p b.s7p model.s7l --json

Proofs made with `s7jax generate … --proof a.s7p --trace` are followed into the first
operator whose output differs. Exit code 0 if the dispute is settled, 1 if there is none.
"""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from s7jax import s7l
from s7jax.runtime import proof
from s7jax.runtime.dispute import settle
from s7jax.runtime.replay import by_specification


def add_flags(p: ArgumentParser) -> None:
    """The command line."""
    p.add_argument("a", type=Path, help="a proof")
    p.add_argument("b", type=Path, help="another of the same question")
    p.add_argument("model", type=Path, help="the sealed model")
    p.add_argument("--json", action="store_true", help="one JSON object")


def main(args: Namespace) -> None:
    """Open, find, judge."""
    seal = s7l.open(args.model)
    found = settle(proof.load(args.a), proof.load(args.b), seal, by_specification(seal))
    if args.json:
        print(json.dumps(found.tree(), indent=1))
        return
    where = "the end" if found.step is None else f"step {found.step}, position {found.position}"
    print(f"first difference: {where}: {found.difference} ({found.comparisons} comparisons)")
    for name, value in found.values.items():
        print(f"  {name:<6} {value}")
    print(f"right: {found.right}")
