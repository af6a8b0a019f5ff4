"""Expected hours against failures that are drawn, and the best interval against trying many."""

import dataclasses

import numpy as np
import pytest

from s7jax.config import preset
from s7jax.devices import DEVICES
from s7jax.errors import UsageError
from s7jax.mesh import parse
from s7jax.sizing.goodput import Failures, best_interval, expected, lost, on_devices, table
from s7jax.sizing.schedule import jobs, roofline

BIG, A100 = preset("s7-140m"), DEVICES["a100-40gb"]


def drawn(rng, work, interval, save, between, restart):
    """Seconds of one run and what its failures cost, each failure drawn."""
    clock, done, costs = 0.0, 0, []
    failure = rng.exponential(between)
    while done < work / interval:
        if failure > interval + save:
            clock, failure, done = clock + interval + save, failure - interval - save, done + 1
            continue
        at = failure
        clock, failure = clock + failure, rng.exponential(between)
        while failure < restart:
            clock, failure = clock + failure, rng.exponential(between)
        clock, failure = clock + restart, failure - restart
        costs.append(at + restart)
    return clock, costs


@pytest.mark.parametrize("interval", [50.0, 200.0, 800.0])
def test_expected_hours_are_the_mean_of_drawn_ones(interval):
    rng, args = np.random.default_rng(0), (1_600.0, interval, 5.0, 400.0, 30.0)
    runs = [drawn(rng, *args) for _ in range(1_500)]
    assert np.mean([clock for clock, _ in runs]) == pytest.approx(expected(*args), rel=0.04)
    costs = np.concatenate([costs for _, costs in runs])
    assert costs.mean() == pytest.approx(lost(*args[1:]), rel=0.04)


@pytest.mark.parametrize(("save", "between"), [(0.5, 1e6), (5.0, 400.0), (100.0, 300.0)])
def test_no_interval_is_better_than_the_best(save, between):
    best = best_interval(save, between)
    tried = np.geomspace(best / 20, best * 20, 4_001)
    least = min(expected(1.0, t, save, between, 10.0) for t in tried)
    assert expected(1.0, best, save, between, 10.0) < 1.002 * least


def test_a_save_longer_than_failures_are_apart():
    assert best_interval(1_000.0, 100.0) == 100.0


def test_without_failures_only_saves_cost():
    assert expected(100.0, 10.0, 1.0, 1e12, 5.0) == pytest.approx(110.0, rel=1e-6)
    assert lost(10.0, 1.0, 1e9, 5.0) == pytest.approx(5.5 + 5.0, rel=1e-3)


def test_the_planned_rows():
    work = jobs(BIG, parse("4x2"), "trunk")
    rows = table(work, A100, 0.5, Failures(), 1e9)
    assert [row["mesh"] for row in rows] == ["4x2", "32x2", "256x2"]
    first = rows[0]
    assert first["hours_without"] == pytest.approx(roofline(work[0], A100).wall_hours)
    assert first["hours_between_failures"] == pytest.approx(50_674 / 8, rel=1e-3)
    for row in rows:
        assert row["hours_without"] < row["hours_at_best"] <= row["hours_as_specified"]
    often = table(work, A100, 0.5, Failures(rate=0.01), 1e9)
    assert all(b["hours_at_best"] > a["hours_at_best"] for a, b in zip(rows, often, strict=True))


def test_the_mesh_that_is_planned_has_its_row():
    rows = table(jobs(BIG, parse("2x1"), "trunk"), A100, 0.5, Failures(), 1e9)
    assert [row["mesh"] for row in rows] == ["2x1", "8x1", "64x1", "512x1"]


def test_a_batch_too_small_for_the_devices_is_left_out():
    small = dataclasses.replace(BIG, trunk=dataclasses.replace(BIG.trunk, batch=64, microbatch=1))
    (job,) = jobs(small, parse("8x1"), "trunk")
    assert on_devices(job, 64, A100, 0.5, Failures(), 1e9) is not None
    assert on_devices(job, 512, A100, 0.5, Failures(), 1e9) is None


@pytest.mark.parametrize("wrong", [{"rate": 0.0}, {"rate": float("nan")}, {"restart": -1.0}])
def test_impossible_failures_are_refused(wrong):
    with pytest.raises(UsageError, match="expected"):
        Failures(**wrong)


@pytest.mark.parametrize(("rate", "restart"), [(1e5, 600.0), (1e-3, 1e12)])
def test_a_run_that_never_ends_is_said(rate: float, restart: float):
    failures = Failures(rate=rate, restart=restart)
    with pytest.raises(UsageError, match=r"--failures, --restart: .*ever done"):
        expected(1e6, 600, 5, failures.between(64), failures.restart)
