"""Long tests within a budget: the cheapest first, none started that would not end in time.

``@pytest.mark.long(minutes=4)`` says what a test takes on two quiet cores; the machine at hand is
judged by those that ran. What does not fit is skipped, and says so: a budget makes nothing fail.
"""

import time

import pytest

SKIPPED = pytest.StashKey[bool]()


def minutes(item: pytest.Item) -> float:
    """What a long test is said to take; 0 for any other."""
    mark = item.get_closest_marker("long")
    return float(mark.kwargs["minutes"]) if mark else 0.0


class Budget:
    """Skips the long tests that no longer fit.

    Args:
        seconds: what there is for all of them, from now on.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.began = seconds, time.monotonic()
        self.promised = self.taken = 0.0

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """The cheapest first; ties as they stand in the files."""
        items.sort(key=minutes)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item):
        """Learn how slow the machine is."""
        start = time.monotonic()
        try:
            return (yield)
        finally:
            if not item.stash.get(SKIPPED, False):
                self.taken += time.monotonic() - start
                self.promised += 60 * minutes(item)

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Skip what would not end in time."""
        slower = max(1.0, self.taken / self.promised) if self.promised else 1.0
        needed = 60 * minutes(item) * slower
        spent = time.monotonic() - self.began
        if minutes(item) and spent + needed > self.seconds:
            item.stash[SKIPPED] = True
            pytest.skip(
                f"of {self.seconds:.0f} s {spent:.0f} are spent and this takes {needed:.0f}: "
                "`make test-long` runs it"
            )
