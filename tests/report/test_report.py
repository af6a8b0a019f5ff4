"""The report of a run, made of the files that a run leaves."""

import json
import os
import re

import browser
import pytest

from s7jax import commands
from s7jax.errors import InputError
from s7jax.report.facts import KINDS, gather
from s7jax.report.figures import overlay
from s7jax.report.write import compare, write
from s7jax.terminal.tables import markdown
from s7jax.train.folder import RunFolder, start
from tests.conftest import TINY

DOMAINS = TINY.model.domains
EVIL = '<script>console.error("x")</script> | ~~~~ `a` \u2603 &amp;'


def lines(phase: str, steps: int):
    """Metrics of a phase that was stopped once and skipped a step."""
    for step in range(steps):
        held_out = {"held_out": dict.fromkeys(DOMAINS, 3.0 - step / 10)} if step % 2 else {}
        yield {
            "phase": phase,
            "step": step,
            "tokens": 256 * (step + 1),
            "loss": None if step == 1 else 5.0 - step / 10,
            "skipped": float(step == 1),
            "tokens_per_second": 1000.0 + step,
            "seconds": float(step % 3),
            "spent": {"compile": 2.0} if step == 0 else {"step": 1.0, "save": 0.5, "stall": 0.25},
            **held_out,
        }


def finished(folder, name: str = "r") -> RunFolder:
    """A run with everything but checkpoints and a seal."""
    run = start(RunFolder(folder / name), TINY, None, None)
    phases = ["trunk", *(f"expert{e}" for e in range(4))]
    found = [json.dumps(line) for phase in phases for line in lines(phase, 6)]
    run.metrics.write_text("\n".join(found) + "\n")
    models = ["trunk", *(f"expert{e}" for e in range(4)), "routed", "oracle"]
    bits = {
        domain: {model: 2.0 + i / 10 + j / 100 for j, model in enumerate(models)}
        for i, domain in enumerate(DOMAINS)
    }
    row = {"accuracy": 0.9, "bits_per_byte": dict.fromkeys(DOMAINS, 2.0)}
    confusion = [[9 if i == j else 1 for j in range(4)] for i in range(4)]
    routers = {"router": row | {"confusion": confusion}, "random": row}
    quality = {"domains": list(DOMAINS), "bits_per_byte": bits, "routers": routers}
    run.evaluation.write_text(json.dumps({"quality": quality}))
    parts = [{"domain": "math", "text": EVIL}, {"domain": "general", "text": "\u00e9nd"}]
    rules = [{"rule": "V0", "verdict": "PASS", "evidence": EVIL}]
    sample = {"domain": "code", "prompt": "def f():\n", "parts": parts}
    replayed = {"steps": 3, "chain": "ab" * 32}
    proof = {"root": "00" * 32, "samples": [sample] * 10, "replayed": replayed, "rules": rules}
    run.samples.write_text(json.dumps(proof))
    run.report.write_text(json.dumps({"seconds": {"trunk": 9.0}}))
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    run = finished(tmp_path_factory.mktemp("runs"))
    write(run, run.page)
    return run


def test_curves_events_and_seconds_are_those_of_the_metrics(run):
    facts = gather(run)
    trunk = facts["phases"][0]
    assert trunk["tokens"] == [256, 512, 768, 1024, 1280, 1536]
    assert trunk["skipped"] == [512]
    assert trunk["stops"] == [1024]
    assert trunk["saves"] == [512, 768, 1024, 1280, 1536]
    assert trunk["held_out"]["math"] == [[512, 2.9], [1024, 2.7], [1536, 2.5]]
    assert trunk["spent"] == {"step": 5.0, "compile": 2.0, "save": 2.5, "stall": 1.25}
    assert set(trunk["spent"]) <= set(KINDS)
    assert trunk["tokens_per_second"] == 1002.5


def test_the_page_is_self_contained_and_escapes_what_a_model_says(run):
    page = run.page.read_text()
    assert page.count("<svg") == 5
    assert not re.findall(r"(?:src|href)=[\"'](?!#|data:)", page)
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    assert EVIL not in page
    assert "&lt;script&gt;console.error" in page
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert str(run.path.parent.parent) not in page.replace(str(run.path), "")


def test_one_step_is_a_point_and_few_tokens_have_readable_figures():
    one, more = (
        overlay({"r": {"tokens": [10_000 * i for i in steps], "loss": [2.0] * len(steps)}}, "x")
        for steps in ([1], [1, 2, 3])
    )
    assert "fill: var(--c0)" in one
    assert "fill: var(--c0)" not in more
    assert ">20k</text>" in more


def test_equal_runs_give_equal_pages(run, tmp_path):
    again = tmp_path / "again.html"
    write(run, again)
    assert again.read_bytes() == run.page.read_bytes()
    assert again.with_suffix(".md").read_bytes() == run.summary.read_bytes()


def test_the_same_is_said_in_markdown(run):
    text = run.summary.read_text()
    assert "| trunk | 5.0 | 2.0 | 2.5 | 1.2 | 10.8 | 46.5% | 1,002 |" in text
    assert markdown(("a", "b"), [["x|y", "z\n"]]) == "| a | b |\n| --- | --- |\n| x\\|y | z  |"
    blocks = re.findall(r"^(~~~~+)\n(.*?)\n\1$", text, flags=re.DOTALL | re.MULTILINE)
    assert [inner for _, inner in blocks] == [f"def f():\n{EVIL}\u00e9nd"] * 10


def test_a_run_that_has_just_begun_has_a_report(tmp_path):
    run = start(RunFolder(tmp_path / "r"), TINY, None, None)
    write(run, run.page)
    assert "r: tiny" in run.page.read_text()
    assert "# r: tiny" in run.summary.read_text()


def test_a_folder_whose_name_is_no_text_has_a_report(tmp_path):
    name = b"caf\xff"
    run = start(RunFolder(tmp_path / os.fsdecode(name)), TINY, None, None)
    write(run, run.page)
    assert name in run.page.read_bytes()


def test_runs_side_by_side(run, tmp_path):
    other = finished(tmp_path, "other")
    tree = json.loads(other.config_file.read_text())
    tree["config"]["seed"] = 7
    other.config_file.write_text(json.dumps(tree))
    page, summary = compare([run, other], tmp_path / "both.html")
    text = summary.read_text()
    assert "| field | r | other |\n| --- | --- | --- |\n| seed | 0 | 7 |" in text
    assert "| math | 2.1500 | 2.1500 |" in text
    assert page.read_text().count("<svg") == 5
    page, summary = compare([run, finished(tmp_path / "x", "r")], tmp_path / "same.html")
    assert str(run.path) in summary.read_text()
    long = tmp_path / ("far/" * 40)
    compare([run, finished(long, "r")], tmp_path / "long.html")


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"quality": 5}'])
def test_a_damaged_file_is_named(tmp_path, text):
    run = start(RunFolder(tmp_path / "r"), TINY, None, None)
    for path in (run.evaluation, run.comparison, run.samples, run.report):
        path.write_text(text)
        with pytest.raises(InputError, match=path.name):
            gather(run)
        path.unlink()


def test_what_is_no_run_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.md").write_text("mine")
    for words, code, message in (
        ([], 2, "no run under runs/"),
        (["nowhere"], 1, "runs/nowhere: not a run"),
        (["x", "--out", "report.pdf"], 2, "expected a name that ends with .html"),
        (["x", "--out", "notes.html"], 2, "notes.md, where its Markdown goes, is there"),
    ):
        with pytest.raises(SystemExit) as end:
            commands.run("report", words)
        assert end.value.code == code
        assert message in capsys.readouterr().err


@pytest.mark.skipif(browser.found() is None, reason="no Chromium here")
def test_the_page_in_a_browser(run, tmp_path):
    with browser.page(tmp_path / "profile") as page:
        inks = set()
        for width, scheme in ((1200, "light"), (390, "light"), (390, "dark")):
            page.look_like(width, scheme)
            page.open(run.page.as_uri())
            loaded = "document.readyState == 'complete' && location.href != 'about:blank'"
            while not page.run(loaded):
                pass
            assert page.run("document.documentElement.scrollWidth") <= width
            assert page.run("document.querySelectorAll('svg').length") == 5
            assert page.run("document.scripts.length") == 0
            inks.add(page.run("getComputedStyle(document.querySelector('svg text')).fill"))
        assert len(inks) == 2, "curves follow the scheme"
        assert not [e for e in page.events if e["method"].startswith(("Log.entry", "Runtime.exc"))]
        assert not [e for e in page.events if e["method"] == "Runtime.consoleAPICalled"]
