"""Opening a run for work, from its flags: configuration, prepared data, mesh.

The flags are the same in every script that has them. Scripts that start a run take what
decides its bytes (``--preset``, ``--data``, …); the others take the run alone and read the
rest from its folder.
"""

import argparse
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from s7jax import mesh as meshes
from s7jax.architecture import counts
from s7jax.config import PRESETS, Config, Domain, override, preset
from s7jax.config_file import load
from s7jax.data.prepare import prepare
from s7jax.data.prepared import Prepared
from s7jax.data.sources import absolute, parse_data_flags, require_all
from s7jax.errors import InputError, UsageError
from s7jax.terminal.processes import one_after_another, say
from s7jax.train import determinism
from s7jax.train.folder import RunFolder, add_domain, named, newest, start
from s7jax.train.options import Every, Options, parse_tokens
from s7jax.train.run import Run
from s7jax.train.watch import trackers


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of every script that works on a run."""
    parser.add_argument("--run", metavar="NAME", help="run under runs/, or a folder path")
    parser.add_argument(
        "--mesh",
        metavar="[PxDx]M",
        help="data × model devices, such as 4x2 (default: all accelerators; on CPUs 1x1, and one "
        "data group for each core to train); or pools × data × model: experts are trained, or "
        "held, on pools of their own",
    )


def add_process_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of the scripts that train one phase: where to resume, as which of several processes."""
    parser.add_argument(
        "--resume-from", type=int, metavar="STEP", help="an older checkpoint, not the newest"
    )
    parser.add_argument(
        "--distributed", action="store_true", help="several processes, found by JAX (SLURM, …)"
    )
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="process 0, when not found")
    parser.add_argument("--processes", type=int, metavar="N", help="how many processes")
    parser.add_argument("--process", type=int, metavar="I", help="which of them this is, from 0")


def add_watch_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of the scripts that train: how a run is saved and watched; no weight changes."""
    group = parser.add_argument_group(
        "saving and watching", "intervals in tokens (5B, 250k) or in steps (500steps)"
    )
    group.add_argument("--save-every", metavar="N", help="checkpoint (default: as the preset says)")
    group.add_argument(
        "--keep-last",
        type=int,
        default=Options.keep_last,
        metavar="N",
        help="newest checkpoints that stay (default: 2)",
    )
    group.add_argument("--keep-every", metavar="N", help="keep one of each such interval for good")
    group.add_argument(
        "--evaluate-every", metavar="N", help="held-out bits per byte (default: with every save)"
    )
    group.add_argument(
        "--step-timeout",
        type=float,
        default=Options.step_timeout,
        metavar="SECONDS",
        help="a step that takes longer is stuck: the process ends (default: 1800; 0: never)",
    )
    group.add_argument(
        "--auditable",
        action="store_true",
        help="keep a checkpoint at every digest of the transcript, for s7jax audit",
    )
    group.add_argument("--profile", type=int, default=0, metavar="N", help="trace N steps")
    group.add_argument(
        "--log-to",
        nargs="+",
        action="extend",
        choices=tuple(trackers.TRACKERS),
        metavar="NAME",
        help="tensorboard (default), wandb, mlflow: several if need be, beside metrics.jsonl",
    )


def add_start_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of the scripts that can start a run."""
    add_config_flags(parser)
    parser.add_argument(
        "--data",
        nargs="+",
        action="extend",
        metavar="DOMAIN=PATH",
        help="sources, several for a domain if need be; every domain needs one; or data.toml",
    )
    parser.add_argument(
        "--field",
        nargs="+",
        action="extend",
        metavar="[DOMAIN=]NAME",
        help="what holds the text of a record, such as content or messages.*.content",
    )
    parser.add_argument(
        "--add-domain",
        metavar="NAME",
        help="give an existing run one more expert, trained on --data NAME=PATH",
    )
    parser.add_argument("--prepared", metavar="DIR", help="shards made by s7jax prepare")


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of the configuration: what decides the trained bytes, beside the data."""
    parser.add_argument(
        "--preset", choices=PRESETS, help="model size (default: s7-nano, on accelerators s7-140m)"
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="fields over the preset's, as `s7jax config` prints them; flags are over the file",
    )
    parser.add_argument("--tokens", metavar="N", help="Phase 1 trains on as many, such as 50B")
    parser.add_argument(
        "--expert-tokens",
        nargs="+",
        action="extend",
        metavar="N",
        help="Phase 2: one number, or one per expert",
    )
    parser.add_argument("--seed", type=int, help="root of all randomness (default: 0)")
    parser.add_argument(
        "--reduction",
        choices=("tree", "psum"),
        help="gradient sums: tree (default; equal bits on any number of data groups) or psum",
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        help="forward and backward (default: fp32, on accelerators bf16); weights are float32",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        metavar="FIELD=VALUE",
        help="override, such as trunk.tokens=5000000",
    )


def begin(args: argparse.Namespace) -> Run:
    """Start a run, or resume one.

    Raises:
        UsageError: flags that contradict each other, the run folder, the model or the machine.
        InputError: data that cannot be used.
    """
    on = _provision(args)
    folder = named(args.run) if args.run is not None else None
    if args.add_domain is not None:
        folder = folder or newest(lambda run: run.config_file)
        with one_after_another():
            _add_domain(folder, args)
        return _open(folder, on, _options(args))
    chosen = "preset config data prepared seed reduction precision set tokens expert_tokens".split()
    untouched = all(getattr(args, flag) is None for flag in chosen)
    if folder and folder.config_file.exists() and untouched:
        return _open(folder, on, _options(args))

    if args.data and args.prepared is not None:
        raise UsageError("--data and --prepared: give one of them")
    config, options = configured(args), _options(args)
    _check(on.shape, config)
    sources = _sources(args, config)
    if sources:
        require_all(sources, config.model.domains)
    prepared = None if args.prepared is None else str(Path(args.prepared).absolute())
    folder = folder or named(config.preset)
    if folder.path.exists() and not folder.path.is_dir():
        raise UsageError(f"--run {folder.path}: is there and no folder; choose another")
    step = getattr(args, "resume_from", None)
    if step is not None and not folder.config_file.exists():
        raise UsageError(f"--resume-from {step}: {folder.path} is no run yet: it has no checkpoint")
    with _nothing_left_if_refused(folder):
        with one_after_another():
            start(folder, config, sources or None, prepared)
        return _open(folder, on, options)


def resume(args: argparse.Namespace, needs: Callable[[RunFolder], Path]) -> Run:
    """Open an existing run; if none is named the newest that has what ``needs`` names."""
    on = _provision(args)
    folder = newest(needs) if args.run is None else named(args.run)
    return _open(folder, on, _options(args))


@contextmanager
def _nothing_left_if_refused(folder: RunFolder) -> Iterator[None]:
    """A run whose flags or data are refused before it has begun leaves no trace."""
    parents = [path for path in (folder.path, *folder.path.parents) if not path.exists()]
    inside = (folder.config_file, folder.data, folder.data / ".lock", folder.data / ".work")
    made = parents[-1:] or [path for path in inside if not path.exists()]
    begun = folder.config_file.exists()
    try:
        yield
    except (UsageError, InputError):
        for path in [] if begun else reversed(made):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        raise


def configured(args: argparse.Namespace) -> Config:
    """The configuration that the flags ask for: flags over the file over the preset.

    Raises:
        UsageError: an unknown field, or a value that does not fit it.
    """
    usual = ("s7-nano", "fp32") if jax.default_backend() == "cpu" else ("s7-140m", "bf16")

    def base(name: str | None) -> Config:
        if None not in (name, args.preset) and name != args.preset:
            raise UsageError(f"preset is {name!r}, --preset says {args.preset!r}")
        given = name if args.preset is None else args.preset
        chosen = preset(usual[0] if given is None else given)
        return override(chosen, [f'compute.precision="{usual[1]}"'])

    config = base(None) if args.config is None else load(args.config, base)
    changes = [] if args.precision is None else [f'compute.precision="{args.precision}"']
    if args.tokens is not None:
        changes.append(f"trunk.tokens={parse_tokens(args.tokens, '--tokens')}")
    if args.expert_tokens:
        counts = [parse_tokens(text, "--expert-tokens") for text in args.expert_tokens]
        names = config.model.domains
        if len(counts) not in (1, len(names)):
            raise UsageError(
                f"--expert-tokens has {len(counts)} entries; expected 1 or {len(names)}, one for "
                f"each of {', '.join(names)}"
            )
        pairs = zip(names, counts * (len(names) // len(counts)), strict=True)
        changes += [f"domains.{name}.tokens={count}" for name, count in pairs]
    changes += args.set or []
    if args.seed is not None:
        changes.append(f"seed={args.seed}")
    if args.reduction:
        changes.append(f'reduction="{args.reduction}"')
    return override(config, changes)


def _sources(args: argparse.Namespace, config: Config) -> dict[str, list[Any]]:
    """``--data`` by domain, as plain JSON, with absolute paths."""
    parsed = parse_data_flags(args.data or [], config.model.domains, args.field or [])
    return {d: [absolute(source).to_json() for source in given] for d, given in parsed.items()}


def _add_domain(folder: RunFolder, args: argparse.Namespace) -> None:
    """``--add-domain NAME --data NAME=PATH [--expert-tokens N]`` on an existing run.

    Without ``--expert-tokens`` the new expert trains as long as the last one.
    """
    others = "preset config prepared seed reduction precision set tokens".split()
    if given := [flag for flag in others if getattr(args, flag) is not None]:
        raise UsageError(
            f"--add-domain with --{given[0]}: only --data and --expert-tokens go with it"
        )
    config = folder.config()
    tokens = config.domains[-1].tokens
    if args.expert_tokens:
        if len(args.expert_tokens) != 1:
            raise UsageError("--expert-tokens: one number for the domain that is added")
        tokens = parse_tokens(args.expert_tokens[0], "--expert-tokens")
    grown = config.with_domain(Domain(name=args.add_domain, share=0, tokens=tokens))
    sources = _sources(args, grown)
    if foreign := sources.keys() - {args.add_domain}:
        raise UsageError(f"--data {min(foreign)}=…: only the domain that is added gets sources")
    known = (folder.read()["data"] or {}).get(args.add_domain)
    if known and sources and known != sources[args.add_domain]:
        raise UsageError(f"--data: domain {args.add_domain!r} of this run is made of {known}")
    if not (sources or known):
        raise UsageError(f"--add-domain {args.add_domain}: give --data {args.add_domain}=PATH")
    add_domain(folder, grown.domain(args.add_domain), sources.get(args.add_domain, []))


def _options(args: argparse.Namespace) -> Options:
    """The flags of :func:`add_watch_flags`, where a script has them."""
    if not hasattr(args, "save_every"):
        return Options()
    if args.keep_last < 1:
        raise UsageError(f"--keep-last {args.keep_last}: expected at least 1")
    if not args.step_timeout >= 0 or args.profile < 0:  # NaN is not, either
        raise UsageError("--step-timeout and --profile: expected no negative number")
    log_to = args.log_to or Options.log_to
    trackers.require(log_to)

    def every(name: str) -> Every | None:
        text = getattr(args, name)
        return None if text is None else Every.parse(text, f"--{name.replace('_', '-')}")

    return Options(
        save_every=every("save_every"),
        keep_last=args.keep_last,
        keep_every=every("keep_every"),
        evaluate_every=every("evaluate_every"),
        step_timeout=args.step_timeout,
        profile=args.profile,
        auditable=args.auditable,
        log_to=tuple(dict.fromkeys(log_to)),
    )


@dataclass(frozen=True)
class Provision:
    """What there is to work on.

    Attributes:
        shape: the mesh that was named, or that of all accelerators; without any 1x1.
        cores: data groups to train on where no mesh was named and there is no accelerator.
        note: what the devices are, in words.
    """

    shape: meshes.MeshShape
    cores: int
    note: str

    def groups(self, config: Config) -> meshes.MeshShape | None:
        """The mesh to train on, if not :attr:`shape`: equal bits need the tree."""
        if self.cores == 1 or config.reduction != "tree":
            return None
        recipes = config.trunk, config.experts
        most = math.gcd(self.cores, *(recipe.microbatches for recipe in recipes))
        return meshes.MeshShape(data=most, model=1) if most > 1 else None


def _provision(args: argparse.Namespace) -> Provision:
    determinism.enforce()
    shape, cluster = None if args.mesh is None else meshes.parse(args.mesh), _cluster(args)
    cores = 1 if shape or cluster else determinism.cores()
    note = meshes.provision(shape, cluster, cores)
    if jax.default_backend() != "cpu":
        return Provision(shape or meshes.MeshShape(data=jax.device_count(), model=1), 1, note)
    return Provision(shape or meshes.SINGLE, min(cores, jax.device_count()), note)


def _cluster(args: argparse.Namespace) -> meshes.Cluster | None:
    given = [getattr(args, name, None) for name in ("coordinator", "processes", "process")]
    if getattr(args, "distributed", False):
        return meshes.Cluster()
    if all(value is None for value in given):
        return None
    if None in given:
        raise UsageError("--coordinator, --processes and --process go together")
    return meshes.Cluster(*given)


def _check(shape: meshes.MeshShape, config: Config) -> None:
    for recipe in (config.trunk, config.experts):
        meshes.check(shape, config.model, recipe)


def _open(folder: RunFolder, on: Provision, options: Options) -> Run:
    config, settings = folder.config(), folder.read()
    _check(on.shape, config)
    groups = on.groups(config)
    mesh = f"{groups} to train, {on.shape} for the rest" if groups else str(on.shape)
    sources = [f"{d}={path}" for d, given in (settings["data"] or {}).items() for path in given]
    corpus = settings["prepared"] or " ".join(sources) or "built-in corpus"
    size = sum(counts(config.model).values())
    say(f"run      {folder.path}\npreset   {config.preset}: {size:,} parameters")
    say(f"config   sha256 {config.digest()}\ndata     {corpus}\nmesh     {mesh}: {on.note}")
    if settings["prepared"]:
        prepared = Prepared.load(folder.prepared)
        if jax.process_index() == 0:  # one reading of every byte is enough
            prepared.verify()
    else:
        with one_after_another():
            prepared = prepare(
                settings["data"],
                folder.prepared,
                domains=config.domains,
                vocab=config.model.vocab,
                context=config.model.context,
                seed=config.seed,
                reread=False,
            )
    names = ("vocab", "context", "domains")
    found, wanted = ([getattr(x, name) for name in names] for x in (prepared, config.model))
    if found != wanted:
        raise UsageError(
            f"--prepared {prepared.path}: vocabulary, context and domains are {found}, the "
            f"preset's are {wanted}: prepare it with `s7jax prepare --preset {config.preset}`"
        )
    pools = tuple(meshes.pools(on.shape))
    return Run(folder, config, prepared, pools, options, meshes.make(groups) if groups else None)
