"""The LANE lane: generation defaults and the known-answer transcript."""

from collections.abc import Mapping, Sequence
from typing import Any

from s7jax.architecture import Architecture
from s7jax.s7l.contract import LANE_FOLDS
from s7jax.s7l.schema import SealError, digest, equal, integer, mapping, sequence
from s7jax.s7l.vocabulary import Vocabulary

MOST_ANSWERS, MOST_PROMPT, MOST_OUTPUT = 64, 256, 64
"""Known answers, and ids of one's prompt and output: what a self-test computes is bounded."""


def default_policy(d: Architecture, vocabulary: Vocabulary) -> dict[str, Any]:
    """Greedy decoding that stops at the end of a document."""
    eod = vocabulary.specials.get("<|eod|>")
    return {
        "max_new_tokens": min(256, d.context - 1),
        "temperature_q16": 0,  # in 1/65,536; 0 is greedy
        "seed": 0,
        "stop": [] if eod is None else [eod],
    }


def make_stream(
    defaults: Mapping[str, Any], answers: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The payload of the LANE lane; :func:`check_stream` says what may be in it."""
    return {
        "format": "s7-stream",
        "version": 1,
        "fold": LANE_FOLDS["LANE"],
        "defaults": dict(defaults),
        "answers": [dict(answer) for answer in answers],
    }


def check_stream(tree: Any, d: Architecture, place: str) -> dict[str, Any]:
    """Validate a LANE payload against the model's dimensions and return it.

    An answer says that the prompt's ids, routed as the model routes, give these output ids
    greedily, and that the int32 little-endian logits of each output position have this
    SHA-256.

    Raises:
        SealError: a key, type, id or length does not fit.
    """
    checked = mapping(tree, ("format", "version", "fold", "defaults", "answers"), place)
    equal(tree["format"], "s7-stream", f"{place}.format")
    equal(tree["version"], 1, f"{place}.version")
    equal(tree["fold"], LANE_FOLDS["LANE"], f"{place}.fold")
    _check_defaults(tree["defaults"], d, f"{place}.defaults")
    for i, answer in enumerate(sequence(tree["answers"], f"{place}.answers", 0, MOST_ANSWERS)):
        _check_answer(answer, d, f"{place}.answers[{i}]")
    return checked


def _check_defaults(tree: Any, d: Architecture, place: str) -> None:
    mapping(tree, ("max_new_tokens", "temperature_q16", "seed", "stop"), place)
    integer(tree["max_new_tokens"], 1, d.context - 1, f"{place}.max_new_tokens")
    integer(tree["temperature_q16"], 0, 1 << 24, f"{place}.temperature_q16")
    integer(tree["seed"], 0, (1 << 32) - 1, f"{place}.seed")
    stop = _ids(tree["stop"], d, f"{place}.stop", 0, 16)
    if stop != sorted(set(stop)):
        raise SealError(f"{place}.stop", "ids repeat or are out of order")


def _check_answer(tree: Any, d: Architecture, place: str) -> None:
    mapping(tree, ("domain", "prompt", "output", "logits"), place)
    if tree["domain"] not in d.domains:
        raise SealError(f"{place}.domain", f"expected one of {', '.join(d.domains)}")
    prompt = _ids(tree["prompt"], d, f"{place}.prompt", 1, min(MOST_PROMPT, d.context - 1))
    output = _ids(
        tree["output"], d, f"{place}.output", 1, min(MOST_OUTPUT, d.context - len(prompt))
    )
    logits = sequence(tree["logits"], f"{place}.logits", len(output), len(output))
    for i, value in enumerate(logits):
        digest(value, f"{place}.logits[{i}]")


def _ids(tree: Any, d: Architecture, place: str, low: int, high: int) -> list[int]:
    ids = sequence(tree, place, low, high)
    return [integer(value, 0, d.vocab - 1, f"{place}[{i}]") for i, value in enumerate(ids)]
