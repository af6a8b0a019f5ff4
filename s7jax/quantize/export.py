"""Phase 3, first half: final checkpoints in, integer weights and sealed vocabulary out."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from s7jax import s7l
from s7jax.config import Config
from s7jax.data.mixture import held_out
from s7jax.data.prepared import Prepared
from s7jax.errors import InputError, UsageError
from s7jax.fields import plain
from s7jax.mesh import single
from s7jax.model import parameters
from s7jax.model.language_model import Params
from s7jax.quantize.calibrate import Ranges, calibrate
from s7jax.quantize.rounding import round_tensor
from s7jax.quantize.smoothing import group_of, smoothed
from s7jax.storage import write_json
from s7jax.terminal.progress import Progress
from s7jax.train import checkpoint
from s7jax.train.phase import TRUNK

IntegerTensor = tuple[str, NDArray[Any], dict[str, Any]]  # sealed name, values, attributes


def export(
    trunk: Path,
    experts: list[Path],
    router: Path,
    prepared: Path,
    out: Path,
    quality: dict[str, Any] | None = None,
    mesh: Mesh | None = None,
) -> int:
    """Quantise a trained model: writes ``out`` (the weights folder) and ``out/../vocab.json``.

    Args:
        trunk: final checkpoint of Phase 1.
        experts: final checkpoints of Phase 2, in domain order.
        router: checkpoint of the fitted router.
        prepared: the tokenised data the model was trained with: its tokenizer is sealed, its
            held-out text calibrates.
        out: weights folder; replaced if it is there.
        quality: held-out report to be sealed with the weights, if there is one.
        mesh: the devices that calibrate; default: the first one alone.

    An export that was stopped while it calibrated resumes there: until the folder is written, the
    state of the calibration is kept in a hidden file beside it.

    Returns:
        The number of tensors written.

    Raises:
        UsageError: not one checkpoint per domain.
        InputError: a checkpoint is missing, damaged, or not of this trunk and tokenizer.
    """
    records = {"trunk": checkpoint.read_record(trunk), "router": checkpoint.read_record(router)}
    config = Config.from_json(records["router"]["config"])  # it knows every domain
    domains = config.model.domains
    if len(experts) != len(domains):
        raise UsageError(f"--experts: {len(experts)} given, expected {len(domains)}: {domains}")
    records |= {f"expert{e}": checkpoint.read_record(path) for e, path in enumerate(experts)}
    folders = {"trunk": trunk, "router": router}
    folders |= {f"expert{e}": path for e, path in enumerate(experts)}
    _check_chain(records, folders)
    data = Prepared.load(prepared)
    if data.tokenizer.digest != records["trunk"]["inputs"]["tokenizer_sha256"]:
        raise InputError(f"{prepared}: not the tokenizer that {trunk} was trained with")

    mesh, table = mesh or single(), parameters.table(config.model)
    params = checkpoint.restore_final(
        trunk, checkpoint.abstract({name: table[name] for name in TRUNK}, mesh)
    )
    for e, path in enumerate(experts):
        name = f"expert{e}"
        params[name] = checkpoint.restore_final(path, checkpoint.abstract(table[name], mesh))
    routers = checkpoint.restore_final(
        router,
        checkpoint.abstract({n: table["router"] for n in ("router", "nearest_centroid")}, mesh),
    )
    params["router"] = routers["router"]
    out.parent.mkdir(parents=True, exist_ok=True)
    saved = out.with_name(f".{out.name}.calibration.npz")
    added = [domain.name for domain in config.domains if not domain.share]
    ranges = calibrate(config.model, params, calibration_rows(config, data), saved, added)
    write_json(out.parent / "vocab.json", data.tokenizer.to_vocabulary())
    provenance = _provenance(config, records, quality)
    provenance |= {"calibration": {"sequences": ranges.sequences}}
    model = plain(config.model)
    with Progress("quantize", None, "tensors") as progress:
        tensors = _counted(integer_tensors(params, ranges), progress)
        count = s7l.write_weights(out, model, tensors, provenance)
    saved.unlink(missing_ok=True)
    return count


def integer_tensors(params: Params, ranges: Ranges) -> Iterator[IntegerTensor]:
    """Every parameter smoothed and rounded: sealed name, integers, attributes.

    A layer's tensors, or those of a component outside of layers, exist in float64 at a time.
    """
    for component in sorted(params):
        whole = parameters.host({component: params[component]})
        named = sorted(parameters.named_tensors(whole), key=lambda item: group_of(item[0]))
        for group, members in groupby(named, lambda item: group_of(item[0])):
            tensors = smoothed(group, members, ranges)
            for name, tensor in tensors.items():
                for rounded, (array, attributes) in round_tensor(name, tensor).items():
                    yield rounded, array, attributes


def _counted(tensors: Iterator[IntegerTensor], progress: Progress) -> Iterator[IntegerTensor]:
    for tensor in tensors:
        yield tensor
        progress.advance(1)


def calibration_rows(config: Config, data: Prepared) -> dict[str, NDArray[np.int32]]:
    """Held-out sequences of each domain, after those that evaluation reads, while they last.

    A domain with fewer gives what it has, the evaluation's too if there are no others.
    """
    rows = {}
    for domain in config.model.domains:
        every = held_out(data, domain, config.eval_sequences + config.calibration_sequences)
        fresh = every[config.eval_sequences :]
        rows[domain] = fresh if len(fresh) else every
        if len(rows[domain]) < config.calibration_sequences:
            print(
                f"calibrate: {domain} has {len(rows[domain])} held-out sequences "
                f"{'' if len(fresh) else 'in all '}for {config.calibration_sequences} wanted"
            )
    return rows


def _check_chain(records: dict[str, dict[str, Any]], folders: dict[str, Path]) -> None:
    """Every expert and the router must stand on this very trunk, at their own place."""
    trunk_sha256 = records["trunk"]["params_sha256"]
    for name, record in records.items():
        if record["phase"] != name:
            raise InputError(f"{folders[name]}: is {record['phase']}, expected {name}")
        if name != "trunk" and record["inputs"]["trunk_sha256"] != trunk_sha256:
            raise InputError(
                f"{folders[name]}: trained on trunk {record['inputs']['trunk_sha256']}, "
                f"not on {folders['trunk']} ({trunk_sha256})"
            )


def _provenance(
    config: Config, records: dict[str, dict[str, Any]], quality: dict[str, Any] | None
) -> dict[str, Any]:
    """The chain from data to seal; nothing in it depends on when or where this runs."""
    kept = (
        "inputs",
        "params_sha256",
        "step",
        "receipt",
        "environment",
        "transcript_sha256",
    )
    return {
        "config": config.to_json(),
        "config_sha256": config.digest(),
        "checkpoints": {
            name: {key: record[key] for key in kept if key in record}
            for name, record in sorted(records.items())
        },
        "quality": quality,
    }
