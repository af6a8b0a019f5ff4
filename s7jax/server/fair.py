"""A queue that serves clients in turn, however much one of them asks."""

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Fair(Generic[Item]):
    """First come, first served within a client; clients take turns."""

    def __init__(self) -> None:
        self._of: OrderedDict[str, deque[Item]] = OrderedDict()

    def put(self, client: str, item: Item) -> None:
        """At the end of the client's own line."""
        self._of.setdefault(client, deque()).append(item)

    def take(self) -> Item:
        """The first item of the client whose turn it is; then it is the next client's."""
        client, line = next(iter(self._of.items()))
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
