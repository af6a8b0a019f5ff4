"""The phases of training: what each trains, on what, from which inputs, and where it ends.

Phase 1 is ``trunk``; Phase 2 is ``expert0`` … ``expert3``, each independent of the others.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from s7jax.config import Config, RecipeConfig
from s7jax.data.mixture import TrainingBatches
from s7jax.data.prepared import Prepared
from s7jax.errors import InputError
from s7jax.model import parameters
from s7jax.model.model import Params
from s7jax.run import Run
from s7jax.train import checkpoint
from s7jax.train.step import Loss, expert_loss, trunk_loss

TRUNK = ("embedding", "trunk")  # the components Phase 1 trains and Phase 2 freezes


@dataclass(frozen=True)
class Phase:
    """What one phase trains, on what, for how long."""

    name: str
    recipe: RecipeConfig
    loss: Loss
    steps: int
    domain: str | None  # None: the mixture

    def batches(self, config: Config, prepared: Prepared) -> TrainingBatches:
        """The phase's training data."""
        mixture: Any = config.mixture if self.domain is None else self.domain
        return TrainingBatches(prepared, mixture=mixture, batch=self.recipe.batch, seed=config.seed)


def trunk_phase(config: Config) -> Phase:
    """Phase 1."""
    steps = config.trunk.steps(config.model.context)
    return Phase("trunk", config.trunk, trunk_loss, steps, None)


def expert_phase(config: Config, index: int) -> Phase:
    """Phase 2 of one expert."""
    steps = config.experts.steps(config.model.context, index)
    domain = config.model.domains[index]
    return Phase(f"expert{index}", config.experts, expert_loss, steps, domain)


def final_folder(run: Run, name: str) -> Path:
    """Where a phase's final checkpoint is."""
    return run.checkpoints / f"{name}_final"


def load_trunk(run: Run, config: Config, mesh: Mesh) -> Params:
    """Embedding and trunk as Phase 1 left them, verified, on a mesh.

    Raises:
        InputError: Phase 1 has not ended, or its checkpoint is damaged.
    """
    folder = final_folder(run, "trunk")
    if not folder.is_dir():
        raise InputError(f"{folder} is not there: run `python experiments/trunk.py` first")
    table = parameters.table(config.model)
    like = checkpoint.abstract({name: table[name] for name in TRUNK}, mesh)
    return checkpoint.restore_final(folder, like)


def load_expert(run: Run, config: Config, index: int, mesh: Mesh) -> Params:
    """One expert as Phase 2 left it, verified, on a mesh.

    Raises:
        InputError: its Phase 2 has not ended, or its checkpoint is damaged.
    """
    folder = final_folder(run, f"expert{index}")
    if not folder.is_dir():
        domain = config.model.domains[index]
        raise InputError(
            f"{folder} is not there: run `python experiments/experts.py --domain {domain}` first"
        )
    like = checkpoint.abstract(parameters.table(config.model)[f"expert{index}"], mesh)
    return checkpoint.restore_final(folder, like)


def inputs_record(
    config: Config, prepared: Prepared, trunk: Params | None
) -> dict[str, str | None]:
    """Digests of everything that decides the bytes a phase ends with, beside the mesh."""
    return {
        "config_sha256": config.digest(),
        "data_sha256": prepared.digest,
        "tokenizer_sha256": prepared.tokenizer.digest,
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
