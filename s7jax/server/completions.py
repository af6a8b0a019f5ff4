"""The completions endpoint: a request becomes choices, and choices become a response or events."""

import asyncio
import base64
import json
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import Body
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from s7jax.errors import UsageError
from s7jax.runtime.engine import Request as Generation
from s7jax.runtime.model import Model
from s7jax.runtime.prompt import Prompt
from s7jax.s7l.canonical import encode
from s7jax.server.choices import Choice, Piece
from s7jax.server.contract import CompletionRequest
from s7jax.server.errors import RETRY, Refused
from s7jax.server.limits import Limits
from s7jax.server.metrics import Metrics
from s7jax.server.worker import Full, Stopped, Worker

Group = list[Choice]  # what is tried of one prompt


class Completions:
    """The endpoint of one model."""

    def __init__(
        self, model: Model, name: str, limits: Limits, worker: Worker, metrics: Metrics
    ) -> None:
        self._model, self._name, self._limits = model, name, limits
        self._worker, self._metrics = worker, metrics
        self._longest = max(map(len, model.tokenizer.token_bytes))

    async def answer(
        self, request: Request, body: Annotated[CompletionRequest, Body()]
    ) -> Response:
        """OpenAI's completions, of one prompt or several; ``s7`` holds the proofs."""
        if body.model not in (None, self._name):
            raise Refused(404, f"model: there is only {self._name!r}", "model")
        if not self._worker.ready and self._worker.alive:
            raise Refused(503, "the model is not warm yet", headers=RETRY)
        groups = await self._groups(body)
        choices = [choice for group in groups for choice in group]
        try:
            client = request.client.host if request.client else ""
            runs = self._worker.submit([choice.request for choice in choices], client)
        except Full as e:
            raise Refused(429, "too many answers are on their way; try again", headers=RETRY) from e
        except UsageError as e:
            raise _refused(e) from e
        except Stopped as e:
            raise Refused(503, "the engine has failed") from e
        for choice, running in zip(choices, runs, strict=True):
            choice.running = running
        if body.stream:
            return StreamingResponse(
                self._events(body, groups),
                media_type="text/event-stream",
                headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
            )
        return JSONResponse(await self._whole(request, body, groups))

    async def _groups(self, body: CompletionRequest) -> list[Group]:
        """For each prompt as many choices as are tried; counted before anything is tokenised."""
        prompt = body.prompt
        alone = isinstance(prompt, str) or isinstance(prompt[0], int)
        prompts: Sequence[Any] = [prompt] if alone else prompt
        count, most = len(prompts) * body.tries, self._limits.share
        if body.tries < body.choices:
            raise Refused(400, f"best_of: {body.tries}; expected at least n", "best_of")
        if body.stream and body.tries > body.choices:
            raise Refused(400, "best_of: a stream cannot tell the best before the end", "best_of")
        if count > most:
            tried = "n" if body.tries == body.choices else "best_of"
            field = "prompt" if len(prompts) > most else tried
            raise Refused(400, f"{field}: {count} answers in one request; at most {most}", field)
        context = self._model.seal.manifest.dimensions.context
        for part in prompts:
            fits = context * self._longest if isinstance(part, str) else context
            if len(part) > fits:
                raise Refused(400, f"prompt: too long for a context of {context} tokens", "prompt")
        try:
            return await asyncio.to_thread(lambda: [self._choices(body, part) for part in prompts])
        except UsageError as e:
            raise _refused(e) from e

    def _choices(self, body: CompletionRequest, part: str | list[int]) -> Group:
        """The choices of one prompt."""
        start = body.add_bos is not False
        eod, tokenizer = self._model.tokenizer.eod, self._model.tokenizer
        if isinstance(part, str):
            hidden, text = start, part
            prompt: Prompt = self._model.prompt(part, start)
        else:
            hidden = start and part[:1] != [eod]
            prompt = self._model.prompt([eod] * hidden + part)
            if not all(i < tokenizer.vocab_size for i in part):
                raise UsageError(f"prompt: an id outside 0..{tokenizer.vocab_size - 1}")
            text = tokenizer.decode(part).decode("utf-8", "replace")
        seed = secrets.randbits(32) if body.seed is None else body.seed
        logprobs = 0 if body.logprobs is None and body.tries > body.choices else body.logprobs
        return [
            Choice(
                self._model,
                Generation(
                    prompt,
                    body.policy(self._model, (seed + k) % (1 << 32)),
                    logprobs=logprobs,
                    score_prompt=bool(body.echo) and body.logprobs is not None,
                    generate=body.max_tokens != 0,
                ),
                text if body.echo else None,
                hidden,
            )
            for k in range(body.tries)
        ]

    async def _whole(
        self, request: Request, body: CompletionRequest, groups: list[Group]
    ) -> dict[str, Any]:
        choices = [choice for group in groups for choice in group]
        leaving = asyncio.create_task(self._leaving(request, choices))
        wholes = {choice: Piece() for choice in choices}
        try:
            for choice in choices:
                async for piece in self._pieces(choice):
                    wholes[choice].add(piece)
        except Stopped as e:
            raise Refused(503, "the engine has failed") from e
        finally:
            leaving.cancel()
            self._drop(choices)
        for group in groups:
            if body.tries > body.choices:
                group.sort(key=lambda choice: -choice.mean_logprob)
                del group[body.choices :]
        told = [choice for group in groups for choice in group]
        items = [c.told(i, wholes[c], c.finish) for i, c in enumerate(told)]
        if body.logprobs is None:
            items = [item | {"logprobs": None} for item in items]
        usage = _usage(groups, choices)
        return self._frame() | {"choices": items, "usage": usage, "s7": self._evidence(told)}

    async def _events(self, body: CompletionRequest, groups: list[Group]) -> AsyncIterator[str]:
        """Server-sent events of all choices as they come; an answer's last one holds its proof."""
        choices = [choice for group in groups for choice in group]
        news: asyncio.Queue[tuple[int, Piece | BaseException | None]] = asyncio.Queue()
        tasks = [asyncio.create_task(self._forward(i, c, news)) for i, c in enumerate(choices)]
        frame, left = self._frame(), len(choices)
        asked = body.stream_options is not None and body.stream_options.include_usage
        if asked:
            frame["usage"] = None
        try:
            while left:
                index, piece = await news.get()
                choice = choices[index]
                if isinstance(piece, BaseException):
                    problem = {"message": "the engine has failed", "type": "server_error"}
                    yield f"data: {json.dumps({'error': problem})}\n\n"
                    if not isinstance(piece, Stopped):
                        raise piece
                    return
                if piece is not None:
                    yield _event(frame, [choice.told(index, piece, None)])
                    continue
                left -= 1
                last = choice.told(index, Piece(), choice.finish)
                yield _event(frame | {"s7": self._evidence([choice])}, [last])
            if asked:
                yield _event(frame | {"usage": _usage(groups, choices)}, [])
            yield "data: [DONE]\n\n"
        finally:
            for task in tasks:
                task.cancel()
            self._drop(choices)

    async def _forward(
        self,
        index: int,
        choice: Choice,
        news: asyncio.Queue[tuple[int, Piece | BaseException | None]],
    ) -> None:
        """An answer's pieces into a queue, then None or what went wrong."""
        try:
            async for piece in self._pieces(choice):
                news.put_nowait((index, piece))
            news.put_nowait((index, None))
        except Exception as e:  # whatever it is, nobody may wait for ever
            news.put_nowait((index, e))

    async def _pieces(self, choice: Choice) -> AsyncIterator[Piece]:
        """What comes of an answer, up to its end."""
        running, told = choice.running, 0
        assert running is not None
        while not choice.reason:
            count, reason = await running.news()
            piece = choice.take(count, reason)
            if count and not told:
                self._metrics.first(time.monotonic() - running.arrived)
            if piece.text or count > told:
                yield piece
            told = count
        self._metrics.ended(choice.reason, told, time.monotonic() - running.arrived)

    async def _leaving(self, request: Request, choices: Sequence[Choice]) -> None:
        """Free the places of a client that goes away."""
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self._drop(choices)

    def _drop(self, choices: Sequence[Choice]) -> None:
        """Nobody waits for these any more."""
        for choice in choices:
            if choice.running is not None and not choice.reason:
                self._worker.cut(choice.running)

    def _frame(self) -> dict[str, Any]:
        made = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion"}
        return made | {"created": int(time.time()), "model": self._name}

    def _evidence(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """Root, and for each choice its proof (the bytes of a .s7p, in base64) and its seed."""
        found = [c.running.completion.proof for c in choices if c.running and c.running.completion]
        proofs = [proof for proof in found if proof is not None]
        return {
            "root": self._model.seal.root.hex(),
            "proofs": [base64.b64encode(encode(proof.tree())).decode() for proof in proofs],
            "seeds": [proof.head["policy"]["seed"] for proof in proofs],
        }


def _event(frame: dict[str, Any], choices: list[dict[str, Any]]) -> str:
    return f"data: {json.dumps(frame | {'choices': choices})}\n\n"


def _usage(groups: list[Group], choices: Sequence[Choice]) -> dict[str, int]:
    """A prompt counts once, an answer whether it is told or not."""
    prompt = sum(len(group[0].request.prompt.ids) for group in groups)
    out = sum(
        len(c.running.completion.output) for c in choices if c.running and c.running.completion
    )
    return {"prompt_tokens": prompt, "completion_tokens": out, "total_tokens": prompt + out}


def _refused(error: UsageError) -> Refused:
    """As the field that was sent: a policy names its own, a prompt does not."""
    message = str(error)
    named = message.replace(":", " ").split()[0]
    if named in CompletionRequest.model_fields:
        return Refused(400, message, named)
    return Refused(400, f"prompt: {message}", "prompt")
