"""Where a sealed model says it comes from: the chain sealed with it, checked for its form."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from s7jax.config import Config
from s7jax.data.tokenizer import Tokenizer
from s7jax.errors import UsageError, show
from s7jax.s7l import Seal, SealError
from s7jax.s7l.schema import text
from s7jax.train.phase import phase_of, phases

_SHA256 = "[0-9a-f]{64}"


@dataclass(frozen=True)
class Made:
    """A final checkpoint as it was sealed; digests in hexadecimal.

    Attributes:
        recipe: of what decides its bytes in the configuration.
        data: of the prepared text of its domains.
        tokenizer: of the vocabulary its data were tokenised with.
        trunk: of the frozen trunk it stands on; None for the trunk itself.
        params: of its parameters.
        transcript: root of the transcript of its training, where one was kept.
        environment: what it was trained on, as it was recorded.
    """

    recipe: str
    data: str
    tokenizer: str
    trunk: str | None
    params: str
    transcript: str | None
    environment: Mapping[str, Any]


@dataclass(frozen=True)
class Origin:
    """The sealed chain: a configuration and the final checkpoints, trunk and experts first."""

    seal: Seal
    config: Config
    config_sha256: str
    made: Mapping[str, Made]

    @classmethod
    def of(cls, seal: Seal, path: Path) -> Self:
        """The chain of an open seal; that it holds is for :mod:`s7jax.runs.lineage` to say.

        Raises:
            SealError: it was sealed without one, or with one of another form.
        """
        tree, place = dict(seal.manifest.provenance), f"{path}: provenance "
        if missing := [k for k in ("config", "config_sha256", "checkpoints") if k not in tree]:
            raise SealError(
                f"{place}.{missing[0]}",
                "missing: the weights were sealed without a record of their training",
            )
        try:
            config = Config.from_json(tree["config"])
        except UsageError as e:
            raise SealError(f"{place}.config", str(e)) from None
        if config.model != seal.manifest.dimensions:
            raise SealError(f"{place}.config.model", "not the architecture that is sealed")
        found, place = _map(tree["checkpoints"], f"{place}.checkpoints"), f"{place}.checkpoints"
        names = [*(phase.name for phase in phases(config)), "router"]
        if set(found) != set(names):
            raise SealError(place, f"found {show(found)}; expected {', '.join(names)}")
        made = {name: _made(found[name], f"{place}.{name}", name == "trunk") for name in names}
        sha256 = text(tree["config_sha256"], _SHA256, f"{path}: provenance .config_sha256")
        return cls(seal, config, sha256, made)

    @property
    def tree(self) -> Mapping[str, Any]:
        """The provenance as it is sealed, in plain JSON types."""
        return self.seal.manifest.provenance

    @property
    def vocabulary_sha256(self) -> str:
        """Of the sealed vocabulary, as a tokenizer."""
        return Tokenizer.from_vocabulary(self.seal.vocabulary.file_tree()).digest

    def domains(self, name: str) -> tuple[str, ...]:
        """The domains whose text decided a checkpoint."""
        if name == "router":
            return self.config.model.domains
        return tuple(phase_of(self.config, name).shares)


def _made(tree: Any, place: str, first: bool) -> Made:
    record = _map(tree, place)
    inputs = _map(record.get("inputs"), f"{place}.inputs")

    def sha256(name: str) -> str:
        return text(inputs.get(name), _SHA256, f"{place}.inputs.{name}")

    transcript = record.get("transcript_sha256")
    return Made(
        recipe=sha256("config_sha256"),
        data=sha256("data_sha256"),
        tokenizer=sha256("tokenizer_sha256"),
        trunk=None if first else sha256("trunk_sha256"),
        params=text(record.get("params_sha256"), _SHA256, f"{place}.params_sha256"),
        transcript=transcript
        if transcript is None
        else text(transcript, _SHA256, f"{place}.transcript_sha256"),
        environment=_map(record.get("environment", {}), f"{place}.environment"),
    )


def _map(tree: Any, place: str) -> dict[str, Any]:
    if not isinstance(tree, dict):
        raise SealError(place, f"found {show(tree)}; expected a map")
    return tree
