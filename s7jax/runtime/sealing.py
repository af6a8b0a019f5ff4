"""Sealing with known answers: the model is asked before its file is published."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from s7jax import s7l
from s7jax.runtime import answers
from s7jax.runtime.replay import by_specification
from s7jax.s7l.contract import OLD_SCHEME


def reseal(old: Path, out: Path, *, known_answers: bool = True) -> s7l.Sealed:
    """Seal the weights of a file of the older numeric scheme again; its root is the parent.

    Raises:
        SealError: ``old`` is damaged or not of that scheme, or ``out`` exists.
    """
    before = s7l.open(old, scheme=OLD_SCHEME)
    before.verify()
    with _beside(out, ".reseal-") as folder:
        exported, imported = folder / "model.safetensors", folder / "model"
        s7l.export_safetensors(before, exported)
        s7l.import_safetensors(exported, imported)
        seal_now = seal_with_answers if known_answers else s7l.seal
        return seal_now(imported / "weights", imported / "vocab.json", out, parent=before.root)


def seal_with_answers(
    weights: Path, vocabulary: Path, out: Path, parent: bytes | None = None
) -> s7l.Sealed:
    """Seal a weights folder with its transcript; arguments and errors as of :func:`s7l.seal`.

    The logits depend on weights and vocabulary alone, so the transcript of a seal without one
    holds for the seal with it.
    """
    with _beside(out, ".answers-") as folder:
        silent = folder / "model.s7l"
        s7l.seal(weights, vocabulary, silent)
        seal = s7l.open(silent)
        known = answers.answer(seal, by_specification(seal))
    return s7l.seal(weights, vocabulary, out, answers=known, parent=parent)


@contextmanager
def _beside(out: Path, prefix: str) -> Iterator[Path]:
    """A temporary folder in that of ``out``."""
    if not out.parent.is_dir():
        raise s7l.SealError(str(out.parent), "no such folder")
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=prefix) as folder:
        yield Path(folder)
