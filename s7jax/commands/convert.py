"""Convert finished runs for transformers and back, sealed models to safetensors and back.

What is done follows from the input:
  runs/NAME          → OUT, a folder for transformers and the Hugging Face Hub, with a model card
  such a folder      → OUT, a run with the same final checkpoints, for `s7jax quantize`
  checkpoint folder  → OUT, a safetensors file with every float tensor bit by bit
  model.s7l          → OUT, a safetensors file with every tensor bit by bit, scales included
  model.safetensors  → OUT/weights and OUT/vocab.json, ready for `s7jax pack`
  version 2 .s7l     → OUT/dict.bin … batch.bin, its lanes with their hashes checked

Floats keep every bit, there and back (docs/transformers.md). Nothing is overwritten. A version 2
file cannot become a version 3 file: see docs/s7l.md.

Examples:
  s7jax convert runs/demo demo-hf
  s7jax convert demo-hf runs/again
  s7jax convert runs/demo/checkpoints/trunk_final trunk.safetensors
  s7jax convert model/moe.s7l moe.safetensors
  s7jax convert moe.safetensors again/
  s7jax pack --weights-dir again/weights --vocab again/vocab.json --out again/moe.s7l
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from s7jax import s7l
from s7jax.hub.export import export
from s7jax.hub.restore import is_exported, restore
from s7jax.runs.inspection import read
from s7jax.train.folder import RunFolder


def add_flags(parser: ArgumentParser) -> None:
    """The command line."""
    parser.add_argument(
        "input", type=Path, help="run, exported or checkpoint folder, .s7l or .safetensors file"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="file or folder to create")


def main(args: Namespace) -> None:
    """Convert, say what was written."""
    if is_exported(args.input):
        digests = restore(args.input, args.out)
        print("\n".join(f"{name:<8} parameters sha256 {digests[name]}" for name in digests))
        print(f"written: {args.out}; next: s7jax quantize --run {args.out} --prepared DIR")
    elif RunFolder(args.input).config_file.is_file():
        count = export(RunFolder(args.input), args.out)
        print(f"written: {args.out}\n{count} tensors of {args.input}, and {args.out}/README.md")
    elif args.input.is_dir():
        arrays = {entry.name: entry.array for entry in read(args.input)}
        _written(args.out, s7l.write_safetensors(args.out, arrays))
        print(f"{len(arrays)} tensors of {args.input}")
    elif args.input.suffix == ".safetensors":
        s7l.import_safetensors(args.input, args.out)
        print(f"{args.out}: weights/ and vocab.json, every tensor with its SHA-256")
    elif s7l.is_version2(args.input):
        old = s7l.extract_version2(args.input, args.out)
        sizes = ", ".join(f"{name} {len(data):,}" for name, data in old.payloads.items())
        print(f"{args.out}: lanes of version 2, bytes: {sizes}\nroot {old.root.hex()}")
        print("version, class, flags, lane ids and lengths are not under this root")
    else:
        seal = s7l.open(args.input)
        created = s7l.export_safetensors(seal, args.out)
        _written(args.out, created)
        print(f"{len(seal.tensors)} tensors of root {seal.root.hex()}")


def _written(out: Path, created: bool) -> None:
    print(f"{'written' if created else 'already there, identical'}: {out}")
