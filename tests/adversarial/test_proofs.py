"""Every proof that lies is refused, and the refusal names where."""

import random

import pytest
from proofs import GREEDY, forged, mutant
from synthetic import MODEL, write_model

from s7jax import s7l
from s7jax.errors import InputError
from s7jax.mesh import parse as mesh_of
from s7jax.mesh import pools
from s7jax.runtime import Compute, Engine, Request
from s7jax.runtime.model import Model
from s7jax.runtime.policy import CUT, Policy
from s7jax.runtime.proof import parse
from s7jax.runtime.replay import by_specification, replay
from s7jax.runtime.sealing import seal_with_answers


@pytest.fixture(scope="module")
def seal(tmp_path_factory):
    root = tmp_path_factory.mktemp("proofs")
    write_model(root, MODEL | {"context": 64, "trunk": MODEL["trunk"] | {"layers": 1}})
    seal_with_answers(root / "weights", root / "vocab.json", root / "model.s7l")
    return s7l.open(root / "model.s7l")


@pytest.fixture(scope="module")
def model(seal):
    return Model(seal)


@pytest.fixture(scope="module")
def forward(seal):
    """The specification, which computes each question once."""
    compute, known = by_specification(seal), {}

    def remembered(tokens, first):
        key = tokens.tobytes(), first
        if key not in known:
            known[key] = compute(tokens, first)
        return known[key]

    return remembered


@pytest.fixture(scope="module")
def honest(model):
    return model.generate("def f", max_new_tokens=6, stop=[]).proof.tree()


@pytest.mark.parametrize("name", GREEDY)
def test_a_forged_proof_is_refused_and_named(honest, seal, forward, name):
    change, named = GREEDY[name]
    made = forged(honest, change)
    assert made != honest, "changes nothing"
    with pytest.raises(InputError) as refused:
        replay(parse(made), seal, forward)
    assert named in str(refused.value)


def test_the_honest_one_is_accepted(honest, seal, forward):
    assert len(GREEDY) >= 60
    shown = replay(parse(honest), seal, forward)
    assert (shown["prompt"]["text"], shown["end"], shown["steps"]) == ("def f", "length", 6)


def says_the_truth(tree, model):
    """Whether the model itself gives this very answer to this very question."""
    proof = parse(tree)
    prompt, policy = proof.prompt(model.tokenizer), proof.policy
    engine = Engine(model.compute)
    found = engine.submit(Request(prompt, policy))
    while found.reason is None and len(found.output) < len(proof.steps):
        engine.step()
    if proof.end in CUT:
        if found.reason is not None:
            return False
        engine.cut(found, proof.end)
    engine.run()
    return found.proof.tree() == tree


def fuzz(honest, seal, forward, model, count, seed):
    rng, accepted = random.Random(seed), 0
    for _ in range(count):
        made = mutant(honest, rng)
        try:
            replay(parse(made), seal, forward)
        except InputError:
            continue
        accepted += 1
        assert says_the_truth(made, model), made
    return accepted


def test_no_mutant_that_is_accepted_lies(honest, seal, forward, model):
    fuzz(honest, seal, forward, model, 2_000, seed=1)


@pytest.mark.long(minutes=4)
def test_no_mutant_of_a_hundred_thousand_that_is_accepted_lies(honest, seal, forward, model):
    assert fuzz(honest, seal, forward, model, 100_000, seed=2) > 0


def test_a_cut_answer_may_be_proven_and_nothing_more_of_it(seal, forward, model):
    compute = Compute(seal, pools(mesh_of("1x1")))
    engine = Engine(compute)
    found = engine.submit(Request(model.prompt("def f"), Policy(max_new_tokens=6)))
    engine.cut(found, "client")
    assert replay(parse(found.proof.tree()), seal, forward)["steps"] == 0
    for end in ("stop", "length", "context"):
        with pytest.raises(InputError, match="end"):
            parse(forged(found.proof.tree(), lambda t, end=end: t.update(end=end)))
