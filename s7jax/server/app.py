"""The ASGI application: OpenAI's completions of one sealed model, each with its root and proof."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Sequence
from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import HTMLResponse, JSONResponse, Response

from s7jax.runtime.model import Model
from s7jax.server.completions import Completions
from s7jax.server.errors import HANDLERS, Failure, Refused, refusal
from s7jax.server.guard import Guard
from s7jax.server.limits import Limits
from s7jax.server.metrics import CONTENT_TYPE, Metrics
from s7jax.server.tokens import router
from s7jax.server.worker import Worker

LOCAL = ("localhost", "127.0.0.1", "[::1]")
_CHAT = (
    "this is a base model: it continues text and knows no chat. POST /v1/completions with a "
    "prompt that begins what you want to read, such as 'Question: …\\nAnswer:' and stop ['\\n']"
)
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
_PAGE = {"Content-Security-Policy": f"{_POLICY}connect-src 'self'; frame-ancestors 'none'"}


class Api:
    """Handlers of one model."""

    def __init__(self, model: Model, name: str, limits: Limits) -> None:
        self.worker = Worker(model, limits)
        self._model, self._name = model, name
        self._metrics = Metrics(self.worker)
        self.completions = Completions(model, name, limits, self.worker, self._metrics)
        self._created = int(time.time())

    async def index(self) -> Response:
        """A page to try the model, see its routes and check its proofs."""
        return HTMLResponse(files("s7jax.server").joinpath("page.html").read_text(), headers=_PAGE)

    async def models(self) -> dict[str, Any]:
        """The one model there is."""
        return {"object": "list", "data": [await self.model(self._name)]}

    async def model(self, name: str) -> dict[str, Any]:
        """The model: its name, root, and what it was made from."""
        if name != self._name:
            raise Refused(404, f"model: there is only {self._name!r}", "model")
        seal = self._model.seal
        dimensions = seal.manifest.dimensions
        return {
            "id": self._name,
            "object": "model",
            "created": self._created,
            "owned_by": "s7jax",
            "root": seal.root.hex(),
            "context": dimensions.context,
            "domains": list(dimensions.domains),
            "provenance": json.loads(json.dumps(dict(seal.manifest.provenance), default=str)),
        }

    async def healthz(self) -> Response:
        """Whether the engine runs."""
        return JSONResponse(
            {"ok": self.worker.alive, "open": self.worker.open}, 200 if self.worker.alive else 503
        )

    async def readyz(self) -> Response:
        """Whether a request would be answered now: the engine runs and is warm."""
        ready = self.worker.ready and self.worker.alive
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    async def metrics(self) -> Response:
        """For Prometheus."""
        return Response(self._metrics.text(), media_type=CONTENT_TYPE)

    async def chat(self) -> Response:
        """Not there, and why."""
        return refusal(400, _CHAT, "messages")


def application(
    model: Model,
    name: str,
    limits: Limits | None = None,
    *,
    tokens: Sequence[str] = (),
    hosts: Sequence[str] = LOCAL,
    origins: Sequence[str] = (),
) -> FastAPI:
    """The ASGI application of one sealed model; its worker is ``state.worker``.

    Args:
        model: the open model.
        name: what the model is called in requests.
        limits: what the server takes on.
        tokens: bearer tokens, one of which a request needs; none: anybody may ask.
        hosts: names under which it may be asked (``Host``); ``"*"``: any.
        origins: web pages that may ask (CORS).
    """
    limits = limits or Limits()
    api = Api(model, name, limits)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(api.worker.stop, 1.0)

    guards = [
        Middleware(Guard, limits=limits, hosts=[host.lower() for host in hosts], tokens=tokens),
    ]
    if origins:
        headers = ["Authorization", "Content-Type"]
        cors = Middleware(CORSMiddleware, allow_origins=list(origins), allow_headers=headers)
        guards.insert(0, cors)
    app = FastAPI(
        title=f"s7jax: {name}",
        description="Completions of one sealed model, each with a proof.",
        lifespan=lifespan,
        middleware=guards,
        exception_handlers=HANDLERS,
        redoc_url=None,
        responses={"4XX": {"model": Failure}, "5XX": {"model": Failure}},
    )
    app.state.worker = api.worker
    watched = ["GET", "HEAD"]  # balancers ask for the head alone
    app.api_route("/", methods=watched, include_in_schema=False)(api.index)
    for path, state in (("/healthz", api.healthz), ("/readyz", api.readyz)):
        app.get(path)(state)
        app.head(path, include_in_schema=False)(state)
    app.get("/metrics")(api.metrics)
    app.get("/v1/models")(api.models)
    app.get("/v1/models/{name:path}")(api.model)
    stream: dict[str, Any] = {"content": {"text/event-stream": {}}}
    app.post("/v1/completions", responses={200: stream})(api.completions.answer)
    app.post("/v1/chat/completions")(api.chat)
    app.include_router(router(model))
    return app
