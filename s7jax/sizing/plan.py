"""A whole plan as one tree of JSON types: what ``s7jax plan`` prints in any form."""

from dataclasses import asdict
from functools import cache
from typing import Any

from s7jax.architecture import counts
from s7jax.config import Config
from s7jax.devices import Device
from s7jax.errors import UsageError
from s7jax.mesh import MeshShape, check
from s7jax.sizing import budget, goodput, inference
from s7jax.sizing.budget import FP32
from s7jax.sizing.compiled import Compiled, Platform, compile_job, cuda_target
from s7jax.sizing.goodput import USUAL, Failures
from s7jax.sizing.reconcile import rows
from s7jax.sizing.schedule import MFU, Job, Time, jobs, roofline, total

TOPOLOGIES = {"v5e": "v5e:2x4", "v5p": "v5p:2x2x2", "v6e": "v6e:2x4"}
STORAGE = 1e9  # bytes per second that a checkpoint is assumed to be written at
TILE = 32  # rows and columns of an AVX2 tile (§8)


def plan(
    config: Config,
    shape: MeshShape,
    phase: str,
    device: Device,
    *,
    mfu: float = MFU,
    price: float | None = None,
    compiled: bool = False,
    sockets: int = 2,
    failures: Failures = USUAL,
) -> dict[str, Any]:
    """Everything about one model, mesh, phase and target.

    Raises:
        UsageError: the mesh divides nothing, or the target cannot be compiled for.
    """
    work = jobs(config, shape, phase) if phase in ("trunk", "experts", "all") else []
    for job in work:
        check(job.shape, config.model, job.phase.recipe)
    timed = device.peak_bf16 is not None
    times = {job.label: roofline(job, device, mfu, price) for job in work} if timed else {}
    made = {job.label: compile_for(job, device) for job in _distinct(work)} if compiled else {}
    tree: dict[str, Any] = {
        "preset": config.preset,
        "target": device.name,
        "mesh": str(shape),
        "phase": phase,
        "mfu": mfu,
        "parameters": counts(config.model),
        "jobs": [_job(job, times.get(job.label), shape) for job in work],
        "memory": [_memory(name, found, device) for name, found in made.items()],
        "layout": _layout(config),
        "placement": placement(config, sockets),
        "phases": inference.phase(phase, config, device, mfu, price),
    }
    if times:
        hours, cost = total(list(times.values()))
        walls = [time.wall_hours for time in times.values()]
        tree["total"] = {
            "device_hours": hours,
            "cost": cost,
            "wall_hours": _wall(work, walls, shape),
        }
        tree["goodput"] = goodput.table(_distinct(work), device, mfu, failures, STORAGE)
    if config.preset == "s7-140m":
        tree["specification"] = [{**asdict(row), "ratio": row.ratio} for row in rows(config, mfu)]
    return tree


@cache
def compile_for(job: Job, device: Device) -> Compiled:
    """Compile a job's program for a target, once; see :func:`s7jax.sizing.compiled.compile_job`."""
    return compile_job(job, platform_of(device))


def platform_of(device: Device) -> Platform:
    """What XLA compiles for to run on a device."""
    if device.name == "cpu":
        return Platform()
    if device.name in TOPOLOGIES:
        return Platform("tpu", topology=TOPOLOGIES[device.name])
    return Platform("cuda", target=cuda_target(device))


def placement(config: Config, sockets: int) -> list[dict[str, Any]]:
    """Where §8 would keep the components of the sealed model: bytes and tiles by socket."""
    if sockets < 1:
        raise UsageError(f"--sockets {sockets}: expected at least 1")
    found = []
    for name, layout in budget.sealed(config.model).items():
        expert = name.removeprefix("expert")
        socket = int(expert) % sockets if expert != name else 0
        tiles = layout.padded // (TILE * TILE)
        found.append(
            {"component": name, "socket": socket, "bytes": layout.padded, "tiles_32x32": tiles}
        )
    return found


def _distinct(work: list[Job]) -> list[Job]:
    """All experts run one program: the first stands for them."""
    return [job for job in work if job.phase.expert in (None, 0)]


def _job(job: Job, time: Time | None, shape: MeshShape) -> dict[str, Any]:
    local = job.trained * FP32 // job.shape.model
    tree: dict[str, Any] = {
        "name": job.label,
        "devices": job.shape.devices,
        "pools": shape.pools,
        "tokens": job.phase.tokens,
        "tokens_per_step": job.phase.tokens_per_step,
        "steps": job.phase.steps,
        "warmup_steps": min(job.phase.recipe.warmup, job.phase.steps // 10),
        "microbatches_per_group": job.microbatches,
        "checkpoints": job.checkpoints,
        "checkpoint_bytes": job.checkpoint_bytes,
        "checkpoint_seconds": job.checkpoint_bytes / STORAGE,
        "flops": job.flops,
        "flops_per_token": job.flops_per_token(),
        "flops_per_token_causal": job.flops_per_token(causal=True),
        "weights_bytes": local,
        "gradient_bytes": local,
        "optimizer_bytes": job.moments * FP32 // job.shape.model,
        "frozen_bytes": job.frozen * FP32 // job.shape.model,
    }
    if time is not None:
        tree |= {
            "seconds_compute": time.compute,
            "seconds_memory": time.memory,
            "seconds_collectives": time.collectives,
            "seconds_step": time.step,
            "tokens_per_second": job.phase.tokens_per_step / time.step,
            "wall_hours": time.wall_hours,
            "device_hours": time.device_hours,
            "cost": time.cost,
        }
    return tree


def _memory(name: str, found: Compiled, device: Device) -> dict[str, Any]:
    fits = None if device.memory is None else found.peak <= device.memory
    return {"job": name, **asdict(found), "peak": found.peak, "fits": fits}


def _layout(config: Config) -> dict[str, Any]:
    layer = [
        {
            "name": spec.name.split(".", 2)[2],
            "shape": list(spec.shape),
            "numel": spec.size,
            "padded": stored,
        }
        for spec, stored in budget.layer(config.model)
    ]
    parts = {name: asdict(part) for name, part in budget.sealed(config.model).items()}
    return {"expert_layer": layer, "components": parts}


def _wall(work: list[Job], walls: list[float], shape: MeshShape) -> float:
    """Trunk, then the experts on as many pools as there are, in rounds."""
    first = sum(w for job, w in zip(work, walls, strict=True) if job.phase.expert is None)
    experts = [w for job, w in zip(work, walls, strict=True) if job.phase.expert is not None]
    rounds = [experts[i : i + shape.pools] for i in range(0, len(experts), shape.pools)]
    return first + sum(max(r) for r in rounds)


def sweep(
    config: Config, shape: MeshShape, phase: str, device: Device, **options: Any
) -> dict[str, dict[str, Any]]:
    """Plans of the same work on every mesh of as many devices that fits, by mesh."""
    found = {}
    size = shape.data * shape.model
    for model in (m for m in range(1, size + 1) if size % m == 0):
        other = MeshShape(data=size // model, model=model, pools=shape.pools)
        try:
            found[str(other)] = plan(config, other, phase, device, **options)
        except UsageError:
            continue
    return found
