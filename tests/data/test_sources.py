import bz2
import gzip
import json
import lzma
import os
import shutil
import tempfile
from datetime import date
from pathlib import Path

import pytest

from s7jax.data import documents
from s7jax.data.compression import zstd
from s7jax.data.documents import Counts
from s7jax.data.files import listing
from s7jax.data.sources import Source, parse_data_flags, require_all, source
from s7jax.errors import InputError, UsageError

DOMAINS = ("code", "math", "reason", "general")
LIMIT = 1 << 28


def read(path, counts=None, skip_bad=False, limit=LIMIT, **fields):
    """The documents of a path, listed and read as ``prepare`` does."""
    given = Source(path=(str(path),), **fields)
    found = listing("code", str(path), given.format, skip_bad).files
    counts = Counts() if counts is None else counts
    return list(documents.read(given, found, counts, limit=limit, skip_bad=skip_bad))


def texts(path, **arguments):
    return [document.text for document in read(path, **arguments)]


def jsonl(*texts):
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


@pytest.mark.parametrize(
    ("suffix", "packed"),
    [
        (".jsonl", lambda data: data),
        (".jsonl.gz", lambda data: gzip.compress(data[:5]) + gzip.compress(data[5:])),
        (".ndjson.bz2", bz2.compress),
        (".jsonl.xz", lzma.compress),
        (".jsonl.zst", lambda data: zstd.compress(data[:5]) + zstd.compress(data[5:])),
    ],
)
def test_json_lines_in_any_packing_give_their_texts_in_order(tmp_path, suffix, packed):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(packed(jsonl("one", "zwei é", "", "line\nline") + b'\n{"text": "last"}'))
    documents = read(path)
    assert [d.text for d in documents] == ["one", "zwei é", "line\nline", "last"]
    assert [d.origin for d in documents] == [f"{path}:{n}" for n in (1, 2, 4, 6)]


def test_lines_longer_than_a_chunk_stay_whole(tmp_path):
    long = ["x" * 3_000_000, "y", "z" * 1_200_000]
    (tmp_path / "a.jsonl").write_bytes(jsonl(*long))
    assert texts(tmp_path / "a.jsonl") == long


def test_a_tree_gives_its_known_files_in_bytewise_order(tmp_path):
    for name in ("b.py", "a/z.md", "a.py", "B.txt", "é.py", ".hidden.py", ".git/x.py"):
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
        (b'["text"]', "a field of text"),
        (b'{"text": 3}', "'text' is int"),
        (b'{"text": "a", "text": "b"}', "'text' stands there twice"),
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
    ("name", "pack"),
    [
        ("a.jsonl.gz", gzip.compress),
        ("a.jsonl.bz2", bz2.compress),
        ("a.jsonl.xz", lzma.compress),
        ("a.jsonl.zst", zstd.compress),
    ],
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
        listing("math", str(tmp_path / name))
    assert "math: " in str(e.value)
    assert str(tmp_path / name.replace("*.b", "a.b")) in str(e.value)


def test_flags_collect_sources_by_domain():
    flags = ["math=m", "code=a", "reasoning=r", "general=g=1", "code=b"]
    parsed = parse_data_flags(flags, DOMAINS, ["content", "math=latex.*.body"])
    assert {d: [(s.path, s.field) for s in given] for d, given in parsed.items()} == {
        "code": [(("a",), "content"), (("b",), "content")],
        "math": [(("m",), "latex.*.body")],
        "reason": [(("r",), "content")],
        "general": [(("g=1",), "content")],
    }
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


def test_a_mark_at_the_start_is_no_text(tmp_path):
    for name in ("a.txt", "b.jsonl", "c.csv", "d.json"):
        content = {"a": "one", "b": '{"text": "one"}', "c": "text\none\n", "d": '[{"text": "one"}]'}
        (tmp_path / name).write_text("\ufeff" + content[name[0]])
    assert texts(tmp_path) == ["one"] * 4


def test_json_is_lines_or_an_array_or_text_by_what_is_in_it(tmp_path):
    lines = jsonl("one", "two", "three")
    (tmp_path / "a.json").write_bytes(lines)
    (tmp_path / "b.json").write_text(json.dumps([{"text": "four"}, {"text": "five"}], indent=1))
    (tmp_path / "c.json").write_text('{"name": "package"}')
    assert texts(tmp_path) == ["one", "two", "three", "four", "five", '{"name": "package"}']
    assert [d.origin for d in read(tmp_path / "a.json")] == [
        f"{tmp_path}/a.json:{n}" for n in (1, 2, 3)
    ]


def test_links_are_followed_once(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real/a.txt").write_text("a")
    (tmp_path / "d").mkdir()
    (tmp_path / "d/link").symlink_to(tmp_path / "real")
    (tmp_path / "d/again").symlink_to(tmp_path / "real")
    (tmp_path / "real/loop").symlink_to(tmp_path / "d")
    (tmp_path / "d/gone").symlink_to(tmp_path / "nowhere")
    assert texts(tmp_path / "d") == ["a"]
    left = listing("code", str(tmp_path / "d")).left_out
    assert left == {"broken link": 1, "folder linked twice": 2}


@pytest.mark.parametrize("pattern", ["**/*.txt", "**", "d/**/b.txt", "**/d/**/*.txt"])
def test_links_that_loop_end_a_pattern_too(tmp_path, pattern):
    (tmp_path / "d" / "e").mkdir(parents=True)
    for name in ("b.txt", "e/b.txt"):
        (tmp_path / "d" / name).write_text(name)
    for name in "xyz":
        (tmp_path / "d" / name).symlink_to(tmp_path / "d")
    found = listing("code", f"{tmp_path}/{pattern}")
    assert [Path(file.url).parent.name for file in found.files] == ["d", "e"]
    assert found.left_out == {"folder linked twice": 3}


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("[xy]/**/*.txt", ["x/f.txt", "y/g.txt"]),
        ("x*/**/*.txt", ["x/f.txt"]),
        ("**/x/*.txt", ["x/f.txt"]),
        ("x/../y/**/*.txt", ["y/g.txt"]),
        ("**/.hidden/*.txt", [".hidden/h.txt"]),
        ("**/*.txt", ["a/f.txt", "y/g.txt"]),
        ("**/f.txt", ["a/f.txt"]),
        ("y/**", ["y/g.txt", "y/n.md"]),
    ],
)
def test_a_pattern_matches_whatever_links_lead_there_too(tmp_path, pattern, wanted):
    for name in ("x/f.txt", "y/g.txt", "y/n.md", ".hidden/h.txt", "z/no/deep.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "a").symlink_to("x")
    found = listing("code", f"{tmp_path}/{pattern}")
    roots = [Path(file.url).resolve().relative_to(tmp_path.resolve()) for file in found.files]
    assert [str(path).replace("x/f", "a/f") for path in roots] == [
        path.replace("x/f", "a/f") for path in wanted
    ]
    assert set(found.left_out) <= {"folder linked twice"}


def test_what_a_pattern_matches_and_is_no_file_is_counted(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").mkdir()
    (tmp_path / "c.txt").symlink_to("nowhere")
    os.mkfifo(tmp_path / "d.txt")
    found = listing("code", f"{tmp_path}/*.txt")
    assert [Path(file.url).name for file in found.files] == ["a.txt"]
    assert found.left_out == {"broken link": 1, "folder": 1, "no regular file": 1}
    with pytest.raises(InputError, match=r"d.txt is no regular file"):
        listing("code", str(tmp_path / "d.txt"))


def test_records_are_records_whatever_they_are_called(tmp_path):
    for name in ("README_corpus.jsonl", "licenses.jsonl", "a.jsonl"):
        (tmp_path / name).write_bytes(jsonl("x"))
    for name in ("README.md", "LICENSE", "_SUCCESS", "dataset_infos.json"):
        (tmp_path / name).write_text("about")
    found = listing("code", str(tmp_path))
    assert len(found.files) == 3
    assert found.left_out == {"about the records beside it": 4}


def test_a_folder_that_may_not_be_read_is_an_error():
    open_folder = Path(tempfile.mkdtemp())
    try:
        open_folder.chmod(0o755)
        (open_folder / "a.txt").write_text("a")
        (open_folder / "secret").mkdir()
        (open_folder / "secret/b.txt").write_text("b")
        (open_folder / "secret").chmod(0o000)
        user = os.geteuid()
        os.seteuid(user or 65534)  # root may read everything
        try:
            with pytest.raises(InputError, match="secret: Permission denied"):
                listing("code", str(open_folder))
        finally:
            os.seteuid(user)
    finally:
        (open_folder / "secret").chmod(0o755)
        shutil.rmtree(open_folder)


def test_what_is_left_out_is_counted_or_refused(tmp_path):
    for name in ("a.py", "Makefile", "x.docx", ".hidden", ".git/config"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "empty.py").touch()
    with pytest.raises(
        InputError, match=r"unknown suffix \(1 \.docx, 1 no suffix\).*--on-bad skip"
    ):
        listing("code", str(tmp_path))
    assert listing("code", str(tmp_path), skip_unknown=True).left_out == {
        "empty": 1,
        "hidden": 1,
        "hidden folder": 1,
        "unknown kind .docx": 1,
        "unknown kind no suffix": 1,
    }


def test_a_card_beside_records_is_no_document(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.jsonl").write_bytes(jsonl("one"))
    (tmp_path / "README.md").write_text("about the data")
    assert texts(tmp_path) == ["one"]
    assert listing("code", str(tmp_path)).left_out == {"about the records beside it": 1}


def test_bad_records_are_counted_where_that_is_asked(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl("one", "") + b'nonsense\n{"txt": 1}\n' + jsonl("two"))
    counts = Counts()
    assert texts(tmp_path / "a.jsonl", counts=counts, skip_bad=True) == ["one", "two"]
    assert (counts.records, counts.documents) == (5, 2)
    assert counts.skipped == {"empty": 1, "bad": 2}


def test_nested_fields_filters_and_a_number_of_documents(tmp_path):
    rows = [
        {
            "id": i,
            "license": ["gpl", "mit"][i % 2],
            "messages": [{"content": f"q{i}"}, {"content": "a"}],
        }
        for i in range(6)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    fields = {"field": "messages.*.content", "keep": {"license": ("mit", "bsd")}}
    counts = Counts()
    assert texts(tmp_path / "a.jsonl", counts=counts, **fields) == ["q1\na", "q3\na", "q5\na"]
    assert counts.skipped == {"filtered": 3}
    assert texts(tmp_path / "a.jsonl", max_documents=2, **fields) == ["q1\na", "q3\na"]


def test_a_record_longer_than_the_limit_is_refused_and_the_rest_read(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl("one", "x" * 5_000, "two"))
    with pytest.raises(InputError, match=r"a\.jsonl:2: longer than"):
        texts(tmp_path / "a.jsonl", limit=1_000)
    assert texts(tmp_path / "a.jsonl", limit=1_000, skip_bad=True) == ["one", "two"]


def test_a_zstd_window_beyond_the_memory_is_named(tmp_path):
    options = {zstd.CompressionParameter.window_log: 28, zstd.CompressionParameter.checksum_flag: 1}
    packer = zstd.ZstdCompressor(options=options)
    (tmp_path / "a.jsonl.zst").write_bytes(packer.compress(jsonl("one" * 10)) + packer.flush())
    assert texts(tmp_path / "a.jsonl.zst") == ["one" * 10]
    with pytest.raises(InputError, match="a zstd window of 256 MiB, more than the 128 MiB"):
        texts(tmp_path / "a.jsonl.zst", limit=1 << 20)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"path": "a", "feild": "x"}, "unknown field 'feild'; did you mean 'field'"),
        ({"field": "x"}, "path is None"),
        ({"path": "a", "format": "doc"}, "format is 'doc', expected one of text, jsonl"),
        ({"path": "a", "max_documents": 0}, "max_documents is 0"),
        ({"path": "a", "weight": -1}, "weight is -1"),
        ({"path": "a", "weight": 1.5}, "above 1 expected a whole number"),
        ({"path": "a", "keep": {"license": "mit"}}, "keep is"),
        ({"path": "a", "keep": {"year": [float("nan")]}}, "keep is"),
        ({"path": "a", "keep": {"day": [date(2020, 1, 1)]}}, "keep is"),
        ({"path": "a", "license": 3}, "license is 3, expected text"),
    ],
)
def test_a_source_that_makes_no_sense_is_a_usage_error(given, message):
    with pytest.raises(UsageError, match=message):
        source(given)


def test_a_source_survives_json():
    for given in (
        {"path": "a"},
        {"path": ["a", "b"], "field": "x.*.y", "keep": {"license": ["mit"]}, "weight": 2.0},
    ):
        there = source(given)
        assert source(json.loads(json.dumps(there.to_json()))) == there


def test_a_file_of_sources_is_read_beside_itself(tmp_path):
    (tmp_path / "data.toml").write_text(
        '[[source]]\ndomain = "reasoning"\npath = "r/*.jsonl"\nfield = "cot"\n'
        '[[source]]\ndomain = "code"\npath = ["s3://b/x", "/y"]\nkeep = {license = ["mit"]}\n'
    )
    parsed = parse_data_flags([str(tmp_path / "data.toml"), "math=m"], DOMAINS)
    assert parsed == {
        "code": [Source(path=("s3://b/x", "/y"), keep={"license": ("mit",)})],
        "math": [Source(path=("m",))],
        "reason": [Source(path=(f"{tmp_path}/r/*.jsonl",), field="cot")],
    }


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("[source", InputError, "not TOML"),
        ("a = " + "[" * 5_000, InputError, "not TOML"),
        ("", UsageError, r"expected \[\[source\]\] tables"),
        ('other = 1\n[[source]]\npath = "x"', UsageError, "found other"),
        ('[[source]]\npath = "x"', UsageError, "source 1: domain is missing"),
        ('[[source]]\npath = "x"\ndomain = "cod"', UsageError, "did you mean 'code'"),
    ],
)
def test_a_file_of_sources_that_is_none_says_where(tmp_path, content, error, message):
    (tmp_path / "data.toml").write_text(content)
    with pytest.raises(error, match=message):
        parse_data_flags([str(tmp_path / "data.toml")], DOMAINS)
    with pytest.raises(InputError, match="does not exist"):
        parse_data_flags([str(tmp_path / "none.toml")], DOMAINS)


def test_the_corpora_of_the_specification_are_all_there_with_their_licences():
    path = Path(__file__).parents[2] / "experiments/data/spec.toml"
    parsed = parse_data_flags([str(path)], DOMAINS)
    require_all(parsed, DOMAINS)
    given = [source for sources in parsed.values() for source in sources]
    assert len(given) == 10
    assert all(source.name and source.license != Source(path=()).license for source in given)
