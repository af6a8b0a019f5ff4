"""The same prompt gives the same tokens and the same proof, in whatever company."""

import numpy as np
import pytest

from s7jax import s7l
from s7jax.errors import InputError, UsageError
from s7jax.integer.sampling import ONE, Sampling
from s7jax.mesh import parse, pools
from s7jax.runtime import Compute, Engine, Phase, Request
from s7jax.runtime.compute import open_compute
from s7jax.runtime.policy import Policy
from s7jax.runtime.prompt import Prompt
from s7jax.runtime.replay import by_specification, replay

# The id 0 within keeps them from being the encoding of a text: they stand as ids in proofs.
PROMPTS = [
    Prompt((0, 0, *np.random.default_rng(i).integers(1, 288, 1 + 5 * i).tolist())) for i in range(8)
]
GREEDY = Policy(max_new_tokens=12)
DRAWN = Policy(max_new_tokens=9, sampling=Sampling(temperature_q16=ONE, top_k=40, seed=5))


def policy(i):
    return DRAWN if i % 3 == 1 else GREEDY


def answers(engine, order):
    """Completion of each prompt, submitted in this order, two iterations apart."""
    found = {}
    for i in order:
        found[i] = engine.submit(Request(PROMPTS[i], policy(i)))
        engine.step()
        engine.step()
    engine.run()
    return found


@pytest.fixture(scope="module")
def alone(compute):
    """Every prompt by itself."""
    engine, found = Engine(compute), {}
    for i, prompt in enumerate(PROMPTS):
        found[i] = engine.submit(Request(prompt, policy(i)))
        engine.run()
    return found


def same(found, alone):
    for i, completion in found.items():
        assert completion.output == alone[i].output, i
        assert completion.proof == alone[i].proof, i


def test_alone(alone):
    assert all(len(alone[i].output) == policy(i).max_new_tokens for i in alone)
    assert len({tuple(c.output) for c in alone.values()}) == 8
    assert len({e for c in alone.values() for e in c.experts}) > 1
    assert any(len(set(c.experts)) > 1 for c in alone.values()), "no route changes: a weak test"


@pytest.mark.parametrize("order", [range(8), [5, 0, 7, 2, 6, 1, 3, 4]])
def test_in_a_batch_with_others_joining_and_leaving(compute, alone, order):
    same(answers(Engine(compute, rows=3), order), alone)


def test_in_a_full_batch(compute, alone):
    same(answers(Engine(compute, rows=8), range(8)), alone)


@pytest.mark.parametrize("drafter", ["lookup", "trunk"])
@pytest.mark.parametrize("drafts", [1, 3])
def test_with_drafts(compute, alone, drafts, drafter):
    engine = Engine(compute, rows=3, drafts=drafts, drafter=drafter)
    same(answers(engine, range(8)), alone)


@pytest.mark.usefixtures("quick_compiling")
@pytest.mark.parametrize(
    ("mesh", "prompts"),
    [
        ("1x1", [0, 1]),
        pytest.param("1x1", [7], marks=pytest.mark.long(minutes=0.5)),
        pytest.param("4x2", [0, 1, 2], marks=pytest.mark.long(minutes=1)),
        pytest.param("2x1x1", [0, 1, 2], marks=pytest.mark.long(minutes=0.3)),
    ],
)
def test_by_xla_on_meshes(seal, alone, mesh, prompts):
    """The last prompt alone needs the longest chunk that is compiled."""
    other = Compute(seal, pools(parse(mesh)))
    same(answers(Engine(other, rows=other.groups), prompts), alone)


def test_in_numpy(seal, alone):
    for completion in alone.values():
        replay(completion.proof, seal, by_specification(seal))


def test_the_proof_is_bound_to_everything(compute, seal, alone):
    proof = alone[0].proof
    assert proof.head["root"] == seal.root
    assert proof.head["prompt"] == PROMPTS[0].tree()
    assert proof.end == "length"
    engine = Engine(compute)
    other = engine.submit(Request(PROMPTS[0], Policy(max_new_tokens=12, stop=(287,))))
    engine.run()
    assert other.output == alone[0].output
    assert other.proof.chain != proof.chain


@pytest.mark.usefixtures("quick_compiling")
@pytest.mark.long(minutes=0.5)
def test_slots_that_xla_rounds_up_hold_no_row_that_is_parked(seal, alone):
    engine = Engine(open_compute(seal, "xla"), rows=2, slots=41)
    same(answers(engine, [1, 2]), alone)


def test_a_stop_token_ends(compute, alone):
    token = alone[0].output[4]
    engine = Engine(compute)
    found = engine.submit(Request(PROMPTS[0], Policy(max_new_tokens=12, stop=(token,))))
    engine.run()
    first = alone[0].output.index(token)
    assert (found.reason, found.output) == ("stop", alone[0].output[: first + 1])


def test_a_full_context_ends(compute):
    engine = Engine(compute)
    found = engine.submit(Request(PROMPTS[7], Policy(max_new_tokens=100)))
    engine.run()
    assert found.reason == "context"
    assert len(PROMPTS[7].ids) + len(found.output) == 64
    replay(found.proof, compute.seal, by_specification(compute.seal))


def test_an_answer_that_is_cut_stands_and_is_proven(compute, alone):
    engine = Engine(compute, rows=1)
    first = engine.submit(Request(PROMPTS[7], policy(7)))
    waiting = engine.submit(Request(PROMPTS[1], DRAWN))
    while len(first.output) < 3:
        engine.step()
    engine.cut(waiting, "client")
    engine.cut(first, "time")
    assert not engine.busy
    assert (waiting.reason, waiting.output) == ("client", [])
    assert first.reason == "time"
    assert first.output == alone[7].output[: len(first.output)]
    replay(first.proof, compute.seal, by_specification(compute.seal))


def test_sessions_end_collapsed(compute):
    engine = Engine(compute)
    engine.submit(Request(PROMPTS[0], GREEDY))
    engine.step()
    row = engine._rows[0]
    assert row.session.phase is Phase.BODY
    engine.run()
    assert row.session.phase is Phase.COLLAPSED


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [((), "0 tokens"), (tuple([1] * 64), "64 tokens"), ((288,), "outside"), ((-1,), "outside")],
)
def test_impossible_prompts_are_refused(compute, prompt, problem):
    with pytest.raises(UsageError, match=problem):
        Engine(compute).submit(Request(Prompt(prompt), GREEDY))


def test_rows_must_divide_over_data_groups(seal):
    with pytest.raises(UsageError, match="3 rows"):
        Engine(Compute(seal, pools(parse("2x1"))), rows=3)


@pytest.mark.usefixtures("quick_compiling")
def test_a_damaged_expert_is_named_when_entered_and_no_obstacle_before(sealed, tmp_path, alone):
    used = [set(completion.experts) for completion in alone.values()]
    e = next(e for e in range(4) if 0 < sum(e in experts for experts in used) < len(used))
    data, seal = bytearray(sealed.read_bytes()), s7l.open(sealed)
    name = f"expert{e}.in_proj.weight"
    data[seal.head.lanes[1].offset + seal.tensors[name].offset] ^= 1
    (tmp_path / "damaged.s7l").write_bytes(data)
    compute = Compute(s7l.open(tmp_path / "damaged.s7l"), pools(parse("1x1")))
    entered = next(i for i in range(8) if e in used[i])
    spared = next(i for i in range(8) if e not in used[i])
    for i in (spared, entered):
        engine = Engine(compute)
        found = engine.submit(Request(PROMPTS[i], policy(i)))
        if i == entered:
            with pytest.raises(InputError, match=name):
                engine.run()
        else:
            engine.run()
            assert found.output == alone[i].output


def scored(compute, prompt, policy, company=(), **asked):
    engine = Engine(compute, rows=4)
    for other in company:
        engine.submit(Request(other, policy))
    found = engine.submit(Request(prompt, policy, **asked))
    engine.run()
    return found


def test_scores_are_those_of_the_logits_and_change_no_answer(compute, seal):
    """Of prompt and answer, in any company, beside float64 from the specification's logits."""
    prompt = Prompt((0, *range(7, 47)))
    alone = scored(compute, prompt, DRAWN)
    found = scored(
        compute, prompt, DRAWN, [Prompt((0, 9)), Prompt((3,) * 20)], logprobs=3, score_prompt=True
    )
    assert found.proof.tree() == alone.proof.tree()
    ids = [*prompt.ids, *found.output]
    _, _, logits = by_specification(seal)(np.array(ids[:-1], np.int32), 0)
    x = logits / 2.0**16
    exact = (
        x
        - np.log(np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True))
        - x.max(1, keepdims=True)
    )
    scores = [*found.prompt_scores, *found.scores]
    assert len(scores) == len(ids) - 1
    for row, token, score in zip(exact, ids[1:], scores, strict=True):
        assert score.token == token
        assert abs(score.logprob / 2**16 - row[token]) < 1e-4
        assert [i for i, _ in score.top] == np.argsort(-row, kind="stable")[:3].tolist()
        assert all(abs(p / 2**16 - row[i]) < 1e-4 for i, p in score.top)


def test_a_prompt_may_be_scored_and_not_continued(compute):
    found = scored(compute, Prompt((0, 5, 6)), DRAWN, score_prompt=True, generate=False)
    assert (found.output, found.reason, len(found.prompt_scores)) == ([], "client", 2)
    assert found.proof.steps == ()


def test_an_equal_request_is_not_cut_in_anothers_place(compute):
    engine = Engine(compute)
    first, second, third = (engine.submit(Request(Prompt((0, 5)), DRAWN)) for _ in range(3))
    engine.cut(third, "client")
    engine.run()
    assert (len(first.output), len(second.output), third.output) == (9, 9, [])


def test_warming_changes_nothing(compute):
    engine = Engine(compute, rows=2)
    engine.warm()
    found = engine.submit(Request(Prompt((0, 5)), DRAWN))
    engine.run()
    assert found.proof.tree() == scored(compute, Prompt((0, 5)), DRAWN).proof.tree()
    assert engine.free == 2
