"""The sealed model that comes with the package is one to run, verify and trust."""

import subprocess
import sys
from pathlib import Path

import pytest

from s7jax import s7l, sample


def s7jax(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command where there is no run."""
    line = [sys.executable, "-m", "s7jax", *map(str, words)]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, check=False)


def test_right_after_installation(tmp_path: Path):
    answer = s7jax(
        "generate", "def main():", "--max-tokens", 16, "--proof", "out.s7p", cwd=tmp_path
    )
    assert answer.returncode == 0, answer.stderr
    assert len(answer.stdout) > 16
    assert "this is the one that comes with s7jax" in answer.stderr
    replayed = s7jax("verify", "--replay", "out.s7p", "--trust", sample.KEY, cwd=tmp_path)
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
    assert "def main():" in replayed.stdout
    known = s7jax("selftest", cwd=tmp_path)
    assert known.returncode == 0, known.stderr
    assert "as sealed" in known.stdout


def test_it_is_small_and_signed():
    assert sample.SEALED.stat().st_size < 3_000_000
    assert s7l.open_trusted(sample.SEALED, trust=[sample.KEY]).stream["answers"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "give a text"),
        (["model.s7l"], "give a text"),
        (["a", "b", "c"], "'b' is a word too many"),
        (["a.s7l", "b", "--prompt", "c"], "'b' is a word too many"),
        (["--prompt", "a", "--file", "b"], "give a text"),
        (["a", "--proof", ""], "--proof .: is there and no proof"),
        (["a", "--proof", "/"], "--proof /: is there and no proof"),
        (["a", "--temperature", "-1"], "temperature is -1.0; expected a number from 0 to 256"),
        (["a", "--temperature", "nan"], "temperature is nan"),
        (["a", "--top-p", "0"], "top_p is 0.0; expected a number from 1/65,536 to 1"),
        (["a", "--top-p", "2"], "top_p is 2.0"),
        (["a", "--threads", "100000"], "100000 threads; expected 1 to 1,024"),
        (["a", "--root", ""], "--root: '': expected 64 hexadecimal digits"),
    ],
)
def test_what_is_not_one_text_or_out_of_range_is_refused(words, problem, here):
    code, _, err = here("generate", *words)
    assert code == 2
    assert problem in err
