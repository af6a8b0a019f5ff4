"""Two proofs, or two transcripts, that disagree: find the step, and who is right.

Examples:
  s7jax dispute a.s7p b.s7p model.s7l
  s7jax dispute a.s7p b.s7p model.s7l --json
  s7jax dispute a.s7t b.s7t runs/mine     the step is trained again, from its newest checkpoint
  s7jax dispute a.s7t b.s7t runs/mine --write-trace a.s7x
  s7jax dispute a.s7t b.s7t runs/mine --traces a.s7x b.s7x

Proofs made with `s7jax generate … --proof a.s7p --trace` are followed into the first operator whose
output differs; transcripts, where each side has written a trace of the step as its run trains it,
into the first microbatch and tensor. Exit code 0 if the dispute is settled, 1 if there is none.
"""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from s7jax import s7l
from s7jax.errors import UsageError
from s7jax.runtime import proof
from s7jax.runtime.dispute import settle
from s7jax.runtime.replay import by_specification
from s7jax.terminal.tables import ascii_safe


def add_flags(p: ArgumentParser) -> None:
    """The command line."""
    p.add_argument("a", type=Path, help="a proof, or a transcript of training")
    p.add_argument("b", type=Path, help="another of the same question, or the same phase")
    p.add_argument("model", type=Path, help="the sealed model, or the run's folder")
    p.add_argument("--json", action="store_true", help="one JSON object")
    p.add_argument(
        "--traces", nargs=2, type=Path, metavar="FILE", help="of the step, as A and B trained it"
    )
    p.add_argument(
        "--write-trace", type=Path, metavar="FILE", help="of the step, as this run trains it"
    )
    p.add_argument("--mesh", metavar="DxM", help="to train the step on (default: all, or 1x1)")


def main(args: Namespace) -> None:
    """Open, find, judge."""
    if args.a.suffix == ".s7t":
        _transcripts(args)
        return
    if args.traces or args.write_trace or args.mesh:
        raise UsageError("--traces, --write-trace, --mesh: of transcripts (.s7t) of a run alone")
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
    from s7jax.runs.audit import environments  # noqa: PLC0415
    from s7jax.runs.opening import resume  # noqa: PLC0415
    from s7jax.terminal import cli  # noqa: PLC0415
    from s7jax.train import transcript  # noqa: PLC0415

    if args.write_trace:
        if args.traces:
            raise UsageError("--traces, --write-trace: give one of them")
        cli.require_new(args.write_trace, "--write-trace")
    a, b = transcript.read(args.a), transcript.read(args.b)
    with cli.quiet(args.json):
        folder = Namespace(run=f"{args.model}/", mesh=args.mesh)
        run = resume(folder, lambda run: run.config_file)
        for line in dict.fromkeys(environments(run, {"A": a, "B": b})):
            print(f"warning: {line}: the bits may differ from both")
        if args.write_trace:
            mine = transcript.read(run.folder.transcript(a.head["phase"]))
            traced = dispute.trace_of(run, a, b, mine)
            traced.write(args.write_trace)
            print(f"{args.write_trace}: step {traced.step} as {args.model} trains it")
            return
        sides = zip((args.a, args.b), (a, b), args.traces or (None, None), strict=True)
        verdict = dispute.settle(run, *(dispute.Side(*side) for side in sides))
    where = verdict.difference
    told = {"a": where.values[0], "b": where.values[1], "again": verdict.value}
    if args.json:
        found = {"agree": where.done, "difference": where.what, "values": told}
        print(json.dumps(found | {"right": verdict.right}, indent=1))
        return
    print(f"first difference: after {where.done} steps: {ascii_safe(where.what)[1:-1]}")
    for name, text in told.items():
        print(f"  {name:<6} {text}")
    print(f"right: {verdict.right}")
