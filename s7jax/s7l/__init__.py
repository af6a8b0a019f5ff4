"""The sealed file ``.s7l``, version 3: write it once, verify it anywhere.

Needs NumPy and msgpack alone. ``docs/s7l.md`` describes every byte.
"""

from s7jax.s7l.bundle import Bundle, extract, is_bundle, open_bundle
from s7jax.s7l.field import Field
from s7jax.s7l.manifest import Manifest, Tensor
from s7jax.s7l.memory import Mode
from s7jax.s7l.reader import Seal, open
from s7jax.s7l.rules import Finding, Report, Verdict, check
from s7jax.s7l.safetensors import (
    export_safetensors,
    import_safetensors,
    read_safetensors,
    write_safetensors,
)
from s7jax.s7l.schema import SealError
from s7jax.s7l.signature import open_trusted
from s7jax.s7l.version2 import extract_version2, is_version2, read_version2
from s7jax.s7l.vocabulary import Vocabulary
from s7jax.s7l.weights_folder import Weights, read_weights, write_weights
from s7jax.s7l.writer import Sealed, seal

__all__ = [
    "Bundle",
    "Field",
    "Finding",
    "Manifest",
    "Mode",
    "Report",
    "Seal",
    "SealError",
    "Sealed",
    "Tensor",
    "Verdict",
    "Vocabulary",
    "Weights",
    "check",
    "export_safetensors",
    "extract",
    "extract_version2",
    "import_safetensors",
    "is_bundle",
    "is_version2",
    "open",
    "open_bundle",
    "open_trusted",
    "read_safetensors",
    "read_version2",
    "read_weights",
    "seal",
    "write_safetensors",
    "write_weights",
]
