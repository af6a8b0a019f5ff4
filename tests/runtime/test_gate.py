"""No compute without a gate: every entry refuses what is missing, forged, foreign or spent."""

import copy
import inspect
import pickle

import jax
import numpy as np
import pytest

from s7jax.errors import InputError
from s7jax.integer.program import Program
from s7jax.mesh import parse, pools
from s7jax.native import library
from s7jax.native.program import NativeProgram
from s7jax.runtime import Compute, Session
from s7jax.runtime import gate as gate_module
from s7jax.runtime.cm1 import Control, Phase
from s7jax.runtime.compute import Reference, open_compute
from s7jax.runtime.gate import Gate, GateError, issue
from s7jax.runtime.policy import Policy
from s7jax.runtime.prompt import Prompt
from s7jax.runtime.proof import Step

pytestmark = pytest.mark.usefixtures("quick_compiling")

PROMPT = Prompt((1, 2, 3))
STORAGE = {"trunk_cache", "expert_cache", "history", "remember", "recall"}
FACTS = {"chunk", "drafts", "machine", "require_own_process", "types"}  # that need no tokens


@pytest.fixture(scope="module", params=["native", "xla"])
def compute(seal, request):
    """Every gate test on both engines."""
    if request.param == "native" and not library.available():
        pytest.skip("the native engine was not compiled")
    return open_compute(seal, request.param)


def entries(compute, gates):
    """Every compute entry, called with the given gates: name → call."""
    tokens, start = np.array([PROMPT.ids], np.int32), np.zeros(1, np.int32)
    h = compute.history(1, 1)
    return {
        "trunk": lambda: compute.trunk(gates, tokens, start, compute.trunk_cache(1, 64)),
        "expert": lambda: compute.expert(gates, 0, h, start, compute.expert_cache(0, 1, 64)),
        "head": lambda: compute.head(gates, h),
    }


def storage(compute):
    """Every other method, called; what they are given has the right shape."""
    start, h = np.zeros(1, np.int32), compute.history(1, 4)
    x = compute.recall(h, start, 1)
    return {
        "trunk_cache": compute.trunk_cache(1, 4),
        "expert_cache": compute.expert_cache(0, 1, 4),
        "history": h,
        "remember": compute.remember(h, x, start),
        "recall": x,
        "chunk": compute.chunk(3),
        "drafts": compute.drafts(1),
        "machine": compute.machine(),
        "types": compute.types(),
        "require_own_process": compute.require_own_process(),
    }


def public_methods():
    members = inspect.getmembers(Compute, inspect.isfunction)
    return {name for name, _ in members if not name.startswith("_")}


def test_every_public_method_but_storage_refuses_to_compute_without_a_gate(compute):
    refusing = entries(compute, [])
    assert refusing.keys() == public_methods() - STORAGE - FACTS
    for call in refusing.values():
        with pytest.raises(GateError):
            call()


def test_storage_runs_no_program(compute, monkeypatch):
    for name in ("trunk", "expert", "head"):
        for program in (Program, NativeProgram):
            monkeypatch.setattr(program, name, lambda *_: pytest.fail("computed without a gate"))
    # Compiled, and looked into, is the same elsewhere: evidence of a whole run.
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda lowered: lowered)
    assert storage(compute).keys() == STORAGE | FACTS


@pytest.fixture
def session(compute):
    with Session(compute) as session:
        yield session


def refused(compute, gates, why):
    for call in entries(compute, gates).values():
        with pytest.raises(GateError, match=why):
            call()


def test_a_missing_gate(compute):
    refused(compute, [], "NoneType")
    refused(compute, [None], "NoneType")
    refused(compute, ["gate"], "str")
    refused(compute, [type("Mine", (Gate,), {})()], "not Mine")


def test_a_forged_gate(compute, session):
    refused(compute, [Gate()], "forged")
    refused(compute, [Gate.__new__(Gate)], "forged")
    session.begin(PROMPT, Policy())
    refused(compute, [Gate()], "forged")
    for attempt in ({"_session": session}, {"session": session}):
        with pytest.raises(AttributeError):
            setattr(Gate(), *next(iter(attempt.items())))
    for asking in (session, Session(compute)):  # one has its gate, one has no prompt yet
        with pytest.raises(GateError, match="gets no further gate"):
            gate_module.issue(asking)


def test_phase_gate_and_tokens_cannot_be_set_from_outside(compute):
    session = Session(compute)
    gate = session.begin(PROMPT, Policy())
    session.close("client")
    session.collapse()
    for name in ("phase", "gate", "output", "policy", "compute", "proof"):
        with pytest.raises(AttributeError):
            setattr(session, name, Phase.BODY)
    refused(compute, [gate], "COLLAPSED")


def test_a_gate_computes_its_own_sessions_tokens_alone(compute, session):
    gate = session.begin(PROMPT, Policy())

    def trunk(tokens, start=0, gates=(gate,), slots=64):
        rows = np.array([tokens] * len(gates), np.int32)
        starts = np.full(len(gates), start, np.int32)
        cache = compute.trunk_cache(len(gates), slots)
        return compute.trunk(list(gates), rows, starts, cache)

    trunk([1, 2, 3])
    trunk([2, 3, 0], start=1)  # padding
    for tokens, start in (([1, 2, 4], 0), ([1, 2, 3, 7], 0), ([1, 2, 3], 1), ([5], 3), ([0, 5], 3)):
        with pytest.raises(GateError, match="tokens of its session"):
            trunk(tokens, start)
    with pytest.raises(GateError, match="position 0 has no gate"):
        trunk([1, 2, 3], gates=(gate, None))
    with pytest.raises(GateError, match="1 gates for 2 rows"):
        compute.trunk(
            [gate], np.ones((2, 1), np.int32), np.zeros(2, np.int32), compute.trunk_cache(2, 4)
        )
    parked = np.array([[1, 2, 3], [5, 6, 7]], np.int32)
    with pytest.raises(GateError, match="position 64 has no gate: it is not parked"):
        compute.trunk([gate, None], parked, np.array([0, 64]), compute.trunk_cache(2, 64))
    session.propose(9)
    trunk([2, 3, 9], start=1)
    session.settle()
    with pytest.raises(GateError, match="tokens of its session"):
        trunk([2, 3, 9], start=1)


def test_what_is_proposed_is_confirmed_in_order_or_forgotten(session):
    session.begin(PROMPT, Policy())

    def answered(token):
        session.record(Step(3, 1, 0, bytes(32), bytes(32), token))
        return session.tokens(3, 64)

    for token in (5, 6, 7):
        session.propose(token)
    assert answered(5) == [5, 6, 7]
    assert answered(9) == [5, 9]  # not 6: then 7 after it is not to be computed either


def test_a_special_token_is_no_text_of_the_answer(session, compute):
    """Also where the policy does not stop at it."""
    words = compute.seal.vocabulary
    (special, *_), letter = words.specials.values(), words.tokens.index(b"a")
    session.begin(PROMPT, Policy(stop=()))
    for token in (letter, special, letter):
        session.record(Step(3, 1, 0, bytes(32), bytes(32), token))
    session.close("client")
    assert words.tokens[special]
    assert session.collapse().answer == b"aa"


def test_a_gate_is_one_rows_alone(compute, session):
    gate, start, h = session.begin(PROMPT, Policy()), np.zeros(4, np.int32), compute.history(4, 1)
    for call in (
        lambda: compute.head([gate], h),
        lambda: compute.expert([gate], 0, h, start, compute.expert_cache(0, 4, 64)),
    ):
        with pytest.raises(GateError, match="1 gates for 4 rows"):
            call()


def test_a_session_cannot_be_another_kind():
    with pytest.raises(TypeError, match="cannot be subclassed"):
        type("Lying", (Session,), {"phase": Phase.BODY})


def test_after_a_fork_the_child_is_refused_and_does_not_hang(compute, session, monkeypatch):
    gate = session.begin(PROMPT, Policy())
    monkeypatch.setattr("os.getpid", lambda: -1)
    for call in entries(compute, [gate]).values():
        with pytest.raises(InputError, match="start processes by spawn"):
            call()


def test_the_reference_asks_for_a_gate_too(seal, compute, session):
    reference = Reference(seal)
    with pytest.raises(GateError, match="NoneType"):
        reference.answer(None, 0)
    with pytest.raises(GateError, match="another model"):
        reference.answer(session.begin(PROMPT, Policy()), 0)
    mine = Session(reference)
    gate = mine.begin(PROMPT, Policy())
    router, route, logits = reference.answer(gate, 1)
    assert (len(router), len(route), logits.shape) == (2, 2, (2, 288))
    mine.close("client")
    with pytest.raises(GateError, match="spent"):
        reference.answer(gate, 1)


def test_a_gate_is_not_copied(session):
    gate = session.begin(PROMPT, Policy())
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(GateError, match="copied"):
            attempt(gate)


def test_a_foreign_gate(compute, seal):
    other = Compute(seal, pools(parse("1x1")))
    with Session(other) as session:
        refused(compute, [session.begin(PROMPT, Policy())], "another model")


def test_a_spent_gate(compute):
    session = Session(compute)
    gate = session.begin(PROMPT, Policy())
    session.close("client")
    refused(compute, [gate], "spent: its session is CLOSED")
    session.collapse()
    refused(compute, [gate], "COLLAPSED")


def test_of_two_gates_handed_out_at_once_the_last_is_the_one(compute, session, monkeypatch):
    """Two threads that begin one session may both come as far as being handed a gate."""
    handed_out = []

    def twice(session: Session) -> Gate:
        handed_out.extend([issue(session), issue(session)])
        return handed_out[-1]

    monkeypatch.setattr("s7jax.runtime.session.issue", twice)
    session.begin(PROMPT, Policy())
    refused(compute, handed_out[:1], "forged")


def test_an_illegal_session_computes_no_more(compute):
    session = Session(compute)
    gate = session.begin(PROMPT, Policy())
    with pytest.raises(GateError, match="BEL in BODY"):
        session.control(Control.BEL)
    refused(compute, [gate], "ILLEGAL")


def test_one_bad_gate_in_a_batch_is_enough(compute, session):
    good = session.begin(PROMPT, Policy())
    refused(compute, [good, Gate()], "forged")


def test_a_good_gate_opens_every_entry(compute, session):
    gate = session.begin(PROMPT, Policy())
    for call in entries(compute, [gate]).values():
        assert call() is not None


def test_a_session_that_is_over_is_freed(compute):
    """A server would else keep every answer it ever gave."""
    import gc
    import weakref

    with Session(compute) as session:
        session.begin(Prompt((0, 5)), Policy())
    left = weakref.ref(session)
    del session
    gc.collect()
    assert left() is None
