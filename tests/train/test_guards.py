"""What training refuses, skips, survives."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import pytest

from s7jax.config import Config, override
from s7jax.data.prepared import Prepared
from s7jax.errors import InputError, Stopped
from s7jax.train import checkpoint, loop, step
from s7jax.train.step import Stepper, trunk_loss
from tests.train.training import train_trunk

pytestmark = pytest.mark.usefixtures("compiled_alike")

ROOT = Path(__file__).parent.parent.parent
HANGS = 1800  # seconds after which something hangs: nothing here is asked to be fast
SIZE = """model.vocab=320 model.context=32 model.trunk.layers=1 model.trunk.hidden=32
model.trunk.ffn=64 trunk.tokens=15360 trunk.batch=8 trunk.microbatch=8 trunk.checkpoint=1280
experts.batch=8 experts.microbatch=8""".split()


def spoiled_loss(bad: float):
    """The trunk's loss, replaced by ``bad`` on batches that begin with an odd token."""

    def loss(cfg, compute, params, frozen, tokens):
        value = trunk_loss(cfg, compute, params, frozen, tokens)
        return jnp.where(tokens[0, 0] % 2 == 1, value * 0 + bad, value)

    return loss


@pytest.fixture
def spoil(monkeypatch):
    def patch(bad: float) -> None:
        monkeypatch.setattr(step, "trunk_loss", spoiled_loss(bad))

    return patch


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 50.0], ids=["nan", "inf", "spike"])
def test_a_spoilt_step_is_skipped_logged_and_equals_a_replay_told_to_skip_it(
    tiny: Config, new_run, spoil, capsys, monkeypatch, bad: float
):
    tiny = override(tiny, ["trunk.microbatch=8"])
    x = new_run("spoilt", tiny)
    spoil(bad)
    digest = train_trunk(x)
    lines = [json.loads(line) for line in x.folder.metrics.read_text().splitlines()]
    skipped = [line["step"] for line in lines if line["skipped"]]
    assert 0 < len(skipped) < len(lines)
    assert f"trunk: step {skipped[-1]} skipped" in capsys.readouterr().out
    if bad != 50.0:
        assert lines[skipped[0]]["loss"] is None

    monkeypatch.undo()
    spoil(1.0)  # the same program, for the same rounding; nothing of its loss is spoilt
    told = override(tiny, [f"trunk.skip_steps={skipped}"])
    assert train_trunk(new_run("replay", told)) == digest


def test_too_many_skipped_steps_stop_the_run(tiny: Config, new_run, spoil, monkeypatch):
    monkeypatch.setattr(loop, "MAX_SKIPPED", 1)
    spoil(float("nan"))
    with pytest.raises(InputError, match=r"2 steps skipped.*saved at step"):
        train_trunk(new_run("bad", override(tiny, ["trunk.microbatch=8"])))


def flags(prepared: Prepared, mesh: str = "1x1") -> list[str]:
    run = ["--preset", "s7-nano", "--run", "r", "--mesh", mesh, "--prepared", str(prepared.path)]
    return [*run, "--set", *SIZE]


def command(prepared: Prepared, *extra: str, mesh: str = "1x1") -> list[str]:
    script = [sys.executable, str(ROOT / "experiments/trunk.py")]
    return [*script, *flags(prepared, mesh), *extra]


def finish(prepared: Prepared, folder: Path, *extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command(prepared), *extra],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=HANGS,
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, prepared: Prepared) -> tuple[Path, str]:
    """Folder and digest of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("undisturbed")
    result = finish(prepared, folder)
    assert result.returncode == 0, result.stderr
    return folder, result.stdout.rsplit("sha256 ", 1)[1].strip()


def steps_of(folder: Path) -> int:
    """Steps whose metrics are written."""
    metrics = folder / "runs/r/metrics.jsonl"
    return metrics.read_text().count("\n") if metrics.exists() else 0


def wait_for(process: subprocess.Popen[str], folder: Path, steps: int) -> None:
    """Until so many steps are written, or the process has ended."""
    until = time.monotonic() + HANGS
    while process.poll() is None and steps_of(folder) < steps:
        assert time.monotonic() < until, "it hangs"
        time.sleep(0.005)


def start_and_wait_for_step(prepared: Prepared, folder: Path, step: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(command(prepared), cwd=folder, text=True, stdout=-1, stderr=-1)
    wait_for(process, folder, step + 1)
    return process


@pytest.mark.long(minutes=0.3)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_same_command_goes_on(
    undisturbed, prepared: Prepared, tmp_path: Path, number: int, code: int
):
    _, digest = undisturbed
    process = start_and_wait_for_step(prepared, tmp_path, 2)
    process.send_signal(number)
    out, err = process.communicate(timeout=HANGS)
    assert process.returncode == code, err
    saved = int(out.rsplit("saved at step ", 1)[1].split(";")[0])
    assert (tmp_path / f"runs/r/checkpoints/trunk/{saved}").is_dir()
    result = finish(prepared, tmp_path)
    assert f"resumes from step {saved}" in result.stdout
    assert result.stdout.rsplit("sha256 ", 1)[1].strip() == digest


@pytest.mark.usefixtures("own_programs")
@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(2, marks=pytest.mark.long(minutes=0.8)),
        pytest.param(30, marks=pytest.mark.long(minutes=3)),
    ],
)
def test_killed_at_any_moment_it_ends_with_the_same_bytes(
    undisturbed, prepared: Prepared, tmp_path: Path, kills: int
):
    """kill -9 at random moments, start-up and compilation included, until it is through."""
    (_, digest), folder = undisturbed, tmp_path
    generator = random.Random(kills)
    for kill in range(kills):
        process = subprocess.Popen(command(prepared), cwd=folder, stdout=-3, stderr=-3)
        if kill % 3:
            wait_for(process, folder, steps_of(folder) + generator.randrange(1, 20))
            time.sleep(generator.uniform(0, 0.05))  # somewhere between two steps, or in a save
        else:
            time.sleep(generator.uniform(0, 10))
        process.kill()
        process.wait()
        if (folder / "runs/r/checkpoints/trunk_final").is_dir():
            shutil.rmtree(folder / "runs/r")  # it was through before the kill: once more
    result = finish(prepared, folder)
    assert result.returncode == 0, result.stderr
    assert result.stdout.rsplit("sha256 ", 1)[1].strip() == digest
    lines = map(json.loads, (folder / "runs/r/metrics.jsonl").read_text().splitlines())
    assert [line["step"] for line in lines] == list(range(60))


@pytest.mark.usefixtures("own_programs")
def test_a_second_process_on_the_same_phase_is_refused(tool, prepared: Prepared, tmp_path: Path):
    process = start_and_wait_for_step(prepared, tmp_path, 0)
    try:
        os.kill(process.pid, signal.SIGSTOP)
        second = tool("trunk", *flags(prepared))
    finally:
        process.kill()
        process.communicate()
    assert second.returncode == 1
    assert f"another process (number {process.pid})" in second.stderr


def test_a_tampered_checkpoint_is_named_and_an_older_one_used_only_when_asked(
    tool, undisturbed, prepared: Prepared, tmp_path: Path
):
    folder, digest = undisturbed
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "runs/r/checkpoints/trunk_final")
    saves = tmp_path / "runs/r/checkpoints/trunk"
    older, newest = sorted(int(path.name) for path in saves.iterdir() if path.name.isdigit())
    record = saves / str(newest) / "record/metadata"
    tree = json.loads(record.read_text())
    tree["state_sha256"] = "0" * 64
    record.write_text(json.dumps(tree))
    refused = tool("trunk", *flags(prepared))
    assert refused.returncode == 1
    assert f"trunk/{newest}" in refused.stderr
    assert f"--resume-from {older}" in refused.stderr
    result = tool("trunk", *flags(prepared), "--resume-from", str(older))
    assert result.returncode == 0, result.stderr
    assert result.stdout.rsplit("sha256 ", 1)[1].strip() == digest


def test_nothing_is_removed_before_the_older_checkpoint_is_read(
    tool, undisturbed, prepared: Prepared, tmp_path: Path
):
    folder, _ = undisturbed
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    ended = tool("trunk", *flags(prepared), "--resume-from", "5")
    assert (ended.returncode, "--resume-from 5: trunk has ended" in ended.stderr) == (2, True)
    shutil.rmtree(tmp_path / "runs/r/checkpoints/trunk_final")
    saves = tmp_path / "runs/r/checkpoints/trunk"
    older, newest = sorted(int(path.name) for path in saves.iterdir() if path.name.isdigit())
    record = saves / str(older) / "record/metadata"
    record.write_text(record.read_text()[:-5])
    refused = tool("trunk", *flags(prepared), "--resume-from", str(older))
    assert refused.returncode == 1
    assert f"trunk/{older}" in refused.stderr
    assert (saves / str(newest) / "state").is_dir()


def test_a_truncated_checkpoint_is_named(tool, undisturbed, prepared: Prepared, tmp_path: Path):
    folder, _ = undisturbed
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "runs/r/checkpoints/trunk_final")
    saves = tmp_path / "runs/r/checkpoints/trunk"
    newest = max(int(path.name) for path in saves.iterdir() if path.name.isdigit())
    largest = max((saves / str(newest)).rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
    os.truncate(largest, largest.stat().st_size // 2)
    result = tool("trunk", *flags(prepared))
    assert result.returncode == 1
    assert f"trunk/{newest}" in result.stderr
    assert f'File "{ROOT}/s7jax' not in result.stderr  # no traceback through our code


def signalled_while(patched, name: str, monkeypatch) -> None:
    """SIGTERM arrives while ``patched.name`` runs for the first time."""
    plain = getattr(patched, name)

    def interrupted(*args, **kwargs):
        monkeypatch.setattr(patched, name, plain)
        os.kill(os.getpid(), signal.SIGTERM)
        return plain(*args, **kwargs)

    monkeypatch.setattr(patched, name, interrupted)


@pytest.mark.parametrize(
    ("where", "name"),
    [
        (Stepper, "program_digest"),
        (Stepper, "step"),
        (loop, "bits_per_byte"),
        (checkpoint, "save_step"),
        (checkpoint, "save_final"),
    ],
    ids=["compilation", "step", "evaluation", "save", "last save"],
)
def test_a_signal_at_any_moment_saves_first(new_run, monkeypatch, undisturbed_here, where, name):
    x = new_run("signalled")
    signalled_while(where, name, monkeypatch)
    with pytest.raises(Stopped) as stop:
        train_trunk(x)
    assert stop.value.number == signal.SIGTERM
    with checkpoint.manager(x.folder.checkpoints / "trunk") as manager:
        assert manager.latest_step() is not None
    assert train_trunk(x) == undisturbed_here


@pytest.fixture(scope="module")
def undisturbed_here(tmp_path_factory, open_run) -> str:
    return train_trunk(open_run(tmp_path_factory.mktemp("runs") / "undisturbed"))


LIMITED = """
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.long(minutes=0.4)
def test_a_full_disk_loses_nothing(undisturbed, prepared: Prepared, tmp_path: Path):
    """SIGTERM saves; then no file may grow beyond 16 kB: what a full disk does to a save."""
    _, digest = undisturbed
    process = start_and_wait_for_step(prepared, tmp_path, 6)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=HANGS)
    assert process.returncode == 143, err
    saves = tmp_path / "runs/r/checkpoints/trunk"
    saved = out.rsplit("saved at step ", 1)[1].split(";")[0]
    before = {path: path.read_bytes() for path in (saves / saved).rglob("*") if path.is_file()}
    full = subprocess.run(
        [sys.executable, "-c", LIMITED, "16384", *command(prepared)[1:]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=HANGS,
    )
    assert full.returncode == 1, full.stderr
    assert "could not be saved" in full.stderr
    assert "Traceback" not in full.stderr
    assert "File too large" in full.stderr
    assert full.stderr.count("error: ") == 1
    assert {path: path.read_bytes() for path in before} == before
    result = finish(prepared, tmp_path)
    assert f"resumes from step {saved}" in result.stdout
    assert result.stdout.rsplit("sha256 ", 1)[1].strip() == digest


@pytest.mark.long(minutes=0.4)
@pytest.mark.usefixtures("own_programs")
def test_a_step_that_never_ends_ends_the_process(prepared: Prepared, tmp_path: Path):
    """Two processes; one is stopped in its tracks, so the other's collective never returns."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    cluster = ["--coordinator", f"localhost:{port}", "--processes", "2"]
    flags = ["--step-timeout", "4", "--save-every", "1B", "--set", "trunk.tokens=1000000000"]
    flags += ["trunk.microbatch=4", "experts.microbatch=4"]
    running = [
        subprocess.Popen(
            [*command(prepared, mesh="2x1"), *cluster, "--process", str(i), *flags],
            cwd=tmp_path,
            text=True,
            stdout=-1,
            stderr=-1,
        )
        for i in range(2)
    ]
    wait_for(running[0], tmp_path, 10)
    os.kill(running[1].pid, signal.SIGSTOP)
    try:
        _, err = running[0].communicate(timeout=HANGS)
    finally:
        running[1].kill()
        running[1].communicate()
    assert running[0].returncode == 1, err
    assert "trunk: no step has ended for 4 seconds" in err
    assert "the same command resumes from step 0" in err
