"""Checkpoints: Orbax trees with a JSON record beside them.

Every checkpoint has two items: ``params`` (final) or ``state`` (resumable), and ``record``:
configuration, digests of everything that went in, and for final ones the SHA-256 over the
parameters. Saves are atomic (Orbax writes beside and renames) and, while training,
asynchronous.
"""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from s7jax.errors import InputError
from s7jax.model import parameters
from s7jax.model.model import Params


def manager(folder: Path, keep: int = 2) -> ocp.CheckpointManager:
    """Resumable checkpoints of one phase, by step; the newest ``keep`` stay."""
    return ocp.CheckpointManager(
        folder.resolve(),
        item_names=("state", "record"),
        options=ocp.CheckpointManagerOptions(max_to_keep=keep),
    )


def save_step(saves: ocp.CheckpointManager, step: int, state: Any, record: dict[str, Any]) -> None:
    """Save a training state in the background."""
    saves.save(
        step,
        args=ocp.args.Composite(
            state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)
        ),
    )


def restore_step(saves: ocp.CheckpointManager, like: Any) -> tuple[Any, dict[str, Any]]:
    """The newest training state, laid out as ``like`` is, and its record."""
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    restored = saves.restore(
        saves.latest_step(),
        args=ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), record=ocp.args.JsonRestore()
        ),
    )
    return restored["state"], restored["record"]


def save_final(folder: Path, params: Params, record: dict[str, Any]) -> str:
    """Save the parameters a phase ends with; returns their SHA-256, which the record also gets."""
    sha256 = parameters.digest(params)
    with _checkpointer() as writer:
        writer.save(
            folder.resolve(),
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params),
                record=ocp.args.JsonSave(record | {"params_sha256": sha256}),
            ),
        )
    return sha256


def read_record(folder: Path) -> dict[str, Any]:
    """The JSON record of a final checkpoint.

    Raises:
        InputError: not such a checkpoint.
    """
    if not (folder / "record").is_dir():
        raise InputError(f"{folder}: not a final checkpoint of s7jax (no record)")
    try:
        with _checkpointer() as reader:
            restored = reader.restore(
                folder.resolve(), args=ocp.args.Composite(record=ocp.args.JsonRestore())
            )
        return dict(restored["record"])
    except (ValueError, OSError, KeyError, TypeError) as e:
        raise InputError(f"{folder}/record: unreadable: {e}") from e


def restore_final(folder: Path, like: Params) -> Params:
    """The parameters of a final checkpoint, laid out as ``like`` (arrays or abstract values) says.

    Raises:
        InputError: missing, truncated, of another shape, or not the bytes the record promises.
    """
    record = read_record(folder)
    try:
        with _checkpointer() as reader:
            params = reader.restore(
                folder.resolve(),
                args=ocp.args.Composite(params=ocp.args.StandardRestore(like)),
            )["params"]
    except (ValueError, OSError, KeyError, TypeError) as e:
        raise InputError(f"{folder}/params: unreadable: {e}") from e
    found, promised = parameters.digest(params), record.get("params_sha256")
    if found != promised:
        raise InputError(
            f"{folder}: parameters have SHA-256 {found}, the record says {promised}; "
            "the checkpoint is damaged: remove it and train the phase again"
        )
    return params


def abstract(table: Params, mesh: jax.sharding.Mesh) -> Params:
    """What to restore: shapes and dtypes of the parameter table, sharded over a mesh."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        table,
        parameters.shardings(table, mesh),
    )


def _checkpointer() -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler())
