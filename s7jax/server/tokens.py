"""The tokenizer over HTTP, in vLLM's form: what lm-eval's ``tokenizer_backend=remote`` asks for."""

from typing import Any

from fastapi import APIRouter
from pydantic import Field

from s7jax.data.tokenizer import EOD
from s7jax.runtime.model import Model
from s7jax.server.contract import Ids, Strict, Text
from s7jax.server.errors import Refused


class TokenizeRequest(Strict):
    """A text to tokenise."""

    prompt: Text
    model: str | None = None
    add_special_tokens: bool = Field(
        True, description="put the end-of-document token in front, as `add_bos` does"
    )


class DetokenizeRequest(Strict):
    """Ids to turn into text."""

    tokens: Ids
    model: str | None = None


def router(model: Model) -> APIRouter:
    """The endpoints of one model. They are no coroutines, so that none runs in the event loop."""
    found = APIRouter()
    tokenizer, context = model.tokenizer, model.seal.manifest.dimensions.context

    @found.post("/tokenize")
    def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        """Ids of a text. The end-of-document token's name alone gives its id."""
        if body.prompt == EOD:
            ids = [tokenizer.eod]
        else:
            ids = list(model.prompt(body.prompt, body.add_special_tokens).ids)
        return {"tokens": ids, "count": len(ids), "max_model_len": context}

    @found.post("/detokenize")
    def detokenize(body: DetokenizeRequest) -> dict[str, Any]:
        """The text of ids."""
        if any(i >= tokenizer.vocab_size for i in body.tokens):
            raise Refused(400, f"tokens: an id outside 0..{tokenizer.vocab_size - 1}", "tokens")
        return {"prompt": tokenizer.decode(body.tokens).decode("utf-8", "replace")}

    @found.get("/tokenizer_info")
    def info() -> dict[str, Any]:
        """Names of the special tokens."""
        return {"bos_token": EOD, "eos_token": EOD, "model_max_length": context}

    return found
