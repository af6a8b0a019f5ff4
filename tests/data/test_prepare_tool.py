import json
from pathlib import Path

import pytest

from s7jax.data.builtin import math
from s7jax.data.prepared import Prepared


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Enough text for the vocabulary of s7-nano: a folder for each domain."""
    text = tmp_path_factory.mktemp("text")
    return [f"{d}={folder(text / d, d)}" for d in ("code", "math", "reasoning", "general")]


def folder(folder, domain):
    folder.mkdir()
    for i in range(900):
        (folder / f"{i}.txt").write_text(f"{domain} {math.document(0, i)}")
    words = [chr(97 + i % 26) + chr(97 + i // 26 % 26) + chr(97 + i // 676) for i in range(3000)]
    for i in range(10):
        (folder / f"words{i}.txt").write_text(f"{domain} {i} " + " ".join(words[i::2] * 2))
    return folder


def test_it_prepares_and_says_what_there_is(tool, sources, tmp_path):
    """Sources add up, be they given by one flag or by several."""
    (tmp_path / "more.jsonl").write_text('{"text": "one more"}\n')
    first, *rest = sources
    flags = [part for source in rest for part in ("--data", source)]
    run = tool(
        "prepare",
        *("--preset", "s7-nano", "--out", tmp_path / "o", "--workers", 2, *flags),
        *("--data", f"code={tmp_path / 'more.jsonl'}", first),
    )
    assert run.returncode == 0, run.stderr
    prepared = Prepared.load(tmp_path / "o")
    names = [[s["name"] for s in d["sources"]] for d in prepared.manifest["domains"]]
    assert names == [["more.jsonl", "code"], ["math"], ["reasoning"], ["general"]]
    assert run.stdout.splitlines()[-1] == f"digest {prepared.digest}"
    assert (prepared.vocab, prepared.context) == (2048, 256)
    for domain in prepared.domains:
        row = next(line for line in run.stdout.splitlines() if f" {domain} " in line)
        assert f" {prepared.rows(domain, 'train'):,} " in row
    assert run.stderr == ""
    added = [json.dumps({"text": math.document(7, i)}) for i in range(90)]
    (tmp_path / "added.jsonl").write_text("\n".join(added))
    run = tool(
        "prepare",
        *("--preset", "s7-nano", "--grow", tmp_path / "o", "--out", tmp_path / "grown"),
        *("--data", f"math={tmp_path / 'added.jsonl'}", "--workers", 1),
    )
    assert run.returncode == 0, run.stderr
    grown = Prepared.load(tmp_path / "grown")
    assert grown.rows("math", "train") > prepared.rows("math", "train")
    assert "math: added.jsonl (unknown): 1 jsonl, 90 records" in run.stdout


def test_a_broken_source_is_exit_code_1(tool, sources, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"text": "x"}\nnonsense\n')
    run = tool(
        "prepare",
        *("--preset", "s7-nano", "--out", tmp_path / "o"),
        *("--data", *sources, f"math={tmp_path / 'bad.jsonl'}"),
    )
    assert run.returncode == 1
    assert f"{tmp_path / 'bad.jsonl'}:2: not a JSON line" in run.stderr
    assert "Traceback" not in run.stderr


def test_a_run_has_every_source_of_several_flags(tool, tmp_path):
    """The last one is broken, and so it is seen; the others are said before."""
    flags = []
    for domain in ("code", "math", "reason", "general", "code", "math", "reason", "general"):
        (tmp_path / f"{domain}{len(flags)}.jsonl").write_text('{"text": "x"}\n')
        flags += ["--data", f"{domain}={domain}{len(flags)}.jsonl"]
    (tmp_path / "last.jsonl").write_text("nonsense\n")
    run = tool("trunk", "--run", "r", *flags, "--data", "general=last.jsonl")
    assert run.returncode == 1
    assert "last.jsonl:1: not a JSON line" in run.stderr
    for flag in flags[1::2]:
        domain, name = flag.split("=")
        assert f"{domain}={tmp_path / name}" in run.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "s7-nano"], "--out"),
        (["--preset", "s8", "--out", "o"], "unknown preset 's8'"),
        (["--preset", "s7-nano", "--out", "o", "--data", "cod=x"], "did you mean 'code'"),
        (["--preset", "s7-nano", "--out", "o", "--held-out", "2"], "held-out 2.0"),
        (["--preset", "s7-nano", "--out", "o", "--memory", "inf"], "expected such as 2GB"),
        (["--preset", "s7-nano", "--out", "o", "--memory", "1MB"], "expected at least 64MB"),
        (["--preset", "s7-nano", "--out", "o", "--near-duplicates", "nan"], "near-duplicates nan"),
        (["--preset", "s7-nano", "--out", "o", "--data", "x=y", "--field", "a=b"], "--field 'a=b'"),
    ],
)
def test_a_wrong_command_line_is_exit_code_2(tool, arguments, message):
    run = tool("prepare", *arguments)
    assert run.returncode == 2
    assert message in run.stderr
    assert "Traceback" not in run.stderr
    assert not Path("o").exists()
