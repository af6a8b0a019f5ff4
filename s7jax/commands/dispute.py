"""Two proofs, or two transcripts, that disagree: find the step, and who is right.

Examples:
  s7jax dispute a.s7p b.s7p model.s7l
  s7jax dispute a.s7p b.s7p model.s7l --json
  s7jax dispute a.s7t b.s7t runs/mine     the step is trained again, from its newest checkpoint

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
    p.add_argument("a", type=Path, help="a proof, or a transcript of training")
    p.add_argument("b", type=Path, help="another of the same question, or the same phase")
    p.add_argument("model", type=Path, help="the sealed model, or the run's folder")
    p.add_argument("--json", action="store_true", help="one JSON object")


def main(args: Namespace) -> None:
    """Open, find, judge."""
    if args.a.suffix == ".s7t":
        _transcripts(args)
        return
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


def _transcripts(args: Namespace) -> None:
    # Training needs JAX, proofs do not.
    from s7jax.runs import dispute  # noqa: PLC0415
    from s7jax.runs.opening import resume  # noqa: PLC0415
    from s7jax.terminal import cli  # noqa: PLC0415
    from s7jax.train import transcript  # noqa: PLC0415

    a, b = transcript.read(args.a), transcript.read(args.b)
    with cli.quiet(args.json):
        folder = Namespace(run=f"{args.model}/", mesh=None)
        found, right, value = dispute.settle(resume(folder, lambda run: run.config_file), a, b)
    told = {"a": found.values[0], "b": found.values[1], "again": value}
    if args.json:
        where = {"agree": found.done, "difference": found.what, "values": told, "right": right}
        print(json.dumps(where, indent=1))
        return
    print(f"first difference: after {found.done} steps: {found.what}")
    for name, text in told.items():
        print(f"  {name:<6} {text}")
    print(f"right: {right}")
