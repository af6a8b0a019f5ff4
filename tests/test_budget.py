"""The budget of the long tests, on tests of its own."""

import pytest

from tests.budget import Budget

pytest_plugins = ["pytester"]

TESTS = """
import pytest

@pytest.mark.long(minutes=90)
def test_dear():
    raise AssertionError("not in this budget")

@pytest.mark.long(minutes=2)
def test_fair():
    pass

@pytest.mark.long(minutes=0.5)
def test_cheap():
    pass

def test_not_long():
    pass
"""


@pytest.fixture
def ran(pytester):
    """Names of passed and skipped tests in order, and the exit code, under a budget."""

    def run(seconds: float) -> tuple[list[str], list[str], int]:
        path = pytester.makepyfile(TESTS)
        options = ("-p", "no:cacheprovider", "-o", "markers=long(minutes): takes minutes")
        result = pytester.inline_run(path, *options, plugins=[Budget(seconds)])
        passed, skipped, _ = result.listoutcomes()
        names = [[r.nodeid.split("::")[1] for r in reports] for reports in (passed, skipped)]
        return names[0], names[1], int(result.ret)

    return run


def test_the_cheapest_run_first_and_what_does_not_fit_is_skipped(ran):
    passed, skipped, code = ran(600)
    assert passed == ["test_not_long", "test_cheap", "test_fair"]
    assert skipped == ["test_dear"]
    assert code == 0


def test_without_any_budget_left_nothing_fails(ran):
    assert ran(0) == (["test_not_long"], ["test_cheap", "test_fair", "test_dear"], 0)


def test_a_slow_machine_gets_less(ran, monkeypatch):
    """Each look at the clock is 20 seconds later: half a minute's work has taken longer."""
    from tests import budget

    now = iter(range(0, 10**6, 20))
    monkeypatch.setattr(budget.time, "monotonic", lambda: float(next(now)))
    passed, skipped, _ = ran(300)
    assert passed == ["test_not_long", "test_cheap"]
    assert skipped == ["test_fair", "test_dear"]
