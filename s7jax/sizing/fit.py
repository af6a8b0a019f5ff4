"""The fastest way of computing a step that fits the device, by the compiler's own word."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

from s7jax.config import Config
from s7jax.devices import Device
from s7jax.errors import InputError, UsageError
from s7jax.mesh import MeshShape, check
from s7jax.sizing.compiled import Compiled
from s7jax.sizing.schedule import Job, jobs, roofline

CHUNKS = (0, 256, 64)  # positions whose logits exist at once; 0: all
RECOMPUTED = 1.15  # what rematerialisation costs, on the whole: it repeats no matrix product
MOST = 24  # compilations before giving up


def fit(
    config: Config,
    shape: MeshShape,
    phase: str,
    device: Device,
    compiled: Callable[[Job, Device], Compiled],
) -> tuple[Config, MeshShape, Compiled]:
    """Configuration, mesh and memory of the fastest plan that fits.

    Tries every mesh of as many devices, microbatches from the given one down, logits whole and
    in chunks, without and with rematerialisation, in order of their estimated time.

    Raises:
        UsageError: the device's memory or speed is not known.
        InputError: nothing that was tried fits.
    """
    if device.memory is None:
        raise UsageError(f"--fit: the memory of {device.name} is not known")
    tried = 0
    candidates = sorted(_candidates(config, shape, phase, device), key=lambda c: c[0])
    for _, changed, mesh in candidates[:MOST]:
        job = jobs(changed, mesh, phase)[0]
        found = compiled(job, device)
        tried += 1
        if found.peak <= device.memory:
            return changed, mesh, found
    raise InputError(
        f"--fit: none of {tried} plans fits {device.memory / 1e9:.0f} GB; more devices"
    )


def _candidates(
    config: Config, shape: MeshShape, phase: str, device: Device
) -> Iterator[tuple[float, Config, MeshShape]]:
    size = shape.data * shape.model
    recipe = config.trunk if phase == "trunk" else config.experts
    for model in (m for m in range(1, size + 1) if size % m == 0):
        mesh = MeshShape(data=size // model, model=model, pools=shape.pools)
        for micro in (m for m in range(recipe.microbatch, 0, -1) if recipe.microbatch % m == 0):
            smaller = dataclasses.replace(recipe, microbatch=micro)
            recipes: dict[str, Any] = {phase: smaller}
            changed = dataclasses.replace(config, **recipes)
            try:
                check(mesh, config.model, smaller)
            except UsageError:
                continue
            job = jobs(changed, mesh, phase)[0]
            for remat in (False, True):
                for rank, chunk in enumerate(CHUNKS):
                    compute = dataclasses.replace(config.compute, remat=remat, loss_chunk=chunk)
                    seconds = roofline(job, device).step * (RECOMPUTED if remat else 1)
                    order = seconds * (1 + 0.01 * rank)
                    yield order, dataclasses.replace(changed, compute=compute), mesh


def described(config: Config, shape: MeshShape, phase: str) -> str:
    """The flags that choose a plan."""
    recipe = config.trunk if phase == "trunk" else config.experts
    return (
        f"--mesh {shape} --set {phase}.microbatch={recipe.microbatch} "
        f"compute.remat={json.dumps(config.compute.remat)} "
        f"compute.loss_chunk={config.compute.loss_chunk}"
    )
