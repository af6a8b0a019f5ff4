"""Compiled programs are kept for the next process, in a folder that is its owner's alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

GENERATE = Path(__file__).parents[2] / "tools" / "generate.py"
SAID = "compiled for this machine"
CHOSEN = """
import jax
from s7jax.runtime import programs
programs.keep()
print(jax.config.jax_compilation_cache_dir)
"""


@pytest.fixture
def run(tmp_path):
    """A process of its own, told of no folder: what it printed, and what it said as an error."""

    def started(*command: object, **environment: str) -> tuple[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
        done = subprocess.run(
            [sys.executable, *command],
            env=kept | {"XDG_CACHE_HOME": str(tmp_path)} | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr

    return started


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "s7jax" / "xla"


@pytest.mark.long(minutes=0.5)
def test_what_one_process_compiled_the_next_one_loads(run, sealed, folder):
    def ask() -> tuple[list[int], str]:
        out, said = run(
            GENERATE, sealed, "--engine", "xla", "--prompt", "x", "--max-tokens", "2", "--json"
        )
        return json.loads(out)["ids"], said

    ids, said = ask()
    assert SAID in said
    assert folder.stat().st_mode & 0o777 == 0o700
    kept = {file: file.read_bytes() for file in folder.iterdir()}
    assert any(file.name.startswith("jit_run-") for file in kept)
    assert ask() == (ids, "")
    assert {file: file.read_bytes() for file in folder.iterdir()} == kept
    # What was cut off is compiled anew, and said.
    for file, content in kept.items():
        file.write_bytes(content[: len(content) // 2])
    again, said = ask()
    assert again == ids
    assert SAID in said


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o720])
def test_a_folder_that_others_can_write_is_not_used(run, folder, mode):
    folder.mkdir(parents=True)
    folder.chmod(mode)
    chosen, said = run("-c", CHOSEN)
    assert chosen == "None\n"
    assert f"{folder} is not used: others can write to it" in said
    folder.chmod(0o755)
    assert run("-c", CHOSEN) == (f"{folder}\n", "")


def test_programs_are_kept_where_the_user_says_or_nowhere(run, folder, tmp_path):
    own = str(tmp_path / "own")
    assert run("-c", CHOSEN, JAX_COMPILATION_CACHE_DIR=own) == (f"{own}\n", "")
    assert run("-c", CHOSEN, JAX_ENABLE_COMPILATION_CACHE="0") == ("None\n", "")
    (tmp_path / "file").touch()  # no folder can be made below it
    assert run("-c", CHOSEN, XDG_CACHE_HOME=str(tmp_path / "file")) == ("None\n", "")
    assert not folder.exists()
    home = {"XDG_CACHE_HOME": "relative", "HOME": str(tmp_path / "home")}
    assert run("-c", CHOSEN, **home) == (f"{tmp_path}/home/.cache/s7jax/xla\n", "")
