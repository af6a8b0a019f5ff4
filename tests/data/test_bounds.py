"""What is asked of one record or file however large it is: linear work, bounded memory."""

import io
import subprocess
import sys
import time

import pyarrow as pa
import pytest
from pyarrow import parquet

from s7jax.data import documents
from s7jax.data.compression import zstd
from s7jax.data.documents import Counts
from s7jax.data.files import listing
from s7jax.data.sources import Source

LINE = (b'{"text": "', b'"}\n')
LONG = {  # name → what stands before and after one long text
    "a.jsonl": LINE,
    "a.json": (b'[{"text": "', b'"}]'),
    "b.json": (b'{"text": "", "more": "', b'"}\n{"text": "x"}\n'),
    "a.txt": (b"", b""),
    "a.csv": (b'text\n"', b'"\n'),
}


def work(path):
    """CPU seconds of reading a file or all of a folder."""
    found = listing("code", str(path)).files
    source, counts = Source(path=(str(path),)), Counts()
    start = time.process_time()
    for _ in documents.read(source, found, counts, limit=1 << 28, skip_bad=False):
        pass
    assert counts.records
    return time.process_time() - start


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "b.json", "a.csv"])
def test_a_long_record_costs_as_much_as_short_ones_of_its_size(tmp_path, name):
    """Were each step to look at all that went before, the long one would cost 16 times as much."""
    before, after = LONG[name]
    long = tmp_path / name
    long.write_bytes(before + b"some words of it" * (64 << 16) + after)
    folder = tmp_path / "short"
    folder.mkdir()
    for i in range(16):
        (folder / f"{i}{name}").write_bytes(before + b"some words of it" * (4 << 16) + after)
    seconds = {path: min(work(path) for _ in range(3)) for path in (long, folder)}
    assert seconds[long] < 6 * seconds[folder]


BOMB = """
import sys
from pathlib import Path
from s7jax.config import PRESETS
from s7jax.data.job import How
from s7jax.data.prepare import prepare
from s7jax.errors import InputError

def peak():
    status = Path("/proc/self/status").read_text().split("VmHWM:")[1]
    return int(status.split()[0]) << 10

before = peak()
try:
    prepare(
        {d.name: [sys.argv[1]] for d in PRESETS["s7-nano"].domains}, sys.argv[2],
        domains=PRESETS["s7-nano"].domains, vocab=320, context=16, workers=1,
        how=How(memory=1 << 26),
    )
except InputError as e:
    print(e)
print(peak() - before)
"""


def packed(compressor, before, after):
    """256 MiB in a few kilobytes."""
    out = io.BytesIO()
    with compressor(out) as file:
        file.write(before)
        for _ in range(256):
            file.write(b" " * (1 << 20))
        file.write(after)
    return out.getvalue()


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.json.zst", "a.txt.zst", "a.csv.zst"])
def test_a_bomb_is_refused_in_bounded_memory(tmp_path, name):
    """The limit is 64 MB in all and 8 MiB a record."""
    before, after = LONG[name.removesuffix(".zst")]
    path = tmp_path / name
    path.write_bytes(packed(lambda out: zstd.ZstdFile(out, "w"), before, after))
    assert path.stat().st_size < 1 << 16
    said, grown = measured(path, tmp_path)
    assert name in said
    assert "longer than 8 MB" in said
    assert grown < 64_000_000


def measured(path, tmp_path):
    """What preparing a file in 64 MB says, and by how much memory has grown at its peak."""
    command = [sys.executable, "-c", BOMB, path, tmp_path / "out"]
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    said, grown = run.stdout.splitlines()
    return said, int(grown)


@pytest.mark.long(minutes=0.3)
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_a_table_that_says_the_same_over_and_over_is_read_in_bounded_memory(tmp_path):
    """300 MB of Parquet in some kilobytes: each row is within the limit, all are not."""
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"text": pa.array(["x" * 2_000_000] * 150)}), path)
    assert path.stat().st_size < 1 << 18
    said, grown = measured(path, tmp_path)
    assert "a vocabulary of" in said  # all rows are one document, and that is little text
    assert grown < 192_000_000
