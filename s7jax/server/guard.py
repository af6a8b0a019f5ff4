"""Who may ask, and whole requests only: host, token, content type, size and time of a body."""

import asyncio
import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from s7jax.server.errors import Refused, refusal
from s7jax.server.limits import Limits

OPEN = ("/", "/healthz", "/readyz", "/docs", "/openapi.json")
"""Paths that need no token: they hold nothing of anybody's."""


class Guard:
    """ASGI middleware; what is behind it sees requests that are whole and allowed.

    Args:
        app: what is behind it.
        hosts: names under which it may be asked; ``"*"``: any. A web page whose name was turned
            to this address is refused by that (DNS rebinding).
        limits: size and time of a body.
        tokens: bearer tokens, one of which every request but those to :data:`OPEN` needs; none:
            anybody may ask.
    """

    def __init__(
        self, app: ASGIApp, limits: Limits, hosts: Sequence[str], tokens: Sequence[str]
    ) -> None:
        self._app, self._limits, self._hosts = app, limits, hosts
        self._tokens = [f"Bearer {token}".encode() for token in tokens]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            headers = Headers(scope=scope)
            self._check_host(headers.get("host", ""))
            self._authorize(scope["path"], headers)
            if scope["method"] == "POST":
                body = await self._body(headers, receive)
                if body is None:
                    return
                receive = _replayed(body, receive)
        except Refused as e:
            response = refusal(e.status_code, e.detail, headers=e.headers)
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check_host(self, given: str) -> None:
        name = given if given.endswith("]") else given.rpartition(":")[0] or given
        if "*" not in self._hosts and name.lower() not in self._hosts:
            allowed = ", ".join(self._hosts)
            raise Refused(400, f"Host: expected one of {allowed}; others by --allow-host")

    def _authorize(self, path: str, headers: Headers) -> None:
        given = headers.get("authorization", "").encode()
        # Every token is compared, each in constant time.
        known = sum(hmac.compare_digest(given, token) for token in self._tokens)
        if self._tokens and not known and path not in OPEN:
            raise Refused(401, "a bearer token is needed", headers={"WWW-Authenticate": "Bearer"})

    async def _body(self, headers: Headers, receive: Receive) -> Message | None:
        """The whole body; None if the client has left."""
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refused(415, "Content-Type: expected application/json", headers=_CLOSE)
        data, more = bytearray(), True
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    data += message.get("body", b"")
                    if len(data) > self._limits.body:
                        problem = f"more than {self._limits.body:,} bytes"
                        raise Refused(413, problem, headers=_CLOSE)
                    more = message.get("more_body", False)
        except TimeoutError as e:
            raise Refused(408, "the body did not arrive in time", headers=_CLOSE) from e
        return {"type": "http.request", "body": bytes(data), "more_body": False}


_CLOSE = {"Connection": "close"}


def _replayed(first: Message, receive: Receive) -> Receive:
    """The whole body as one message, then whatever comes."""
    told = [first]

    async def again() -> Message:
        return told.pop() if told else await receive()

    return again
