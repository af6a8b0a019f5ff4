"""How long training takes and what it costs: steps, operations, roofline, hours, dollars.

A step's time is the largest of what its matrix products need at the assumed utilisation and what
its memory traffic needs, plus what its collectives need: nothing is assumed to overlap with them.
Utilisation (MFU) counts attention over the whole square, as PaLM does (arXiv 2204.02311).
"""

import itertools
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from s7jax.config import Config, RecipeConfig
from s7jax.devices import Device
from s7jax.errors import InputError, UsageError
from s7jax.mesh import MeshShape
from s7jax.model.flops import flops_per_token
from s7jax.sizing.budget import BF16, FP32, parameters

MFU = 0.5  # assumed where nothing was measured
HOUR = 3600.0


@dataclass(frozen=True)
class Job:
    """One phase of training on one mesh: the trunk, or one expert."""

    name: str
    config: Config
    recipe: RecipeConfig
    index: int  # which of the recipe's token counts
    phase: str  # "trunk" or "experts"
    shape: MeshShape

    @property
    def tokens(self) -> int:
        """Tokens trained on."""
        return self.recipe.tokens[self.index]

    @property
    def tokens_a_step(self) -> int:
        """Tokens of one optimizer step."""
        return self.recipe.batch * self.config.model.context

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.recipe.steps(self.config.model.context, self.index)

    @property
    def microbatches(self) -> int:
        """Gradient programs a step on each data group."""
        return self.recipe.microbatches // self.shape.data

    @property
    def trained(self) -> int:
        """Parameters that change."""
        sizes = parameters(self.config.model)
        return sizes["trunk"] + sizes["embedding"] if self.phase == "trunk" else sizes["expert0"]

    @property
    def frozen(self) -> int:
        """Parameters that are only read."""
        sizes = parameters(self.config.model)
        return 0 if self.phase == "trunk" else sizes["trunk"] + sizes["embedding"]

    @property
    def checkpoints(self) -> int:
        """Saves during the phase, the final one included."""
        return math.ceil(self.tokens / self.recipe.checkpoint)

    @property
    def checkpoint_bytes(self) -> int:
        """Weights and both moments, float32."""
        return 3 * FP32 * self.trained

    @property
    def flops(self) -> int:
        """Operations of the whole phase, attention over the whole square."""
        return self.tokens * flops_per_token(self.config.model, self.phase, causal=False)


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


def jobs(config: Config, shape: MeshShape, phase: str) -> list[Job]:
    """The jobs of a phase: ``trunk``, ``experts`` (each on one pool), or ``all``."""
    one = MeshShape(data=shape.data, model=shape.model)
    found = []
    if phase in ("trunk", "all"):
        found.append(Job("trunk", config, config.trunk, 0, "trunk", one))
    if phase in ("experts", "all"):
        found += [
            Job(f"expert{e} ({domain})", config, config.experts, e, "experts", one)
            for e, domain in enumerate(config.model.domains)
        ]
    return found


def roofline(job: Job, device: Device, mfu: float = MFU, price: float | None = None) -> Time:
    """Time of a job on a kind of device.

    Memory traffic: weights and gradients of every microbatch once in each direction, the
    optimizer's states read and written once a step. Collectives: two all-reduces of the
    activations forward and two backward in each layer over the model axis (Megatron, bfloat16),
    and the tree of gradient sums over the data axis (float32, log2 of its size exchanges).

    Raises:
        UsageError: the device's speed is not known.
    """
    if device.peak_bf16 is None or device.bandwidth is None:
        raise UsageError(f"--target {device.name}: its speed is not known; choose another target")
    shape, cfg = job.shape, job.config.model
    devices = shape.data * shape.model
    flops = job.tokens_a_step * flops_per_token(cfg, job.phase, causal=False)
    compute = flops / devices / device.peak_bf16 / mfu
    local = job.trained / shape.model
    traffic = job.microbatches * (3 * BF16 * local + 2 * FP32 * local + BF16 * job.frozen)
    traffic += 8 * FP32 * local
    collectives = 0.0
    if shape.model > 1 and device.link:
        layers = cfg.trunk.layers * cfg.trunk.hidden * (4 if job.phase == "trunk" else 2)
        if job.phase == "experts":
            layers += 4 * cfg.expert.layers * cfg.expert.hidden
        tokens = job.tokens_a_step / shape.data
        ring = 2 * (shape.model - 1) / shape.model
        collectives += layers * tokens * BF16 * ring / device.link
    if shape.data > 1:
        between = device.network or device.link
        if between:
            collectives += math.log2(shape.data) * FP32 * local / between
    paid = device.price if price is None else price
    return Time(compute, traffic / device.bandwidth, collectives, job.steps, devices, paid)


def measured_mfu(metrics: Path, job: Job, device: Device) -> float:
    """Utilisation of a real run, from the seconds of its steps in ``metrics.jsonl``.

    Raises:
        InputError: no step of this phase in the file.
        UsageError: the device's peak is not known.
    """
    if device.peak_bf16 is None:
        raise UsageError(f"--calibrate: the peak of {device.name} is not known")
    seconds = []
    try:
        for line in metrics.read_text().splitlines():
            entry = json.loads(line)
            if entry.get("phase") == job.name.split()[0] and "seconds" in entry:
                seconds.append(float(entry["seconds"]))
    except (OSError, ValueError) as e:
        raise InputError(f"--calibrate {metrics}: {e}") from e
    if len(seconds) < 2:
        raise InputError(f"--calibrate {metrics}: no steps of {job.name}")
    step = statistics.median(b - a for a, b in itertools.pairwise(seconds))
    flops = job.tokens_a_step * flops_per_token(job.config.model, job.phase, causal=False)
    mfu = flops / step / (job.shape.data * job.shape.model) / device.peak_bf16
    if not 0 < mfu <= 1:
        raise InputError(f"--calibrate {metrics}: {mfu:.1%} utilisation cannot be of {device.name}")
    return mfu


def total(times: Sequence[Time]) -> tuple[float, float | None]:
    """Device-hours and dollars of several jobs."""
    costs = [time.cost for time in times]
    cost = None if None in costs else math.fsum(c for c in costs if c is not None)
    return math.fsum(time.device_hours for time in times), cost
