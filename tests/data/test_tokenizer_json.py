"""``tokenizer.json`` in and out: ours in other libraries, others' here, to a verified seal."""

import json

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from s7jax import s7l
from s7jax.data.builtin import math, reason
from s7jax.data.tokenizer import EOD, PATTERN, Tokenizer
from s7jax.errors import InputError
from s7jax.s7l.contract import PATTERNS
from tests.test_scripts import SIZE, WORDS, good

END = "<|endoftext|>"
VOCAB, PADDED = 400, 416
TEXTS = ["", "It's 12345 apples.\n\n  And\tmore…  ", "été 東京 🙂", "'re 'RE \r\n \r x" + " " * 40]


def foreign():
    """As GPT-2's: split by the byte-level pre-tokenizer itself, the end of text as the last id."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - 1, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(
        (g.document(1, i) for g in (math, reason) for i in range(150)), trainer
    )
    made.add_special_tokens([END])
    assert made.get_vocab_size() == VOCAB
    return made


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    path = tmp_path_factory.mktemp("theirs") / "tokenizer.json"
    foreign().save(str(path))
    return path


@pytest.fixture(scope="module")
def pair(theirs):
    return tokenizers.Tokenizer.from_file(str(theirs)), Tokenizer.load(theirs)


@given(st.text())
@example("".join(TEXTS))
@example(EOD)
def test_a_tokenizer_of_gpt_2s_kind_gives_its_ids_after_the_end_of_documents(pair, text):
    """Which is id 0 here, so each of the others is one more."""
    library, ours = pair
    expected = [i + 1 for i in library.encode(text).ids] if END not in text else None
    assert ours.encode(text).tolist() == expected
    assert ours._tiktoken is not None
    assert (ours.vocab_size, ours.token_bytes[-1]) == (PADDED, b"<|unused15|>")
    (batch,) = ours.encode_batch([text])
    assert batch.tolist() == expected
    rebuilt = Tokenizer.from_vocabulary(json.loads(json.dumps(ours.to_vocabulary())))
    np.testing.assert_array_equal(rebuilt.encode(text), ours.encode(text))
    assert ours.decode(ours.encode(text)) == text.encode()


@pytest.mark.parametrize("kind", ["own", "foreign"])
def test_both_libraries_read_what_is_written_with_equal_ids_and_the_end_named(
    tokenizer, theirs, tmp_path, kind
):
    transformers = pytest.importorskip("transformers", reason="pip install 's7jax[long]'")
    written = tokenizer if kind == "own" else Tokenizer.load(theirs)
    written.save(tmp_path / "tokenizer.json")
    assert Tokenizer.load(tmp_path / "tokenizer.json").digest == written.digest
    fast = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in (*TEXTS, math.document(3, 3), reason.document(3, 3)):
        ids = written.encode(text).tolist()
        assert ids == plain.encode(text).ids == fast.encode(text) == auto.encode(text)
        assert fast.decode(ids) == text
    for reader in (fast, auto):
        assert (reader.eos_token, reader.eos_token_id) == (EOD, written.eod)
        assert len(reader) == written.vocab_size
        assert reader.encode(f"a{EOD}")[-1] == written.eod
        assert reader.decode([written.eod], skip_special_tokens=True) == ""


def split(pattern, **fields):
    first = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"} | fields
    last = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [first, last]}


REFUSED = {
    "its model is WordPiece, expected BPE": lambda t: t["model"].update(type="WordPiece"),
    "byte_fallback": lambda t: t["model"].update(byte_fallback=True),
    "ignore_merges": lambda t: t["model"].update(ignore_merges=True),
    "end_of_word_suffix": lambda t: t["model"].update(end_of_word_suffix="</w>"),
    "normalizer NFC": lambda t: t.update(normalizer={"type": "NFC"}),
    "add_prefix_space": lambda t: t["pre_tokenizer"].update(add_prefix_space=True),
    "by Metaspace, expected ByteLevel": lambda t: t.update(pre_tokenizer={"type": "Metaspace"}),
    "by None, expected ByteLevel": lambda t: t.update(pre_tokenizer=None),
    r"by '\\\\w\+', which a sealed file cannot": lambda t: t.update(pre_tokenizer=split(r"\w+")),
    "its Split is Removed": lambda t: t.update(pre_tokenizer=split(PATTERN, behavior="Removed")),
    "2 added tokens": lambda t: t["added_tokens"].append(
        t["added_tokens"][0] | {"content": "<|pad|>", "id": VOCAB}
    ),
    "no added token": lambda t: t.pop("added_tokens"),
    "ids from 0 without gaps": lambda t: t["model"]["vocab"].update(a=VOCAB + 7),
    "token '▁a' is no bytes: '▁'": lambda t: (
        t["model"]["vocab"].update({"▁a": VOCAB - 1}),
        t["added_tokens"][0].update(id=VOCAB),
    ),
    "not a byte-level BPE": lambda t: t.pop("model"),
}


@pytest.mark.parametrize(("message", "change"), REFUSED.items(), ids=REFUSED)
def test_what_a_seal_cannot_hold_is_refused_by_name(theirs, tmp_path, message, change):
    tree = json.loads(theirs.read_text())
    change(tree)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tree))
    with pytest.raises(InputError, match=message) as e:
        Tokenizer.load(path)
    assert str(e.value).startswith(f"{path}: not a byte-level BPE tokenizer.json")


def test_a_tokenizer_that_is_not_there_or_cut_is_named(theirs, tmp_path):
    with pytest.raises(InputError, match=r"none\.json: No such file"):
        Tokenizer.load(tmp_path / "none.json")
    with pytest.raises(InputError, match="Is a directory"):
        Tokenizer.load(tmp_path)
    (tmp_path / "cut.json").write_bytes(theirs.read_bytes()[:5_000])
    with pytest.raises(InputError, match=r"cut\.json: not a byte-level BPE"):
        Tokenizer.load(tmp_path / "cut.json")


def test_both_verifiers_know_both_ways_to_split_and_no_third(pristine, tmp_path):
    for pattern in (*PATTERNS, "x"):
        vocabulary = json.loads((pristine / "vocab.json").read_text()) | {"pattern": pattern}
        (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
        sealed = tmp_path / "moe.s7l"
        sealed.unlink(missing_ok=True)
        if pattern == "x":
            with pytest.raises(s7l.SealError, match="not one of the 2 of the format"):
                s7l.seal(pristine / "weights", tmp_path / "vocab.json", sealed)
            continue
        s7l.seal(pristine / "weights", tmp_path / "vocab.json", sealed)
        assert "every byte as sealed" in good("tools/s7l_verify.py", sealed, cwd=tmp_path)


@pytest.mark.long(minutes=3)
def test_a_foreign_tokenizer_from_text_to_a_verified_seal(theirs, tmp_path):
    rng = np.random.default_rng(0)
    flags = []
    for domain, words in WORDS.items():
        lines = [json.dumps({"text": " ".join(rng.choice(words.split(), 60))}) for _ in range(120)]
        (tmp_path / f"{domain}.jsonl").write_text("\n".join(lines))
        flags.append(f"{domain}={domain}.jsonl")
    size = [*SIZE, f"model.vocab={PADDED}"]
    preset = ("--preset", "s7-nano", "--set", *size)
    good(
        *("tools/prepare.py", *preset, "--out", "shards", "--tokenizer", theirs, "--data", *flags),
        cwd=tmp_path,
    )
    good("experiments/pipeline.py", *preset, "--run", "r", "--prepared", "shards", cwd=tmp_path)
    sealed = "runs/r/model/moe.s7l"
    assert "FAIL" not in good("tools/verify.py", sealed, cwd=tmp_path)
    assert "every byte as sealed" in good("tools/s7l_verify.py", sealed, cwd=tmp_path)
    prompt = ("--prompt", "It's 1234567", "--max-tokens", "4", "--json")
    answer = json.loads(good("tools/generate.py", sealed, *prompt, cwd=tmp_path))
    assert answer["prompt_tokens"] == len(Tokenizer.load(theirs).encode("It's 1234567")) + 1
