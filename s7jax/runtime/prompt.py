"""A prompt: its bytes and how they became ids, or ids as they were given.

A text becomes ids in one way, the encoding that the sealed vocabulary defines, after the id that
ends a document if the prompt starts one. Ids that are exactly that are described by their bytes;
only others stand as ids.
"""

from dataclasses import dataclass
from typing import Any

from s7jax.data.tokenizer import Tokenizer
from s7jax.errors import UsageError
from s7jax.s7l import SealError
from s7jax.s7l.schema import integer, mapping, sequence

MOST_IDS = 1 << 16  # no sealed context is longer
MOST_BYTES = 1 << 22  # of a text; on 10^7 spaces in a row the splitter of text gives up


@dataclass(frozen=True)
class Prompt:
    """Ids for the model; ``text`` is None where they are no canonical encoding of their bytes."""

    ids: tuple[int, ...]
    text: bytes | None = None
    start: bool = False  # the first id is the end-of-document token: a document starts

    def tree(self) -> dict[str, Any]:
        """As it stands in a proof."""
        if self.text is None:
            return {"ids": list(self.ids)}
        return {"text": self.text, "start": self.start}


def of_text(tokenizer: Tokenizer, text: str | bytes, start: bool = True) -> Prompt:
    """A prompt of text. Lone surrogates in ``text`` stand for the bytes they escape.

    Raises:
        UsageError: it is too long, or holds a surrogate that stands for no byte.
    """
    data = as_bytes(text)
    if len(data) > MOST_BYTES:
        raise UsageError(f"a prompt of {len(data):,} bytes; expected at most {MOST_BYTES:,}")
    first = (tokenizer.eod,) if start else ()
    return Prompt((*first, *tokenizer.encode(data).tolist()), data, start)


def as_bytes(text: str | bytes) -> bytes:
    """A text's bytes; raises like :func:`of_text`."""
    try:
        return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    except UnicodeEncodeError as e:
        odd = e.object[e.start]
        raise UsageError(f"a text holds {odd!a}, a surrogate that stands for no byte") from e


def of_ids(tokenizer: Tokenizer, ids: tuple[int, ...]) -> Prompt:
    """A prompt of ids, described by its bytes if it is their canonical encoding."""
    rest = ids[1:] if (start := ids[:1] == (tokenizer.eod,)) else ids
    if tokenizer.eod not in rest and all(0 <= i < tokenizer.vocab_size for i in rest):
        told = of_text(tokenizer, tokenizer.decode(rest), start)
        if told.ids == ids:
            return told
    return Prompt(ids)


def parse(tree: Any, place: str) -> dict[str, Any]:
    """A prompt's tree, its form checked; ids of a text take the vocabulary (:func:`resolve`).

    Raises:
        SealError: it is neither of the two forms.
    """
    if type(tree) is dict and "text" in tree:
        mapping(tree, ("text", "start"), place)
        if type(tree["text"]) is not bytes or len(tree["text"]) > MOST_BYTES:
            raise SealError(f"{place}.text", f"expected at most {MOST_BYTES:,} bytes")
        if type(tree["start"]) is not bool:
            raise SealError(f"{place}.start", "expected true or false")
        return tree
    mapping(tree, ("ids",), place)
    for i, token in enumerate(sequence(tree["ids"], f"{place}.ids", 1, MOST_IDS)):
        integer(token, 0, (1 << 20) - 1, f"{place}.ids[{i}]")
    return tree


def resolve(tokenizer: Tokenizer, tree: dict[str, Any], place: str) -> Prompt:
    """The prompt that a proof tells of, with its ids.

    Raises:
        SealError: ids that are the canonical encoding of a text, which is the one legal form.
    """
    if "text" in tree:
        return of_text(tokenizer, tree["text"], tree["start"])
    told = of_ids(tokenizer, tuple(tree["ids"]))
    if told.text is not None:
        raise SealError(f"{place}.ids", "are the encoding of a text; the text is the legal form")
    return told
