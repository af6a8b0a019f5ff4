"""A run's folder: what stands where in it."""

from dataclasses import dataclass
from pathlib import Path

from s7jax.errors import UsageError


@dataclass(frozen=True)
class Run:
    """One folder under ``runs/``."""

    path: Path

    @property
    def weights(self) -> Path:
        """Folder of the quantised weights."""
        return self.path / "model" / "weights"

    @property
    def vocab(self) -> Path:
        """The vocabulary to be sealed."""
        return self.path / "model" / "vocab.json"

    @property
    def sealed(self) -> Path:
        """The sealed model."""
        return self.path / "model" / "moe.s7l"


def newest_run(root: Path = Path("runs")) -> Run:
    """The run whose ``config.json`` is the newest.

    Raises:
        UsageError: there is none.
    """
    configs = list(root.glob("*/config.json"))
    if not configs:
        raise UsageError(f"no run under {root}/; start one: python experiments/pipeline.py")
    return Run(max(configs, key=lambda path: path.stat().st_mtime_ns).parent)
