"""What a server takes on, and how long it waits for a client."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Numbers that keep one client from taking everything; times in seconds."""

    rows: int = 8  # answers in one batch
    waiting: int = 64  # answers that may queue for a place in it
    seconds: float = 120.0  # until an answer is cut off, from its arrival
    body: int = 1 << 20  # bytes of a request
    body_seconds: float = 10.0  # until it is whole
    header_seconds: float = 10.0  # until a request's headers are whole
    idle_seconds: float = 5.0  # until a connection without a request is closed
    read_seconds: float = 10.0  # until a client has read what fills its connection
    strangers: int = 256  # connections without a whole request; fewer where files are few
    wasted: float = 64.0  # requests of an address in a second that may come to nothing
    wait_seconds: float = 5.0  # that a request of an address with more of them waits at most
    grace: float = 10.0  # for answers on their way at SIGTERM

    @property
    def answers(self) -> int:
        """Answers on their way at most."""
        return self.rows + self.waiting

    @property
    def share(self) -> int:
        """Answers of one client on their way at most: others find room in the queue."""
        return self.rows + (self.waiting + 1) // 2
