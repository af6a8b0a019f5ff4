"""The sizing specification's own figures beside what arithmetic gives, row by row.

A row holds the section, what is counted, the specification's figure and ours in one unit, their
ratio, and why they differ. The specification's figures are data here; ours are computed from the
configuration, the sealed layout and the planner's own arithmetic, and from nothing else.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from s7jax.architecture import counts
from s7jax.config import Config
from s7jax.devices import DEVICES
from s7jax.mesh import MeshShape
from s7jax.sizing import budget
from s7jax.sizing.budget import FP32
from s7jax.sizing.inference import quantize
from s7jax.sizing.schedule import MFU, jobs, roofline, total

MB, KIB, MIB = 10**6, 1 << 10, 1 << 20
CLUSTER = MeshShape(data=4, model=2)  # §3: four nodes of two
EXPERT_POOL = MeshShape(data=4, model=1)  # §4: four devices an expert


@dataclass(frozen=True)
class Row:
    """One figure of the specification and ours."""

    section: str
    what: str
    spec: float
    ours: float
    unit: str
    why: str = ""

    @property
    def ratio(self) -> float:
        """The specification's figure over ours."""
        return self.spec / self.ours if self.ours else float("inf")


def rows(config: Config, mfu: float = MFU) -> list[Row]:
    """Every figure of §2 to §8 that can be computed, for a model of the specified shape."""
    return [
        *_parameters(config),
        *_training(config, mfu),
        *_layout(config),
    ]


def _parameters(config: Config) -> Iterator[Row]:
    sizes = counts(config.model)
    whole, million = sum(sizes.values()), 10**6
    yield Row("§2", "embedding, parameters", 18.9, sizes["embedding"] / million, "M")
    yield Row("§2", "embedding, FP32", 75.5, FP32 * sizes["embedding"] / MB, "MB")
    six = "six layers of width 768 cannot be 2 M; §8's 24 MB of INT8 is 24 M"
    yield Row("§2", "trunk layers, parameters", 2, sizes["trunk"] / million, "M", six)
    yield Row("§2", "trunk layers, FP32", 8, FP32 * sizes["trunk"] / MB, "MB", six)
    layers = "eight layers by §8's own table, with both projections"
    yield Row("§2", "one expert, parameters", 28, sizes["expert0"] / million, "M", layers)
    yield Row("§2", "one expert, FP32", 112, FP32 * sizes["expert0"] / MB, "MB", layers)
    yield Row("§2", "router, parameters", 0.1, sizes["router"] / million, "M", "an upper bound")
    yield Row("§2", "total, parameters", 133, whole / million, "M", "the trunk, above")
    yield Row("§2", "total, FP32", 532, FP32 * whole / MB, "MB", "the trunk, above")


def _training(config: Config, mfu: float) -> Iterator[Row]:
    device = DEVICES["a100-40gb"]
    (trunk,) = jobs(config, CLUSTER, "trunk")
    experts = jobs(config, EXPERT_POOL, "experts")
    held = trunk.trained * FP32
    yield Row("§3", "trunk and embedding, FP32", 83, held / MB, "MB", "the trunk, above")
    yield Row("§3", "gradients, FP32", 166, held / MB, "MB", "one number per weight, not two")
    states = "two moments per weight; with the weights themselves three"
    yield Row("§3", "optimizer states", 250, 2 * held / MB, "MB", states)
    yield Row("§3", "steps of warmup", 2_000, config.trunk.warmup, "steps")
    yield Row("§3", "tokens between checkpoints", 5, config.trunk.checkpoint / 1e9, "B")
    times = {job.label: roofline(job, device, mfu) for job in (trunk, *experts)}
    slow = f"{trunk.flops:.2e} operations at {mfu:.0%} of 312 TFLOP/s; the figure implies {{:.2%}}"
    hours = times[trunk.label].device_hours
    implied = trunk.flops / (12_000 * 3600) / (device.peak_bf16 or 1)
    yield Row("§3", "Phase 1, GPU-hours", 12_000, hours, "h", slow.format(implied))
    expert = experts[0].trained * FP32
    yield Row("§4", "expert, FP32", 112, expert / MB, "MB", "as in §2")
    yield Row("§4", "frozen trunk, FP32", 83, experts[0].frozen * FP32 / MB, "MB", "as in §2")
    yield Row("§4", "expert's optimizer states", 336, 2 * expert / MB, "MB", states)
    for job, spec in zip(experts, (600, 450, 360, 360), strict=False):
        hours = times[job.label].device_hours
        yield Row("§4", f"{job.label}, GPU-hours", spec, hours, "h", "as Phase 1")
    second = [times[job.label] for job in experts]
    hours, _ = total(second)
    implied = sum(job.flops for job in experts) / (1_770 * 3600) / (device.peak_bf16 or 1)
    why = f"the figure implies {implied:.2%} utilisation"
    yield Row("§4", "Phase 2, GPU-hours", 1_770, hours, "h", why)
    wall = max(time.wall_hours for time in second)
    yield Row("§4", "Phase 2, wall time", 150, wall, "h", "the slowest expert")
    work = quantize(config, device, mfu, None)
    why = "one forward pass over 4,096 samples per domain, trunk and four experts"
    yield Row("§6", "calibration, GPU-hours", 200, work["device_hours"], "h", why)
    both, cost = total([times[trunk.label], *second])
    yield Row("§6", "training, GPU-hours", 13_770, both, "h", "as above")
    why = "training alone; 200 h of calibration and QA would add $500"
    yield Row("§6", "training, cost", 34_425, cost or 0.0, "$", why)
    wall += times[trunk.label].wall_hours
    why = "its own hours would take 1,500 h + 150 h = 69 days"
    yield Row("§6", "wall time", 21 * 24, wall, "h", why)


def _layout(config: Config) -> Iterator[Row]:
    names = {"ffn.fc1": 1_024.0, "ffn.fc2": 1_024.0}
    names |= {f"attn.{part}_proj": 262.144 for part in "qkvo"}
    stored_layer = 0
    for spec, stored in budget.layer(config.model):
        stored_layer += stored
        short = spec.name.split(".", 2)[2].removesuffix(".weight")
        fits = names[short] > 1_000
        size, unit = (stored / KIB, "KiB") if fits else (stored / 1_000, "kB")
        yield Row("§8", f"expert layer, {short}", names[short], size, unit)
    why = "its own rows add up to 3,096, kB and KiB mixed"
    yield Row("§8", "expert layer", 3_136, stored_layer / KIB, "KiB", why)
    sealed = budget.sealed(config.model)
    layers = stored_layer * config.model.expert.layers
    units = "MiB against MB"
    yield Row("§8", "one expert, its layers", 24.8, layers / MB, "MB", units)
    yield Row("§8", "four experts, their layers", 99.2, 4 * layers / MB, "MB", units)
    yield Row("§8", "trunk layers", 24, sealed["trunk"].padded / MB, "MB")
    yield Row("§8", "embedding", 18, sealed["embedding"].padded / MIB, "MiB")
    padded = sum(part.padded for part in sealed.values())
    yield Row("§8", "all matrices", 141, padded / MB, "MB", "projections and router left out")
