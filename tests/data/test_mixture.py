import hashlib
from itertools import islice

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader

from s7jax.config import PRESETS
from s7jax.data.mixture import Batch, Receipt, TrainingBatches, held_out, prefetch
from s7jax.data.prepare import prepare
from s7jax.errors import InputError, UsageError

SHARES = PRESETS["s7-nano"].shares


def walk(batches, steps):
    return [batches.batch(step) for step in range(steps)]


def equal(a, b):
    for name in ("tokens", "domain", "row"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), strict=True)


def test_a_batch_has_its_shapes_and_the_rows_it_names(small):
    batch = TrainingBatches(small, batch=6, seed=0, shares=SHARES).batch(3)
    assert (batch.tokens.shape, batch.tokens.dtype) == ((6, 17), np.int32)
    assert (batch.domain.shape, batch.domain.dtype) == ((6,), np.int32)
    assert (batch.row.shape, batch.row.dtype) == ((6,), np.int64)
    only = {
        d: walk(TrainingBatches(small, batch=50, seed=9, shares={d: 1}), 60) for d in small.domains
    }
    for tokens, domain, row in zip(batch.tokens, batch.domain, batch.row, strict=True):
        found = {
            bytes(t) for b in only[small.domains[domain]] for t in b.tokens[b.row == row]
        }  # the same row, met in another order
        assert found == {bytes(tokens)}


@pytest.mark.parametrize("mixture", [(7, 5, 4, 4), (3, 1, 1, 2), (1, 1, 1, 1), (2, 0, 3, 1)])
@pytest.mark.parametrize("batch", [5, 20, 33])
def test_every_aligned_cycle_is_exact(small, mixture, batch):
    shares = {d: n for d, n in zip(small.domains, mixture, strict=True) if n}
    batches = TrainingBatches(small, batch=batch, seed=1, shares=shares)
    domains = np.concatenate([b.domain for b in walk(batches, 400 // batch)])
    cycle = sum(mixture)
    for block in domains[: len(domains) // cycle * cycle].reshape(-1, cycle):
        assert np.bincount(block, minlength=4).tolist() == list(mixture)


def test_a_mixture_cycle_is_spread_not_in_lumps(small):
    domains = TrainingBatches(small, batch=20, seed=0, shares=SHARES).batch(0).domain
    for place in range(1, 21):
        counts = np.bincount(domains[:place], minlength=4)
        assert np.all(np.abs(counts - place * np.array([7, 5, 4, 4]) / 20) < 1)


@pytest.mark.parametrize(("domain", "count"), [(0, 7), (1, 5), (3, 4)])
def test_an_epoch_inside_a_mixture_uses_every_row_once(small, domain, count):
    n = small.rows(small.domains[domain], "train")
    batch = TrainingBatches(small, batch=-(-n // count) * 20, seed=0, shares=SHARES).batch(0)
    assert sorted(batch.row[batch.domain == domain][:n]) == list(range(n))


def test_jumping_to_a_step_is_walking_there(small):
    walked = walk(TrainingBatches(small, batch=20, seed=4, shares=SHARES), 300)
    jumping = TrainingBatches(small, batch=20, seed=4, shares=SHARES)
    for step in (299, 0, 150, 7):
        equal(jumping.batch(step), walked[step])
    far = jumping.batch(10**12)
    equal(far, TrainingBatches(small, batch=20, seed=4, shares=SHARES).batch(10**12))


def test_the_batch_size_does_not_change_the_sequence(small):
    whole = walk(TrainingBatches(small, batch=40, seed=2, shares=SHARES), 3)
    halves = walk(TrainingBatches(small, batch=20, seed=2, shares=SHARES), 6)
    for name in ("tokens", "domain", "row"):
        np.testing.assert_array_equal(
            np.concatenate([getattr(b, name) for b in whole]),
            np.concatenate([getattr(b, name) for b in halves]),
        )


def test_cycles_passed_over_are_those_another_phase_has_drawn(small):
    whole = TrainingBatches(small, batch=40, seed=2, shares=SHARES)
    later = TrainingBatches(small, batch=40, seed=2, shares=SHARES, first=6)
    equal(later.batch(0), whole.batch(3))


def epochs(prepared, domain, seed, count):
    n = prepared.rows(domain, "train")
    batches = TrainingBatches(prepared, batch=1, seed=seed, shares={domain: 1})
    return [[int(batches.batch(e * n + i).row[0]) for i in range(n)] for e in range(count)]


def test_an_epoch_uses_every_row_once_and_the_next_is_shuffled_anew(small):
    n = small.rows("code", "train")
    first, second, third = epochs(small, "code", 0, 3)
    for epoch in (first, second, third):
        assert sorted(epoch) == list(range(n))
        assert epoch != list(range(n))
    assert first != second != third != first


def test_seeds_give_unrelated_orders(small):
    zero, one = epochs(small, "code", 0, 2), epochs(small, "code", 1, 1)
    assert one[0] not in zero  # neither the same order nor the next epoch's


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shares": {"cod": 1}}, "expected one of code, math, reason, general"),
        ({"shares": {}}, "no domain to draw from"),
        ({"shares": {"code": 0}}, "share 0; expected at least 1"),
        ({"shares": {"code": 1, "math": -1}}, "share -1; expected at least 1"),
        ({"batch": 0}, "batch 0"),
    ],
)
def test_impossible_mixtures_are_usage_errors(small, arguments, message):
    with pytest.raises(UsageError, match=message):
        TrainingBatches(small, **({"batch": 4, "seed": 0, "shares": SHARES} | arguments))


def test_prefetch_gives_the_same_batches_and_stops_early(small):
    batches = TrainingBatches(small, batch=4, seed=0, shares=SHARES)
    for step, batch in enumerate(prefetch(batches.batch, 5, 17), start=5):
        equal(batch, batches.batch(step))
    assert step == 16
    asked = []
    endless = prefetch(asked.append, 0, 10**9, ahead=3)
    assert len(list(islice(endless, 2))) == 2
    endless.close()
    assert len(asked) <= 6
    assert list(prefetch(batches.batch, 3, 3)) == []


def test_prefetch_passes_errors_on():
    def broken(step):
        raise RuntimeError(f"step {step}")

    with pytest.raises(RuntimeError, match="step 2"):
        next(prefetch(broken, 2, 9))


def test_held_out_rows_are_the_first_ones_of_the_held_out_file(small):
    rows = held_out(small, "math", 10**6)
    assert rows.shape == (small.rows("math", "held_out"), 17)
    assert rows.dtype == np.int32
    np.testing.assert_array_equal(held_out(small, "math", 3), rows[:3], strict=True)
    (path,) = small.shards("math", "held_out")
    assert "held_out-00000-of-00001" in path.name
    reader = ArrayRecordReader(str(path))
    assert [row.astype("<u2").tobytes() for row in rows] == reader.read_all()
    reader.close()


def test_held_out_refuses_what_it_cannot_give(small):
    with pytest.raises(UsageError, match="expected one of code"):
        held_out(small, "poetry", 1)
    with pytest.raises(UsageError, match="at least 1"):
        held_out(small, "math", 0)


def test_the_receipt_counts_and_chains(small):
    batches = walk(TrainingBatches(small, batch=20, seed=0, shares=SHARES), 3)
    receipt = Receipt.start(4)
    for batch in batches:
        receipt = receipt.extend(batch)
    assert receipt.sequences == (21, 15, 12, 12)
    chain = hashlib.sha256(b"s7-mixture").digest()
    for batch in batches:  # the definition, written another way
        ids = b"".join(
            int(d).to_bytes(8, "little") + int(r).to_bytes(8, "little")
            for d, r in zip(batch.domain, batch.row, strict=True)
        )
        chain = hashlib.sha256(chain + ids).digest()
    assert receipt.chain == chain.hex()
    swapped = Receipt.start(4)
    for batch in (batches[1], batches[0], batches[2]):
        swapped = swapped.extend(batch)
    assert swapped.sequences == receipt.sequences
    assert swapped.chain != receipt.chain


def test_a_receipt_survives_json_and_does_not_change_in_place():
    batch = Batch(np.zeros((2, 3), np.int32), np.array([1, 3], np.int32), np.array([7, 8]))
    start = Receipt.start(4)
    after = start.extend(batch)
    assert start == Receipt.start(4)
    assert Receipt.from_json(after.to_json()) == after
    assert after.sequences == (0, 1, 0, 1)


def test_a_receipt_counts_every_domain_and_no_other():
    rows = np.zeros((2, 3), np.int32)
    some = Batch(rows, np.array([0, 1], np.int32), np.array([7, 8]))
    assert Receipt.start(4).extend(some).sequences == (1, 1, 0, 0)
    with pytest.raises(ValueError, match="longer"):
        Receipt.start(1).extend(some)


@pytest.mark.parametrize(
    "tree", [{}, {"sequences": 3, "chain": "00" * 32}, {"sequences": [1], "chain": "00"}]
)
def test_a_bad_receipt_is_refused(tree):
    with pytest.raises(InputError, match="not a mixture receipt"):
        Receipt.from_json(tree)


def test_rows_over_many_shards_are_the_same_rows(small, small_sources, tmp_path, monkeypatch):
    monkeypatch.setattr("s7jax.data.job.SHARD_ROWS", 100)
    sharded = prepare(
        small_sources,
        tmp_path,
        domains=PRESETS["s7-nano"].domains,
        vocab=320,
        context=16,
        held_out=0.2,
        workers=1,
    )
    assert len(sharded.shards("code", "train")) > 3
    a, b = (TrainingBatches(p, batch=50, seed=0, shares=SHARES) for p in (small, sharded))
    for step in (0, 9):
        equal(a.batch(step), b.batch(step))
