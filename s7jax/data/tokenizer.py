"""Byte-level BPE: any bytes in, the same bytes out.

Training and encoding are the ``tokenizers`` library's; here is what it leaves open: bytes that
are not UTF-8, the literal text of the end-of-document token, and a vocabulary form that is
enough on its own to encode and decode (it goes into the sealed file).
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, pre_tokenizers, trainers

from s7jax.data import tokenizer_json
from s7jax.errors import InputError, UsageError
from s7jax.s7l.contract import PATTERNS
from s7jax.storage import write_json

EOD = "<|eod|>"
"""The end-of-document token, id 0. It stands for a boundary, never for text."""

PATTERN = PATTERNS[0]
"""Pieces no token crosses. Digits stand alone, at most two together: arithmetic needs that."""

if TYPE_CHECKING:
    import tiktoken

# Bytes that are no UTF-8, as Python's "surrogateescape" shows them.
_ESCAPED = re.compile("([\udc80-\udcff]+)")


# White space that tiktoken's regular expressions run out of stack on, and then some.
_LONG_SPACE = re.compile(r"\s{10000}")
_LONG = 10_000  # characters that take milliseconds


class Tokenizer:
    """A vocabulary with its encoder. Build one with ``train``, ``load`` or ``from_vocabulary``."""

    eod = 0

    def __init__(
        self, tokens: Sequence[bytes], merges: Sequence[tuple[int, int]], pattern: str
    ) -> None:
        self.token_bytes = list(tokens)
        """Bytes of each id; the end-of-document token has none."""
        self._merges = list(merges)
        self._pattern = pattern
        names = [EOD, *("".join(tokenizer_json.SYMBOLS[b] for b in token) for token in tokens[1:])]
        # The end-of-document token is in the vocabulary but not registered as special: nothing
        # that stands in a text is ever encoded as it.
        self._hf = _encoder(names, self._merges, pattern)
        self._byte_ids = np.array([names.index(s) for s in tokenizer_json.SYMBOLS], np.int32)

    @classmethod
    def train(cls, texts: Iterable[str], vocab: int) -> Self:
        """Learn a vocabulary of exactly ``vocab`` tokens; the same texts give the same one.

        Raises:
            UsageError: ``vocab`` has no room for 256 bytes, the end-of-document token and a merge.
            InputError: the texts are too small for so many tokens.
        """
        if vocab < 258:
            raise UsageError(f"vocab {vocab}: expected at least 258 (256 bytes, {EOD}, one merge)")
        hf = tokenizers.Tokenizer(models.BPE())
        hf.pre_tokenizer = _pre_tokenizer(PATTERN)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab,
            special_tokens=[EOD],
            initial_alphabet=sorted(tokenizer_json.SYMBOLS),
            show_progress=False,
        )
        hf.train_from_iterator(texts, trainer)
        if hf.get_vocab_size() != vocab:
            raise InputError(
                f"the training text gives a vocabulary of {hf.get_vocab_size()} tokens, "
                f"not {vocab}; use more text or a smaller vocabulary"
            )
        return cls._from_hf(json.loads(hf.to_str()))

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a ``tokenizer.json`` of byte-level BPE, written by :meth:`save` or by others.

        Raises:
            InputError: not such a file, or one that needs what a sealed model has not.
        """
        try:
            return cls._from_hf(json.loads(Path(path).read_bytes()))
        except OSError as e:
            raise InputError(f"{path}: {e.strerror}") from e
        except ValueError as e:
            raise InputError(f"{path}: not a byte-level BPE tokenizer.json: {e}") from e
        except (KeyError, TypeError, IndexError, AttributeError) as e:
            raise InputError(f"{path}: not a byte-level BPE tokenizer.json: {e!r}") from e

    def save(self, path: Path | str, context: int | None = None) -> None:
        """Write a ``tokenizer.json``, and beside it the ``tokenizer_config.json`` of transformers.

        ``tokenizers`` and ``transformers`` read them and give the same ids. For them the
        end-of-document token is special and ends a text, so they read its literal text as it.

        With the ``context`` of a model they are of that model's inputs: the same token then begins
        each text, as it does each prompt here, and fills up batches at the left.
        """
        tree = json.loads(self._hf.to_str())
        special = {"id": self.eod, "content": EOD, "special": True, "normalized": False}
        sides = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        tree["added_tokens"] = [special | sides]
        settings: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": EOD,
            "clean_up_tokenization_spaces": False,
        }
        if context is not None:
            first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
            begin = {"SpecialToken": {"id": EOD, "type_id": 0}}
            tree["post_processor"] = {
                "type": "TemplateProcessing",
                "single": [begin, first],
                "pair": [begin, first, second],
                "special_tokens": {EOD: {"id": EOD, "ids": [self.eod], "tokens": [EOD]}},
            }
            settings |= {"bos_token": EOD, "pad_token": EOD, "padding_side": "left"}
            settings |= {"model_max_length": context}
            settings["model_input_names"] = ["input_ids", "attention_mask"]
        write_json(Path(path), tree)
        write_json(Path(path).with_name("tokenizer_config.json"), settings)

    @classmethod
    def _from_hf(cls, tree: dict[str, Any]) -> Self:
        return cls(*tokenizer_json.parse(tree, EOD))

    @classmethod
    def from_vocabulary(cls, vocabulary: dict[str, Any]) -> Self:
        """Rebuild from :meth:`to_vocabulary`: identical ids for every input.

        Raises:
            InputError: not such a vocabulary.
        """
        try:
            if (vocabulary["format"], vocabulary["version"]) != ("s7-vocab", 1):
                raise ValueError("expected format 's7-vocab', version 1")
            if vocabulary["specials"] != {EOD: cls.eod}:
                raise ValueError(f"specials are {vocabulary['specials']}, expected {EOD} as id 0")
            tokens = [bytes.fromhex(token) for token in vocabulary["tokens"]]
            merges = [(int(left), int(right)) for left, right in vocabulary["merges"]]
            return cls([b"", *tokens[1:]], merges, vocabulary["pattern"])
        except (ValueError, KeyError, TypeError, IndexError) as e:
            raise InputError(f"not an s7 vocabulary: {e!r}") from e

    def to_vocabulary(self) -> dict[str, Any]:
        """The vocabulary as plain JSON: all that is needed to encode and decode."""
        return {
            "format": "s7-vocab",
            "version": 1,
            "tokens": [token.hex() for token in [EOD.encode(), *self.token_bytes[1:]]],
            "merges": [list(pair) for pair in self._merges],
            "specials": {EOD: self.eod},
            "pattern": self._pattern,
        }

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the vocabulary's canonical JSON, in hexadecimal."""
        text = json.dumps(self.to_vocabulary(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return len(self.token_bytes)

    @cached_property
    def token_lengths(self) -> NDArray[np.int32]:
        """Bytes each id stands for, int32[vocab]; 0 for the end-of-document token."""
        return np.array([len(token) for token in self.token_bytes], np.int32)

    def encode(self, text: str | bytes) -> NDArray[np.int32]:
        """Ids of one text, int32[n]; bytes that are not UTF-8 become one token each."""
        data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        pieces = _ESCAPED.split(data.decode("utf-8", "surrogateescape"))
        return np.concatenate([self._encode_piece(piece) for piece in pieces])

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Ids of many valid Unicode texts: those of :meth:`encode`, several times as fast."""
        return [self._encode_fast(text) for text in texts]

    def _encode_fast(self, text: str) -> NDArray[np.int32]:
        if self._tiktoken is None or _LONG_SPACE.search(text):
            return self._encode_piece(text)
        return self._tiktoken.encode_to_numpy(text, disallowed_special=()).astype(np.int32)

    @cached_property
    def _tiktoken(self) -> "tiktoken.Encoding | None":
        """The same merges in tiktoken, which merges whatever gives a token, smallest id first.

        That is what our merges say if ids grow with them and every token comes out of its own
        bytes: a pair that joins to a token then is the pair that its merge names.
        """
        import tiktoken  # noqa: PLC0415 (who only runs a model does without)

        ids = {token: i for i, token in enumerate(self.token_bytes) if i}
        results = [ids[self.token_bytes[a] + self.token_bytes[b]] for a, b in self._merges]
        made = {*results, *(int(i) for i in self._byte_ids)}  # others no text gives
        ranks = {token: i for token, i in ids.items() if i in made}
        grows = all(a < b for a, b in itertools.pairwise(results))
        if not grows or not all(_reached(token, ranks, self._merges_by_pair) for token in ranks):
            return None
        return tiktoken.Encoding(
            "s7", pat_str=self._pattern, mergeable_ranks=ranks, special_tokens={}
        )

    @cached_property
    def _merges_by_pair(self) -> dict[tuple[int, int], int]:
        ids = {token: i for i, token in enumerate(self.token_bytes) if i}
        return {(a, b): ids[self.token_bytes[a] + self.token_bytes[b]] for a, b in self._merges}

    def decode(self, ids: Iterable[int]) -> bytes:
        """The exact bytes of ids; end-of-document tokens stand for none."""
        return b"".join(self.token_bytes[i] for i in ids)

    def _encode_piece(self, piece: str) -> NDArray[np.int32]:
        if _ESCAPED.match(piece):
            return self._byte_ids[list(piece.encode("utf-8", "surrogateescape"))]
        if len(piece) > _LONG:  # a batch, as other threads run meanwhile
            (found,) = self._hf.encode_batch_fast([piece], add_special_tokens=False)
        else:
            found = self._hf.encode(piece, add_special_tokens=False)
        return np.array(found.ids, np.int32)


def _pre_tokenizer(pattern: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    return pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def _encoder(
    names: Sequence[str], merges: Sequence[tuple[int, int]], pattern: str
) -> tokenizers.Tokenizer:
    vocab = {name: i for i, name in enumerate(names)}
    if len(vocab) != len(names):
        raise ValueError("two tokens with the same bytes")
    model = models.BPE(vocab=vocab, merges=[(names[a], names[b]) for a, b in merges])
    hf = tokenizers.Tokenizer(model)
    hf.pre_tokenizer = _pre_tokenizer(pattern)
    hf.decoder = decoders.ByteLevel()
    return hf


def _reached(token: bytes, ranks: dict[bytes, int], merges: dict[tuple[int, int], int]) -> bool:
    """Whether the merges make this one token of its bytes."""
    parts = [ranks[token[i : i + 1]] for i in range(len(token))]
    while len(parts) > 1:
        pairs = list(itertools.pairwise(parts))
        found = [(merges[pair], i) for i, pair in enumerate(pairs) if pair in merges]
        if not found:
            return False
        made, place = min(found)
        parts[place : place + 2] = [made]
    return parts == [ranks[token]]
