"""Who may ask, how fast, and whole requests only: host, token, type, size and time of a body."""

import asyncio
import contextlib
import hmac
import ipaddress
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from s7jax.server.errors import RETRY, Refused, refusal
from s7jax.server.limits import Limits
from s7jax.server.pace import Pace

BYTES = 16_384  # of a body that cost as much as a request does
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
        self._pace = Pace(limits.wasted, burst=limits.share)
        self._tokens = [f"Bearer {token}".encode() for token in tokens]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        client, port = _client(scope)
        # Behind this a client is its address, of IPv6 its network.
        scope = {**scope, "client": (client, port)}
        cost, body = 1.0, None
        try:
            headers = Headers(scope=scope)
            self._check_host(headers.get("host", ""))
            self._authorize(scope["path"], headers)
            if scope["method"] == "POST":
                body = await self._body(headers, receive)
                if body is None:
                    return
                cost += len(body["body"]) / BYTES
            app = self._app
        except Refused as e:
            app = refusal(e.status_code, e.detail, headers=e.headers)
        wait = self._pace.reserve(client, cost)
        if wait > self._limits.wait_seconds:
            self._pace.refund(client, cost)
            await _HASTE(scope, receive, send)
            return
        if wait and await _left(receive, wait):
            return
        watched = _Outcome(receive if body is None else _replayed(body, receive), send)
        try:
            await app(scope, watched.receive, watched.send)
        finally:
            self._pace.settle(client, cost, watched.answered)

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
_HASTE = refusal(429, "too many of your requests come to nothing", headers=_CLOSE | RETRY)


def _client(scope: Scope) -> tuple[str, int]:
    """Address and port; of an IPv6 address the network, /64, which is what one client gets."""
    host, port = scope["client"] or ("", 0)
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host.partition("%")[0])
        if address.version == 6 and address.ipv4_mapped is None:
            host = str(ipaddress.ip_network((address, 64), strict=False))
    return host, port


async def _left(receive: Receive, seconds: float) -> bool:
    """Whether the client leaves within so many seconds; its body has been read."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while (await receive())["type"] != "http.disconnect":
                pass
            return True
    return False


class _Outcome:
    """What became of a request."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._status, self._left = 0, False
        self.answered = False  # whole, with success, to a client that was there

    async def receive(self) -> Message:
        message = await self._receive()
        self._left |= message["type"] == "http.disconnect"
        return message

    async def send(self, message: Message) -> None:
        self._status = message.get("status", self._status)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.answered = self._status < 400 and not self._left
        await self._send(message)


def _replayed(first: Message, receive: Receive) -> Receive:
    """The whole body as one message, then whatever comes."""
    told = [first]

    async def again() -> Message:
        return told.pop() if told else await receive()

    return again
