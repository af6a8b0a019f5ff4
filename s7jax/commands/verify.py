"""Verify a sealed model or a bundle: every rule with its verdict and its evidence.

Exit code 0 if no rule fails, 1 if one does or the file is no seal, 2 for a wrong command.
What only a running model can show is reported as not checked, or shown with --run.

Examples:
  s7jax verify model/moe.s7l --json --run --root 9da075e3b893…
  s7jax verify model/moe.s7l --trust release.pem.pub --min-version 3
  s7jax verify expert2.s7b --trust release.pem.pub --signature model/moe.s7l.sig
  s7jax verify model/moe.s7l --replay out.s7p [--engine native]    compute it again
  s7jax verify --provenance --run demo    data, trunk, experts, seal, proof: every link

A seal proves that the file is whole; --root or --trust, with keys you know, whose it is.
"""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from s7jax import s7l
from s7jax.errors import InputError, UsageError
from s7jax.runs import lineage
from s7jax.runtime import evidence, proof, replay
from s7jax.runtime.model import REPLAYERS, by_engine
from s7jax.s7l import signature
from s7jax.terminal import cli, compiling
from s7jax.terminal.tables import show_findings, show_replay
from s7jax.train.folder import named, newest, newest_seal


def add_flags(p: ArgumentParser) -> None:
    """The command line."""
    p.add_argument("file", type=Path, nargs="?", help="sealed model (default: the newest run's)")
    p.add_argument("--json", action="store_true", help="one JSON object on standard output")
    cli.add_trust_flags(p)
    p.add_argument("--min-version", type=int, default=0, help="oldest release accepted")
    told = "also check what a running model shows; with --provenance: the run to compare with"
    p.add_argument("--run", nargs="?", const=True, metavar="RUN", help=told)
    p.add_argument("--provenance", action="store_true", help="every link from data to proof")
    p.add_argument("--proof", type=Path, help="a .s7p at the end of --provenance")
    p.add_argument("--replay", type=Path, metavar="PROOF", help="a .s7p to compute again")
    p.add_argument("--engine", choices=REPLAYERS, help="of a replay; default: numpy")
    p.add_argument("--mesh", metavar="[PxDx]M", help="XLA devices; default: 1x1")
    p.add_argument("--signature", type=Path, metavar="NOTE", help="default: FILE.sig")


def complete(args: Namespace) -> None:
    """Refuse what does not go together; a file not given is the run's, or the newest run's."""
    if not args.trust and (args.min_version or args.signature):
        raise UsageError("--min-version and --signature mean nothing without --trust PUBKEY")
    if not args.provenance and (args.proof or (args.file and isinstance(args.run, str))):
        raise UsageError("--proof PROOF and --run RUN go with --provenance")
    if not args.replay and (args.engine, args.mesh) != (None, None):
        raise UsageError("--engine and --mesh go with --replay PROOF")
    if args.provenance and args.run:
        args.run = newest(lambda run: run.sealed) if args.run is True else named(args.run)
    elif isinstance(args.run, str):  # --run FILE
        args.file, args.run = Path(args.run), True
    args.file = args.file or (args.run.sealed if args.provenance and args.run else newest_seal())


def main(args: Namespace) -> int:
    """Open, check, print."""
    complete(args)
    result: dict[str, Any] = {"format": "s7-verify", "version": 1}
    try:
        opening = s7l.open_bundle if s7l.is_bundle(args.file) else s7l.open
        opened = opening(args.file, root=args.root)
        note, of = args.signature or signature.note_path(args.file), (opened.root, opened.length)
        signed = (args.trust or None) and signature.verify(note, *of, args.trust, args.min_version)
        if isinstance(opened, s7l.Bundle) and (args.run is True or args.replay):
            raise UsageError("--run and --replay take the whole sealed model, not a bundle")
        replayed = again(args, opened) if args.replay else None
        last = args.proof or args.replay
        links = lineage.walk(opened, args.file, args.run, last) if args.provenance else []
    except InputError as e:
        if not args.json:
            raise
        print(json.dumps({**result, "passed": False, "error": str(e)}))
        return 1
    report = s7l.check(opened)
    if args.run is True and isinstance(opened, s7l.Seal):
        report = evidence.check(opened, report)
    passed = report.passed and not lineage.broken(links)
    if args.json:  # the same file gives the same object
        result |= {"passed": passed, "root": opened.root.hex(), "bytes": opened.length}
        by = signed and {"version": signed[0].version, "keys": [*map(str, signed[1])]}
        result |= {"signature": by, "replay": replayed, "rules": [*map(vars, report.findings)]}
        result |= {"provenance": [link.to_json() for link in links]} if links else {}
        print(json.dumps(result, indent=2))
    else:
        print(f"{args.file}: {opened.length:,} bytes sealed, root {opened.root.hex()}")
        if signed:
            print(f"release {signed[0].version}, signed by {', '.join(map(str, signed[1]))}")
        if replayed:
            show_replay(replayed)
        if links:
            print("\n".join(lineage.shown(links, args.run)))
        if not (links and report.passed):
            show_findings(report.findings)
            print(f"hashed at {report.bytes_per_second / 1e6:,.0f} MB/s")
    return 0 if passed else 1


def again(args: Namespace, opened: Any) -> dict[str, Any]:
    """A proof computed again, with an open seal."""
    forward = by_engine(opened, args.engine or "numpy", "1x1" if args.mesh is None else args.mesh)
    compiling.announce()
    return replay.replay(proof.load(args.replay), opened, forward)
