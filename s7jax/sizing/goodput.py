"""What failures cost: expected hours with restarts, and how often to save.

Failures come at random, at a constant rate per device-hour, and one ends the step on every
device: the run resumes from its newest checkpoint. Work between two checkpoints and the save at
its end must pass without one. The expected time follows exactly (J. T. Daly, A higher order
estimate of the optimum checkpoint interval for restart dumps, 2006, eq. 20), and so do the best
interval, in his approximation, and what one failure costs.
"""

import dataclasses
import math
from dataclasses import asdict, dataclass
from typing import Any

from s7jax.devices import Device
from s7jax.errors import UsageError
from s7jax.mesh import MeshShape
from s7jax.sizing.schedule import HOUR, Job, roofline

# Llama 3 (arXiv 2407.21783, §3.3.4): 419 unexpected interruptions in 54 days of 16,384 H100s.
RATE = 419 / (54 * 24 * 16_384)  # per device-hour: one in 50,700
RESTART = 600.0  # seconds until a run computes again: noticed, placed, loaded, compiled
DEVICES = (8, 64, 512)  # that a table tells of, beside those planned for
LEAST = 1e-12  # failures per device-hour: below, a float no longer tells a run with one from none


@dataclass(frozen=True, kw_only=True)
class Failures:
    """How often something fails, and what comes after."""

    rate: float = RATE  # per device-hour
    restart: float = RESTART  # seconds

    def __post_init__(self) -> None:
        if not LEAST <= self.rate < math.inf:
            raise UsageError(f"--failures {self.rate}: expected {LEAST:g} a device-hour or more")
        if not (self.restart >= 0 and math.isfinite(self.restart)):
            raise UsageError(f"--restart {self.restart}: expected no negative number of seconds")

    def between(self, devices: int) -> float:
        """Seconds from one failure to the next, on the average."""
        return HOUR / (self.rate * devices)


USUAL = Failures()


def expected(work: float, interval: float, save: float, between: float, restart: float) -> float:
    """Seconds that ``work`` seconds of steps take, saves, failures and restarts included.

    Args:
        work: without any of them.
        interval: of work between two checkpoints.
        save: during which steps wait.
        between: two failures, on the average.
        restart: during which the next failure may come as well.

    Raises:
        UsageError: it would never end.
    """
    try:
        once = between * math.exp(restart / between) * math.expm1((interval + save) / between)
    except OverflowError:
        raise UsageError(
            f"--failures, --restart: with a failure every {between:.3g} s and {restart:.3g} s to "
            f"restart no {interval:.3g} s of steps are ever done; expected fewer or shorter ones"
        ) from None
    return once * work / interval


def best_interval(save: float, between: float) -> float:
    """Seconds of work between checkpoints with which :func:`expected` is least (Young, Daly)."""
    if save >= 2 * between:
        return between
    part = math.sqrt(save / (2 * between))
    return math.sqrt(2 * save * between) * (1 + part / 3 + part**2 / 9) - save


def lost(interval: float, save: float, between: float, restart: float) -> float:
    """Seconds that one failure costs: the work since the last checkpoint, and the restart."""
    segment = interval + save
    if segment > 100 * between:  # which no segment outlives, nor exp a thousand of
        return between + restart
    return between - segment / math.expm1(segment / between) + restart


def on_devices(
    job: Job, devices: int, device: Device, mfu: float, failures: Failures, storage: float
) -> dict[str, Any] | None:
    """A job on as many devices, its model axis as it is; None if its batch has too few sequences.

    Args:
        job: what is trained.
        devices: in all.
        device: their kind.
        mfu: assumed utilisation.
        failures: how often, and how long until it runs again.
        storage: bytes per second that a checkpoint is written at, while steps wait.
    """
    recipe, model = job.phase.recipe, job.shape.model
    data = devices // model
    if not data or recipe.batch % data:
        return None
    smaller = dataclasses.replace(
        recipe, microbatch=math.gcd(recipe.microbatch, recipe.batch // data)
    )
    name = "trunk" if job.phase.expert is None else "experts"
    changed: dict[str, Any] = {name: smaller}
    phase = dataclasses.replace(job.phase, config=dataclasses.replace(job.phase.config, **changed))
    time = roofline(Job(phase, MeshShape(data=data, model=model)), device, mfu)
    work, save = time.step * time.steps, job.checkpoint_bytes / storage
    between = failures.between(devices)
    best = min(work, best_interval(save, between))
    stated = min(work, time.step * max(1, recipe.checkpoint // phase.tokens_per_step))

    def hours(interval: float) -> float:
        return expected(work, interval, save, between, failures.restart) / HOUR

    price = None if device.price is None else device.price * devices
    per_failure = lost(best, save, between, failures.restart) / HOUR
    return {
        "job": job.label,
        "devices": devices,
        "mesh": f"{data}x{model}",
        "hours_between_failures": between / HOUR,
        "hours_without": work / HOUR,
        "hours_as_specified": hours(stated),
        "hours_at_best": hours(best),
        "goodput": work / HOUR / hours(best),
        "tokens_as_specified": recipe.checkpoint,
        "tokens_at_best": round(best / time.step) * phase.tokens_per_step,
        "minutes_at_best": best / 60,
        "hours_lost_per_failure": per_failure,
        "hours_lost_as_specified": lost(stated, save, between, failures.restart) / HOUR,
        "cost_per_failure": None if price is None else per_failure * price,
        "failures_expected": hours(best) / (between / HOUR),
    }


def table(
    work: list[Job], device: Device, mfu: float, failures: Failures, storage: float
) -> list[dict[str, Any]]:
    """:func:`on_devices` for every job on its own devices and on each of :data:`DEVICES`."""
    rows = [
        on_devices(job, devices, device, mfu, failures, storage)
        for job in work
        for devices in sorted({job.shape.devices, *DEVICES})
    ]
    return [row | asdict(failures) for row in rows if row is not None]
