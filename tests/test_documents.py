"""What the documents say to type is what works: parsed in the quick tests, run in the long ones."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from s7jax import commands
from s7jax.config import PRESETS
from s7jax.data.compression import zstd

ROOT = Path(__file__).parent.parent
PAGES = [*map(ROOT.joinpath, ("README.md", "BUILD.md", "CONTRIBUTING.md"))]
PAGES += sorted((ROOT / "docs").glob("*.md"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SHELL = ("bash", "sh", "console")
SCRIPTS = {f"python {script}": name for name, script in commands.SCRIPTS.items()}
NAMES = {**SCRIPTS, **{f"s7jax {name}": name for name in commands.COMMANDS}}
COMMAND = re.compile(rf"(?:^|\s|/|`|\()({'|'.join(map(re.escape, NAMES))})(?=[\s`]|$)(.*)$")


def fences(*languages: str) -> list[tuple[Path, str]]:
    return [
        (page, text)
        for page in PAGES
        for language, text in FENCE.findall(page.read_text())
        if language in languages
    ]


def logical(script: str) -> list[str]:
    """The lines of a script without comments, continuations joined."""
    lines = re.sub(r"\\\n\s*", " ", script).splitlines()
    return [line for line in (re.sub(r"(^|\s)#.*$", "", line).strip() for line in lines) if line]


def said() -> Iterator[tuple[str, str, str]]:
    """Page, command and the rest of the line of every command in the documents."""
    for page, text in fences(*SHELL):
        for line in logical(text):
            if (found := COMMAND.search(line)) and "``" not in line:  # of the layout
                yield page.name, found[1], found[2]
    for page in PAGES:
        for code in re.findall(r"`([^`\n]+)`", FENCE.sub("", page.read_text())):
            if found := COMMAND.match(code):
                yield page.name, found[1], found[2]


SAID = sorted(set(said()))


def test_the_documents_have_commands():
    assert len(SAID) > 60
    assert {NAMES[command] for _, command, _ in SAID} >= {*commands.SCRIPTS, "report", "runs"}


@pytest.mark.parametrize(("page", "command", "rest"), SAID, ids=lambda text: text[:40])
def test_every_command_has_the_flags_it_is_shown_with(page, command, rest, monkeypatch):
    """Its own parser takes them; what stands for something else, such as FILE or …, is text."""
    monkeypatch.setattr(ArgumentParser, "error", lambda _, message: pytest.fail(message))
    module = commands.load(NAMES[command])
    parser = ArgumentParser(allow_abbrev=False)
    module.add_flags(parser)
    if re.search(r"[\[…|]", rest):  # a synopsis: its flags are there
        flags = re.findall(r"(?<![\w-])--[a-z][a-z-]*", rest)
        known = {flag for action in parser._actions for flag in action.option_strings}
        assert set(flags) <= known, page
        return
    words = shlex.split(rest.split(">")[0].split("|")[0].replace("HEX", "00" * 32).replace(")", ""))
    if not words and command.startswith("s7jax"):  # its name alone, as in running text
        return
    words = ["7" if word in ("N", "$I", "STEP", "SECONDS") else word for word in words]
    parser.parse_args(words)


@pytest.mark.parametrize(("page", "text"), fences("python"))
def test_python_in_the_documents_is_python(page, text):
    compile(text, str(page), "exec")


@pytest.mark.parametrize(("page", "text"), fences(*SHELL))
def test_shell_in_the_documents_is_shell(page, text):
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert done.stderr == ""


# Appended to what starts a run: the same commands, minutes instead of hours.
SMALL = "--set trunk.tokens=40960 domains.*.tokens=20480 eval_sequences=4 router_sequences=16"
# Lines that are not run, and why.
ELSEWHERE = {
    "make test": "is what runs this",
    "make test-long": "is what runs this",
    "make docs": "tests/test_reference.py",
    "pip install": "needs the network",
    "s7jax pipeline --preset s7-nano --run watched": "tests/train/test_trackers.py",
    "s7jax evaluate --run demo --tasks": "needs questions and lm-eval: tests/tasks",
    "lm_eval": "an extra of its own, tests/runtime/test_clients.py",
    "srun": "needs a cluster",
    "exec .venv/bin/s7jax experts": "needs a cluster",
    "s7jax trunk --mesh 4x2 --run big": "needs four processes: tests/train/test_elastic.py",
    "s7jax prepare --preset s7-mini": "needs a bucket: tests/data",
    "s7jax prepare --preset s7-140m": "needs a corpus: tests/data",
    "s7jax plan --phase trunk --target v5e": "needs libtpu",
    "s7jax dispute": "needs a proof that lies: tests/runtime/test_dispute.py",
}
# Pages none of whose lines are run, and why.
UNTYPED = {
    "quality.md": "hours, on text of one's own: tests/runs/test_controls.py",
    "mini.md": "hours, on text of one's own: tests/test_scripts.py",
}


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A fresh clone with an environment of its own, in which the packages of this one are."""
    folder = tmp_path_factory.mktemp("documents") / "s7"
    command = ["git", "clone", "--quiet", str(ROOT), str(folder)]
    subprocess.run(command, check=True)
    venv.create(folder / ".venv", symlinks=True)
    python = folder / ".venv/bin/python"
    (packages,) = (folder / ".venv").glob("lib/python*/site-packages")
    ours = next(path for path in sys.path if path.endswith("site-packages"))
    (packages / "here.pth").write_text(f"{folder}\n{ours}\n")
    (python.parent / "s7jax").write_text(f'#!/bin/sh\nexec "{python}" -m s7jax "$@"\n')
    (python.parent / "s7jax").chmod(0o755)
    (folder / ".venv/installed").touch()
    for library in (ROOT / "s7jax/native").glob("_engine*.so"):
        shutil.copy(library, folder / "s7jax/native")
    _corpora(folder)
    return folder


def _corpora(folder: Path) -> None:
    """The files that the documents speak of."""
    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfw"))
    words = ["".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(4_000)]

    def texts() -> list[str]:
        return [" ".join(rng.choice(words, 400)) for _ in range(60)]

    def records() -> bytes:
        return "".join(json.dumps({"text": text}) + "\n" for text in texts()).encode()

    for name in ("src", "books", "law"):
        (folder / name).mkdir()
    for i, (code, prose) in enumerate(zip(texts(), texts(), strict=True)):
        (folder / f"src/{i}.py").write_text(code)
        (folder / f"books/{i}.txt").write_text(prose)
    (folder / "reason.jsonl").write_bytes(records())
    (folder / "law/a.jsonl").write_bytes(records())
    (folder / "math.jsonl.zst").write_bytes(zstd.compress(records()))
    (folder / "tokens").write_text("secret\n")
    (folder / "tokens").chmod(0o600)


class Clone:
    """Types what the documents say, as a person would who has activated the environment."""

    def __init__(self, folder: Path) -> None:
        path = f"{folder / '.venv/bin'}{os.pathsep}{os.environ['PATH']}"
        gone = ("PYTHONPATH", "XLA_FLAGS", "JAX_PLATFORMS")
        self.env = {k: v for k, v in os.environ.items() if k not in gone} | {"PATH": path}
        self.folder = folder

    def type(self, line: str) -> None:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
            timeout=3600,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"

    def serve(self, line: str) -> None:
        """A server is asked whether it is there, and stopped."""
        port = 8000
        process = subprocess.Popen(["bash", "-c", f"exec {line}"], cwd=self.folder, env=self.env)
        try:
            until = time.monotonic() + 600
            while True:
                assert process.poll() is None
                assert time.monotonic() < until, "it hangs"
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5).close()
                    break
                except urllib.error.HTTPError:  # it is there, and wants a token or another name
                    break
                except OSError:
                    time.sleep(0.2)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)


@pytest.mark.long(minutes=25)
def test_every_fenced_command_runs_in_a_fresh_clone(clone):
    here = Clone(clone)
    for page, text in fences(*SHELL):
        script = logical(text)
        if not any(COMMAND.search(line) or line.startswith("make ") for line in script):
            continue  # no commands: a layout, a format
        if page.name in UNTYPED:
            continue
        sealed = clone / "runs/demo/model/moe.s7l"
        if sealed.exists() and page.name != "README.md":
            for name in ("model.s7l", "model/moe.s7l"):
                (clone / name).parent.mkdir(exist_ok=True)
                if not (clone / name).exists():
                    shutil.copy(sealed, clone / name)
        for written in script:
            line = written
            if any(line.startswith(start) for start in ELSEWHERE):
                continue
            if line == "make demo":
                plan = ["make", "--no-print-directory", "-n", "demo"]
                told = subprocess.check_output(plan, cwd=clone, text=True)
                line = told.strip()
            if "s7jax serve" in line:
                here.serve(line)
                continue
            starts = "pipeline" in line or "trunk.py" in line
            size = SMALL if starts and "--add-domain" not in line else ""
            here.type(f"{line} {size}".replace("--expert-tokens 600k", "--expert-tokens 20k"))
    for _, written in fences("python"):
        text = written.replace('"400k"', '"40k"').replace('"100k"', '"20k"')
        here.type(f"python -c {shlex.quote(text)}")


def test_presets_in_the_readme_are_those_there_are():
    table = (ROOT / "README.md").read_text()
    assert all(f"| `{name}` |" in table for name in PRESETS)
