"""Size a training cluster: memory, steps, hours and cost, beside the specification's figures.

Examples:
  s7jax plan                                     s7-140m, both phases, §3's cluster
  s7jax plan --phase trunk --target h100 --mesh 8x1 --mfu 0.45
  s7jax plan --preset s7-nano --target cpu --mesh 2x1 --compile
  s7jax plan --target v5e --phase trunk --fit      needs libtpu, no TPU
  s7jax plan --phase experts --mesh 4x2x2          pools × data × model
  s7jax plan --document docs/sizing.md             needs the extras gpu and tpu

With --compile the programs that training runs are compiled for the target, which need not be at
hand, and their memory is reported. --set reaches any field of the configuration.
"""

import json
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import jax

from s7jax.config import PRESETS, override, preset
from s7jax.devices import DEVICES
from s7jax.errors import UsageError
from s7jax.mesh import parse as parse_mesh
from s7jax.sizing import show
from s7jax.sizing.document import document
from s7jax.sizing.fit import described, fit
from s7jax.sizing.goodput import RATE, RESTART, Failures
from s7jax.sizing.plan import compile_for, plan, sweep
from s7jax.sizing.schedule import MFU, jobs, measured_mfu
from s7jax.storage import write_bytes

MOST = 1_000_000  # dollars per device-hour


def add_flags(p: ArgumentParser) -> None:
    """The command line."""
    p.add_argument("--preset", choices=PRESETS, default="s7-140m")
    p.add_argument("--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE")
    p.add_argument("--phase", choices="trunk experts quantize infer all".split(), default="all")
    p.add_argument("--mesh", default="4x2", metavar="[PxDx]M")
    p.add_argument("--batch", type=int, metavar="SEQUENCES", help="of a step")
    p.add_argument("--context", type=int, metavar="TOKENS")
    p.add_argument("--target", choices=DEVICES, default="a100-40gb")
    p.add_argument("--mfu", type=float, default=MFU, help="assumed utilisation (default: 0.5)")
    p.add_argument("--calibrate", type=Path, metavar="METRICS", help="a run's metrics.jsonl")
    p.add_argument("--price", type=float, help="dollars per hour of one device")
    p.add_argument("--failures", type=float, default=RATE, help="per device-hour (Llama 3's)")
    p.add_argument("--restart", type=float, default=RESTART, help="seconds after a failure")
    p.add_argument("--sockets", type=int, default=2, help="NUMA sockets to place weights on (§8)")
    p.add_argument("--compile", action="store_true", help="compile the step for the target")
    p.add_argument("--fit", action="store_true", help="search for the fastest plan that fits")
    form = p.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true")
    form.add_argument("--markdown", action="store_true")
    form.add_argument("--document", type=Path, metavar="FILE", help="the whole of docs/sizing.md")
    form.add_argument("--html", type=Path, metavar="FILE", help="one page with plots")
    p.add_argument("--measured", type=Path, metavar="FILE", help="for it: make whole's whole.md")


def check(args: Namespace) -> None:
    """Refuse flags that do not go together."""
    if args.fit and args.phase not in ("trunk", "experts"):
        raise UsageError("--fit needs --phase trunk or --phase experts")
    if not 0 < args.mfu <= 1:
        raise UsageError(f"--mfu {args.mfu}: expected more than 0 and at most 1")
    if args.price is not None and not 0 <= args.price <= MOST:
        raise UsageError(f"--price {args.price}: expected dollars, from 0 to {MOST:,}")
    if args.measured and not args.document:
        raise UsageError("--measured goes with --document FILE")
    if args.measured and not args.measured.is_file():
        raise UsageError(f"--measured {args.measured}: no such file; `make whole` writes one")
    for flag, path in (("--document", args.document), ("--html", args.html)):
        if path and not path.absolute().parent.is_dir():
            raise UsageError(f"{flag} {path}: no such folder")


def main(args: Namespace) -> None:
    """Plan, print."""
    check(args)
    jax.config.update("jax_platforms", "cpu")  # compilers run in processes of their own
    device, shape = DEVICES[args.target], parse_mesh(args.mesh)
    sizes = [] if device.name == "cpu" else ['compute.precision="bf16"']  # as training there
    given = {"model.context": args.context, "trunk.batch": args.batch, "experts.batch": args.batch}
    sizes += [f"{name}={value}" for name, value in given.items() if value is not None]
    config = override(preset(args.preset), [*sizes, *args.set])
    first = jobs(config, shape, args.phase)[:1]
    mfu = measured_mfu(args.calibrate, first[0], device) if args.calibrate else args.mfu
    if args.fit:
        config, shape, _ = fit(config, shape, args.phase, device, compile_for)
        print(f"fits: {described(config, shape, args.phase)}", file=sys.stderr)
    options: dict[str, Any] = {"mfu": mfu, "price": args.price, "sockets": args.sockets}
    options["failures"] = Failures(rate=args.failures, restart=args.restart)
    tree = plan(config, shape, args.phase, device, compiled=args.compile or args.fit, **options)
    if args.document or args.html:
        if args.document:
            page = document(config, mfu, args.measured.read_text() if args.measured else "")
        else:
            page = show.page(tree, sweep(config, shape, args.phase, device, **options))
        write_bytes(args.document or args.html, page.encode())
        print(f"written: {args.document or args.html}")
    elif args.json:
        print(json.dumps(tree, indent=1))
    elif args.markdown:
        print(show.markdown(tree), end="")
    else:
        show.terminal(tree)
