"""Calibration: exact maxima, percentiles within a bin, the same whatever way they are found."""

import jax
import numpy as np
import pytest
from reference import CFG, Reference, lively, on, tokens

from s7jax import mesh as meshes
from s7jax.errors import InputError
from s7jax.model.parameters import host, named_tensors
from s7jax.quantize import calibrate as module
from s7jax.quantize.calibrate import PERCENTILE, Ranges, calibrate

pytestmark = pytest.mark.usefixtures("compiled_alike")

ALL = tuple(CFG.segments)
ROWS = {"code": tokens(5, seed=1), "math": tokens(3, seed=2)}
BIN = 1 + 2.0**-3  # the widest bin's edges, one over the other


@pytest.fixture(scope="module")
def params():
    return lively()


@pytest.fixture(scope="module")
def ranges(params):
    return calibrate(CFG, params, ROWS)


@pytest.fixture(scope="module")
def reference(params):
    """The float64 model after it has seen every sequence."""
    found = Reference(dict(named_tensors(host(params))))
    found.outputs(np.concatenate(list(ROWS.values()))[:, :-1])
    return found


def same(a: Ranges, b: Ranges) -> bool:
    return (
        a.streams == b.streams
        and all(x.keys() == y.keys() for x, y in ((a.largest, b.largest), (a.usual, b.usual)))
        and all(np.array_equal(a.largest[name], x) for name, x in b.largest.items())
        and all(np.array_equal(a.usual[name], x) for name, x in b.usual.items())
    )


def test_it_measures_what_the_model_computes(ranges, reference):
    """Site by site against the model written anew in float64."""
    matrices = {n.removesuffix(".weight") for n in reference.p if n.endswith(".weight")}
    assert ranges.largest.keys() == matrices - {"embedding", "router"}
    for name, largest in ranges.largest.items():
        wanted = np.abs(np.concatenate(reference.seen[name])).max(axis=0)
        np.testing.assert_allclose(largest, wanted, rtol=1e-4, atol=1e-5, err_msg=name)
    for name, usual in ranges.usual.items():  # so few positions that the percentile is the maximum
        wanted = np.abs(np.concatenate(reference.seen[name])).max(axis=0)
        np.testing.assert_allclose(usual, wanted, rtol=1e-4, err_msg=name)


def test_residual_streams_are_taken_before_every_norm(ranges, reference):
    def peak(*names):
        return max(np.abs(np.concatenate(reference.seen[name])).max() for name in names)

    norms = [n for n in reference.seen if n.endswith("_norm") and "final" not in n]
    trunk = [n for n in norms if n.startswith("trunk")]
    wanted = {"trunk": peak(*trunk, "expert0.in_norm")}
    for e in range(2):
        own = [n for n in norms if n.startswith(f"expert{e}") and not n.endswith("in_norm")]
        wanted[f"expert{e}"] = peak(*own)
    assert ranges.streams == pytest.approx(wanted, rel=1e-4)


def test_maxima_are_exact_and_percentiles_within_one_bin(params, monkeypatch):
    """Against NumPy, on the very activations of the program that measured them."""
    measure = module._measure

    def with_raw(x, counted_B, count):
        return measure(x, counted_B, count) | {"raw": x}

    monkeypatch.setattr(module, "_measure", with_raw)
    for program in (module.observe_trunk, module.observe_expert):
        program.clear_cache()
    with jax.set_mesh(meshes.single()):
        rows = jax.device_put(tokens(64)[:, :-1], jax.NamedSharding(meshes.single(), jax.P("data")))
        counted = np.arange(64) < 61
        seen = module._observe(CFG, params, rows, jax.device_put(counted, rows.sharding), ALL)
    for program in (module.observe_trunk, module.observe_expert):
        program.clear_cache()
    found = {name: np.asarray(value) for name, value in named_tensors(seen)}
    checked = 0
    for name in [n.removesuffix(".raw") for n in found if n.endswith(".raw")]:
        raw = np.abs(found[f"{name}.raw"][:61]).reshape(61 * CFG.context, -1)
        assert np.array_equal(found[f"{name}.largest"], raw.max(axis=0)), name
        if f"{name}.bins" in found:
            checked += 1
            exact = np.quantile(raw, PERCENTILE, axis=0, method="inverted_cdf")
            edge = module._percentile(found[f"{name}.bins"].astype(np.int64))
            assert (exact <= edge).all()
            assert (edge <= BIN * exact).all()
            assert found[f"{name}.bins"].sum(axis=-1).tolist() == [61 * CFG.context] * raw.shape[1]
    assert checked == 2 * (2 + 2)


def test_a_percentile_leaves_out_one_in_ten_thousand():
    """Of 20,000 values a 99.99th percentile ignores two outliers, not three."""
    for outliers, wanted in ((2, 1.0), (3, 1_024.0)):
        x = np.ones((1, 20_000, 1), np.float32)
        x[0, :outliers] = 1_024
        with jax.set_mesh(meshes.single()):
            counted = jax.device_put(
                np.ones(1, bool), jax.NamedSharding(meshes.single(), jax.P("data"))
            )
            placed = jax.device_put(
                x, jax.NamedSharding(meshes.single(), jax.P("data", None, None))
            )
            bins = jax.jit(module._measure, static_argnums=2)(placed, counted, True)["bins"]
        edge = module._percentile(np.asarray(bins).astype(np.int64))
        assert wanted < edge[0] <= BIN * wanted


def test_rows_that_fill_up_a_batch_do_not_count(params, ranges):
    """Eight sequences are two full batches; five are one and three copies."""
    total = sum(len(rows) for rows in ROWS.values())
    alone = {"all": np.concatenate(list(ROWS.values()))[:5]}
    state = module._State("")
    for batch, counted in module.full_batches(alone["all"][:, :-1], 4):
        batch[~counted] = 95  # what stands there must not matter
        with jax.set_mesh(meshes.single()):
            where = jax.NamedSharding(meshes.single(), jax.P("data"))
            laid_out = (jax.device_put(x, where) for x in (batch, counted))
            state.take(
                module._observe(CFG, params, *laid_out, ALL), int(counted.sum()), CFG.context
            )
    found, wanted = module._ranges(state, {"all": 5}), calibrate(CFG, params, alone)
    assert same(found, wanted)
    bins = [x for name, x in state.totals.items() if name.endswith(".bins")]
    assert {int(n) for x in bins for n in x.sum(axis=-1).ravel()} == {5 * CFG.context}
    assert total == 8
    assert not same(found, ranges)


@pytest.mark.parametrize("sizes", [(8,), (1, 6, 1), (2, 2, 2, 2)])
def test_any_order_and_grouping_of_the_sequences_gives_the_same(params, ranges, sizes):
    shuffled = np.concatenate(list(ROWS.values()))[np.random.default_rng(3).permutation(8)]
    groups = np.split(shuffled, np.cumsum(sizes)[:-1])
    assert same(calibrate(CFG, params, {str(i): rows for i, rows in enumerate(groups)}), ranges)


@pytest.mark.parametrize("shape", ["2x1", "4x1"])
def test_the_data_axis_does_not_matter(params, ranges, shape):
    there = on(params, CFG, meshes.make(meshes.parse(shape)))
    assert same(calibrate(CFG, there, ROWS), ranges)


def test_the_model_axis_changes_roundings_alone(params, ranges):
    there = on(params, CFG, meshes.make(meshes.parse("2x2")))
    found = calibrate(CFG, there, ROWS)
    for name, largest in ranges.largest.items():
        np.testing.assert_allclose(found.largest[name], largest, rtol=1e-5, err_msg=name)
    for name, usual in ranges.usual.items():
        np.testing.assert_allclose(found.usual[name], usual, rtol=1e-5, err_msg=name)
    assert found.streams == pytest.approx(ranges.streams, rel=1e-5)


@pytest.mark.parametrize("shape", ["1x1", "2x1"])
def test_a_killed_calibration_resumes_to_the_same(params, shape, monkeypatch, tmp_path, capsys):
    """On the mesh that it was started on or on another data axis; a finished one costs nothing."""
    rows = {"all": tokens(14)}
    wanted = calibrate(CFG, params, rows)
    saved, observe, calls = tmp_path / "state.npz", module._observe, []

    def dying(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return observe(*args)

    monkeypatch.setattr(module, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(module, "_observe", dying)
    with pytest.raises(KeyboardInterrupt):
        calibrate(CFG, params, rows, saved)
    there = on(params, CFG, meshes.make(meshes.parse(shape)))
    assert same(calibrate(CFG, there, rows, saved), wanted)
    assert "resumed after 8 sequences" in capsys.readouterr().out
    assert len(calls) == 3 + (2 if shape == "1x1" else 1)
    done = len(calls)
    assert same(calibrate(CFG, params, rows, saved), wanted)
    assert len(calls) == done


def test_another_models_state_is_not_resumed(params, monkeypatch, tmp_path):
    saved = tmp_path / "state.npz"
    calibrate(CFG, lively(seed=5), ROWS, saved)
    found = calibrate(CFG, params, ROWS, saved)
    assert same(found, calibrate(CFG, params, ROWS))
    fewer = {"code": ROWS["code"]}
    assert same(calibrate(CFG, params, fewer, saved), calibrate(CFG, params, fewer))


def test_a_damaged_state_is_refused(params, tmp_path):
    saved = tmp_path / "state.npz"
    saved.write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(InputError, match=r"state\.npz: no state of a calibration"):
        calibrate(CFG, params, ROWS, saved)


def test_device_counts_are_emptied_before_they_could_overflow(params, ranges, monkeypatch):
    emptied, empty = [], module._State.empty
    monkeypatch.setattr(module, "_MOST", 2 * 4 * CFG.context)
    monkeypatch.setattr(module._State, "empty", lambda self: (emptied.append(1), empty(self)))
    assert same(calibrate(CFG, params, ROWS), ranges)
    assert len(emptied) == 3  # after eight sequences, after the pass, and at the end


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(value):
    def spoil(named):
        named["expert1.layer0.ffn.fc2.weight"][3, 4] = value

    with pytest.raises(InputError, match=r"expert1\.layer0\.ffn\.fc2\.weight: 1 of 512 values"):
        calibrate(CFG, lively(change=spoil), ROWS)


def test_activations_that_are_not_finite_are_refused_by_name():
    def spoil(named):
        named["trunk.layer1.ffn.fc1.weight"][:] = 1e38

    with pytest.raises(InputError, match=r"into trunk\.layer1\.ffn\.fc2 are NaN or infinite"):
        calibrate(CFG, lively(change=spoil), ROWS)
