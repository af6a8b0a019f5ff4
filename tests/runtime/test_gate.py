"""No compute without a gate: every entry refuses what is missing, forged, foreign or spent."""

import copy
import inspect
import pickle

import numpy as np
import pytest

from s7jax.integer.program import Program
from s7jax.mesh import parse, pools
from s7jax.runtime import Compute, Session
from s7jax.runtime.cm1 import Control
from s7jax.runtime.gate import Gate, GateError
from s7jax.runtime.proof import Policy

STORAGE = {"trunk_cache", "expert_cache", "history", "remember", "recall", "compiled"}


def entries(compute, gates):
    """Every compute entry, called with the given gates: name → call."""
    tokens, start = np.zeros((1, 1), np.int32), np.zeros(1, np.int32)
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
        "compiled": compute.compiled(1),
    }


def public_methods():
    members = inspect.getmembers(Compute, inspect.isfunction)
    return {name for name, _ in members if not name.startswith("_")}


def test_every_public_method_but_storage_refuses_to_compute_without_a_gate(compute):
    refusing = entries(compute, [])
    assert refusing.keys() == public_methods() - STORAGE
    for call in refusing.values():
        with pytest.raises(GateError):
            call()


def test_storage_runs_no_program(compute, monkeypatch):
    for name in ("trunk", "expert", "head"):
        monkeypatch.setattr(Program, name, lambda *_: pytest.fail("computed without a gate"))
    assert storage(compute).keys() == STORAGE


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


def test_a_forged_gate(compute, session):
    with pytest.raises(GateError, match="not made"):
        Gate(session, object())
    refused(compute, [Gate.__new__(Gate)], "forged")
    forged = Gate.__new__(Gate)
    forged._session = session
    session.begin([1], Policy())
    refused(compute, [forged], "forged")


def test_a_gate_is_not_copied(session):
    gate = session.begin([1], Policy())
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(GateError, match="copied"):
            attempt(gate)


def test_a_foreign_gate(compute, seal):
    other = Compute(seal, pools(parse("1x1")))
    with Session(other) as session:
        refused(compute, [session.begin([1], Policy())], "another model")


def test_a_spent_gate(compute):
    session = Session(compute)
    gate = session.begin([1], Policy())
    session.close("stop")
    refused(compute, [gate], "spent: its session is CLOSED")
    session.collapse()
    refused(compute, [gate], "COLLAPSED")


def test_an_illegal_session_computes_no_more(compute):
    session = Session(compute)
    gate = session.begin([1], Policy())
    with pytest.raises(GateError, match="BEL in BODY"):
        session.control(Control.BEL)
    refused(compute, [gate], "ILLEGAL")


def test_one_bad_gate_in_a_batch_is_enough(compute, session):
    good = session.begin([1], Policy())
    refused(compute, [good, None], "NoneType")


def test_a_good_gate_opens_every_entry(compute, session):
    gate = session.begin([1], Policy())
    for call in entries(compute, [gate]).values():
        assert call() is not None
