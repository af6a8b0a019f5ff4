"""Proofs: stored, parsed, replayed; whatever was changed is located."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s7jax.errors import InputError
from s7jax.integer.sampling import ONE, Sampling
from s7jax.mesh import parse as mesh_of
from s7jax.mesh import pools
from s7jax.runtime import Compute, Engine, Request, answers
from s7jax.runtime.model import Model, by_devices
from s7jax.runtime.proof import Policy, by_specification, load, parse, replay
from s7jax.s7l import SealError
from s7jax.s7l.canonical import encode

PROMPT = (0, 72, 101, 3, 9)
POLICY = Policy(max_new_tokens=6, sampling=Sampling(temperature_q16=ONE, seed=9))


@pytest.fixture(scope="module")
def proof(compute):
    engine = Engine(compute)
    found = engine.submit(Request(PROMPT, POLICY))
    engine.run()
    return found.proof


@pytest.fixture(scope="module")
def forward(seal):
    return by_specification(seal)


def test_stored_and_read_again(proof, tmp_path):
    proof.save(tmp_path / "out.s7p")
    assert load(tmp_path / "out.s7p") == proof
    assert not list(tmp_path.glob(".*"))


def test_replayed_in_numpy_and_on_devices(proof, seal, forward):
    replay(proof, seal, forward)
    replay(proof, seal, by_devices(Model(seal)))


def rebuilt(proof, head=None, steps=None, end="length"):
    """A proof whose chain is right again after a change."""
    tree = proof.tree()
    tree["head"] = head or tree["head"]
    tree["steps"] = steps or tree["steps"]
    from s7jax.runtime import proof as module

    made = module._start(tree["head"])
    for step in tree["steps"]:
        made = made.extend(module.Step(*step))
    return made.close(end)


@pytest.mark.parametrize("index", [0, 3, 5])
@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("position", lambda v: v + 1),
        ("token_in", lambda v: v ^ 1),
        ("expert", lambda v: (v + 1) % 4),
        ("router", lambda v: bytes([v[0] ^ 1]) + v[1:]),
        ("logits", lambda v: v[:31] + bytes([v[31] ^ 128])),
        ("token_out", lambda v: v ^ 1),
    ],
)
def test_a_changed_step_is_located_even_with_the_chain_made_right(
    proof, seal, forward, index, field, change
):
    steps = list(proof.steps)
    steps[index] = dataclasses.replace(
        steps[index], **{field: change(getattr(steps[index], field))}
    )
    forged = rebuilt(proof, steps=[step.tree() for step in steps])
    # A changed output is also the next step's input, which is computed from it.
    with pytest.raises(InputError, match=rf"step {index} \(position {4 + index}\): {field} is"):
        replay(forged, seal, forward)


def test_other_bindings_are_refused(proof, seal, forward):
    for key, value in (("root", bytes(32)), ("experts", {}), ("hashes", {"abi": b""})):
        with pytest.raises(InputError, match=f"its {key} differs"):
            replay(rebuilt(proof, head=proof.head | {key: value}), seal, forward)
    other = rebuilt(proof, head=proof.head | {"prompt": [0, 72, 101, 3, 8]})
    with pytest.raises(InputError, match="step 0"):
        replay(other, seal, forward)
    with pytest.raises(InputError, match="the end is"):
        replay(rebuilt(proof, end="stop"), seal, forward)


@given(st.integers(0, 10_000), st.integers(0, 7))
def test_any_flipped_bit_of_the_file_is_refused(proof, tmp_path_factory, at, bit):
    data = bytearray(encode(proof.tree()))
    data[at % len(data)] ^= 1 << bit
    path = tmp_path_factory.mktemp("flip") / "out.s7p"
    path.write_bytes(data)
    with pytest.raises(InputError):
        load(path)


@pytest.mark.parametrize("tree", [None, [], {}, {"format": "s7-proof"}, {"steps": [[1] * 6]}])
def test_what_is_no_proof_is_refused(tree):
    with pytest.raises(SealError):
        parse(tree)


def test_a_changed_weight_or_router_logit_is_located_to_its_step(proof, seal):
    """In memory, behind the seal's back: the replay of what it answers names the step."""
    compute = Compute(seal, pools(mesh_of("1x1")))
    program, forward = compute._program, by_specification(seal)

    def answer():
        engine = Engine(compute)
        found = engine.submit(Request(PROMPT, POLICY))
        engine.run()
        return found.proof

    router = program.shared["router"]["bias"]
    program.shared["router"]["bias"] = (router[0] + (1 << 28), router[1])
    with pytest.raises(InputError, match=r"step 0 \(position 4\): router is"):
        replay(answer(), seal, forward)
    program.shared["router"]["bias"] = router

    weight = program.shared["embedding"]["weight"]
    token = proof.output[2]  # first read as an input at step 3; its logit changes at every step
    row = np.asarray(weight).copy()
    row[token, 0] ^= 1
    program.shared["embedding"]["weight"] = jax.device_put(row, weight.sharding)
    with pytest.raises(InputError, match=r"step 0 \(position 4\): logits is"):
        replay(answer(), seal, forward)
    program.shared["embedding"]["weight"] = weight
    replay(answer(), seal, forward)


def test_known_answers_are_given_again(seal, forward):
    known = seal.stream["answers"]
    assert [answer["domain"] for answer in known] == ["code", "math", "reason", "general"]
    answers.check(known, forward)
    answers.check(known, by_devices(Model(seal)))


@pytest.mark.parametrize("index", [0, 2])
def test_a_changed_known_answer_is_named(seal, forward, index):
    known = [dict(answer) for answer in seal.stream["answers"]]
    logits = list(known[index]["logits"])
    logits[1] = bytes(32)
    known[index]["logits"] = logits
    with pytest.raises(InputError, match=f"{known[index]['domain']}, step 1: other logits"):
        answers.check(known, forward)
