"""A small HTTP server: OpenAI's completions, every answer with its root and its proof.

One thread runs the engine; requests join its batch and leave it, and no bits change by that.
"""

import asyncio
import base64
import contextlib
import hmac
import json
import math
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import prometheus_client as prometheus
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from s7jax.errors import UsageError
from s7jax.runtime.engine import Completion
from s7jax.runtime.engine import Request as Generation
from s7jax.runtime.model import Model, TextDecoder
from s7jax.runtime.policy import Policy
from s7jax.runtime.prompt import Prompt
from s7jax.runtime.worker import Full, Limits, Running, Worker
from s7jax.s7l.canonical import encode

_KNOWN = {
    *("model", "prompt", "max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "stream"),
    *("n", "best_of", "echo", "logprobs", "user", "presence_penalty", "frequency_penalty"),
    *("logit_bias", "suffix", "stream_options"),
}
_NEUTRAL = {"n": 1, "best_of": 1, "echo": False, "logprobs": None, "suffix": None}
_NEUTRAL |= {"presence_penalty": 0, "frequency_penalty": 0, "logit_bias": None}


class Metrics:
    """What /metrics shows, in a registry of its own."""

    def __init__(self, worker: Worker) -> None:
        self.registry = prometheus.CollectorRegistry()
        own = self.registry
        self.requests = prometheus.Counter("s7_requests", "Answers by end.", ["end"], registry=own)
        self.tokens = prometheus.Counter("s7_tokens", "Tokens generated.", registry=own)
        self.seconds = prometheus.Histogram(
            "s7_request_seconds", "Time to an answer.", registry=own
        )
        gauge = prometheus.Gauge("s7_open_requests", "Requests not ended yet.", registry=own)
        gauge.set_function(lambda: worker.open)


class Api:
    """Handlers of one model."""

    def __init__(self, model: Model, name: str, limits: Limits, token: str | None) -> None:
        self.worker = Worker(model, limits)
        self._model, self._name, self._limits, self._token = model, name, limits, token
        self._metrics = Metrics(self.worker)
        self._created = int(time.time())

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions, as OpenAI's, for one prompt or several."""
        self._authorize(request)
        body = await self._body(request)
        try:
            jobs = [_Job(self._model, body, prompt) for prompt in _prompts(self._model, body)]
        except UsageError as e:
            raise HTTPException(400, str(e)) from e
        if len(jobs) > self._limits.rows + self._limits.waiting:
            raise HTTPException(400, f"{len(jobs)} prompts; at most {self._limits.waiting}")
        try:
            for job in jobs:
                job.running = self.worker.submit(job.generation)
        except (UsageError, Full) as e:
            for job in jobs:
                self._drop(job)
            if isinstance(e, Full):
                raise HTTPException(
                    429, "the queue is full; try again", {"Retry-After": "1"}
                ) from e
            raise HTTPException(400, str(e)) from e
        if body.get("stream"):
            events = self._events(jobs)
            return StreamingResponse(events, media_type="text/event-stream")
        try:
            for job in jobs:
                async for _ in self._pieces(job):
                    pass
        finally:
            for job in jobs:
                self._drop(job)
        return JSONResponse(self._answer(jobs))

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        self._authorize(request)
        entry = {"id": self._name, "object": "model", "created": self._created}
        entry |= {"owned_by": "s7jax", "root": self._model.seal.root.hex()}
        return JSONResponse({"object": "list", "data": [entry]})

    async def health(self, _: Request) -> Response:
        """GET /healthz."""
        status = 200 if self.worker.alive else 503
        return JSONResponse({"ok": status == 200, "open": self.worker.open}, status)

    async def metrics(self, request: Request) -> Response:
        """GET /metrics, for Prometheus."""
        self._authorize(request)
        return PlainTextResponse(
            prometheus.generate_latest(self._metrics.registry),
            headers={"Content-Type": prometheus.CONTENT_TYPE_LATEST},
        )

    def _authorize(self, request: Request) -> None:
        if self._token is None:
            return
        given = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(given, f"Bearer {self._token}".encode()):
            raise HTTPException(401, "a bearer token is needed", {"WWW-Authenticate": "Bearer"})

    async def _body(self, request: Request) -> dict[str, Any]:
        data = bytearray()
        async for part in request.stream():
            data += part
            if len(data) > self._limits.body:
                raise HTTPException(413, f"more than {self._limits.body} bytes")
        try:
            body = json.loads(bytes(data))
        except (ValueError, RecursionError) as e:
            raise HTTPException(400, f"not JSON: {e}") from e
        if not isinstance(body, dict):
            raise HTTPException(400, "expected a JSON object")
        if unknown := sorted(body.keys() - _KNOWN):
            raise HTTPException(400, f"unknown field {unknown[0]!r}")
        for field, neutral in _NEUTRAL.items():
            if body.get(field, neutral) not in (neutral, None):
                raise HTTPException(400, f"{field} is not supported")
        if body.get("model", self._name) != self._name:
            raise HTTPException(404, f"no model {body['model']!r}; this is {self._name!r}")
        return body

    async def _pieces(self, job: "_Job") -> AsyncIterator[str]:
        """Text as it comes, up to the end, a stop string or the time limit."""
        running = job.running
        assert running is not None
        until = asyncio.get_running_loop().time() + self._limits.seconds
        with self._metrics.seconds.time():
            while job.reason is None:
                left = until - asyncio.get_running_loop().time()
                try:
                    async with asyncio.timeout(None if left == math.inf else max(left, 0)):
                        ids, reason, completion = await running.news()
                except TimeoutError:
                    self.worker.cut(running, "time")
                    until = math.inf
                    continue
                job.take(ids, reason, completion)
                if piece := job.fresh():
                    yield piece
        assert job.completion is not None
        job.running = None
        self._metrics.requests.labels(job.reason).inc()
        self._metrics.tokens.inc(len(job.completion.output))

    async def _events(self, jobs: list["_Job"]) -> AsyncIterator[str]:
        """Server-sent events; the last of each answer holds its proof."""
        try:
            for index, job in enumerate(jobs):
                async for piece in self._pieces(job):
                    yield self._event(job, [job.choice(index, piece, None)])
                yield self._event(job, [job.choice(index, "", job.finish)], last=True)
            yield "data: [DONE]\n\n"
        finally:
            for job in jobs:
                self._drop(job)

    def _event(self, job: "_Job", choices: list[dict[str, Any]], last: bool = False) -> str:
        tree = self._frame() | {"choices": choices}
        if last:
            tree |= {"s7": self._evidence([job])}
        return f"data: {json.dumps(tree)}\n\n"

    def _answer(self, jobs: list["_Job"]) -> dict[str, Any]:
        prompt = sum(len(job.generation.prompt.ids) for job in jobs)
        out = sum(len(job.completion.output) for job in jobs if job.completion)
        usage = {"prompt_tokens": prompt, "completion_tokens": out, "total_tokens": prompt + out}
        choices = [job.choice(i, job.text, job.finish) for i, job in enumerate(jobs)]
        return self._frame() | {"choices": choices, "usage": usage, "s7": self._evidence(jobs)}

    def _frame(self) -> dict[str, Any]:
        made = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion"}
        return made | {"created": int(time.time()), "model": self._name}

    def _evidence(self, jobs: list["_Job"]) -> dict[str, Any]:
        """Root and proofs (the bytes of a .s7p each, in base64)."""
        proofs = [job.completion.proof for job in jobs if job.completion]
        packed = [base64.b64encode(encode(p.tree())).decode() for p in proofs if p is not None]
        return {"root": self._model.seal.root.hex(), "proofs": packed}

    def _drop(self, job: "_Job") -> None:
        """Nobody waits for this answer any more."""
        if job.running is not None:
            self.worker.cut(job.running, "client")
            job.running = None


class _Job:
    """One prompt of a request and what has come of it."""

    def __init__(self, model: Model, body: dict[str, Any], prompt: Prompt) -> None:
        self.generation = Generation(prompt, _policy(model, body))
        self._decoder = TextDecoder(model.tokenizer, self.generation.policy)
        self.running: Running | None = None
        self.completion: Completion | None = None
        self.reason: str | None = None
        self.text = ""
        self._sent = 0

    @property
    def finish(self) -> str:
        """OpenAI's word for the end; a time limit has its own."""
        return {"stop": "stop", "time": "time"}.get(self.reason or "", "length")

    def take(self, ids: list[int], reason: str | None, completion: Completion) -> None:
        """Take up new ids."""
        self.text += self._decoder.feed(ids, reason is not None)
        self.completion, self.reason = completion, reason

    def fresh(self) -> str:
        """Text not yet sent."""
        piece, self._sent = self.text[self._sent :], len(self.text)
        return piece

    def choice(self, index: int, text: str, finish: str | None) -> dict[str, Any]:
        """As it stands in a response."""
        return {"index": index, "text": text, "logprobs": None, "finish_reason": finish}


def _prompts(model: Model, body: dict[str, Any]) -> list[Prompt]:
    """Every prompt: a text, a list of texts, ids, or a list of lists of ids."""
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return [model.prompt(prompt)]
    if isinstance(prompt, list) and prompt:
        if all(isinstance(part, str) for part in prompt):
            return [model.prompt(part) for part in prompt]
        lists = prompt if isinstance(prompt[0], list) else [prompt]
        if all(isinstance(ids, list) and all(type(i) is int for i in ids) for ids in lists):
            return [model.prompt(ids) for ids in lists]
    raise HTTPException(400, "prompt: expected a text, texts, ids, or lists of ids")


def _policy(model: Model, body: dict[str, Any]) -> Policy:
    """OpenAI's fields as a decoding policy; temperature 0 is the default here."""
    stop = body.get("stop") or []
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > 4:
        raise HTTPException(400, "stop: expected up to four strings")
    if not all(isinstance(s, str) and s for s in stops):
        raise HTTPException(400, "stop: expected strings that are not empty")
    return model.policy(
        max_new_tokens=_given(body, "max_tokens", int, 16),
        temperature=_given(body, "temperature", float, 0.0),
        top_p=_given(body, "top_p", float, 1.0),
        top_k=_given(body, "top_k", int, 0),
        seed=_given(body, "seed", int, 0),
        stop_texts=stops,
    )


def _given(body: dict[str, Any], field: str, kind: Any, default: Any) -> Any:
    value = body.get(field)
    if value is None:
        return default
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise HTTPException(400, f"{field}: found {value!r}; expected {kind.__name__}")
    try:
        return kind(value)
    except OverflowError as e:  # an integer beyond all floats
        raise HTTPException(400, f"{field}: {e}") from e


async def _refused(_: Request, error: Exception) -> Response:
    """Errors in the form that OpenAI's clients read."""
    assert isinstance(error, HTTPException)
    kind = "server_error" if error.status_code >= 500 else "invalid_request_error"
    tree = {"message": error.detail, "type": kind, "param": None, "code": None}
    return JSONResponse({"error": tree}, error.status_code, headers=dict(error.headers or {}))


def application(
    model: Model, name: str, limits: Limits | None = None, token: str | None = None
) -> Starlette:
    """The ASGI application of one sealed model.

    Args:
        model: the open model.
        name: what the model is called in requests.
        limits: what the server takes on.
        token: a bearer token that every request but /healthz needs.
    """
    api = Api(model, name, limits or Limits(), token)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(api.worker.stop)

    routes = [
        Route("/v1/completions", api.completions, methods=["POST"]),
        Route("/v1/models", api.models),
        Route("/healthz", api.health),
        Route("/metrics", api.metrics),
    ]
    handlers: Any = {HTTPException: _refused}
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)
