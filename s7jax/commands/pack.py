"""Seal quantised weights and their vocabulary into one read-only file, and sign it.

Sealing is irreversible: an existing file is never overwritten. Without arguments the newest
run under runs/ is sealed. A short answer in every domain is sealed with it, for
`s7jax selftest`.

Examples:
  s7jax pack
  s7jax pack --run demo
  s7jax pack --weights-dir model/weights/ --vocab model/vocab.json --out model/moe.s7l
  s7jax pack --reseal old.s7l --out new.s7l    of numeric scheme s7-int8-1
  s7jax pack --new-key release.pem            writes release.pem and release.pem.pub
  s7jax pack --sign release.pem --release 3   writes or completes moe.s7l.sig

Keys are Ed25519 in PEM, as `openssl genpkey -algorithm ed25519` makes them too. Several keys
may sign, at once or one after the other. The release number is yours and ascends; who
verifies with --min-version is safe from being given an older release.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from s7jax import s7l
from s7jax.errors import UsageError
from s7jax.runtime.sealing import reseal, seal_with_answers
from s7jax.s7l import note, signature
from s7jax.terminal import cli
from s7jax.terminal.tables import show_table
from s7jax.train.folder import named, newest


def add_flags(p: ArgumentParser) -> None:
    """The command line."""
    p.add_argument("--run", metavar="NAME", help="run under runs/, or a folder path")
    p.add_argument("--weights-dir", type=Path, help="folder of quantised weights")
    p.add_argument("--vocab", type=Path, help="vocab.json")
    p.add_argument("--out", type=Path, help="file to create")
    cli.add_sign_flag(p)
    p.add_argument("--release", type=int, default=1, help="release number under the signature")
    p.add_argument("--no-answers", action="store_true", help="seal no known-answer transcript")
    p.add_argument("--reseal", type=Path, metavar="OLD", help="seal an older file's weights again")
    p.add_argument("--new-key", type=Path, metavar="KEY", help="make a key pair; nothing is sealed")


def complete(args: Namespace) -> None:
    """Refuse what does not go together; paths not given come from the run."""
    if not 0 <= args.release <= signature.MAX_VERSION:
        raise UsageError(f"--release {args.release}: expected 0 to {signature.MAX_VERSION}")
    if args.reseal and args.out is None:
        raise UsageError("--reseal OLD.s7l: give --out NEW.s7l")
    if not (args.new_key or args.reseal) and None in (args.weights_dir, args.vocab, args.out):
        given = args.run is not None
        run = named(args.run) if given else newest(lambda run: run.weights)
        args.weights_dir = args.weights_dir or run.weights
        args.vocab = args.vocab or run.vocab
        args.out = args.out or run.sealed


def main(args: Namespace) -> None:
    """Seal and sign, then show what was sealed."""
    complete(args)
    if args.new_key is not None:
        print(f"keep secret: {args.new_key}\ngive away:   {note.new_key(args.new_key)}")
        return
    if args.reseal:
        done = reseal(args.reseal, args.out, known_answers=not args.no_answers)
    else:
        seal_now = s7l.seal if args.no_answers else seal_with_answers
        done = seal_now(args.weights_dir, args.vocab, args.out)
    seal = s7l.open(args.out, root=done.root)
    print(f"{'sealed' if done.created else 'already sealed, identical'}: {args.out}")
    if args.sign:
        release = signature.Release(seal.root, seal.head.length, args.release)
        signed = signature.sign(signature.note_path(args.out), release, args.sign)
        print(f"signed   release {args.release}, {len(signed.signatures)} signatures")
    print(f"root     {seal.root.hex()}")
    print(f"bytes    {seal.head.length:,}")
    print(f"tensors  {len(seal.tensors)}")
    rows = []
    for name, tensors in seal.manifest.components.items():
        int8 = sum(t.spec.size for t in tensors if t.spec.dtype == "int8")
        stored = sum(t.stored for t in tensors)
        rows.append([name, len(tensors), int8, stored])
    show_table("Components", ("component", "tensors", "int8 bytes", "stored bytes"), rows)
