"""Every format of the table, from a folder and from an S3 server, by flags and by a TOML file."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from s7jax.data import documents
from s7jax.data.builtin import math
from s7jax.data.compression import COMPRESSIONS, zstd
from s7jax.data.documents import Counts
from s7jax.data.files import listing
from s7jax.data.formats import FORMATS
from s7jax.data.prepared import Prepared
from s7jax.data.sources import Source, parse_data_flags
from s7jax.errors import InputError, UsageError
from tests.test_scripts import SIZE, WORDS, good

ROWS = [
    {"text": f"text {i}\nof é {i}", "license": ["mit", "gpl"][i % 2], "n": {"x": [i]}}
    for i in range(600)
]
TEXTS = [row["text"] for row in ROWS]
PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd.compress}


def jsonl(rows=ROWS):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def table(delimiter):
    out = io.StringIO()
    writer = csv.DictWriter(out, ["text", "license"], delimiter=delimiter, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(ROWS)
    return out.getvalue().encode()


def columns():
    return pa.Table.from_pylist(ROWS)


def as_parquet():
    out = io.BytesIO()
    parquet.write_table(columns(), out, row_group_size=100)
    return out.getvalue()


def as_arrow(writer):
    out = io.BytesIO()
    with writer(out, columns().schema) as file:
        file.write_table(columns(), 100)
    return out.getvalue()


def as_tar(members):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def samples():
    return as_tar(
        {
            f"d/{i:04}.{ending}": data
            for i, row in enumerate(ROWS)
            for ending, data in (("json", json.dumps(row).encode()), ("cls", b"\xff"))
        }
    )


FILES = {  # name → content, texts, and what must be said of it beside its path
    "a.jsonl": (jsonl(), TEXTS, {}),
    "a.ndjson": (jsonl(), TEXTS, {}),
    "a.json": (json.dumps(ROWS).encode(), TEXTS, {}),
    "a.csv": (table(","), TEXTS, {}),
    "a.tsv": (table("\t"), TEXTS, {}),
    "a.parquet": (as_parquet(), TEXTS, {}),
    "a.arrow": (as_arrow(pa.ipc.new_stream), TEXTS, {}),
    "a.feather": (as_arrow(pa.ipc.new_file), TEXTS, {}),
    "a.py": (b"def f():\n    pass\n", ["def f():\n    pass\n"], {}),
    "a.tar": (
        as_tar({"x/a.txt": b"one", "x/b.jsonl": jsonl(ROWS[:2]), "c.parquet": as_parquet()}),
        ["one", *TEXTS[:2], *TEXTS],
        {},
    ),
    "w.tar": (samples(), TEXTS, {"format": "webdataset", "field": "json.text"}),
    **{f"a.jsonl{suffix}": (pack(jsonl()), TEXTS, {}) for suffix, pack in PACK.items()},
    "a.tar.gz": (gzip.compress(as_tar({"a.txt": b"one"})), ["one"], {}),
    "a.tgz": (gzip.compress(as_tar({"a.txt": b"one"})), ["one"], {}),
}


def test_the_table_is_tried_whole():
    kinds = {listed.name for listed in FORMATS}
    assert kinds == {
        *("text", "jsonl", "json", "csv", "tsv", "parquet", "arrow", "tar", "webdataset"),
    }
    assert set(COMPRESSIONS) == set(PACK)


@pytest.fixture(scope="session")  # not the module's: within a budget its tests run apart
def bucket():
    """An S3 server on this machine with every file, and the environment that finds it."""
    moto = pytest.importorskip("moto.server", reason="pip install 's7jax[long]'")
    server = moto.ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        system = fsspec.filesystem("s3")
        system.mkdir("corpus")
        for name, (content, _, _) in FILES.items():
            system.pipe(f"corpus/{name}", content)
            system.pipe(f"corpus/folder/{name}", content)
        yield "s3://corpus"
        fsspec.asyn.reset_lock()
    server.stop()


def place(where, tmp_path, request, name):
    if where == "s3":
        return f"{request.getfixturevalue('bucket')}/{name}"
    if where == "memory":
        fsspec.filesystem("memory").pipe(f"/m/{name}", FILES[name][0])
        return f"memory://m/{name}"
    (tmp_path / name).write_bytes(FILES[name][0])
    return f"file://{tmp_path / name}" if where == "file" else str(tmp_path / name)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("way", ["flag", "toml"])
@pytest.mark.parametrize(
    "where", ["local", "file", "memory", pytest.param("s3", marks=pytest.mark.long(minutes=1))]
)
def test_every_format_from_everywhere(tmp_path, request, where, way):
    for name, (_, texts, said) in FILES.items():
        path = place(where, tmp_path, request, name)
        if way == "flag" and "format" in said:
            continue
        flags, field = [f"code={path}"], [said["field"]] if "field" in said else []
        if way == "toml":
            more = "".join(f"{key} = {json.dumps(value)}\n" for key, value in said.items())
            (tmp_path / "data.toml").write_text(
                f'[[source]]\ndomain = "code"\npath = "{path}"\n{more}'
            )
            flags, field = [str(tmp_path / "data.toml")], []
        (source,) = parse_data_flags(flags, ["code"], field)["code"]
        found = listing("code", source.path[0], source.format).files
        read = documents.read(source, found, Counts(), limit=1 << 24, skip_bad=False)
        assert [document.text for document in read] == texts, name


@pytest.mark.long(minutes=1)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_globs_and_folders_at_a_url(bucket):
    names = [f.url.rsplit("/", 1)[1] for f in listing("code", f"{bucket}/*.jsonl*").files]
    assert names == sorted(name for name in FILES if ".jsonl" in name)
    assert len(listing("code", f"{bucket}/folder").files) == len(FILES)
    for path, message in ((f"{bucket}/none", "does not exist"), (f"{bucket}/*.rs", "matches no")):
        with pytest.raises(InputError, match=message):
            listing("code", path)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.tar", "a.json", "a.csv"])
def test_a_cut_or_wrong_file_is_named_and_never_a_traceback(tmp_path, name):
    content = FILES[name][0]
    path = tmp_path / name
    for damaged in (content[: len(content) // 2] + b'"', b"\xff" * 2_000):
        path.write_bytes(damaged)
        (source,) = parse_data_flags([f"code={path}"], ["code"])["code"]
        read = documents.read(
            source, listing("code", str(path)).files, Counts(), limit=1 << 24, skip_bad=False
        )
        with pytest.raises(InputError, match=name):
            list(read)


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path):
    (tmp_path / "a.parquet").write_bytes(FILES["a.parquet"][0])
    (source,) = parse_data_flags([f"code={tmp_path}"], ["code"], ["content"])["code"]
    found = listing("code", str(tmp_path)).files
    read = documents.read(source, found, Counts(), limit=1 << 24, skip_bad=False)
    with pytest.raises(InputError, match="no column 'content'; it has text, license, n"):
        list(read)


def parquet_of(path, **columns):
    parquet.write_table(pa.table(columns), path)
    return path


def texts_of(path, counts=None, skip_bad=False, limit=1 << 24, **fields):
    source = Source(path=(str(path),), **fields)
    found = listing("code", str(path), source.format).files
    counts = Counts() if counts is None else counts
    read = documents.read(source, found, counts, limit=limit, skip_bad=skip_bad)
    return [document.text for document in read]


def test_nulls_on_the_way_to_a_text_are_no_text(tmp_path):
    messages = [[{"c": "x"}, None, {"c": None}], None, [], [{"c": "y"}]]
    path = parquet_of(tmp_path / "a.parquet", m=messages, s=[{"c": "x"}, None, None, {"c": "z"}])
    counts = Counts()
    assert texts_of(path, counts, field="m.*.c") == ["x", "y"]
    assert counts.skipped == {"empty": 2}
    assert texts_of(path, field="s.c") == ["x", "z"]
    assert texts_of(path, field="m.*.c", keep={"s.c": ("z",)}) == ["y"]


def test_a_column_whose_name_has_a_dot(tmp_path):
    path = parquet_of(tmp_path / "a.parquet", **{"a.b": ["x"], "a": [{"c": "y"}]})
    assert texts_of(path, field="a.b") == ["x"]
    assert texts_of(path, field="a.c") == ["y"]
    (tmp_path / "b.jsonl").write_text('{"a.b": "x", "a": {"b": "y", "c": "z"}}\n')
    assert texts_of(tmp_path / "b.jsonl", field="a.b") == ["x"]
    assert texts_of(tmp_path / "b.jsonl", field="a.c") == ["z"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"text,text\n1,2\n"),
        ("a.tsv", b"text\ttext\n1\t2\n"),
        ("a.parquet", None),
    ],
)
def test_a_column_that_stands_there_twice_is_refused(tmp_path, name, content):
    path = tmp_path / name
    if content:
        path.write_bytes(content)
    else:
        both = pa.Table.from_arrays([pa.array(["1"]), pa.array(["2"])], names=["text", "text"])
        parquet.write_table(both, path)
    with pytest.raises(InputError, match=rf"{name}.*'text' stands there twice"):
        texts_of(path)


def test_a_row_longer_than_the_limit_is_refused_and_the_rest_read(tmp_path):
    path = parquet_of(tmp_path / "a.parquet", text=["one", "x" * 3_000_000, "two"])
    with pytest.raises(InputError, match=r"a\.parquet#1: longer than 1 MB"):
        texts_of(path, limit=1_000_000)
    assert texts_of(path, skip_bad=True, limit=1_000_000) == ["one", "two"]


def test_values_that_python_has_not_are_bad_records(tmp_path):
    days = pa.array([0, 2**62], pa.timestamp("us"))  # the year 148,108
    path = parquet_of(tmp_path / "a.parquet", text=["one", "two"], day=days)
    assert texts_of(path) == ["one", "two"]
    with pytest.raises(InputError, match=r"a\.parquet#\d: not readable"):
        texts_of(path, keep={"day": ("x",)})


def test_tables_without_rows_or_columns(tmp_path):
    path = parquet_of(tmp_path / "a.parquet", text=pa.array([], pa.string()))
    assert texts_of(path) == []
    with pytest.raises(InputError, match=r"no column 'text'; it has none"):
        texts_of(parquet_of(tmp_path / "b.parquet"))
    (tmp_path / "c.csv").write_text("\n\ntext\nx\n")
    with pytest.raises(InputError, match=r"c\.csv:1: expected the names of the columns"):
        texts_of(tmp_path / "c.csv")


def test_one_json_object_is_a_record_if_it_has_the_field(tmp_path):
    """Otherwise it is what source trees hold, and a text."""
    package = '{"name": "package"}'
    for name, content in {
        "a.json": '{"text": "one"}\n',
        "b.json": '{\n "id": 1,\n "text": "two"\n}',
        "c.json": package,
        "d.json": '["a", "b"]',
    }.items():
        (tmp_path / name).write_text(content)
    assert texts_of(tmp_path) == ["one", "two", package, '["a", "b"]']
    (tmp_path / "e.json").write_text('[{"text": "a"}, "b"]')
    with pytest.raises(InputError, match=r"e\.json#1: no object"):
        texts_of(tmp_path / "e.json")


@pytest.mark.parametrize("url", ["s3://bucket/x.jsonl", "s3://", "http://127.0.0.1:9/x.jsonl"])
def test_a_server_that_does_not_answer_is_one_clear_error(monkeypatch, url):
    fsspec.filesystem("s3").clear_instance_cache()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(InputError, match=rf"{url}.*(onnect|traverse)"):
        listing("code", url)


def test_a_connection_that_breaks_while_reading_is_one_clear_error(monkeypatch):
    system = fsspec.filesystem("memory")
    system.pipe("/broken/a.jsonl", jsonl())

    class Broken(io.BytesIO):
        def read(self, *_):
            raise RuntimeError("the line is dead")

    monkeypatch.setattr(type(system), "open", lambda *_, **__: Broken())
    with pytest.raises(InputError, match=r"memory://.*a\.jsonl: RuntimeError: the line is dead"):
        texts_of("memory://broken/a.jsonl")


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_package_that_is_missing_is_named_with_what_installs_it(tmp_path, monkeypatch, name):
    (tmp_path / name).write_bytes(FILES[name][0])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (source,) = parse_data_flags([f"code={tmp_path}"], ["code"])["code"]
    found = listing("code", str(tmp_path)).files
    read = documents.read(source, found, Counts(), limit=1 << 24, skip_bad=True)
    with pytest.raises(UsageError, match=r"need pyarrow: .*pip install"):
        list(read)


def test_json_lines_need_no_package_of_an_extra(tmp_path):
    """And what they are read with does not import any."""
    (tmp_path / "a.jsonl").write_bytes(jsonl())
    code = (
        "import sys\n"
        "for name in ('pyarrow', 's3fs', 'fsspec', 'datasketch', 'ray'): sys.modules[name] = None\n"
        "from s7jax.data import documents, prepare\n"
        "from s7jax.data.files import listing\n"
        "from s7jax.data.sources import Source\n"
        f"found = listing('code', {str(tmp_path)!r}).files\n"
        "source, counts = Source(path=('x',)), documents.Counts()\n"
        "print(len(list(documents.read(source, found, counts, limit=1 << 24, skip_bad=False))))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout == "600\n", run.stderr


TOOL = Path(__file__).parents[2] / "tools" / "prepare.py"


@pytest.mark.long(minutes=1)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_parquet_on_s3_gives_the_bytes_of_json_lines_here(tmp_path, bucket):
    """By the command, on two processes; filtered, and with what was left out in its words."""
    rows = [
        {
            "body": f"{d} {math.document(0, i)} {'xyz'[i % 3]}{i:x}",
            "license": ["mit", "no"][i % 5 == 0],
        }
        for d in ("code", "math", "reason", "general")
        for i in range(300)
    ]
    tables, lines = [], []
    for d in ("code", "math", "reason", "general"):
        own = [row for row in rows if row["body"].startswith(d)]
        with fsspec.open(f"{bucket}/real/{d}.parquet", "wb") as file:
            parquet.write_table(pa.Table.from_pylist(own), file)
        kept = [{"text": row["body"]} for row in own if row["license"] == "mit"]
        (tmp_path / f"{d}.jsonl").write_bytes(jsonl(kept))
        lines.append(f"{d}={tmp_path / f'{d}.jsonl'}")
        tables.append(
            f'[[source]]\ndomain = "{d}"\nname = "{d}.jsonl"\npath = "{bucket}/real/{d}.parquet"\n'
            'field = "body"\nkeep = {license = ["mit"]}\n'
        )
    (tmp_path / "data.toml").write_text("\n".join(tables))
    made = []
    for out, workers, flags in (("s3", 2, [tmp_path / "data.toml"]), ("here", 1, lines)):
        command = [sys.executable, TOOL, "--preset", "s7-nano", "--out", tmp_path / out]
        command += ["--set", "model.vocab=320", "model.context=32", "model.routing_window=8"]
        run = subprocess.run(
            [*map(str, command), "--workers", str(workers), "--data", *map(str, flags)],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ,
        )
        assert run.returncode == 0, run.stderr
        made.append(Prepared.load(tmp_path / out))
        if out == "s3":
            assert "1 parquet, 300 records" in run.stdout
            assert "60 filtered" in run.stdout
    one, two = (
        [d[s]["shards"] for d in p.manifest["domains"] for s in ("train", "held_out")] for p in made
    )
    assert one == two
    assert made[0].manifest["key"] == made[1].manifest["key"]


@pytest.mark.long(minutes=4)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_from_parquet_on_s3_to_a_verified_seal_and_on_without_the_text(tmp_path, bucket):
    tables = []
    for domain, words in WORDS.items():
        rng = np.random.default_rng(len(words))
        rows = [{"body": " ".join(rng.choice(words.split(), 60))} for _ in range(120)]
        with fsspec.open(f"{bucket}/chain/{domain}.parquet", "wb") as file:
            parquet.write_table(pa.Table.from_pylist(rows), file)
        path = f"{bucket}/chain/{domain}.parquet"
        tables.append(f'[[source]]\ndomain = "{domain}"\npath = "{path}"\nfield = "body"\n')
    (tmp_path / "data.toml").write_text("\n".join(tables))
    start = ("experiments/pipeline.py", "--preset", "s7-nano", "--run", "s3")
    good(*start, "--data", "data.toml", "--set", *SIZE, cwd=tmp_path)
    said = good("tools/verify.py", "runs/s3/model/moe.s7l", cwd=tmp_path)
    assert "FAIL" not in said
    fsspec.filesystem("s3").rm("corpus/chain", recursive=True)
    evaluation = tmp_path / "runs/s3/evaluation.json"
    before = evaluation.read_bytes()
    evaluation.unlink()
    good("experiments/evaluate.py", "--run", "s3", cwd=tmp_path)
    assert json.loads(evaluation.read_bytes()).keys() == json.loads(before).keys()
