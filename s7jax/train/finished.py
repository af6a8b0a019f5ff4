"""A finished model: the final checkpoints of all phases, checked to belong together."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from jax.sharding import Mesh

from s7jax.config import Config
from s7jax.errors import InputError, UsageError
from s7jax.model import parameters
from s7jax.model.language_model import Params
from s7jax.train import checkpoint
from s7jax.train.phase import ROUTERS, TRUNK


@dataclass(frozen=True)
class Finished:
    """The checkpoints that a model is made of: folder and record of each phase, by its name."""

    folders: Mapping[str, Path]
    records: Mapping[str, dict[str, Any]]

    @classmethod
    def open(cls, trunk: Path, experts: list[Path], router: Path) -> Self:
        """Read the records of the final checkpoints, experts in domain order.

        Raises:
            UsageError: not one checkpoint per domain.
            InputError: one is missing, damaged, or not of this trunk.
        """
        folders = {"trunk": trunk, "router": router}
        records = {name: checkpoint.read_record(path) for name, path in folders.items()}
        domains = Config.from_json(records["router"]["config"]).model.domains
        if len(experts) != len(domains):
            raise UsageError(f"--experts: {len(experts)} given, expected {len(domains)}: {domains}")
        folders |= {f"expert{e}": path for e, path in enumerate(experts)}
        records |= {f"expert{e}": checkpoint.read_record(path) for e, path in enumerate(experts)}
        check_chain(records, folders)
        return cls(folders, records)

    @property
    def config(self) -> Config:
        """The configuration: the router's, which knows every domain."""
        return Config.from_json(self.records["router"]["config"])

    @property
    def tokenizer_sha256(self) -> str:
        """Of the tokenizer whose ids the model was trained on."""
        return str(self.records["trunk"]["inputs"]["tokenizer_sha256"])

    def load(self, mesh: Mesh) -> Params:
        """Every component, and ``nearest_centroid``, verified, on a mesh.

        Raises:
            InputError: a checkpoint is damaged.
        """
        params: Params = {}
        for name, table in tables(self.config).items():
            like = parameters.abstract(table, mesh)
            found = checkpoint.restore_final(self.folders[name], like)
            params |= {name: found} if name.startswith("expert") else found
        return params


def tables(config: Config) -> dict[str, Params]:
    """What each final checkpoint holds, by phase, as the parameter table describes it."""
    table = parameters.table(config.model)
    experts = {name: table[name] for name in table if name.startswith("expert")}
    return {
        "trunk": {name: table[name] for name in TRUNK},
        **experts,
        "router": dict.fromkeys(ROUTERS, table["router"]),
    }


def check_chain(records: Mapping[str, dict[str, Any]], where: Mapping[str, Path]) -> None:
    """Every expert and the router must stand on this very trunk, at their own place.

    Raises:
        InputError: one does not; it is named by where it lies.
    """
    trunk_sha256 = records["trunk"]["params_sha256"]
    for name, record in records.items():
        if record["phase"] != name:
            raise InputError(f"{where[name]}: is {record['phase']}, expected {name}")
        if name != "trunk" and record["inputs"]["trunk_sha256"] != trunk_sha256:
            raise InputError(
                f"{where[name]}: trained on trunk {record['inputs']['trunk_sha256']}, "
                f"not on {where['trunk']} ({trunk_sha256})"
            )
