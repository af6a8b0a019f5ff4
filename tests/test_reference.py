"""Links of the documents lead somewhere, and the API reference is made of the docstrings."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.links import broken, main
from tests.test_documents import PAGES, ROOT


def test_every_relative_link_of_the_documents_leads_somewhere():
    assert not list(broken([*PAGES, ROOT / "CHANGELOG.md", ROOT / "benchmarks/README.md"]))


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path, capsys):
    (tmp_path / "a.html").write_text('<p id=x><a href="b.html#y"></a><a href="#x"></a>')
    (tmp_path / "b.html").write_text('<p id="z"><a href="https://example.org"></a>')
    (tmp_path / "c.md").write_text("# A (title), `x`\n[a](a.html#x) [b](#a-title-x) [c](d.md)\n")
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().out == f"{tmp_path}/a.html: b.html#y\n{tmp_path}/c.md: d.md\n"
    assert main([str(tmp_path / "b.html")]) == 0


@pytest.mark.long(minutes=2)
def test_the_reference_is_made_without_a_warning(tmp_path: Path):
    """What ``make docs`` does, into another folder."""
    told = subprocess.check_output(
        [
            "make",
            "--no-print-directory",
            "-n",
            "-o",
            ".venv/installed-dev",
            "docs",
            f"PY={sys.executable}",
        ],
        cwd=ROOT,
        text=True,
    )
    out = tmp_path / "docs"
    done = subprocess.run(
        ["bash", "-euc", told.replace("build/docs", str(out))],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "XLA_FLAGS"},  # tests'
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stderr
    assert done.stdout.endswith("every link leads somewhere\n")
    page = (out / "s7jax.html").read_text()
    for name in ("pretrain", "prepare", "open"):
        assert f'id="{name}"' in page
    assert 'id="TrainedRun.seal"' in (out / "s7jax/runs/notebook.html").read_text()
