"""Files that are damaged, cut off or not what they are called: an error, never fewer texts."""

import bz2
import gzip
import io
import json
import lzma
import struct
import tarfile
from collections.abc import Callable

import pyarrow as pa
import pytest

from s7jax.data.documents import Counts
from s7jax.errors import InputError
from tests.data.test_sources import texts

HALVES = [
    "".join(json.dumps({"text": f"text {i}"}) + "\n" for i in half).encode()
    for half in (range(10), range(10, 20))
]
PACK = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("suffix", PACK)
def test_every_stream_of_a_compressed_file_counts(tmp_path, suffix):
    first, second = map(PACK[suffix], HALVES)
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(first + second)
    assert len(texts(path)) == 20
    path.write_bytes(first + second + bytes(512))
    assert len(texts(path)) == 20
    whole = first + second
    spoilt = [flipped(whole, len(first) + i) for i in (0, 2, len(second) // 2)]
    for data in (*spoilt, whole + b"more", whole[:-3], whole[: len(first) + 2]):
        path.write_bytes(data)
        with pytest.raises(InputError, match=rf"a.jsonl.{suffix}: damaged or cut off: "):
            texts(path)


def test_an_xz_file_that_wants_more_memory_than_there_is_is_refused(tmp_path):
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 28}]
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress(HALVES[0], filters=filters))
    with pytest.raises(
        InputError, match="needs more memory to be decompressed than --memory leaves"
    ):
        texts(tmp_path / "a.jsonl.xz", limit=1 << 24)


def archive(*members: tuple[str, bytes], links: int = 0) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
        for i in range(links):
            info = tarfile.TarInfo(f"link{i}.txt")
            info.type, info.linkname = tarfile.SYMTYPE, members[0][0]
            file.addfile(info)
    return out.getvalue()


TEN = archive(*((f"{i}.txt", b"text %d" % i) for i in range(10)))  # of 1,024 bytes each
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "bad checksum at byte 5120": lambda data: flipped(data, 5_120 + 3),
    "bad checksum at byte 5120 ": lambda data: flipped(data, 5_120 + 148),
    "truncated header at byte 5120": lambda data: data[: 5_120 + 100],
    "no end of the archive": lambda data: data[:5_120],
    "unexpected end of data": lambda data: data[: 5_120 + 514],
    "more follows after its end": lambda data: data[:4_096] + bytes(1_024) + data[5_120:],
    "more follows": lambda data: data + data,
}


@pytest.mark.parametrize("problem", DAMAGE)
@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_a_damaged_archive_loses_no_member_in_silence(tmp_path, problem, suffix):
    data = DAMAGE[problem](TEN)
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    with pytest.raises(InputError, match=f": damaged or cut off: {problem.strip()}"):
        texts(path)


def test_what_an_archive_has_beside_texts_is_counted(tmp_path):
    members = [("./a.txt", b"one"), ("../b.txt", b"two"), ("e.txt", b"")]
    hidden = [(name, b"\0") for name in ("._a.txt", ".git/config.txt", ".DS_Store")]
    (tmp_path / "a.tar").write_bytes(archive(*members, *hidden, links=2))
    counts = Counts()
    assert texts(tmp_path / "a.tar", counts=counts) == ["one", "two"]
    assert counts.skipped == {"hidden": 3, "empty": 1, "link": 2}
    assert counts.records == 8


def test_a_member_of_a_sample_that_is_there_twice_is_refused(tmp_path):
    (tmp_path / "a.tar").write_bytes(archive(("1.text", b"a"), ("1.text", b"b")))
    with pytest.raises(InputError, match=r"a.tar!1.text: a member of this name is there twice"):
        texts(tmp_path / "a.tar", format="webdataset")


@pytest.mark.parametrize(
    "content",
    [
        '{"text": "a", "text": "b"}',
        '{\n "text": "a",\n "text": "b"\n}',
        '{"text": "a"\n{"text": "b"}\n',
        '{"text": "a"},\n',
        '{"text": "a"}{"text": "b"}',
        '\n{"text": "a",}',
        '[{"text": "a"},]',
    ],
)
def test_what_was_to_be_json_records_is_no_text(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=r"a.json: not JSON: "):
        texts(tmp_path / "a.json")


@pytest.mark.parametrize(
    "content", ['{"name": 1}\n\n\n', '{\n  // a comment\n "a": 1\n}', "\n {}\n"]
)
def test_json_of_source_trees_is_text(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    assert texts(tmp_path / "a.json") == [content]


def test_blank_lines_between_json_lines_say_nothing(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('\n\n{"text": "a"}\n\n{"text": "b"}\n\n{"text": "c"}\n')
    assert texts(path) == ["a", "b", "c"]
    path.write_text('\n{"text": "a"}\n\n{"text": 5}\n')
    with pytest.raises(InputError, match=r"a.json:4: field 'text' is int"):
        texts(path)
    path.write_text('\n{"text": "a"}\n\n\nb\n')
    with pytest.raises(InputError, match=r"a.json:5: not a JSON line, after a first line"):
        texts(path)


def test_offsets_below_a_struct_are_checked_beside_text_that_is_none(tmp_path):
    rows = [{"x": f"x{i:03}", "text": f"row {i:03}"} for i in range(20)]
    table = pa.table({"s": rows})
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as file:
        file.write_table(table)
    data = bytearray((tmp_path / "a.arrow").read_bytes())
    at = data.find(struct.pack("<3i", 0, 7, 14)) + 4 * 20
    data[at : at + 4] = struct.pack("<i", 4_000)
    data[data.find(b"x000")] = 0xFF
    (tmp_path / "a.arrow").write_bytes(data)
    with pytest.raises(InputError, match=r"a.arrow: not readable as Arrow IPC: "):
        texts(tmp_path / "a.arrow", field="s.text")


def test_many_blank_lines_are_read_in_linear_time_and_bounded_memory(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"text": "a"}' + "\n" * 500_000)  # in squared time that is minutes
    assert texts(path) == ["a"]
    path.write_text("\n" * 3_000_000 + "{}")
    with pytest.raises(InputError, match="longer than 1 MB"):
        texts(path, limit=1 << 20)


def test_numbers_of_a_pax_header_that_are_none(tmp_path):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as file:
        info = tarfile.TarInfo("a.txt")
        info.pax_headers = {"GNU.sparse.size": "x", "GNU.sparse.map": "0,1"}
        file.addfile(info, io.BytesIO(b""))
    (tmp_path / "a.tar").write_bytes(out.getvalue())
    with pytest.raises(InputError, match=r"a.tar: damaged or cut off: "):
        texts(tmp_path / "a.tar")
    counts = Counts()
    assert texts(tmp_path / "a.tar", counts=counts, skip_bad=True) == []
    assert counts.skipped == {"damaged files": 1}


@pytest.mark.parametrize("offset", [-5, 1 << 30, 400])
def test_offsets_beyond_the_buffers_of_arrow_are_refused(tmp_path, offset):
    table = pa.table({"text": [f"row {i}" for i in range(20)], "n": list(range(20))})
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as file:
        file.write_table(table)
    data = bytearray((tmp_path / "a.arrow").read_bytes())
    at = data.find(struct.pack("<3i", 0, 5, 10)) + 40
    data[at : at + 4] = struct.pack("<i", offset)
    (tmp_path / "a.arrow").write_bytes(data)
    with pytest.raises(InputError, match=r"a.arrow: not readable as Arrow IPC: "):
        texts(tmp_path / "a.arrow")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
@pytest.mark.parametrize("name", ["a.txt", "a.json", "a.jsonl", "a.csv"])
def test_text_in_another_encoding_is_refused(tmp_path, encoding, name):
    (tmp_path / name).write_bytes('{"text": "plain"}'.encode(encoding))
    with pytest.raises(InputError, match=rf"{name}.*: no text: a NUL at byte \d; UTF-16"):
        texts(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('text\n"a"b\n', 2),
        ('te"xt\n"a"b"\n', 2),
        ('"te"xt\na\n', 1),
        ('text\n"a\nb\n', 3),
        ('text\na\n\n\n\n"b"c\n', 6),
    ],
)
def test_a_fault_of_csv_is_named_by_its_line(tmp_path, content, line):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(InputError, match=rf"a.csv:{line}: "):
        texts(tmp_path / "a.csv")


def test_a_message_holds_a_bounded_part_of_the_file(tmp_path):
    (tmp_path / "a.csv").write_text("x" * 100_000 + "\n1\n")
    with pytest.raises(InputError, match=r"it has x+…; say which with --field") as error:
        texts(tmp_path / "a.csv")
    assert len(str(error.value)) < 1_000
