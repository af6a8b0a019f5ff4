"""What a checkpoint was made on and from, and whether that still holds.

Inputs (configuration, data, tokenizer, frozen trunk) decide the bytes: others are refused
(:func:`s7jax.train.run.same_inputs`). The environment (compiled programs, versions, device
kind, model axis) can change the last bits: a change is a warning.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from s7jax.config import Config
from s7jax.data.mixture import Receipt, prefetch
from s7jax.data.prepared import Prepared
from s7jax.errors import InputError
from s7jax.mesh import MODEL
from s7jax.terminal.processes import say
from s7jax.terminal.progress import Progress
from s7jax.train.checkpoint import read_record
from s7jax.train.phase import phase_of
from s7jax.train.run import batches


def environment(mesh: Mesh, program_sha256: str) -> dict[str, Any]:
    """What equal bits also depend on while training; the number of data groups is not in it."""
    versions = {name: version(name) for name in ("jax", "jaxlib", "flax", "optax")}
    return {
        "device": mesh.devices.flat[0].device_kind,
        "model_axis": mesh.shape[MODEL],
        "stablehlo_sha256": program_sha256,
        **versions,
    }


def warn_of_changes(name: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Say what is not as it was when a checkpoint was made."""
    for key, value in now.items():
        if before.get(key) != value:
            say(
                f"{name}: warning: {key} was {before.get(key)}, is {value}: the weights may "
                "differ in bits from those of an undisturbed run"
            )


def verify_data(checkpoint: Path, prepared_at: Path | None = None) -> Receipt:
    """Draw all batches up to a checkpoint again; returns their receipt, equal to the record's.

    Args:
        checkpoint: its folder, of a step or final.
        prepared_at: the prepared data; by default those of the run the checkpoint lies in.

    Raises:
        InputError: other data, or other batches, than the record vouches for.
    """
    record = read_record(checkpoint)
    prepared = Prepared.load(prepared_at or _prepared_for(checkpoint))
    inputs, config = record["inputs"], Config.from_json(record["config"])
    phase = phase_of(config, record["phase"])
    if (found := prepared.digest_of(tuple(phase.shares))) != inputs["data_sha256"]:
        raise InputError(
            f"{prepared.path}: data {found}, the checkpoint was made with {inputs['data_sha256']}"
        )
    data = batches(prepared, phase)
    receipt = Receipt.start(len(config.model.domains))
    with Progress("data", record["step"], "steps") as progress:
        for batch in prefetch(data.batch, 0, record["step"]):
            receipt = receipt.extend(batch)
            progress.advance(1)
    if receipt != (promised := Receipt.from_json(record["receipt"])):
        raise InputError(
            f"{checkpoint}: after {record['step']} steps: {json.dumps(receipt.to_json())}, "
            f"the checkpoint says {json.dumps(promised.to_json())}"
        )
    return receipt


def _prepared_for(checkpoint: Path) -> Path:
    """The prepared data of the run a checkpoint lies in.

    Raises:
        InputError: it lies in no run.
    """
    for folder in checkpoint.absolute().parents:
        if (file := folder / "config.json").exists():
            elsewhere = json.loads(file.read_text())["prepared"]
            return Path(elsewhere) if elsewhere else folder / "data"
    raise InputError(f"{checkpoint}: lies in no run folder; name the data with --prepared DIR")
