import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from s7jax.data.builtin import math
from s7jax.data.tokenizer import EOD, PATTERN, Tokenizer
from s7jax.errors import InputError, UsageError

mixed = st.lists(st.one_of(st.binary(max_size=8), st.text(max_size=8).map(str.encode))).map(
    b"".join
)


@settings(deadline=None)
@given(mixed)
@example(bytes(range(256)))
@example(b"ok \xe2\x82 cut, \xed\xa0\x80 surrogate, \xf8 never")
@example(EOD.encode())
def test_any_bytes_come_back(tokenizer, data):
    ids = tokenizer.encode(data)
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == data
    assert tokenizer.token_lengths[ids].sum() == len(data)
    assert tokenizer.eod not in ids


@settings(deadline=None)
@given(st.text())
@example("\ud800 \udc80\udcff")
def test_any_string_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text.encode("utf-8", "surrogatepass")


@settings(deadline=None)
@given(mixed)
def test_the_vocabulary_alone_gives_the_same_ids(tokenizer, data):
    rebuilt = Tokenizer.from_vocabulary(json.loads(json.dumps(tokenizer.to_vocabulary())))
    np.testing.assert_array_equal(rebuilt.encode(data), tokenizer.encode(data), strict=True)


@pytest.mark.parametrize(
    ("character", "pieces"),
    [
        ("\U00011f04", 1),  # a letter since Unicode 15.0
        ("\U000105c0", 1),  # 16.0
        ("\U0001e5d0", 1),  # 16.0
        ("\U00011db0", 2),  # 17.0
        ("\x1c", 2),  # no White_Space, whatever Python's str.isspace says
    ],
)
def test_letters_are_those_of_unicode_16(character, pieces):
    """Of which the sealed format speaks: other tables would give other ids to the same bytes."""
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(PATTERN), "isolated")
    assert len(split.pre_tokenize_str(f"a{character}")) == pieces


def test_the_vocabulary_has_the_sealed_form(tokenizer):
    v = tokenizer.to_vocabulary()
    assert (v["format"], v["version"], v["specials"]) == ("s7-vocab", 1, {EOD: 0})
    assert bytes.fromhex(v["tokens"][0]) == EOD.encode()
    assert len(v["tokens"]) == len(set(v["tokens"])) == tokenizer.vocab_size == 512
    tokens = [bytes.fromhex(token) for token in v["tokens"]]
    assert tokens[1:] == tokenizer.token_bytes[1:]
    assert {bytes([b]) for b in range(256)} <= set(tokens)
    for left, right in v["merges"]:
        assert tokens[left] + tokens[right] in tokens
    assert Tokenizer.from_vocabulary(v).digest == tokenizer.digest


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"version": 2},
        {"specials": {}},
        {"tokens": ["zz"]},
        {"tokens": ["00"] * 300},
        {"merges": [[0, 10**6]]},
        {"merges": 3},
    ],
)
def test_a_bad_vocabulary_is_refused(tokenizer, change):
    with pytest.raises(InputError, match="not an s7 vocabulary"):
        Tokenizer.from_vocabulary(tokenizer.to_vocabulary() | change)


def test_save_and_load_keep_everything(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "t.json")
    again = Tokenizer.load(tmp_path / "t.json")
    assert again.to_vocabulary() == tokenizer.to_vocabulary()
    text = "Compute 12 + 345. <|eo d|> é"
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "t.json"))
    assert library.encode(text).ids == tokenizer.encode(text).tolist()
    (tmp_path / "t.json").write_text('{"model": {}}')
    with pytest.raises(InputError, match=r"t\.json"):
        Tokenizer.load(tmp_path / "t.json")


def test_a_batch_is_the_texts_one_by_one(tokenizer):
    texts = ["", "a", "12345", EOD, "é\n\n  x"]
    for ids, text in zip(tokenizer.encode_batch(texts), texts, strict=True):
        np.testing.assert_array_equal(ids, tokenizer.encode(text), strict=True)


def test_no_token_holds_more_than_two_digits_or_mixes_them():
    digits = set(b"0123456789")
    tokenizer = Tokenizer.train([" ".join(map(str, range(1_000, 5_000)))], 330)
    assert any(len(t) == 2 and digits.issuperset(t) for t in tokenizer.token_bytes)
    for token in tokenizer.token_bytes:
        assert not digits & set(token) or (len(token) <= 2 and digits.issuperset(token))
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode("x1234567")]
    assert all(len(p) <= 2 for p in pieces[1:])


def test_the_text_of_the_end_token_is_ordinary_bytes(tokenizer):
    ids = tokenizer.encode(EOD)
    assert tokenizer.eod not in ids
    assert len(ids) > 1
    assert tokenizer.decode([tokenizer.eod, *ids, tokenizer.eod]) == EOD.encode()
    assert tokenizer.token_lengths[tokenizer.eod] == 0


def test_training_is_deterministic_over_processes():
    code = (
        "from s7jax.data.tokenizer import Tokenizer\nfrom s7jax.data.builtin import math\n"
        "print(Tokenizer.train([math.document(0, i) for i in range(150)], 400).digest)"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed, threads in (("1", "1"), ("2", "4"))
    }
    assert len(digests) == 1
    other = Tokenizer.train([math.document(1, i) for i in range(150)], 400).digest
    assert digests != {other + "\n"}


def test_too_little_text_or_too_small_a_vocabulary():
    with pytest.raises(InputError, match="not 400"):
        Tokenizer.train(["abc abc"], 400)
    with pytest.raises(UsageError, match="at least 258"):
        Tokenizer.train(["abc"], 256)


@settings(deadline=None)
@given(st.lists(st.text(), max_size=20))
@example([" " * 50_000 + "x", "\n" * 50_000, "a" * 50_000, "1" * 5_000])
def test_the_fast_encoder_gives_equal_ids(tokenizer, texts):
    assert tokenizer._tiktoken is not None
    for ids, text in zip(tokenizer.encode_batch(texts), texts, strict=True):
        np.testing.assert_array_equal(ids, tokenizer.encode(text), strict=True)


@pytest.mark.long(minutes=4)
def test_the_fast_encoder_gives_equal_ids_on_a_million_strings(tokenizer):
    """Every character there is, and random strings of characters of every kind."""
    every = [c for c in map(chr, range(0x110000)) if not "\ud800" <= c <= "\udfff"]
    rng = np.random.default_rng(0)
    common = [chr(i) for i in range(0x250)] * 3
    pool = np.array(
        [*common, *"\u2028\u2029\u3000\u0660\u0301\u200b\ufeff\U0001f600", *every[::97]]
    )
    strings = [f"a{c} {c}{c}1" for c in every]
    for length in range(1, 26):
        strings += ["".join(row) for row in rng.choice(pool, (40_000, length))]
    assert len(strings) > 2_000_000
    for ids, text in zip(tokenizer.encode_batch(strings), strings, strict=True):
        assert ids.tolist() == tokenizer.encode(text).tolist(), text


def test_merges_that_the_fast_encoder_would_misread_are_not_given_to_it():
    """``abc`` is made of ``ab`` and ``c``, but ``bc`` is merged first: it can never come out."""
    tokens = [b"", *(bytes([i]) for i in range(256)), b"bc", b"ab", b"abc"]
    ids = {token: i for i, token in enumerate(tokens)}
    merges = [(ids[a], ids[b]) for a, b in ((b"b", b"c"), (b"a", b"b"), (b"ab", b"c"))]
    tokenizer = Tokenizer(tokens, merges, PATTERN)
    assert tokenizer._tiktoken is None
    (batch,) = tokenizer.encode_batch(["abc"])
    assert batch.tolist() == tokenizer.encode("abc").tolist() == [ids[b"a"], ids[b"bc"]]


def test_others_read_the_tokenizer_and_know_where_a_text_ends(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert library.token_to_id(EOD) == tokenizer.eod
    assert library.decode([tokenizer.eod, *tokenizer.encode("x")]) == "x"
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["eos_token"] == EOD


def test_more_white_space_than_the_fast_encoder_bears_is_encoded_all_the_same(tokenizer):
    text = " " * 1_100_000
    (ids,) = tokenizer.encode_batch([text])
    assert tokenizer.decode(ids) == text.encode()
