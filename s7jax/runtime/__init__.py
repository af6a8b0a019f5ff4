"""Running a sealed model: phases, gate, generation, proofs."""

from s7jax.runtime.cm1 import Control, Phase
from s7jax.runtime.compute import Compute
from s7jax.runtime.engine import Completion, Engine, Request
from s7jax.runtime.model import Model, open
from s7jax.runtime.proof import Proof
from s7jax.runtime.session import Session

__all__ = [
    "Completion",
    "Compute",
    "Control",
    "Engine",
    "Model",
    "Phase",
    "Proof",
    "Request",
    "Session",
    "open",
]
