import gzip
import json

import pytest
import zstandard

from s7jax.data.sources import files, parse_data_flags, read, require_all
from s7jax.errors import InputError, UsageError

DOMAINS = ("code", "math", "reason", "general")


def texts(source):
    return [document.text for document in read("code", source)]


def jsonl(*texts):
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


@pytest.mark.parametrize(
    ("suffix", "packed"),
    [
        (".jsonl", lambda data: data),
        (".jsonl.gz", lambda data: gzip.compress(data[:5]) + gzip.compress(data[5:])),
        (".jsonl.zst", lambda data: zstandard.compress(data[:5]) + zstandard.compress(data[5:])),
    ],
)
def test_json_lines_in_any_packing_give_their_texts_in_order(tmp_path, suffix, packed):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(packed(jsonl("one", "zwei é", "", "line\nline") + b'\n{"text": "last"}'))
    documents = list(read("code", path))
    assert [d.text for d in documents] == ["one", "zwei é", "line\nline", "last"]
    assert [d.origin for d in documents] == [f"{path}:{n}" for n in (1, 2, 4, 6)]


def test_lines_longer_than_a_chunk_stay_whole(tmp_path):
    long = ["x" * 3_000_000, "y", "z" * 1_200_000]
    (tmp_path / "a.jsonl").write_bytes(jsonl(*long))
    assert texts(tmp_path / "a.jsonl") == long


def test_a_tree_gives_its_known_files_in_bytewise_order(tmp_path):
    for name in ("b.py", "a/z.md", "a.py", "B.txt", "é.py", "skip.bin", ".hidden.py", ".git/x.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "empty.py").touch()
    (tmp_path / "c.jsonl").write_bytes(jsonl("in c"))
    assert texts(tmp_path) == ["B.txt", "a.py", "a/z.md", "b.py", "in c", "é.py"]


def test_a_glob_gives_its_matches_in_bytewise_order(tmp_path):
    for name in ("b", "B", "a"):
        (tmp_path / f"{name}.txt").write_text(name)
    (tmp_path / "a.md").write_text("no")
    assert texts(tmp_path / "*.txt") == ["B", "a", "b"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "cut', "not a JSON line"),
        (b'{"txt": "x"}', "field 'text'"),
        (b'["text"]', "field 'text'"),
        (b'{"text": 3}', "'text' is int"),
        (b'{"text": null}', "'text' is NoneType"),
        (b'{"text": "\\ud800"}', "surrogate"),
        (b"[" * 100_000, "not a JSON line"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl("fine", "fine") + line + b"\n")
    with pytest.raises(InputError, match=message) as e:
        texts(path)
    assert f"{path}:3:" in str(e.value)


def test_a_line_that_is_not_utf8_is_named_with_its_byte(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl("fine") + b'{"text": "\xff"}\n')
    offset = len(jsonl("fine")) + len(b'{"text": "')
    with pytest.raises(InputError, match=rf"a\.jsonl:2: not UTF-8 at byte {offset} \(ff\)"):
        texts(path)


def test_a_text_file_that_is_not_utf8_is_named_with_its_byte(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"abc\xe9")
    with pytest.raises(InputError, match=r"a\.txt: not UTF-8 at byte 3"):
        texts(path)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.zst"])
def test_an_empty_file_is_an_error(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(InputError, match=rf"{name} is empty"):
        texts(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "pack"), [("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstandard.compress)]
)
@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"no" * 50])
def test_a_damaged_archive_is_an_error(tmp_path, name, pack, damage):
    whole = pack(jsonl(*(f"{i**5}" for i in range(3000))))
    (tmp_path / name).write_bytes(damage(whole))
    with pytest.raises(InputError, match=rf"{name}.*damaged or cut off"):
        texts(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.txt", "does not exist"),
        ("*.rs", "matches no file"),
        ("a.bin", "unknown suffix"),
        ("*.bin", "unknown suffix"),
        ("empty", "no file of a known suffix"),
    ],
)
def test_a_source_that_gives_nothing_is_an_error(tmp_path, name, message):
    (tmp_path / "a.bin").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=message) as e:
        files("math", tmp_path / name)
    assert "math: " in str(e.value)
    assert str(tmp_path / name.replace("*.b", "a.b")) in str(e.value)


def test_flags_collect_paths_by_domain():
    flags = ["math=m", "code=a", "reasoning=r", "general=g=1", "code=b"]
    parsed = {
        domain: list(map(str, paths)) for domain, paths in parse_data_flags(flags, DOMAINS).items()
    }
    assert parsed == {"code": ["a", "b"], "math": ["m"], "reason": ["r"], "general": ["g=1"]}
    assert list(parsed) == ["code", "math", "reason", "general"]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("cod=x", "unknown domain 'cod'; did you mean 'code'"),
        ("qqq=x", "expected one of code, math, reason, general"),
        ("code", "expected DOMAIN=PATH"),
        ("code=", "expected DOMAIN=PATH"),
    ],
)
def test_flags_that_make_no_sense_are_usage_errors(flag, message):
    with pytest.raises(UsageError, match=message):
        parse_data_flags([flag], DOMAINS)


def test_sources_of_some_domains_alone_are_refused():
    with pytest.raises(UsageError, match="no source for math, reason, general; add math=PATH"):
        require_all(parse_data_flags(["code=x"], DOMAINS), DOMAINS)
