"""How a prompt is continued: what is drawn from, and where the answer ends.

A proof binds the canonical policy: of all policies that make the same answers there is one legal
description, so a field without effect has one value.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from s7jax.errors import UsageError
from s7jax.integer.sampling import BIAS_LIMIT, MOST_BIASES, ONE, Sampling
from s7jax.s7l import SealError
from s7jax.s7l.schema import integer, mapping, sequence

MOST_TOKENS = 1 << 16  # no sealed context is longer
MOST_STOPS = 64  # stop ids
MOST_TEXTS = 16  # stop texts, of at most so many bytes each:
MOST_BYTES = 256
SMALLEST_TEMPERATURE = ONE >> 6  # below 1/64 no draw can differ from the most likely token's

NATURAL = ("stop", "length", "context")
"""Ends that follow from the steps: a stop id or text, the tokens asked for, a full context."""
CUT = ("client", "time")
"""Who ended an answer that would have gone on: whoever asked, or a time limit."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Sampling, and where an answer ends.

    Raises:
        UsageError: a value is out of range; it is named.
    """

    sampling: Sampling = field(default_factory=Sampling)
    max_new_tokens: int | None = 256  # None: until the context is full
    stop: tuple[int, ...] = ()  # ids that end an answer and are no text of it
    stop_texts: tuple[bytes, ...] = ()  # bytes that end it and are cut off

    def __post_init__(self) -> None:
        temperature = self.sampling.temperature_q16
        if 0 < temperature < SMALLEST_TEMPERATURE:
            raise UsageError(
                f"temperature is {temperature / ONE:g}; expected 0 (greedy) or at least 1/64"
            )
        most = self.max_new_tokens
        if most is not None and not (type(most) is int and 1 <= most <= MOST_TOKENS):
            raise UsageError(f"max_new_tokens is {most!r}; expected 1 to {MOST_TOKENS:,}")
        if any(type(i) is not int for i in self.stop):
            raise UsageError(f"stop is {list(self.stop)!r}; expected ids")
        if len(self.stop) > MOST_STOPS:
            raise UsageError(f"stop has {len(self.stop)} ids; expected at most {MOST_STOPS}")
        if len(self.stop_texts) > MOST_TEXTS:
            raise UsageError(f"stop has {len(self.stop_texts)} texts; at most {MOST_TEXTS}")
        for text in self.stop_texts:
            if not 1 <= len(text) <= MOST_BYTES:
                raise UsageError(f"stop: a text of {len(text)} bytes; expected 1 to {MOST_BYTES}")

    def canonical(self, vocab: int, room: int) -> "Policy":
        """The one description of what this does, with ``room`` positions left for an answer.

        Raises:
            UsageError: an id is not of the vocabulary.
        """
        drawn, bias = self.sampling, dict(self.sampling.logit_bias)
        for name, ids in (("stop", self.stop), ("logit_bias", bias)):
            if outside := [i for i in ids if not 0 <= i < vocab]:
                raise UsageError(f"{name}: id {outside[0]} is not one of 0..{vocab - 1}")
        if drawn.temperature_q16 == 0 or drawn.top_k == 1:
            drawn = Sampling()
        elif drawn.top_k >= vocab:
            drawn = dataclasses.replace(drawn, top_k=0)
        biases = tuple(sorted((i, b) for i, b in bias.items() if b))
        most = self.max_new_tokens
        return Policy(
            sampling=dataclasses.replace(drawn, logit_bias=biases),
            max_new_tokens=None if most is None or most > room else most,
            stop=tuple(sorted(set(self.stop))),
            stop_texts=_shortest(self.stop_texts),
        )

    def tree(self) -> dict[str, Any]:
        """As it stands in a proof."""
        sampling = dataclasses.asdict(self.sampling)
        bias = [list(pair) for pair in sampling.pop("logit_bias")]
        return {
            **sampling,
            **({"logit_bias": bias} if bias else {}),
            "max_new_tokens": self.max_new_tokens,
            "stop": list(self.stop),
            "stop_texts": list(self.stop_texts),
        }

    @classmethod
    def parse(cls, tree: Any, place: str) -> "Policy":
        """Inverse of :meth:`tree`; what depends on the model is checked with it, at replay.

        Raises:
            SealError: a value does not fit, or is not the canonical one.
        """
        biased = type(tree) is dict and "logit_bias" in tree
        keys = [f.name for f in dataclasses.fields(Sampling) if biased or f.name != "logit_bias"]
        mapping(tree, (*keys, "max_new_tokens", "stop", "stop_texts"), place)
        bias = sequence(tree["logit_bias"], f"{place}.logit_bias", 1, MOST_BIASES) if biased else []
        for i, pair in enumerate(bias):
            at = f"{place}.logit_bias[{i}]"
            sequence(pair, at, 2, 2)
            integer(pair[0], 0, (1 << 20) - 1, at)
            integer(pair[1], -BIAS_LIMIT, BIAS_LIMIT, at)
        stop = sequence(tree["stop"], f"{place}.stop", 0, MOST_STOPS)
        for i, token in enumerate(stop):
            integer(token, 0, (1 << 20) - 1, f"{place}.stop[{i}]")
        texts = sequence(tree["stop_texts"], f"{place}.stop_texts", 0, MOST_TEXTS)
        for i, text in enumerate(texts):
            if type(text) is not bytes:
                raise SealError(f"{place}.stop_texts[{i}]", "expected bytes")
        try:
            policy = cls(
                sampling=Sampling(
                    **{key: tree[key] for key in keys} | {"logit_bias": tuple(map(tuple, bias))}
                ),
                max_new_tokens=tree["max_new_tokens"],
                stop=tuple(stop),
                stop_texts=tuple(texts),
            )
        except UsageError as e:
            raise SealError(place, str(e)) from e
        canonical = policy.canonical(1 << 20, MOST_TOKENS).tree()
        for key, found in tree.items():
            if found != (value := canonical.get(key, "nothing")):
                problem = f"is {found!r}; what does the same is written {value!r}"
                raise SealError(f"{place}.{key}", problem)
        return policy


def ending(policy: Policy, room: int, output: list[int], text: bytearray, new: int) -> str | None:
    """Why an answer ends here, or None if it continues.

    Args:
        policy: how it is made.
        room: positions that the context has for it.
        output: its ids so far.
        text: their bytes.
        new: how many of the bytes the last id added; a stop text ends among them.
    """
    told = len(text) - new
    if output and output[-1] in policy.stop:
        return "stop"
    if any(text.find(t, max(0, told - len(t) + 1)) >= 0 for t in policy.stop_texts):
        return "stop"
    if policy.max_new_tokens is not None and len(output) >= policy.max_new_tokens:
        return "length"
    return "context" if len(output) >= room else None


def cut(policy: Policy, text: bytes | bytearray) -> bytes:
    """The text of an answer up to its first stop text."""
    found = [at for stop in policy.stop_texts if (at := text.find(stop)) >= 0]
    return bytes(text[: min(found)] if found else text)


def _shortest(texts: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Sorted, and without those that hold another: that one ends the answer first."""
    distinct = sorted(set(texts))
    return tuple(t for t in distinct if not any(o in t for o in distinct if o != t))
