"""How fast a client may ask for what comes to nothing: the generic cell rate algorithm (GCRA).

Every request reserves its cost before it is handled and gets most of it back when it was
answered. Who sends what is refused, or leaves before the answer, waits for its own sake alone;
and all who have done so lately share one budget, so that many addresses are not worth more than
a few.
"""

import time
from collections.abc import Callable

ANSWERED = 1 / 8  # of its cost that a request pays if it was answered
LATELY = 10.0  # seconds
_MOST_CLIENTS = 4_096  # remembered at a time, before those that owe nothing are dropped
_ALL = "all"  # of those who had requests come to nothing lately; no client's name


class Pace:
    """A budget for each client.

    Args:
        rate: cost that comes back in a second; twice that for all who waste together.
        burst: cost that may be open or wasted at a time without a wait.
        clock: seconds.
    """

    def __init__(
        self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._paid: dict[str, float] = {}  # when all that a client reserved will have come back
        self._wasted: dict[str, float] = {}  # when a client last had a request come to nothing

    def reserve(self, client: str, cost: float) -> float:
        """Seconds that a request of this cost has to wait before it is handled."""
        now = self._clock()
        if len(self._paid) + len(self._wasted) > _MOST_CLIENTS:
            self._paid = {c: paid for c, paid in self._paid.items() if paid > now}
            self._wasted = {c: at for c, at in self._wasted.items() if at > now - LATELY}
        wait = self._reserve(client, cost, now)
        if self._wasted.get(client, -LATELY) > now - LATELY:
            wait = max(wait, self._reserve(_ALL, cost / 2, now))
        return wait

    def settle(self, client: str, cost: float, answered: bool) -> None:
        """What became of a request that had reserved its cost."""
        if answered:
            self.refund(client, (1 - ANSWERED) * cost)
        else:
            self._wasted[client] = self._clock()

    def refund(self, client: str, cost: float) -> None:
        """So much of a reserved cost was not used."""
        if client in self._paid:
            self._paid[client] -= cost / self._rate

    def _reserve(self, name: str, cost: float, now: float) -> float:
        self._paid[name] = max(self._paid.get(name, now), now) + cost / self._rate
        return max(0.0, self._paid[name] - now - self._burst / self._rate)
