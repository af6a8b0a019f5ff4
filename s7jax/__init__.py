"""s7jax: train small domain-expert language models reproducibly, seal them, verify them, run them.

::

    import s7jax

    with s7jax.open("model.s7l") as model:
        for piece in model.generate("def main():", max_new_tokens=64):
            print(piece, end="")

Importing this package imports nothing heavy: every room is imported by name, and
``s7jax.s7l`` (the sealed file) works without JAX.
"""

from __future__ import annotations  # so that any Python 3 can say that it is too old

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s7jax.runtime import Model

__version__ = "0.1.0"


def open(path: Path | str, **options: Any) -> Model:
    """Open a sealed model to run; see :func:`s7jax.runtime.model.open`."""
    from s7jax import runtime  # noqa: PLC0415 JAX is for those who run models

    return runtime.open(path, **options)
