"""How long training takes and what it costs: steps, operations, roofline, hours, dollars.

A step's time is the largest of what its matrix products need at the assumed utilisation and what
its memory traffic needs, plus what its collectives need: nothing is assumed to overlap with them.
Utilisation (MFU) counts attention over the whole square, as PaLM does (arXiv 2204.02311).
"""

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from s7jax.architecture import counts, parameters
from s7jax.config import Config
from s7jax.devices import Device
from s7jax.errors import InputError, UsageError
from s7jax.mesh import MeshShape
from s7jax.model.flops import flops_per_token
from s7jax.sizing.budget import BF16, FP32
from s7jax.train.phase import Phase, phases
from s7jax.train.watch import journal

MFU = 0.5  # assumed where nothing was measured
HOUR = 3600.0


@dataclass(frozen=True)
class Job:
    """One phase of training on one mesh."""

    phase: Phase
    shape: MeshShape

    @property
    def label(self) -> str:
        """Name of the phase, and an expert's domain."""
        expert = self.phase.expert
        domain = "" if expert is None else f" ({self.phase.config.domains[expert].name})"
        return f"{self.phase.name}{domain}"

    @property
    def microbatches(self) -> int:
        """Gradient programs per step on each data group."""
        return self.phase.recipe.microbatches // self.shape.data

    @property
    def trained(self) -> int:
        """Parameters that change."""
        return self._count(self.phase.trained)

    @property
    def frozen(self) -> int:
        """Parameters that are only read."""
        return self._count(self.phase.frozen)

    @property
    def moments(self) -> int:
        """What the optimizer keeps: two numbers a parameter, Muon one of a hidden matrix."""
        if self.phase.recipe.optimizer == "adamw":
            return 2 * self.trained
        matrices = sum(
            p.size
            for p in parameters(self.phase.config.model)
            if p.component in self.phase.trained and p.component != "embedding" and p.is_matrix
        )
        return 2 * self.trained - matrices

    @property
    def checkpoints(self) -> int:
        """Saves during the phase, the final one included."""
        return math.ceil(self.phase.tokens / self.phase.recipe.checkpoint)

    @property
    def checkpoint_bytes(self) -> int:
        """Weights and moments, float32."""
        return FP32 * (self.trained + self.moments)

    def flops_per_token(self, causal: bool = False) -> int:
        """Operations per token; attention over the whole square unless ``causal``."""
        return flops_per_token(self.phase.config.model, self.phase.expert is None, causal)

    @property
    def flops(self) -> int:
        """Operations of the whole phase, attention over the whole square."""
        return self.phase.tokens * self.flops_per_token()

    def _count(self, components: Iterable[str]) -> int:
        sizes = counts(self.phase.config.model)
        return sum(sizes[name] for name in components)


@dataclass(frozen=True)
class Time:
    """Seconds of one step by what bounds it, and what follows."""

    compute: float
    memory: float
    collectives: float
    steps: int
    devices: int
    price: float | None

    @property
    def step(self) -> float:
        """Seconds of a step."""
        return max(self.compute, self.memory) + self.collectives

    @property
    def wall_hours(self) -> float:
        """Of the phase."""
        return self.step * self.steps / HOUR

    @property
    def device_hours(self) -> float:
        """Hours times devices."""
        return self.wall_hours * self.devices

    @property
    def cost(self) -> float | None:
        """Dollars, if a price is known."""
        return None if self.price is None else self.device_hours * self.price


def jobs(config: Config, shape: MeshShape, which: str) -> list[Job]:
    """The jobs of ``trunk``, ``experts`` (each on one pool), or ``all``."""
    one = MeshShape(data=shape.data, model=shape.model)
    kinds = {"trunk": (True,), "experts": (False,), "all": (True, False)}.get(which, ())
    return [Job(phase, one) for phase in phases(config) if (phase.expert is None) in kinds]


def roofline(job: Job, device: Device, mfu: float = MFU, price: float | None = None) -> Time:
    """Time of a job on a kind of device.

    Memory traffic: weights and gradients of every microbatch once in each direction, the
    optimizer's states read and written once per step. Collectives: two all-reduces of the
    activations forward and two backward in each layer over the model axis (Megatron, bfloat16),
    and the tree of gradient sums over the data axis (float32, log2 of its size exchanges).

    Raises:
        UsageError: the device's speed is not known.
    """
    if device.peak_bf16 is None or device.bandwidth is None:
        raise UsageError(f"--target {device.name}: its speed is not known; choose another target")
    shape, cfg, tokens_per_step = job.shape, job.phase.config.model, job.phase.tokens_per_step
    training_trunk = job.phase.expert is None
    devices = shape.data * shape.model
    flops = tokens_per_step * job.flops_per_token()
    compute = flops / devices / device.peak_bf16 / mfu
    local = job.trained / shape.model
    traffic = job.microbatches * (3 * BF16 * local + 2 * FP32 * local + BF16 * job.frozen)
    traffic += 4 * FP32 * local + 2 * FP32 * job.moments / shape.model
    collectives = 0.0
    if shape.model > 1 and device.link:
        layers = cfg.trunk.layers * cfg.trunk.hidden * (4 if training_trunk else 2)
        if not training_trunk:
            layers += 4 * cfg.expert.layers * cfg.expert.hidden
        tokens = tokens_per_step / shape.data
        ring = 2 * (shape.model - 1) / shape.model
        collectives += layers * tokens * BF16 * ring / device.link
    if shape.data > 1:
        between = device.network or device.link
        if between:
            collectives += math.log2(shape.data) * FP32 * local / between
    paid = device.price if price is None else price
    return Time(compute, traffic / device.bandwidth, collectives, job.phase.steps, devices, paid)


def measured_mfu(metrics: Path, job: Job, device: Device) -> float:
    """Utilisation of a real run, from the seconds of its steps in ``metrics.jsonl``.

    Raises:
        InputError: no step of this phase in the file.
        UsageError: the device's peak is not known.
    """
    if device.peak_bf16 is None:
        raise UsageError(f"--calibrate: the peak of {device.name} is not known")
    name, where = job.phase.name, f"--calibrate {metrics}"
    seconds = [line["seconds"] for line in journal.read(metrics) if line["phase"] == name]
    if len(seconds) < 2:
        raise InputError(f"{where}: no steps of {name}")
    step = statistics.median(b - a for a, b in itertools.pairwise(seconds))
    if step <= 0:
        raise InputError(f"{where}: steps of {name} that took no time")
    rate, devices = job.phase.tokens_per_step / step, job.shape.data * job.shape.model
    mfu = device.utilisation(rate, job.flops_per_token(), devices)
    if mfu is None or not 0 < mfu <= 1:
        raise InputError(f"{where}: {mfu:.1%} utilisation cannot be of {device.name}")
    return mfu


def total(times: Sequence[Time]) -> tuple[float, float | None]:
    """Device-hours and dollars of several jobs."""
    costs = [time.cost for time in times]
    cost = None if None in costs else math.fsum(c for c in costs if c is not None)
    return math.fsum(time.device_hours for time in times), cost
