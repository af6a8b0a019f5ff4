r"""Phase 3: calibrate on held-out text, quantise final checkpoints to INT8.

Examples:
  s7jax quantize                        the newest run
  s7jax quantize --run demo --mesh 4x2
  s7jax quantize \
      --checkpoint checkpoints/trunk_final/ \
      --experts    checkpoints/expert{0,1,2,3}_final/ \
      --out        model/weights/ \
      --method     per_row_int8

Writes the weights folder and the vocabulary beside it (model/vocab.json). Next: s7jax pack.
"""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from s7jax import mesh as meshes
from s7jax.config import Config
from s7jax.errors import UsageError
from s7jax.quantize.export import export
from s7jax.s7l.manifest import METHOD
from s7jax.train import determinism
from s7jax.train.checkpoint import read_record
from s7jax.train.folder import RunFolder, named, newest


def add_flags(parser: ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("--run", metavar="NAME", help="run under runs/, or a folder path")
    parser.add_argument("--checkpoint", type=Path, help="final checkpoint of the trunk")
    parser.add_argument(
        "--experts", type=Path, nargs="+", action="extend", help="the experts', in domain order"
    )
    parser.add_argument("--router", type=Path, help="default: router_final beside --checkpoint")
    parser.add_argument(
        "--prepared", type=Path, metavar="DIR", help="data trained on (default: the run's)"
    )
    parser.add_argument("--out", type=Path, help="weights folder (default: the run's)")
    parser.add_argument("--method", choices=[METHOD], default=METHOD)
    parser.add_argument("--mesh", default="1x1", metavar="[PxDx]M", help="devices that calibrate")


def main(args: Namespace) -> None:
    """Find what is not given, quantise."""
    determinism.enforce()  # calibration runs the float model
    shape = meshes.parse(args.mesh)
    meshes.provision(shape)
    run = _run(args)
    trunk = args.checkpoint or run.checkpoints / "trunk_final"
    router = args.router or trunk.parent / "router_final"
    experts = args.experts or _experts(router)
    prepared = args.prepared or run.prepared
    quality = json.loads(run.evaluation.read_text())["quality"] if run.evaluation.exists() else None
    out = args.out or run.weights
    config = Config.from_json(read_record(router)["config"])
    meshes.check_model(shape, config.model)
    mesh = meshes.joined(meshes.pools(shape))
    count = export(trunk, experts, router, prepared, out, quality, mesh)
    print(f"{count} integer tensors in {out}\nvocabulary in {out.parent / 'vocab.json'}")


def _experts(router: Path) -> list[Path]:
    """The experts' final checkpoints beside the router's, one for each domain it chooses among."""
    domains = Config.from_json(read_record(router)["config"]).domains
    return [router.parent / f"expert{e}_final" for e in range(len(domains))]


def _run(args: Namespace) -> RunFolder:
    """The run named, or the one the checkpoint lies in, or the newest."""
    if args.run is not None:
        return named(args.run)
    if args.checkpoint is None:
        if args.experts:
            raise UsageError("--experts without --checkpoint: give the trunk they were trained on")
        return newest(lambda run: run.final("router"))
    return RunFolder(args.checkpoint.absolute().parent.parent)
