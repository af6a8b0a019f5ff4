"""A run's own data: whatever a file of sources can say, as ``s7jax prepare`` does it."""

import argparse
import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from s7jax.commands import prepare as command
from s7jax.data.builtin import math, reason
from s7jax.data.prepared import Prepared
from s7jax.errors import InputError
from s7jax.runs import opening

SIZE = "model.vocab=320 model.context=32 model.routing_window=8".split()
TOML = """
[[source]]
domain = "code"
path = ["tables/*.parquet"]
name = "Tables"
license = "some"
field = "turns.*.said"
keep = { license = ["mit", "bsd"], "meta.year" = [2020, 2021] }
max_documents = 150
[[source]]
domain = "math"
path = "lines.txt"
format = "jsonl"
weight = 0.5
[[source]]
domain = "reason"
path = "lines.txt"
format = "jsonl"
field = "other"
weight = 2
[[source]]
domain = "general"
path = "general.csv"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "tables").mkdir()
    for part in range(2):
        rows = [
            {
                "turns": [
                    {"said": math.document(part, i), "who": "a"},
                    {"said": f"{i}", "who": ""},
                ],
                "license": ["mit", "gpl", "bsd"][i % 3],
                "meta": {"year": 2019 + i % 3},
            }
            for i in range(300)
        ]
        parquet.write_table(pa.Table.from_pylist(rows), folder / f"tables/{part}.parquet")
    lines = [
        json.dumps({"text": math.document(5, i), "other": reason.document(5, i)})
        for i in range(300)
    ]
    (folder / "lines.txt").write_text("\n".join(lines))
    texts = [reason.document(6, i).replace('"', "'") for i in range(200)]
    (folder / "general.csv").write_text("".join(f'"{text}"\n' for text in ["text", *texts]))
    (folder / "data.toml").write_text(TOML)
    return folder


def parsed(*parts, arguments):
    parser = argparse.ArgumentParser()
    for part in parts:
        part(parser)
    return parser.parse_args([*map(str, arguments)])


def start(folder, run):
    flags = ["--run", run, "--mesh", "1x1", "--preset", "s7-nano", "--data", folder / "data.toml"]
    flags += ["--set", *SIZE]
    return opening.begin(parsed(opening.add_run_flags, opening.add_start_flags, arguments=flags))


def test_a_run_has_the_data_that_prepare_makes_of_the_same_file(folder, tmp_path, capsys):
    run = start(folder, f"{tmp_path}/run")
    flags = ["--preset", "s7-nano", "--out", tmp_path / "out", "--data", folder / "data.toml"]
    flags += ["--workers", "1", "--set", *SIZE]
    command.main(parsed(command.add_flags, arguments=flags))
    prepared = Prepared.load(tmp_path / "out")
    assert run.prepared.manifest == prepared.manifest
    said = capsys.readouterr().out
    code, general = (prepared.manifest["domains"][i]["sources"][0] for i in (0, 3))
    assert (code["name"], code["license"]) == ("Tables", "some")
    assert code["skipped"]["filtered"] > 200
    assert code["train"] + code["held_out"] + code["skipped"].get("duplicates", 0) == 150
    assert "filtered" in said
    assert general["records"] == 200
    weighted = [prepared.manifest["domains"][i]["sources"][0] for i in (1, 2)]
    assert weighted[0]["skipped"]["not drawn"] > 100
    assert weighted[1]["train"] > 500


def test_a_run_names_the_file_and_the_row_that_it_cannot_read(folder, tmp_path):
    for part in ("lines.txt", "general.csv", "data.toml"):
        (tmp_path / part).write_bytes((folder / part).read_bytes())
    (tmp_path / "tables").mkdir()
    rows = [
        {"turns": [{"said": said}], "license": "mit", "meta": {"year": 2020}}
        for said in (b"fine", b"\xff")
    ]
    table = pa.Table.from_pylist(rows)
    broken = pa.list_(pa.struct([("said", pa.string())]))
    turns = pa.Array.from_buffers(
        broken,
        2,
        table["turns"].chunk(0).buffers()[:2],
        children=[
            pa.StructArray.from_arrays(
                [table["turns"].chunk(0).values.field("said").view(pa.string())], ["said"]
            )
        ],
    )
    parquet.write_table(table.set_column(0, "turns", turns), tmp_path / "tables/a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet#1: not UTF-8"):
        start(tmp_path, f"{tmp_path}/run")
