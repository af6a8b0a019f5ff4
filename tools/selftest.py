"""Reproduce the known answers sealed with a model: does this machine compute what was sealed?

First every byte is verified. Exit code 0 if every token and every logit is as sealed,
1 if one differs (the first is named) or the file is damaged, 2 for a wrong command.

Examples:
  python tools/selftest.py                        the newest run's model
  python tools/selftest.py model.s7l
  python tools/selftest.py model.s7l --jax --mesh 4x2     by XLA instead of NumPy
"""

import time
from pathlib import Path

from s7jax import s7l
from s7jax.errors import InputError
from s7jax.runtime import answers
from s7jax.runtime.model import Model, by_devices
from s7jax.runtime.replay import by_specification
from s7jax.terminal import cli, compiling
from s7jax.train.folder import newest


def main() -> None:
    """Open, compute, compare."""
    parser = cli.parser(__doc__)
    parser.add_argument("file", type=Path, nargs="?", help="sealed model (default: newest run's)")
    parser.add_argument("--jax", action="store_true", help="on XLA's devices, not in NumPy")
    parser.add_argument("--mesh", default="1x1", metavar="[PxDx]M", help="with --jax")
    parser.add_argument("--root", type=bytes.fromhex, metavar="HEX", help="the root it must have")
    parser.add_argument("--trust", type=Path, nargs="+", default=[], metavar="PUBKEY")
    args = parser.parse_args()
    began = time.monotonic()
    path = args.file or newest().sealed
    seal = s7l.open_trusted(path, root=args.root, trust=args.trust)
    seal.verify()  # what no answer touches must be whole too
    known = seal.stream["answers"]
    if not known:
        raise InputError(f"{path}: sealed without known answers")
    compiling.announce()
    forward = by_devices(Model(seal, args.mesh)) if args.jax else by_specification(seal)
    answers.check(known, forward)
    steps = sum(len(answer["output"]) for answer in known)
    print(
        f"{path}: {steps} tokens in {len(known)} domains and all their logits as sealed "
        f"({time.monotonic() - began:.1f} s)"
    )


if __name__ == "__main__":
    cli.main(main)
