"""An exported folder taken back: the run's final checkpoints, bit by bit or not at all."""

from pathlib import Path
from typing import Any

from s7jax import s7l
from s7jax.config import Config
from s7jax.data.prepared import TOKENIZER
from s7jax.data.tokenizer import Tokenizer
from s7jax.errors import InputError
from s7jax.hub.export import CODE, FACTS, FORMAT, VERSION, WEIGHTS, refuse_existing
from s7jax.model import parameters
from s7jax.model.language_model import Params
from s7jax.s7l.publish import new_folder
from s7jax.s7l.schema import read_json
from s7jax.storage import write_json
from s7jax.train import checkpoint
from s7jax.train.finished import check_chain, tables
from s7jax.train.folder import RunFolder


def is_exported(folder: Path) -> bool:
    """Whether a folder looks like one for transformers, whole or not."""
    return any((folder / name).exists() for name in (WEIGHTS, FACTS, CODE))


def restore(folder: Path, out: Path) -> dict[str, str]:
    """Make a run of an exported folder: configuration, final checkpoints, vocabulary, report.

    Returns:
        SHA-256 of the parameters of each phase, as its training ended.

    Raises:
        InputError: not such a folder, its tensors or its tokenizer are not those of its records,
            or ``out`` exists.
        OSError: the folder of ``out`` cannot be written.
    """
    refuse_existing(out)
    config, records, evaluation = _facts(folder / FACTS)
    phases = _parameters(folder / WEIGHTS, config)
    found = {name: parameters.digest(phases[name]) for name in sorted(phases)}
    for name, sha256 in found.items():
        if sha256 != records[name]["params_sha256"]:
            raise InputError(
                f"{folder / WEIGHTS}: {name} has SHA-256 {sha256}, {FACTS} says "
                f"{records[name]['params_sha256']}: the weights were changed after the export"
            )
    tokenizer = Tokenizer.load(folder / TOKENIZER)
    if tokenizer.digest != records["trunk"]["inputs"]["tokenizer_sha256"]:
        raise InputError(f"{folder / TOKENIZER}: not the tokenizer that {FACTS} names")
    out.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(out) as filled:
        run = RunFolder(filled)
        write_json(run.config_file, {"config": config.to_json(), "data": None, "prepared": None})
        run.model.mkdir()
        write_json(run.vocab, tokenizer.to_vocabulary())
        if evaluation is not None:
            write_json(run.evaluation, evaluation)
        for name, params in phases.items():
            checkpoint.save_final(run.final(name), params, records[name])
    return found


def _facts(path: Path) -> tuple[Config, dict[str, dict[str, Any]], Any]:
    """Configuration, records by phase and held-out report of an export."""
    if not path.exists():
        raise InputError(
            f"{path} is not there: only folders that s7jax exported can be taken back "
            f"(saved again by transformers? copy {path.name} from the export)"
        )
    tree = read_json(path)
    try:
        if (tree["format"], tree["version"]) != (FORMAT, VERSION):
            raise ValueError(f"expected format {FORMAT!r}, version {VERSION}")
        records = tree["records"]
        config = Config.from_json(records["router"]["config"])
        experts = [f"expert{e}" for e in range(len(config.domains))]
        if sorted(records) != sorted(["trunk", "router", *experts]):
            raise ValueError(f"records of {', '.join(sorted(records))}")
        check_chain(records, dict.fromkeys(records, path))
        for name, record in records.items():
            if record["inputs"]["config_sha256"] != config.phase_digest(name):
                raise ValueError(f"{name} was trained with another configuration than it is with")
        if (evaluation := tree["evaluation"]) is not None and "quality" not in dict(evaluation):
            raise ValueError("evaluation without quality")
        return config, records, evaluation
    except KeyError as e:
        raise InputError(f"{path}: not what s7jax writes: {e} is missing") from e
    except (TypeError, ValueError) as e:
        raise InputError(f"{path}: not what s7jax writes: {e}") from e


def _parameters(path: Path, config: Config) -> dict[str, Params]:
    """What each final checkpoint held, from one file."""
    if not path.is_file():
        raise InputError(f"{path} is not there: expected every tensor in this one file")
    phases = {
        phase: {phase: table} if phase.startswith("expert") else table
        for phase, table in tables(config).items()
    }
    every = {name: table for own in phases.values() for name, table in own.items()}
    shapes = {name: leaf.shape for name, leaf in parameters.named_tensors(every)}
    try:
        params = parameters.from_named(every, s7l.read_safetensors(path, shapes))
    except s7l.SealError as e:
        named = e.place.startswith(str(path))
        raise InputError(str(e) if named else f"{path}: {e}") from e
    return {
        phase: params[phase] if phase.startswith("expert") else {name: params[name] for name in own}
        for phase, own in phases.items()
    }
