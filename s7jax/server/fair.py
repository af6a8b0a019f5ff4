"""A queue that serves clients in turn, however much one of them asks."""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Fair(Generic[Item]):
    """First come, first served within a client; clients take turns."""

    def __init__(self) -> None:
        self._of: OrderedDict[str, deque[Item]] = OrderedDict()

    def put(self, client: str, item: Item) -> None:
        """At the end of the client's own line."""
        self._of.setdefault(client, deque()).append(item)

    def take(self, may: Callable[[str], bool] = lambda _: True) -> Item | None:
        """The first item of the client whose turn it is, of those who may; then the next's turn.

        None if there is no item of such a client.
        """
        client = next(filter(may, self._of), None)
        if client is None:
            return None
        line = self._of[client]
        item = line.popleft()
        self._of.move_to_end(client)
        if not line:
            del self._of[client]
        return item

    def remove(self, client: str, item: Item) -> bool:
        """Take an item out of the line; whether it was there."""
        line = self._of.get(client, deque())
        if item not in line:
            return False
        line.remove(item)
        if not line:
            del self._of[client]
        return True

    def __iter__(self) -> Iterator[Item]:
        return iter([item for line in self._of.values() for item in line])

    def __bool__(self) -> bool:
        return bool(self._of)
