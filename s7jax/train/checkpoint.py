"""Checkpoints: Orbax trees with a JSON record beside them.

Every checkpoint has two items: ``params`` (final) or ``state`` (resumable), and ``record``:
configuration, digests of everything that went in, and for final ones the SHA-256 over the
parameters. Saves are atomic (Orbax writes beside and renames) and, while training,
asynchronous.
"""

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from s7jax.digests import named_digest, tensor_digests
from s7jax.errors import InputError
from s7jax.model import parameters
from s7jax.model.language_model import Params

# Orbax numbers its saves process-wide and reads the number back while it starts one: experts
# trained side by side start theirs one after another.
_SAVING = threading.Lock()


@contextmanager
def manager(
    folder: Path, keep: int = 2, keep_period: int | None = None
) -> Iterator[ocp.CheckpointManager]:
    """Resumable checkpoints of one phase, by step.

    The newest ``keep`` stay, and for good those at multiples of ``keep_period`` steps.
    """
    made = ocp.CheckpointManager(
        folder.resolve(),
        item_names=("state", "record"),
        options=ocp.CheckpointManagerOptions(
            max_to_keep=keep, keep_period=keep_period, cleanup_tmp_directories=True
        ),
    )
    _one_message()
    try:
        try:
            yield made
        finally:
            wait(made)  # also where a signal ends the process: what it saved may have failed
    finally:
        made.close()


@cache
def _one_message() -> None:
    """Of a save that fails one exception is raised: what its threads print besides is left out."""

    def others(record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR or "orbax" not in record.pathname

    def unless_closed(ignored: "sys.UnraisableHookArgs") -> None:
        # Writes that nobody awaits any more, when another had failed.
        if str(ignored.exc_value) != "Event loop is closed":
            before(ignored)

    before = sys.unraisablehook
    logging.getLogger("absl").addFilter(others)
    sys.unraisablehook = unless_closed


def wait(saves: ocp.CheckpointManager) -> None:
    """Wait for a save in the background.

    Raises:
        InputError: it failed.
    """
    _saved(Path(saves.directory), saves.wait_until_finished)


def _saved(where: Path, save: Callable[[], Any]) -> None:
    try:
        save()
    except Exception as e:  # whatever the libraries below make of a full disk
        logging.getLogger("asyncio").disabled = True  # of other writes, which nobody awaits
        problem = str(e).strip().partition("\n")[0]
        raise InputError(
            f"{where}: a checkpoint could not be saved: {problem or repr(e)}; those that "
            "were there still are, and the same command resumes from the newest"
        ) from e


def save_step(saves: ocp.CheckpointManager, step: int, state: Any, record: dict[str, Any]) -> None:
    """Save a training state in the background, with its SHA-256 in the record.

    Raises:
        InputError: it cannot be saved, or the one before could not.
    """
    args = ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        record=ocp.args.JsonSave(record | {"state_sha256": state_sha256(state)}),
    )
    with _SAVING:
        _saved(Path(saves.directory), lambda: saves.save(step, args=args))


def restore_step(saves: ocp.CheckpointManager, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
    """The training state of a step, laid out as ``like`` is, and its record.

    Raises:
        InputError: missing, truncated, foreign, or not the bytes its record promises; an older
            one is never taken unasked.
    """
    where = f"{saves.directory}/{step}"
    older = [str(other) for other in saves.all_steps() if other < step]
    advice = f"--resume-from {older[-1]} resumes from the one before" if older else "start anew"
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    wanted = ocp.args.Composite(
        state=ocp.args.StandardRestore(abstract), record=ocp.args.JsonRestore()
    )
    restored = readable(where, lambda: saves.restore(step, args=wanted), f"; {advice}")
    state, record = restored["state"], dict(restored["record"])
    found = state_sha256(state)
    if found != record.get("state_sha256"):
        raise InputError(
            f"{where}: the state has SHA-256 {found}, its record says "
            f"{record.get('state_sha256')}: the checkpoint is damaged; {advice}"
        )
    return state, record


def remove_after(saves: ocp.CheckpointManager, step: int) -> None:
    """Remove the checkpoints of later steps."""
    for later in [other for other in saves.all_steps() if other > step]:
        saves.delete(later)


def state_sha256(state: Any) -> str:
    """SHA-256 of a training state: names, types, shapes and bytes of all that is in it."""
    leaves = jax.tree_util.tree_leaves_with_path(parameters.host(state))
    return named_digest((jax.tree_util.keystr(path), leaf) for path, leaf in leaves)


def tensor_sha256(tree: Any) -> dict[str, bytes]:
    """SHA-256 of each array of a training state, or of a gradient, by its path in the tree."""
    leaves = jax.tree_util.tree_leaves_with_path(parameters.host(tree))
    names = (jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves)
    return tensor_digests(zip(names, (leaf for _, leaf in leaves), strict=True))


def save_final(folder: Path, params: Params, record: dict[str, Any]) -> str:
    """Save the parameters a phase ends with; returns their SHA-256, which the record also gets.

    Raises:
        InputError: they cannot be saved.
    """
    sha256 = parameters.digest(params)
    args = ocp.args.Composite(
        params=ocp.args.StandardSave(params),
        record=ocp.args.JsonSave(record | {"params_sha256": sha256}),
    )
    _one_message()
    with _SAVING, _checkpointer() as writer:
        _saved(folder, lambda: writer.save(folder.resolve(), args=args))
    return sha256


def read_record(folder: Path) -> dict[str, Any]:
    """The JSON record of a checkpoint.

    Raises:
        InputError: not such a checkpoint.
    """
    if not (folder / "record").is_dir():
        raise InputError(f"{folder}: not a checkpoint of s7jax (no record)")
    record = ocp.args.Composite(record=ocp.args.JsonRestore())
    found: dict[str, Any] = readable(
        f"{folder}/record", lambda: dict(_restore(folder, record)["record"])
    )
    return found


def restore_final(folder: Path, like: Params) -> Params:
    """The parameters of a final checkpoint, laid out as ``like`` (arrays or abstract values) says.

    Raises:
        InputError: missing, truncated, of another shape, or not the bytes the record promises.
    """
    record = read_record(folder)
    wanted = ocp.args.Composite(params=ocp.args.StandardRestore(like))
    params = readable(f"{folder}/params", lambda: _restore(folder, wanted))["params"]
    found, promised = parameters.digest(params), record.get("params_sha256")
    if found != promised:
        raise InputError(
            f"{folder}: parameters have SHA-256 {found}, the record says {promised}; "
            "the checkpoint is damaged: remove it and train the phase again"
        )
    return params


def readable(where: Path | str, read: Callable[[], Any], advice: str = "") -> Any:
    """What ``read`` gives, whatever a damaged file makes the library raise.

    Raises:
        InputError: naming the place.
    """
    # Where one tensor is damaged the reads of others fail too, unawaited, and asyncio would
    # log a traceback for each, when it likes: after a failure it stays silent.
    log = logging.getLogger("asyncio")
    log.disabled = True
    try:
        result = read()
    except Exception as e:
        problem = str(e).partition("\n")[0][:300]
    else:
        log.disabled = False
        return result
    raise InputError(f"{where}: unreadable: {problem}{advice}")


def _restore(folder: Path, wanted: ocp.args.Composite) -> Any:
    with _checkpointer() as reader:
        return reader.restore(folder.resolve(), args=wanted)


def _checkpointer() -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler())
