"""A run opened for work, and what its phases leave: checked inputs, final checkpoints."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from jax.sharding import Mesh

from s7jax.config import Config
from s7jax.data.mixture import TrainingBatches
from s7jax.data.prepared import Prepared
from s7jax.errors import InputError
from s7jax.model import parameters
from s7jax.model.language_model import Params
from s7jax.train import checkpoint
from s7jax.train.folder import RunFolder
from s7jax.train.options import Options
from s7jax.train.phase import TRUNK, Phase


@dataclass(frozen=True)
class Run:
    """A run opened for work: its folder, configuration and data, and the meshes to work on.

    Attributes:
        groups: the mesh to train on, if not those: one data group for each core of a machine
            without accelerators, unless a mesh was named. It trains the same bits; what follows
            training would not be the same in its last bits.
    """

    folder: RunFolder
    config: Config
    prepared: Prepared
    pools: tuple[Mesh, ...]
    options: Options = field(default_factory=Options)
    groups: Mesh | None = None

    @property
    def mesh(self) -> Mesh:
        """The mesh of everything that is not spread over pools."""
        return self.pools[0]

    def to_train(self) -> Self:
        """The same on the mesh to train on."""
        return self if self.groups is None else dataclasses.replace(self, pools=(self.groups,))

    def on_pool(self, index: int) -> Self:
        """The same, on one pool alone."""
        return dataclasses.replace(self, pools=(self.pools[index % len(self.pools)],))


def batches(prepared: Prepared, phase: Phase) -> TrainingBatches:
    """A phase's training data."""
    return TrainingBatches(
        prepared,
        shares=phase.shares,
        batch=phase.recipe.batch,
        seed=phase.config.seed,
        first=phase.first,
    )


def load_trunk(run: Run) -> Params:
    """Embedding and trunk as Phase 1 left them, verified, on the mesh.

    Raises:
        InputError: Phase 1 has not ended, or its checkpoint is damaged.
    """
    folder = run.folder.final("trunk")
    if not folder.is_dir():
        raise InputError(f"{folder} is not there: run `s7jax trunk` first")
    table = parameters.table(run.config.model)
    like = parameters.abstract({name: table[name] for name in TRUNK}, run.mesh)
    return checkpoint.restore_final(folder, like)


def load_expert(run: Run, index: int) -> Params:
    """One expert as Phase 2 left it, verified, on the mesh.

    Raises:
        InputError: its Phase 2 has not ended, or its checkpoint is damaged.
    """
    folder = run.folder.final(f"expert{index}")
    if not folder.is_dir():
        domain = run.config.domains[index].name
        raise InputError(f"{folder} is not there: run `s7jax experts --domain {domain}` first")
    table = parameters.table(run.config.model)[f"expert{index}"]
    return checkpoint.restore_final(folder, parameters.abstract(table, run.mesh))


def inputs_record(run: Run, phase: str, trunk: Params | None) -> dict[str, str | int | None]:
    """Digests of everything that decides the bytes a phase ends with, beside the mesh.

    They cover what decides that phase and nothing else: what belongs to other experts may change.
    """
    first: dict[str, str | int | None] = {}
    if phase == "router":
        domains = run.config.model.domains
    else:
        expert = None if phase == "trunk" else int(phase.removeprefix("expert"))
        trained = Phase(run.config, expert)
        domains = tuple(trained.shares)
        if expert is not None:
            first = {"first_sequence": trained.first}
    return first | {
        "config_sha256": run.config.phase_digest(phase),
        "data_sha256": run.prepared.digest_of(domains),
        "tokenizer_sha256": run.prepared.tokenizer.digest,
        "trunk_sha256": parameters.digest(trunk) if trunk else None,
    }


def finished(folder: Path, inputs: dict[str, Any]) -> str | None:
    """SHA-256 of a final checkpoint that was made from these inputs; None if there is none.

    Raises:
        InputError: there is one, made from something else.
    """
    if not folder.is_dir():
        return None
    record = checkpoint.read_record(folder)
    same_inputs(folder, record, inputs)
    return str(record.get("params_sha256"))


def same_inputs(where: Path, record: dict[str, Any], inputs: dict[str, Any]) -> None:
    """Refuse a checkpoint that was made from something else.

    Raises:
        InputError: naming the first input that differs.
    """
    for name, wanted in inputs.items():
        if (found := record.get("inputs", {}).get(name)) != wanted:
            raise InputError(
                f"{where} was made with {name} {found}, now it is {wanted}: "
                "remove it to make it again, or choose another --run"
            )
