"""Export where a sealed model comes from: a SLSA provenance statement or a CycloneDX ML-BOM.

Everything is read from the sealed file, which is verified first; the same file gives the same
bytes. No SLSA level is claimed (docs/provenance.md). Without a file the newest run's.

Examples:
  s7jax provenance model.s7l -o model.intoto.json
  s7jax provenance model.s7l --sign release.pem -o model.dsse.json
  s7jax provenance model.s7l --format cyclonedx -o model.cdx.json
"""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from s7jax.errors import UsageError
from s7jax.runs import attestation
from s7jax.storage import write_bytes
from s7jax.terminal import cli
from s7jax.train.folder import newest_seal

FORMATS = {"slsa": attestation.statement, "cyclonedx": attestation.bill_of_materials}


def add_flags(parser: ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("file", type=Path, nargs="?", help="sealed model (default: the newest)")
    parser.add_argument("--format", choices=FORMATS, default="slsa", help="default: slsa")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="default: standard output")
    parser.add_argument("--root", type=cli.root, metavar="HEX", help="the root it must have")
    cli.add_sign_flag(parser, ": a DSSE envelope")


def main(args: Namespace) -> None:
    """Verify, export, perhaps sign."""
    if args.sign and args.format != "slsa":
        raise UsageError("--sign: a DSSE envelope holds an in-toto statement; use --format slsa")
    if args.out:
        cli.require_new(args.out, "--out")
    path = args.file or newest_seal()
    origin = attestation.origin_of(path, args.root)
    data = attestation.encoded(FORMATS[args.format](origin, path))
    if args.sign:
        data = attestation.encoded(attestation.envelope(data, args.sign))
    if args.out:
        write_bytes(args.out, data)
        print(f"written: {args.out}")
    else:
        sys.stdout.write(data.decode())
