"""The body of a completions request: OpenAI's fields, their ranges, and what is refused."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
)

from s7jax.errors import UsageError
from s7jax.integer.sampling import MOST_BIASES
from s7jax.runtime.model import Model
from s7jax.runtime.policy import MOST_BYTES, MOST_TOKENS, Policy

MOST_PROMPTS = 1_024  # of a request, before the server's own limit
MOST_CHOICES = 128
MOST_LOGPROBS = 20
MOST_STOPS = 4


def _whole(text: str) -> str:
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError("half of a surrogate pair is no text")
    return text


Text = Annotated[str, AfterValidator(_whole)]
Id = Annotated[int, Field(ge=0, lt=1 << 20)]
Ids = Annotated[list[Id], Field(max_length=MOST_TOKENS, fail_fast=True)]
Stop = Annotated[Text, Field(min_length=1, max_length=MOST_BYTES)]


def _form(prompt: Any) -> str | None:
    """Which of the four forms a prompt has, by its first item."""
    if isinstance(prompt, str):
        return "text"
    if not isinstance(prompt, list) or not prompt:
        return None
    forms = {str: "texts", int: "ids", list: "lists"}
    return forms.get(type(prompt[0]))


def _one_or_many(stop: Any) -> str | None:
    return {str: "one", list: "many", type(None): "none"}.get(type(stop))


Prompts = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[list[Text], Field(max_length=MOST_PROMPTS, fail_fast=True), Tag("texts")]
    | Annotated[Ids, Tag("ids")]
    | Annotated[list[Ids], Field(max_length=MOST_PROMPTS, fail_fast=True), Tag("lists")],
    Discriminator(
        _form,
        custom_error_type="prompt_form",
        custom_error_message="expected a text, texts, ids, or lists of ids",
    ),
]
Stops = Annotated[
    Annotated[Stop, Tag("one")]
    | Annotated[list[Stop], Field(max_length=MOST_STOPS), Tag("many")]
    | Annotated[None, Tag("none")],
    Discriminator(
        _one_or_many,
        custom_error_type="stop_form",
        custom_error_message=f"expected a text, or up to {MOST_STOPS}",
    ),
]


class Strict(BaseModel):
    """JSON's own types, no unknown fields, no infinities."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class StreamOptions(Strict):
    """How a stream is told."""

    include_usage: bool = Field(False, description="one more chunk, with the usage")
    include_obfuscation: Literal[False] = False


class CompletionRequest(Strict):
    """``null`` stands for the default everywhere."""

    model: str | None = Field(None, description="the name under /v1/models")
    prompt: Prompts = Field(description="a text, texts, ids, or lists of ids")
    add_bos: bool | None = Field(
        True,
        description="put the end-of-document token in front, of texts and ids alike, as where a "
        "document begins; ids that begin with it stay as they are. `echo` does not repeat it",
    )
    max_tokens: int | None = Field(16, ge=0, le=MOST_TOKENS)
    temperature: float | None = Field(0, ge=0, le=256, description="0 (greedy), or from 1/64")
    top_p: float | None = Field(1, gt=0, le=1)
    top_k: int | None = Field(0, ge=0, le=1 << 20, description="0: all")
    seed: int | None = Field(
        None,
        ge=0,
        lt=1 << 32,
        description="choice k of a prompt draws with seed + k; absent: drawn, and told",
    )
    logit_bias: Annotated[dict[str, float], Field(max_length=MOST_BIASES)] | None = Field(
        None, description="by id; from -100 to 100, added to the logit; part of the proof"
    )
    stop: Stops = Field(None, description="texts that end the answer and are cut off")
    n: int | None = Field(1, ge=1, le=MOST_CHOICES)
    best_of: int | None = Field(
        None, ge=1, le=MOST_CHOICES, description="of so many, the n most likely by token"
    )
    echo: bool | None = Field(False, description="the prompt in front of the answer")
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, description="has no effect")
    suffix: None = Field(None, description="not supported")
    presence_penalty: float | None = Field(0, description="not supported, but for 0")
    frequency_penalty: float | None = Field(0, description="not supported, but for 0")

    @field_validator("suffix", mode="before")
    @classmethod
    def _no_suffix(cls, value: Any) -> None:
        if value is not None:
            raise ValueError("not supported: this model continues a text, and knows no insertion")

    @field_validator("presence_penalty", "frequency_penalty", mode="after")
    @classmethod
    def _no_penalty(cls, value: float | None) -> float | None:
        if value:
            raise ValueError("not supported: expected 0")
        return value

    @field_validator("logit_bias", mode="after")
    @classmethod
    def _biases(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for key, bias in (value or {}).items():
            if not (key.isascii() and key.isdigit() and len(key) <= 7):
                raise ValueError("expected ids as keys")
            if not -100 <= bias <= 100:
                raise ValueError("expected values from -100 to 100")
        return value

    @property
    def choices(self) -> int:
        """Answers told of each prompt."""
        return self.n or 1

    @property
    def tries(self) -> int:
        """Answers made of each prompt."""
        return self.best_of or self.choices

    def policy(self, model: Model, seed: int) -> Policy:
        """How this request's answers are made.

        Raises:
            UsageError: no policy of this model; the field that was sent is named.
        """
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if any(len(stop.encode()) > MOST_BYTES for stop in stops):
            raise UsageError(f"stop: a text of more than {MOST_BYTES} bytes")
        return model.policy(
            max_new_tokens=16 if self.max_tokens is None else self.max_tokens or 1,
            temperature=self.temperature or 0.0,
            top_p=1.0 if self.top_p is None else max(self.top_p, 1 / 65_536),
            top_k=self.top_k or 0,
            seed=seed,
            logit_bias={int(key): bias for key, bias in (self.logit_bias or {}).items()},
            stop_texts=stops,
        )
