"""Two who disagree are led to the step and the operator."""

import dataclasses
import math

import numpy as np
import pytest

from s7jax.errors import InputError
from s7jax.integer import specification
from s7jax.runtime.dispute import first_difference, settle
from s7jax.runtime.model import Model
from s7jax.runtime.proof import hashed
from s7jax.runtime.replay import by_specification, operator_digests, traced


@pytest.fixture(scope="module")
def model(seal):
    return Model(seal)


@pytest.fixture(scope="module")
def honest(model, seal):
    return traced(model.generate("def f(x)", max_new_tokens=9, stop=[]).proof, seal)


@pytest.fixture(scope="module")
def asked(model, honest):
    return honest.prompt(model.tokenizer).ids


@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 1_000])
def test_bisection_finds_the_first_in_the_logarithm_of_their_number(count):
    for at in {0, count // 3, max(0, count - 1), count}:
        found, asked = first_difference(lambda i, at=at: i < at, count)
        assert found == at
        assert asked <= math.ceil(math.log2(count + 1)) if count else asked == 0


def lied(proof, at, operator):
    """A forger's proof whose operator gave other values from one step on, all roots right."""
    steps, operators = list(proof.steps), [list(d) for d in proof.operators]
    from s7jax.runtime.proof import Growing, trace_root

    for i in range(at, len(steps)):
        for j in range(operator, len(operators[i])):
            operators[i][j] = hashed(np.array([i, j]))
        changes = {"logits": bytes([i] * 32), "trace": trace_root(operators[i])}
        steps[i] = dataclasses.replace(steps[i], **changes)
    growing = Growing(proof.head)
    for step in steps:
        growing.extend(step)
    return growing.close(proof.answer, proof.end, operators)


@pytest.mark.parametrize(("at", "operator"), [(0, 0), (4, 7), (8, 16)])
@pytest.mark.parametrize("side", ["a", "b"])
def test_a_lie_is_led_to_its_operator(honest, asked, seal, at, operator, side):
    false = lied(honest, at, operator)
    pair = (honest, false) if side == "b" else (false, honest)
    found = settle(*pair, seal, by_specification(seal))
    tokens = np.array([*asked, *honest.output[:at]], np.int32)
    names, _ = operator_digests(seal, tokens, honest.steps[at : at + 1], len(tokens) - 1)
    assert (found.step, found.position) == (at, honest.steps[at].position)
    assert found.difference == names[operator]
    assert found.right == {"a": "b", "b": "a"}[side]
    assert found.values["right"] == found.values[found.right] != found.values[side]
    steps, operators = len(honest.steps), len(honest.operators[at])
    assert found.comparisons <= math.ceil(math.log2(steps + 1)) + math.ceil(
        math.log2(operators + 1)
    )


def test_a_flipped_bit_in_one_layer_leads_to_that_operator(honest, seal, model, monkeypatch):
    """A machine that computes wrongly: one bit of GELU's output in the trunk's layer."""
    plain, calls = specification.gelu, []

    def faulty(u):
        y = plain(u)
        calls.append(1)
        if len(calls) == 1 and len(y) > 10:
            y = y.copy()
            y[10, 0] ^= 1 << 12
        return y

    monkeypatch.setattr(specification, "gelu", faulty)
    false = traced(model.generate("def f(x)", max_new_tokens=9, stop=[]).proof, seal)
    monkeypatch.setattr(specification, "gelu", plain)
    found = settle(honest, false, seal, by_specification(seal))
    assert found.difference == "trunk.layer0.ffn.gelu"
    assert found.position == 10
    assert found.right == "a"


def test_without_a_trace_the_field_is_named(honest, seal, model):
    plain = model.generate("def f(x)", max_new_tokens=9, stop=[]).proof
    steps = list(plain.steps)
    from s7jax.runtime.proof import Growing

    growing = Growing(plain.head)
    steps[3] = dataclasses.replace(steps[3], logits=bytes(32))
    for step in steps:
        growing.extend(step)
    false = growing.close(plain.answer, plain.end)
    found = settle(plain, false, seal, by_specification(seal))
    assert (found.step, found.difference, found.right) == (3, "logits", "a")


def changed(proof, **values):
    """The proof with other values of its own, its chain right: step number → fields, or end."""
    from s7jax.runtime.proof import Growing

    steps = list(values.get("steps", proof.steps))
    for i, fields in values.get("at", {}).items():
        steps[i] = dataclasses.replace(steps[i], **fields)
    growing = Growing(proof.head | values.get("head", {}))
    for step in steps:
        growing.extend(step)
    operators = values.get("operators", proof.operators)
    return growing.close(
        values.get("answer", proof.answer), values.get("end", proof.end), operators
    )


def test_a_trace_in_one_of_them_is_no_difference(honest, seal, model):
    plain = model.generate("def f(x)", max_new_tokens=9, stop=[]).proof
    with pytest.raises(InputError, match="the proofs say the same"):
        settle(honest, plain, seal, by_specification(seal))
    false = changed(plain, at={5: {"logits": bytes(32)}})
    found = settle(honest, false, seal, by_specification(seal))
    assert (found.step, found.difference, found.right) == (5, "logits", "a")


def test_a_trace_of_more_operators_than_there_are(honest, seal):
    from s7jax.runtime.proof import trace_root

    operators = list(honest.operators)
    operators[3] = (*operators[3], bytes(32))
    longer = changed(honest, at={3: {"trace": trace_root(operators[3])}}, operators=operators)
    found = settle(longer, honest, seal, by_specification(seal))
    assert (found.step, found.difference, found.right) == (3, "number of operators", "b")
    assert found.values == {"a": "28", "b": "27", "right": "27"}


def test_an_end_that_does_not_follow_loses(honest, seal, model):
    plain, forward = (
        model.generate("def f(x)", max_new_tokens=9, stop=[]).proof,
        by_specification(seal),
    )
    more = [
        *plain.steps,
        dataclasses.replace(plain.steps[-1], position=plain.steps[-1].position + 1),
    ]
    for false, difference in (
        (changed(plain, end="time"), "end"),
        (changed(plain, answer=b"lie"), "answer"),
        (changed(plain, steps=plain.steps[:4], end="stop"), "end"),
        (changed(plain, steps=more), "end"),
    ):
        for pair, right in (((plain, false), "a"), ((false, plain), "b")):
            found = settle(*pair, seal, forward)
            assert (found.step, found.difference, found.right) == (None, difference, right)
    lies = [changed(plain, answer=b"lie", end="time"), changed(plain, answer=b"lie", end="client")]
    assert settle(*lies, seal, forward).right == "neither"
    cut = changed(plain, steps=[], answer=b"", end="client")
    with pytest.raises(InputError, match="client after 0 and length after 9 agree as far as both"):
        settle(cut, plain, seal, forward)


@pytest.mark.parametrize(
    ("head", "at"),
    [
        ({"prompt": {"ids": [0, 70_000]}}, {}),
        ({"prompt": {"text": b"", "start": False}}, {}),
        ({"prompt": {"text": b"\xff" * 100, "start": True}}, {}),
        ({}, {2: {"token_out": 70_000}, 3: {"token_in": 70_000}}),
        ({"hashes": dict.fromkeys(("abi", "policy", "meta"), bytes(32))}, {}),
    ],
)
def test_what_cannot_be_of_the_file_is_refused_before_it_is_computed(seal, model, head, at):
    plain = model.generate("def f(x)", max_new_tokens=9, stop=[]).proof
    both = (
        changed(plain, head=head, at=at),
        changed(plain, head=head, at={**at, 7: {"expert": 1}, 6: {"logits": bytes(32)}}),
    )
    with pytest.raises(InputError, match="a cannot be of this sealed file"):
        settle(*both, seal, by_specification(seal))


def test_what_is_no_dispute_is_said(honest, seal, model):
    with pytest.raises(InputError, match="the proofs say the same"):
        settle(honest, honest, seal, by_specification(seal))
    other = model.generate("def g(x)", max_new_tokens=9, stop=[]).proof
    with pytest.raises(InputError, match="differ in their prompt: two questions"):
        settle(honest, other, seal, by_specification(seal))
