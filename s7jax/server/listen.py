"""Listening: uvicorn, with limits on slow clients, on how many they are, and on the end."""

import asyncio
import errno
import os
import resource
import socket
import struct
import sys
from collections import OrderedDict
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from s7jax.errors import InputError
from s7jax.server.limits import Limits
from s7jax.server.worker import Worker

QUEUE = 2_048  # connections that the system holds until they are accepted
OWN_FILES = 32  # descriptors that are no connections: the model, pipes, logs


def bound(host: str, port: int) -> list[socket.socket]:
    """A socket for each address of a name; nobody is let in before :func:`run`.

    Raises:
        InputError: there is no such name, or somebody else has the port.
    """
    found: list[socket.socket] = []
    try:
        told = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, address in dict.fromkeys((item[0], item[4]) for item in told):
            # Of sockets with no protocol named asyncio would not turn Nagle's algorithm off, which
            # keeps the first token back until the client has acknowledged the head: 40 ms.
            own = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                own.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                own.bind(address)
            except OSError as e:
                if e.errno == errno.EADDRNOTAVAIL and found:
                    continue  # "localhost" also has an address where there is no IPv6
                raise
            found.append(own)
    except OSError as e:
        raise InputError(f"cannot listen on {host}, port {port}: {e.strerror}") from None
    return found


def run(app: FastAPI, worker: Worker, limits: Limits, sockets: list[socket.socket]) -> None:
    """Serve until SIGTERM or SIGINT, or until the engine fails.

    Raises:
        InputError: the engine failed.
    """
    config = uvicorn.Config(
        app,
        http=_protocol(limits),
        loop="asyncio",  # also where another is installed: limits were tried with this one
        ws="none",
        backlog=_batch(),
        log_level="error",  # what a client sends is no reason to write a line
        access_log=False,
        server_header=False,
        timeout_keep_alive=limits.idle_seconds,  # type: ignore[arg-type]  # handed to call_later
        timeout_graceful_shutdown=limits.grace + 2,  # type: ignore[arg-type]  # and to wait_for
    )
    server = _Server(config, worker, limits.grace)

    def leave() -> None:
        server.should_exit = True

    worker.on_failure = leave
    try:
        server.run(sockets)
    finally:
        if worker.alive:  # in a step that outlasts the grace; nothing is left to save
            os._exit(1)
    if worker.failure is not None:
        raise InputError(f"the engine failed: {worker.failure!r}")


class _Server(uvicorn.Server):
    """Ends in time: answers are cut off before the grace is over, connections when it is."""

    def __init__(self, config: uvicorn.Config, worker: Worker, grace: float) -> None:
        super().__init__(config)
        self._worker, self._grace = worker, grace

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """More may wait in the system than are accepted at a time."""
        await super().startup(sockets)
        for own in sockets or []:
            own.listen(QUEUE)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._worker.hurry(0.8 * self._grace)
        asyncio.get_running_loop().call_later(self._grace, self._abort)
        await super().shutdown(sockets)

    def _abort(self) -> None:
        """Whoever still holds on does not read, or has not said what they want."""
        for connection in list(self.server_state.connections):
            if (transport := connection.transport) is not None:
                transport.abort()


class Connections:
    """Some connections, at most ``most``; beyond that one has to go.

    That is the one which has been among them longest, of the address that has the most of them.
    """

    def __init__(self, most: int) -> None:
        self._most, self._count = most, 0
        self._of: dict[str, OrderedDict[H11Protocol, None]] = {}

    def add(self, connection: H11Protocol) -> None:
        """One more, unless it is one of them."""
        line = self._of.setdefault(_address(connection), OrderedDict())
        self._count += connection not in line
        line[connection] = None
        if self._count > self._most:
            longest = max(self._of.values(), key=len)
            oldest = next(iter(longest))
            self.remove(oldest)
            oldest.transport.abort()

    def remove(self, connection: H11Protocol) -> None:
        """One less, if it is one of them."""
        address = _address(connection)
        line = self._of.get(address, OrderedDict())
        if connection in line:
            del line[connection]
            self._count -= 1
            if not line:
                del self._of[address]


def _address(connection: H11Protocol) -> str:
    return connection.client[0] if connection.client else ""


def _files() -> int:
    """Descriptors that this process may have for connections."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if most == resource.RLIM_INFINITY else most - OWN_FILES


def _batch() -> int:
    """Connections that are accepted at a time: some batches fit beside those that are open."""
    return max(8, min(QUEUE, _files() // 8))


def _protocol(limits: Limits) -> type[H11Protocol]:
    most = max(16, _files() - 2 * _batch())
    everyone = Connections(most)
    strangers = Connections(min(limits.strangers, most // 2))  # without a whole request

    class Impatient(H11Protocol):
        """A connection that has to say what it wants, and to read what it is told."""

        _timer: asyncio.TimerHandle | None = None  # until the headers are whole
        _writing: asyncio.TimerHandle | None = None  # until what was written is read

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            everyone.add(self)
            self._expect()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.transport.is_closing():
                return
            if self.cycle is None or self.cycle.response_complete:
                if self._timer is None:
                    self._expect()
                return
            self._heard()
            if not self.cycle.more_body:
                strangers.remove(self)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._heard()
            if self.transport.is_closing():
                self.loop.call_later(limits.read_seconds, self._reset)
            elif self.cycle.response_complete or self.cycle.more_body:
                strangers.add(self)  # unless the next request is there already, and whole

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            self.loop.call_later(limits.read_seconds, self._reset)

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._heard()
            self._read()
            strangers.remove(self)
            everyone.remove(self)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._writing = self.loop.call_later(limits.read_seconds, self._reset)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._read()

        def _expect(self) -> None:
            """From here on a request's headers are awaited."""
            self._timer = self.loop.call_later(limits.header_seconds, self.transport.abort)
            strangers.add(self)

        def _heard(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _reset(self) -> None:
            """Away with it, and with what the system still holds for a client that never reads."""
            if self in self.connections:
                linger = struct.pack("ii", 1, 0)
                own = self.transport.get_extra_info("socket")
                own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.transport.abort()

        def _read(self) -> None:
            if self._writing is not None:
                self._writing.cancel()
                self._writing = None

    return Impatient
