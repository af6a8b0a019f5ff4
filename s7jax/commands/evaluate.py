"""Held-out quality: bits per byte of trunk, every expert, the routed model and the oracle.

Examples:
  s7jax evaluate                  the newest run
  s7jax evaluate --run demo --mesh 4x2
  s7jax evaluate --json > quality.json
  s7jax evaluate --sealed runs/demo/model/moe.s7l
  s7jax evaluate --tasks data/eval --limit 100        GSM8K, MMLU … by lm-evaluation-harness
  s7jax evaluate --tasks data/eval --only humaneval mbpp gsm8k --execute

The report is kept in runs/NAME/evaluation.json and sealed with the weights. With --sealed it is
the sealed integer model beside the float one on the same tokens, kept in runs/NAME/sealed.json;
with --tasks on the questions of a folder (docs/tasks.md), kept in runs/NAME/tasks.json.
"""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from s7jax.errors import UsageError
from s7jax.runs.opening import add_run_flags, resume
from s7jax.runs.pipeline import quality, sealed_quality, task_quality
from s7jax.terminal import cli
from s7jax.terminal.tables import show, show_tasks


def add_flags(parser: ArgumentParser) -> None:
    """The command line."""
    add_run_flags(parser)
    parser.add_argument("--json", action="store_true", help="print the report as JSON alone")
    parser.add_argument("--sealed", type=Path, metavar="FILE", help="INT8 against FP32")
    parser.add_argument("--tasks", type=Path, metavar="DIR", help="both on the questions in there")
    parser.add_argument(
        "--only", nargs="+", action="extend", default=[], metavar="TASK", help="of these tasks"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="the first N items of each task")
    parser.add_argument(
        "--execute", action="store_true", help="also run the programs that the models write"
    )


def main(args: Namespace) -> None:
    """Open the run, evaluate, print."""
    if args.tasks is None and (args.only or args.limit is not None or args.execute):
        raise UsageError("--only, --limit and --execute: of --tasks DIR alone")
    if args.limit is not None and args.limit < 1:
        raise UsageError(f"--limit {args.limit}: expected at least 1")
    if args.tasks is not None:
        _tasks(args)
        return
    with cli.quiet(args.json):
        run = resume(args, lambda run: run.final("router"))
        report = sealed_quality(run, args.sealed) if args.sealed else {"quality": quality(run)}
    if args.json:
        print(json.dumps(report if args.sealed else report["quality"], indent=1))
    else:
        show(report)


def _tasks(args: Namespace) -> None:
    with cli.quiet(args.json):
        run = resume(args, lambda folder: args.sealed or folder.sealed)
        sealed, how = args.sealed or run.folder.sealed, (args.only, args.limit, args.execute)
        report = task_quality(run, sealed, args.tasks, *how)
    if args.json:
        print(json.dumps(report, indent=1))
    else:
        show_tasks(report)
