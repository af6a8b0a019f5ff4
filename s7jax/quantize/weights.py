"""The weights folder: what quantisation writes and sealing reads.

One ``.npy`` per tensor and a ``manifest.json`` with each tensor's dtype, shape, SHA-256 and
quantisation attributes, the model's dimensions and the provenance of the weights.
"""

import dataclasses
import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from s7jax.architecture import Architecture
from s7jax.model.language_model import Params
from s7jax.model.parameters import host, named_tensors
from s7jax.quantize.calibrate import Ranges
from s7jax.quantize.rounding import METHOD, quantize_tensor
from s7jax.quantize.smoothing import fold
from s7jax.storage import write_json
from s7jax.terminal.progress import Progress


def write(
    out: Path, cfg: Architecture, params: Params, ranges: Ranges, provenance: dict[str, Any]
) -> int:
    """Fold, quantise and write every parameter, replacing a folder that is there.

    The folder appears complete or not at all. Its bytes are a pure function of the arguments.

    Returns:
        The number of tensors written.
    """
    tensors: dict[str, dict[str, Any]] = {}
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    folded = fold(cfg, dict(named_tensors(host(params))), ranges)
    with Progress("quantize", len(folded), "tensors") as progress:
        for name, tensor in folded.items():
            for out_name, (array, attributes) in quantize_tensor(name, tensor).items():
                little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
                np.save(unfinished / f"{out_name}.npy", little, allow_pickle=False)
                tensors[out_name] = {
                    "dtype": array.dtype.name,
                    "shape": list(array.shape),
                    "sha256": hashlib.sha256(little.tobytes()).hexdigest(),
                    **attributes,
                }
            progress.advance(1)
    manifest = {
        "format": "s7-weights",
        "version": 1,
        "method": METHOD,
        "model": dataclasses.asdict(cfg),
        "tensors": {name: tensors[name] for name in sorted(tensors)},
        "provenance": provenance | {"calibration": {"sequences": ranges.sequences}},
    }
    write_json(unfinished / "manifest.json", manifest)
    if out.exists():
        shutil.rmtree(out)
    unfinished.rename(out)
    return len(tensors)
