"""Listening: uvicorn, with time limits on slow clients and on the end."""

import asyncio
import os
import socket
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from s7jax.errors import InputError
from s7jax.server.limits import Limits
from s7jax.server.worker import Worker


def run(app: FastAPI, worker: Worker, limits: Limits, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT, or until the engine fails.

    Raises:
        InputError: the engine failed.
    """
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=_protocol(limits),
        log_level="warning",
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
        server.run()
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

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._worker.hurry(0.8 * self._grace)
        asyncio.get_running_loop().call_later(self._grace, self._abort)
        await super().shutdown(sockets)

    def _abort(self) -> None:
        """Whoever still holds on does not read, or has not said what they want."""
        for connection in list(self.server_state.connections):
            if (transport := connection.transport) is not None:
                transport.abort()


def _protocol(limits: Limits) -> type[H11Protocol]:
    strangers: dict[Any, None] = {}  # in order of arrival

    class Impatient(H11Protocol):
        """A connection that has to say what it wants."""

        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._expect()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._met()
            elif self._timer is None and not self.transport.is_closing():
                self._expect()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._met()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._met()

        def _expect(self) -> None:
            """From here on a request's headers are awaited."""
            self._timer = self.loop.call_later(limits.header_seconds, self.transport.abort)
            strangers[self] = None
            if len(strangers) > limits.strangers:
                next(iter(strangers)).transport.abort()

        def _met(self) -> None:
            strangers.pop(self, None)
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Impatient
