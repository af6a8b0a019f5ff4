"""CM-1: every state with every control code, and sequences that try to get to compute."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from s7jax.runtime import Session, cm1
from s7jax.runtime.cm1 import TABLE, Control, Phase
from s7jax.runtime.gate import GateError, check
from s7jax.runtime.policy import Policy
from s7jax.runtime.prompt import Prompt

LEGAL = {
    ("VOID", "SOH"): "HEADER",
    ("HEADER", "STX"): "BODY",
    ("BODY", "SO"): "BODY",
    ("BODY", "SI"): "BODY",
    ("BODY", "ETX"): "CLOSED",
    ("CLOSED", "EOT"): "COLLAPSED",
}


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("control", list(Control))
def test_every_phase_with_every_control(phase, control):
    assert TABLE[phase, control] == LEGAL.get((phase.name, control.name), "ILLEGAL")


def test_the_table_is_total_and_illegal_absorbs():
    assert len(TABLE) == 6 * 33
    assert {int(control) for control in Control} == {*range(32), 127}
    assert all(after is Phase.ILLEGAL for (p, _), after in TABLE.items() if p is Phase.ILLEGAL)


class _Fold:
    """Stands where Compute does: sessions only compare it."""

    def __init__(self, seal):
        self.seal = seal


@pytest.fixture(scope="module", autouse=True)
def _seal_of_machines(seal):
    Machine.seal = seal


class Machine(RuleBasedStateMachine):
    """Any controls in any order: the gate opens in BODY, and BODY is reached in one way."""

    seal = None

    def __init__(self):
        super().__init__()
        self.fold = _Fold(self.seal)
        self.session = Session(self.fold)
        self.history = ["SOH"]
        self.gates = []

    @rule(control=st.sampled_from(list(Control)))
    def send(self, control):
        self.history.append(control.name)
        try:
            self.session.control(control)
        except GateError:
            assert self.session.phase is Phase.ILLEGAL

    @rule(prompt=st.lists(st.integers(0, 31), min_size=1, max_size=8))
    def begin(self, prompt):
        """Prompts of nothing but control bytes are data."""
        self.history.append("STX")
        try:
            self.gates.append(self.session.begin(Prompt(tuple(prompt)), Policy()))
        except GateError:
            assert self.session.phase is Phase.ILLEGAL

    @invariant()
    def compute_is_open_in_body_alone(self):
        for gate in self.gates:
            if self.session.phase is Phase.BODY:
                check(gate, self.fold)
            else:
                with pytest.raises(GateError, match="spent"):
                    check(gate, self.fold)
        if self.session.phase is Phase.BODY:
            assert self.history[:2] == ["SOH", "STX"]
            assert set(self.history[2:]) <= {"SO", "SI"}


def tried(examples: int) -> type:
    """Cases of the machine, as many as that."""
    case = type("Tried", (Machine.TestCase,), {})
    case.settings = settings(max_examples=examples, stateful_step_count=6, deadline=None)
    return case


TestMachine = tried(1_000)
TestMachineTenThousandTimes = pytest.mark.long(minutes=1)(tried(10_000))


@pytest.fixture
def sent(monkeypatch):
    """Names of the controls that move a session, as they come."""
    names, after = [], cm1.after
    monkeypatch.setattr(
        cm1, "after", lambda phase, code: names.append(code.name) or after(phase, code)
    )
    return names


def test_the_controls_of_a_session_that_changes_experts(seal, sent):
    session = Session(_Fold(seal))
    session.begin(Prompt((1,)), Policy())
    for expert in (2, 2, 0, 0, 2):
        session.enter(expert)
    session.close("stop")
    session.collapse()
    assert sent == ["SOH", "STX", "SO", "SI", "SO", "SI", "SO", "ETX", "EOT"]
    assert session.proof.end == "stop"


def test_a_session_that_is_left_is_closed_and_collapsed(seal, sent):
    session = Session(_Fold(seal))

    def interrupted():
        with session:
            session.begin(Prompt((1,)), Policy())
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert sent == ["SOH", "STX", "ETX", "EOT"]
    assert session.phase is Phase.COLLAPSED
    assert session.proof.end == "client"
    with pytest.raises(GateError, match="spent"):
        check(session.gate, session.compute)


def test_a_session_that_was_closed_is_collapsed_when_left(seal, sent):
    with Session(_Fold(seal)) as session:
        session.begin(Prompt((1,)), Policy())
        session.close("stop")
    assert sent == ["SOH", "STX", "ETX", "EOT"]
    assert session.proof.end == "stop"


@given(st.binary(max_size=32))
def test_text_never_moves_the_phase(seal, data):
    session = Session(_Fold(seal))
    gate = session.begin(Prompt(tuple(data) or (0,)), Policy())
    assert session.phase is Phase.BODY
    check(gate, session.compute)
    assert session.tokens(0, 40) == ([*data] or [0])
