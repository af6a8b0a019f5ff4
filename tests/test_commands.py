"""The command ``s7jax`` and its scripts as a user meets them, as real processes."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import s7jax
from s7jax import sample
from s7jax.commands import COMMANDS, SCRIPTS, load
from s7jax.terminal import cli

ROOT = Path(__file__).parent.parent


def run(*command: object, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def s7(*words: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", "s7jax", *words, cwd=cwd)


def test_version_and_help_name_everything_and_import_nothing_heavy():
    assert s7("--version").stdout == f"s7jax {s7jax.__version__}\n"
    shown = s7("--help")
    assert shown.returncode == 0
    assert all(f"\n    {name}" in shown.stdout for name in COMMANDS)
    code = "import sys, s7jax.commands as c; c.front().format_help(); print('jax' in sys.modules)"
    assert run(sys.executable, "-c", code).stdout == "False\n"


def test_what_is_no_command_is_said_with_those_that_are():
    nothing, wrong, flag = s7(), s7("pak"), s7("--verson")
    assert (nothing.returncode, wrong.returncode) == (2, 2)
    assert nothing.stdout == wrong.stdout == ""
    assert "generate" in nothing.stderr
    assert wrong.stderr == "error: no command 'pak'; did you mean 'pack'?\n"
    assert flag.stderr == "error: no command '--verson'; did you mean '--version'?\n"
    assert "inspect" in s7("xyz").stderr


def test_commands_are_named_the_way_that_was_taken(tmp_path):
    """Who has no ``s7jax`` on the path is not sent to it."""
    installed = s7("pack", cwd=tmp_path)
    script = run(sys.executable, ROOT / "tools/pack.py", cwd=tmp_path)
    assert installed.stderr.endswith("start one with `s7jax pipeline`\n")
    assert script.stderr.endswith("start one with `python experiments/pipeline.py`\n")
    assert "usage: s7jax pack " in s7("pack", "--help").stdout
    helped = run(sys.executable, ROOT / "tools/pack.py", "--help").stdout
    assert "usage: python tools/pack.py " in helped
    assert "s7jax pack" not in helped


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_is_a_script_that_the_shell_reads(shell, tmp_path):
    done = s7("completion", shell)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)
    assert "--max-tokens" in done.stdout
    if shutil.which(shell):
        (tmp_path / "script").write_text(done.stdout)
        assert run(shell, "-n", tmp_path / "script").returncode == 0


def test_every_script_is_a_command_and_every_command_has_one():
    scripts = {
        f"{folder}/{path.name}"
        for folder in ("experiments", "tools")
        for path in (ROOT / folder).glob("*.py")
    }
    assert scripts - {"tools/s7l_verify.py"} == set(SCRIPTS.values())
    for name, script in SCRIPTS.items():
        assert f'script("{name}")' in (ROOT / script).read_text()


@pytest.mark.parametrize(
    "words",
    [
        "pipeline --log-to wandb --log-to mlflow",
        "pipeline --expert-tokens 1k --expert-tokens 2k 3k 4k",
        "generate text --trust one.pem --trust two.pem",
        "verify --trust one.pem --trust two.pem",
        "pack --sign one.pem --sign two.pem",
        "experts --domain code --domain math",
        "quantize --experts a --experts b",
        "audit --phase trunk --phase expert0 --sign one.pem --sign two.pem",
        "serve --allow-host a --allow-host b --trust one.pem --trust two.pem",
    ],
)
def test_a_flag_given_twice_adds_up(words):
    name, *rest = words.split()
    parser = cli.parser(None)
    load(name).add_flags(parser)
    args = parser.parse_args(rest)
    flags = {word[2:].replace("-", "_") for word in rest if word.startswith("--")}
    given = {str(value) for flag in flags for value in getattr(args, flag)}
    assert given == {word for word in rest if not word.startswith("--")} - {"text"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the checkout whose environment is not activated."""
    folder = tmp_path / "checkout"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("s7jax", "tools", "experiments"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    return folder


def without_packages(script: Path) -> subprocess.CompletedProcess[str]:
    """Run a script by a Python that has only its standard library."""
    return run(sys.executable, "-I", "-S", script, "--help")


def test_a_script_without_packages_takes_the_environment_beside_it(checkout: Path):
    script = checkout / "tools/verify.py"
    alone = without_packages(script)
    assert alone.returncode == 1
    assert alone.stderr.count("\n") == 1
    assert "make .venv/installed" in alone.stderr
    (checkout / ".venv/bin").mkdir(parents=True)
    (checkout / ".venv/bin/python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (checkout / ".venv/bin/python").chmod(0o755)
    helped = without_packages(script)
    assert helped.returncode == 0, helped.stderr
    assert "usage: python tools/verify.py" in helped.stdout


@pytest.mark.parametrize("words", [("completion", "bash"), ("inspect", str(sample.SEALED))])
def test_a_reader_that_has_enough_ends_the_command_quietly(words):
    """Plain text, and tables; as by `| head -1`."""
    with subprocess.Popen(
        [sys.executable, "-m", "s7jax", *words],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pipesize=4096,  # not all of it fits
    ) as command:
        command.stdout.readline()
        command.stdout.close()
        assert (command.stderr.read(), command.wait()) == ("", 141)


def test_who_has_closed_the_output_wants_none(tmp_path):
    done = run("sh", "-c", f"'{sys.executable}' -m s7jax runs >&-", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_too_little_memory_is_one_message(capsys):
    def run():
        raise MemoryError("no room for 5 GiB")

    with pytest.raises(SystemExit) as end:
        cli.main(run)
    assert end.value.code == 1
    assert capsys.readouterr().err == "error: there is not enough memory: no room for 5 GiB\n"


def test_devices_that_jax_does_not_find_are_one_message():
    words = "generate", sample.SEALED, "x", "--engine", "xla", "--max-tokens", "1"
    done = run(sys.executable, "-m", "s7jax", *words, JAX_PLATFORMS="cuda")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "JAX finds no device (JAX_PLATFORMS is 'cuda')" in done.stderr


def test_an_interrupt_while_modules_are_imported_leaves_no_trace(tmp_path):
    (tmp_path / "s7jax").symlink_to(ROOT / "s7jax")
    (tmp_path / "shtab.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException:\n"
        "    pass\nprint('swallowed')\n"
    )
    done = run(sys.executable, "-m", "s7jax", "completion", "bash", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_an_encoding_that_lacks_a_character_is_no_failure(encoding):
    done = run(sys.executable, "-m", "s7jax", "--help", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, "")
    assert "pipeline" in done.stdout
