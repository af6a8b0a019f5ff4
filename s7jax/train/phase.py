"""The phases of training: what each trains, on what, from which inputs, and where it ends.

Phase 1 is ``trunk``; Phase 2 is ``expert0`` … ``expert3``, each independent of the others.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from jax.sharding import Mesh

from s7jax.config import Config, RecipeConfig
from s7jax.data.mixture import TrainingBatches
from s7jax.data.prepared import Prepared
from s7jax.errors import InputError
from s7jax.model import parameters
from s7jax.model.language_model import Params
from s7jax.train import checkpoint
from s7jax.train.folder import Run
from s7jax.train.options import Options
from s7jax.train.step import Loss, expert_loss, trunk_loss

TRUNK = ("embedding", "trunk")  # the components Phase 1 trains and Phase 2 freezes


@dataclass(frozen=True)
class Experiment:
    """A run opened for work: its folder, configuration and data, and the meshes to work on."""

    run: Run
    config: Config
    prepared: Prepared
    pools: tuple[Mesh, ...]
    options: Options = field(default_factory=Options)

    @property
    def mesh(self) -> Mesh:
        """The mesh of everything that is not spread over pools."""
        return self.pools[0]

    def on_pool(self, index: int) -> Self:
        """The same, on one pool alone."""
        return dataclasses.replace(self, pools=(self.pools[index % len(self.pools)],))

    def final_folder(self, name: str) -> Path:
        """Where a phase's final checkpoint is."""
        return self.run.checkpoints / f"{name}_final"


@dataclass(frozen=True)
class Phase:
    """What one phase trains, on what, for how long."""

    name: str
    recipe: RecipeConfig
    loss: Loss
    steps: int
    tokens_a_step: int
    domain: str | None  # None: the mixture

    def batches(self, prepared: Prepared, config: Config) -> TrainingBatches:
        """The phase's training data."""
        mixture: Any = config.mixture if self.domain is None else self.domain
        return TrainingBatches(prepared, mixture=mixture, batch=self.recipe.batch, seed=config.seed)


def trunk_phase(config: Config) -> Phase:
    """Phase 1."""
    steps = config.trunk.steps(config.model.context)
    tokens = config.trunk.batch * config.model.context
    return Phase("trunk", config.trunk, trunk_loss, steps, tokens, None)


def expert_phase(config: Config, index: int) -> Phase:
    """Phase 2 of one expert."""
    steps = config.experts.steps(config.model.context, index)
    domain = config.model.domains[index]
    tokens = config.experts.batch * config.model.context
    return Phase(f"expert{index}", config.experts, expert_loss, steps, tokens, domain)


def phase_of(config: Config, name: str) -> Phase:
    """The phase called so.

    Raises:
        InputError: nothing is trained under that name.
    """
    experts = {f"expert{e}": e for e in range(len(config.model.domains))}
    if name == "trunk":
        return trunk_phase(config)
    if name not in experts:
        raise InputError(f"{name!r} sees no training data step by step")
    return expert_phase(config, experts[name])


def load_trunk(x: Experiment) -> Params:
    """Embedding and trunk as Phase 1 left them, verified, on the mesh.

    Raises:
        InputError: Phase 1 has not ended, or its checkpoint is damaged.
    """
    folder = x.final_folder("trunk")
    if not folder.is_dir():
        raise InputError(f"{folder} is not there: run `python experiments/trunk.py` first")
    table = parameters.table(x.config.model)
    like = checkpoint.abstract({name: table[name] for name in TRUNK}, x.mesh)
    return checkpoint.restore_final(folder, like)


def load_expert(x: Experiment, index: int) -> Params:
    """One expert as Phase 2 left it, verified, on the mesh.

    Raises:
        InputError: its Phase 2 has not ended, or its checkpoint is damaged.
    """
    folder = x.final_folder(f"expert{index}")
    if not folder.is_dir():
        domain = x.config.model.domains[index]
        raise InputError(
            f"{folder} is not there: run `python experiments/experts.py --domain {domain}` first"
        )
    like = checkpoint.abstract(parameters.table(x.config.model)[f"expert{index}"], x.mesh)
    return checkpoint.restore_final(folder, like)


def inputs_record(x: Experiment, trunk: Params | None) -> dict[str, str | None]:
    """Digests of everything that decides the bytes a phase ends with, beside the mesh."""
    return {
        "config_sha256": x.config.digest(),
        "data_sha256": x.prepared.digest,
        "tokenizer_sha256": x.prepared.tokenizer.digest,
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
    return str(record["params_sha256"])


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
