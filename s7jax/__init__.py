"""s7jax: train small domain-expert language models reproducibly, seal them, verify them, run them.

```python
import s7jax

run = s7jax.pretrain("mine", preset="s7-nano", tokens="200k", expert_tokens="60k")
run.plot()
with s7jax.open(run.seal()) as model:
    for piece in model.generate("def main():", max_new_tokens=64):
        print(piece, end="")
```

Importing this package imports nothing heavy: every module is imported by name, and
``s7jax.s7l`` (the sealed file) works without JAX.
"""

from __future__ import annotations  # so that any Python 3 can say that it is too old

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s7jax.data.prepared import Prepared
    from s7jax.runs.notebook import TrainedRun
    from s7jax.runtime import Model

__version__ = "0.1.0"


def prepare(out: Path | str, *, preset: str, **options: Any) -> Prepared:
    """Turn text into training data; see :func:`s7jax.runs.notebook.prepare`."""
    from s7jax.runs import notebook  # noqa: PLC0415 JAX is for those who train or run models

    return notebook.prepare(out, preset=preset, **options)


def pretrain(run: Path | str, **options: Any) -> TrainedRun:
    """Train a run, or go on with one; see :func:`s7jax.runs.notebook.pretrain`."""
    from s7jax.runs import notebook  # noqa: PLC0415

    return notebook.pretrain(run, **options)


def open(path: Path | str, **options: Any) -> Model:
    """Open a sealed model to run; see :func:`s7jax.runtime.model.open`."""
    from s7jax import runtime  # noqa: PLC0415

    return runtime.open(path, **options)
