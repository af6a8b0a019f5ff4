"""Phase 3, first half: final checkpoints in, integer weights and sealed vocabulary out."""

from collections.abc import Iterator, Mapping
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
from s7jax.errors import InputError
from s7jax.fields import plain
from s7jax.mesh import single
from s7jax.model import parameters
from s7jax.model.language_model import Params
from s7jax.quantize.calibrate import Ranges, calibrate
from s7jax.quantize.rounding import round_tensor
from s7jax.quantize.smoothing import group_of, smoothed
from s7jax.storage import write_json
from s7jax.terminal.progress import Progress
from s7jax.train.finished import Finished

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
    model = Finished.open(trunk, experts, router)
    config = model.config
    data = Prepared.load(prepared)
    if data.tokenizer.digest != model.tokenizer_sha256:
        raise InputError(f"{prepared}: not the tokenizer that {trunk} was trained with")
    params = model.load(mesh or single())
    del params["nearest_centroid"]
    out.parent.mkdir(parents=True, exist_ok=True)
    saved = out.with_name(f".{out.name}.calibration.npz")
    added = [domain.name for domain in config.domains if not domain.share]
    ranges = calibrate(config.model, params, calibration_rows(config, data), saved, added)
    write_json(out.parent / "vocab.json", data.tokenizer.to_vocabulary())
    provenance = _provenance(config, model.records, quality)
    provenance |= {"calibration": {"sequences": ranges.sequences}}
    with Progress("quantize", None, "tensors") as progress:
        tensors = _counted(integer_tensors(params, ranges), progress)
        count = s7l.write_weights(out, plain(config.model), tensors, provenance)
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


def _provenance(
    config: Config, records: Mapping[str, dict[str, Any]], quality: dict[str, Any] | None
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
