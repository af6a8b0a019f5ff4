import jax
import numpy as np
import pytest

from s7jax.config import ComputeConfig, Config
from s7jax.data.batching import group_rows
from s7jax.data.mixture import held_out
from s7jax.data.prepared import Prepared
from s7jax.model import parameters
from s7jax.train import router
from s7jax.train.evaluate import (
    CHUNK,
    documents,
    evaluate,
    exact,
    model_losses,
    paired_interval,
    score,
)
from s7jax.train.phase import TRUNK
from s7jax.train.step import place

pytestmark = pytest.mark.usefixtures("compiled_alike")


@pytest.fixture(scope="module")
def opened(open_run, tmp_path_factory):
    return open_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def params(tiny: Config, opened, single):
    params = parameters.host(parameters.initial(tiny.model, 0, single))
    trunk = {name: params[name] for name in TRUNK}
    sums = router.accumulate(opened, trunk)
    key = iter(jax.random.split(jax.random.key(1), 80))
    for e in range(4):
        params[f"expert{e}"] = jax.tree.map(
            lambda w: np.asarray(w + 0.05 * jax.random.normal(next(key), w.shape)),
            params[f"expert{e}"],
        )
    return params | {
        "router": router.ridge(sums),
        "nearest_centroid": router.nearest_centroid(sums),
    }


@pytest.fixture(scope="module")
def report(opened, params):
    return evaluate(opened, params)


def test_a_uniform_model_costs_log2_of_the_vocabulary_per_token(
    tiny: Config, prepared: Prepared, params, opened
):
    flat = params | {"embedding": {"weight": np.zeros_like(params["embedding"]["weight"])}}
    bits = evaluate(opened, flat)["bits_per_byte"]
    lengths = prepared.tokenizer.token_lengths
    for domain in tiny.model.domains:
        labels = held_out(prepared, domain, tiny.eval_sequences)[:, 1:]
        expected = labels.size * np.log2(tiny.model.vocab) / lengths[labels].sum()
        assert bits[domain]["trunk"] == pytest.approx(expected, rel=1e-5)


def test_the_routed_row_is_the_choice_among_the_experts(
    tiny: Config, prepared: Prepared, params, report, single
):
    with jax.set_mesh(single):
        tokens = held_out(prepared, "math", tiny.eval_sequences)
        batches = list(score(tiny.model, params, tokens, single))
    total = sum(
        float(scores["nll"][1 + expert, n, t])
        for scores in batches
        for (n, t), expert in np.ndenumerate(scores["router_route"])
    )
    bytes_ = prepared.tokenizer.token_lengths[tokens[:, 1:]].sum()
    expected = total / np.log(2) / bytes_
    assert report["bits_per_byte"]["math"]["routed"] == pytest.approx(expected, rel=1e-6)


def test_the_report_is_complete_and_consistent(tiny: Config, report):
    for index, domain in enumerate(tiny.model.domains):
        row = report["bits_per_byte"][domain]
        assert list(row) == ["trunk", *(f"expert{e}" for e in range(4)), "routed", "oracle"]
        assert row["oracle"] == row[f"expert{index}"]
    assert list(report["routers"]) == ["router", "nearest_centroid", "random", "oracle"]
    confusion = np.array(report["routers"]["router"]["confusion"])
    assert (confusion.sum(axis=1) == tiny.eval_sequences).all()
    accuracy = report["routers"]["router"]["accuracy"]
    assert accuracy == pytest.approx(np.trace(confusion) / confusion.sum())
    assert accuracy > 0.9  # the tiny domains share no word


def test_gains_are_those_of_the_table_within_their_intervals(tiny: Config, report):
    for domain in tiny.model.domains:
        row = report["bits_per_byte"][domain]
        for name, (change, low, high) in report["gains"][domain].items():
            assert change == pytest.approx(row[name] / row["trunk"] - 1, rel=1e-9)
            assert low < change < high


def test_a_document_has_its_positions_wherever_they_are(opened):
    eod = opened.prepared.tokenizer.eod
    text = [[5, 6, eod], [7] * 9 + [eod], [8, eod], [eod], [9] * 5]
    tokens = np.array([token for part in text for token in part], np.int32).reshape(3, 7)
    of = np.array([n for n, part in enumerate(text) for _ in part]).reshape(3, 7)
    of = of[:, 1:]  # the first of a row has no loss
    assert (documents(opened, tokens) == of).all()
    assert documents(opened, tokens[1:]).min() == 0, "numbered from the first that is read"


def test_an_interval_holds_the_truth_as_often_as_it_says():
    rng, held = np.random.default_rng(1), 0
    for _ in range(200):
        before = rng.gamma(9.0, size=60)
        _, low, high = paired_interval(before, before * rng.normal(0.97, 0.05, 60))
        held += low <= -0.03 <= high
    assert 180 <= held <= 198  # 95 % of 200, and what few documents cost
    assert paired_interval(before, before) == [0, 0, 0]


@pytest.mark.parametrize("shape", ["4x2", "8x1"])
def test_sharded_evaluation_agrees(tiny: Config, opened, open_run, params, report, shape: str):
    x = open_run(opened.folder.path, on=shape)
    table = parameters.table(tiny.model)
    table = table | {"nearest_centroid": table["router"]}
    sharded = evaluate(x, parameters.put_on_mesh(params, table, x.mesh))
    for domain, row in report["bits_per_byte"].items():
        for name, value in row.items():
            assert sharded["bits_per_byte"][domain][name] == pytest.approx(value, rel=1e-5)


def shapes_in(jaxpr):
    """Shapes of every value in a program, loops' bodies included."""
    for eqn in jaxpr.eqns:
        yield from (var.aval.shape for var in eqn.outvars)
        for value in eqn.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns"):
                    yield from shapes_in(inner)


def test_no_more_logits_exist_than_of_a_chunk(tiny: Config, params, single):
    compute = exact(tiny.compute)
    assert (compute.loss_chunk, exact(ComputeConfig()).loss_chunk) == (8, CHUNK)
    shared = {name: params[name] for name in TRUNK}
    tokens = place(np.zeros((1, tiny.model.context + 1), np.int32), single)
    h = place(np.zeros((1, tiny.model.context, tiny.model.trunk.hidden), np.float32), single)
    with jax.set_mesh(single):
        args = tiny.model, compute, shared, params["expert0"], h, tokens
        traced = model_losses.trace(*args).jaxpr
    logits = {shape for shape in shapes_in(traced.jaxpr) if tiny.model.vocab in shape[-1:]}
    assert logits
    assert max(int(np.prod(shape[:-1])) for shape in logits) == 8


def test_rows_of_a_pass_hold_as_many_positions_whatever_the_context():
    assert [group_rows(context, 512, 4) for context in (256, 512, 2_048, 8_192)] == [8, 4, 1, 1]
    assert group_rows(256, 6, 4) == 2, "no more than there are"
