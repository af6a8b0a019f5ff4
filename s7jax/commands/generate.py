"""Continue a text with a sealed model, on integers alone.

This is a base model: it continues what it is given. The text streams to standard output; which
expert wrote which part, and how fast, is said on standard error. Without --temperature decoding
is greedy; with it the seed alone decides what is drawn, on any machine.

Examples:
  s7jax generate "def main():"
  s7jax generate model.s7l "def main():"
  s7jax generate model.s7l --file notes.txt --max-tokens 64 --temperature 0.8 --seed 3
  s7jax generate --prompt "2 + 2 =" --json
  s7jax generate model.s7l --prompt "Once" --proof out.s7p
"""

import json
import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

from s7jax import runtime
from s7jax.errors import UsageError
from s7jax.runtime import proof
from s7jax.runtime.compute import ENGINES
from s7jax.runtime.engine import DRAFTERS
from s7jax.runtime.prompt import MOST_BYTES
from s7jax.runtime.replay import traced
from s7jax.terminal import cli, compiling
from s7jax.train.folder import newest_seal


def add_flags(p: ArgumentParser) -> None:
    """The command line."""
    p.add_argument(
        "words",
        nargs="*",
        metavar="[MODEL] TEXT",
        help="sealed model, a .s7l (default: newest run's), and the text to continue",
    )
    p.add_argument("--prompt", help="the text, whatever it looks like")
    p.add_argument("--file", type=Path, help="file to continue; - for standard input")
    p.add_argument("--max-tokens", type=int, metavar="N", help="default: as sealed")
    p.add_argument("--temperature", type=float, default=0.0, help="0 (default) is greedy")
    p.add_argument("--top-k", type=int, default=0, metavar="K", help="only the K likeliest tokens")
    p.add_argument("--top-p", type=float, default=1.0, metavar="P", help="only the likeliest share")
    p.add_argument("--seed", type=int, help="of the draws (default: as sealed)")
    p.add_argument("--engine", choices=ENGINES, default="auto", help="native C, or XLA's devices")
    p.add_argument("--threads", type=int, metavar="N", help="of the native engine (default: all)")
    p.add_argument("--mesh", default="1x1", metavar="[PxDx]M", help="XLA devices, such as 4x2")
    p.add_argument("--drafts", type=int, metavar="N", help="tokens to propose and check")
    p.add_argument("--drafter", choices=DRAFTERS, default="lookup", help="who proposes them")
    p.add_argument("--proof", type=Path, metavar="FILE", help="write the proof, a .s7p")
    p.add_argument("--trace", action="store_true", help="with every operator's digest, to dispute")
    cli.add_trust_flags(p)
    p.add_argument("--json", action="store_true", help="one JSON object, nothing streamed")


def check(args: Namespace) -> None:
    """Tell model and text apart; refuse flags that do not go together."""
    words = list(args.words)
    if words and args.prompt is None and args.file is None and not words[-1].endswith(".s7l"):
        args.prompt = words.pop()
    if len(words) > 1:
        raise UsageError(f"{words[1]!r} is a word too many; a text goes in quotes")
    args.model = Path(words[0]) if words else None
    if (args.prompt is None) == (args.file is None):
        raise UsageError("give a text in quotes, --prompt TEXT or --file FILE")
    if args.trace and not args.proof:
        raise UsageError("--trace goes into the proof: give --proof FILE")
    if args.proof:
        proof.require_place(args.proof, "--proof")


def main(args: Namespace) -> None:
    """Open, generate, say where the text came from."""
    check(args)
    prompt = args.prompt if args.file is None else cli.content(args.file, MOST_BYTES + 1)
    path, trusted = args.model or newest_seal(), {"root": args.root, "trust": args.trust}
    how = {"engine": args.engine, "threads": args.threads, "mesh": args.mesh}
    how |= {"drafts": args.drafts, "drafter": args.drafter}
    with runtime.open(path, **how, **trusted) as model:
        compiling.announce()
        began = time.monotonic()
        answer = model.generate(
            prompt,
            max_new_tokens=args.max_tokens,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            seed=args.seed,
        )
        for piece in answer:
            if not args.json:
                print(piece, end="", flush=True)
        seconds = time.monotonic() - began
        if args.proof:
            (traced(answer.proof, model.seal) if args.trace else answer.proof).save(args.proof)
        if args.json:
            print(json.dumps(answer.report() | {"seconds": round(seconds, 3)}, indent=1))
        else:
            print(f"\n{answer.summary(seconds)}", file=sys.stderr)
