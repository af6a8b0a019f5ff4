"""Errors in the form that OpenAI's clients read, naming the field that was sent."""

from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

RETRY = {"Retry-After": "1"}


class Problem(BaseModel):
    """What is wrong, and with which field."""

    message: str
    type: str
    param: str | None
    code: str | None


class Failure(BaseModel):
    """The body of every error."""

    error: Problem


def refusal(
    status: int, message: str, param: str | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An error as a response."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    problem = Problem(message=message, type=kind, param=param, code=None)
    return JSONResponse(Failure(error=problem).model_dump(), status, headers=headers)


class Refused(HTTPException):
    """A request that cannot be done; ``param`` is the field that is why."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.param = param


async def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    param = error.param if isinstance(error, Refused) else None
    return refusal(error.status_code, error.detail, param, error.headers)


async def _invalid(_: Request, error: Exception) -> Response:
    """The first thing that is wrong with a body; its values are not repeated."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return refusal(400, f"not JSON: {first['ctx']['error']}")
    place = [str(part) for part in first["loc"][1:]]
    problem = str(first["msg"]).removeprefix("Value error, ")
    return refusal(400, f"{place[0]}: {problem}" if place else problem, place[0] if place else None)


async def _broken(_: Request, __: Exception) -> Response:
    return refusal(500, "the server made a mistake; it is in its log")


HANDLERS: dict[Any, Any] = {
    HTTPException: _http,
    RequestValidationError: _invalid,
    Exception: _broken,
}
