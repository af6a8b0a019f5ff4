"""Run every phase and tool at the true size with a tiny budget; say what each of them takes.

Shapes are those of the preset, budgets are not: one step of training, few sequences to evaluate
and to calibrate. Each row is a process of its own; wall and CPU time, and the peak of resident
memory, are what the kernel says of it when it ends (of several processes, the largest). Beside the
peak stands what the planner says of that very configuration on this machine; more than 15 % off
is an error. Programs that one row has compiled the next ones load. A row that is already measured
is not run again, so what was stopped resumes; --only runs some again.

Examples:
  python benchmarks/whole.py                      s7-140m in runs/whole: an hour on two cores
  python benchmarks/whole.py --only pack "quantize 2x2"
  python benchmarks/whole.py --preset s7-nano --run runs/whole-nano
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from s7jax.config import PRESETS, override, preset
from s7jax.errors import InputError, UsageError
from s7jax.mesh import parse
from s7jax.sizing import process
from s7jax.sizing.compiled import compile_job, compile_use
from s7jax.sizing.schedule import jobs
from s7jax.storage import write_bytes, write_json
from s7jax.terminal import cli
from s7jax.train.phase import TRUNK

ROOT = Path(__file__).parents[1]
MEASURED = ROOT / "benchmarks/measured.py"
LIMIT, SEALING_LIMIT = 12.0, 8.0  # GiB; of Phase 3 the latter
WITHIN = 0.15  # of the peak: what the planner says of it
SEQUENCES = 1  # per domain to route, evaluate and calibrate with
BATCH = 8  # sequences of the one step of Phase 1, one to a microbatch: as many groups at most


@dataclass(frozen=True)
class Row:
    """One process to be measured."""

    name: str
    command: tuple[str, ...]  # script and its arguments
    mesh: str = "1x1"
    made: tuple[Path, ...] = ()  # what it writes
    limit: float = LIMIT
    before: Callable[[], None] | None = None
    during: Callable[[int], None] | None = None  # a server is asked at this port, then ended
    planned: Callable[[], int] | None = None  # bytes that the planner says


@dataclass(frozen=True)
class Taken:
    """What a process took."""

    name: str
    mesh: str
    wall: float  # seconds
    cpu: float  # seconds of all its threads
    peak: float  # GiB resident
    size: int  # bytes written
    limit: float
    planned: float = 0.0  # GiB; 0: the planner says nothing of it


def rows(root: Path, name: str) -> list[Row]:
    """Every row of the table, in order: each needs what those before it made."""
    config = preset(name)
    context = config.model.context
    small = [
        *(f"trunk.batch={BATCH}", "trunk.microbatch=1", f"trunk.tokens={BATCH * context}"),
        *("experts.microbatch=1", f"domains.*.tokens={2 * context}"),
        *(f"router_sequences={SEQUENCES}", f"eval_sequences={SEQUENCES}"),
        f"calibration_sequences={SEQUENCES}",
    ]
    prepared, run = root / "prepared", root / "run"
    sealed, proof, bundle = run / "model/moe.s7l", root / "answer.s7p", root / "expert1.s7b"
    tensors, again = root / "moe.safetensors", root / "again"
    pooled = root / "experts-4x2x2"

    def trunk(mesh: str) -> Row:
        # Phase 1 alone needs experts whose batch divides over this mesh too.
        where, batch = (run, 2) if mesh == "1x1" else (root / f"trunk-{mesh}", BATCH)
        flags = ("--preset", name, "--prepared", str(prepared), "--run", str(where), "--mesh", mesh)
        start = ("experiments/trunk.py", *flags, "--set", *small, f"experts.batch={batch}")
        return Row(
            "trunk",
            start,
            mesh,
            (where / "checkpoints/trunk_final",),
            before=fresh(where / "checkpoints/trunk"),
            planned=lambda: training("trunk", mesh, batch),
        )

    def training(phase: str, mesh: str, batch: int = 2) -> int:
        made = override(config, [*small, f"experts.batch={batch}"])
        shape = parse(mesh)
        job = jobs(made, shape, phase)[0]
        return process.training(compile_job(job), job, shape.pools)

    def using(use: str, mesh: str, *components: str) -> Callable[[], int]:
        made, shape = override(config, [*small, "experts.batch=2"]), parse(mesh)
        together = 1 if use == "router" else len(config.domains)

        def planned() -> int:
            found = compile_use(made, use, shape)
            return process.using(found, made, components, shape, together)

        return planned

    def clone() -> None:
        shutil.rmtree(pooled, ignore_errors=True)
        shutil.copytree(run / "checkpoints/trunk_final", pooled / "checkpoints/trunk_final")
        shutil.copy(run / "config.json", pooled / "config.json")

    def on(script: str, *flags: str | Path, folder: Path = run) -> tuple[str, ...]:
        return (script, "--run", str(folder), *map(str, flags))

    def tool(script: str, *flags: str | Path) -> tuple[str, ...]:
        return (f"tools/{script}.py", *map(str, flags))

    def fresh(*paths: Path) -> Callable[[], None]:
        return lambda: _remove(*paths)

    every = config.model.components
    experts = tuple(f"checkpoints/expert{e}" for e in range(len(config.domains)))
    weights = (run / "model/weights", run / "model/vocab.json")
    compiled = ("--target", "cpu", "--compile", "--mesh", "2x2", "--json")
    prompt = ("--prompt", "def main():", "--max-tokens", "32")
    return [
        Row("prepare", tool("prepare", "--preset", name, "--out", prepared), "", (prepared,)),
        *(trunk(mesh) for mesh in ("1x1", "4x2", "8x1")),
        Row(
            "experts",
            on("experiments/experts.py", "--mesh", "1x1"),
            "1x1",
            tuple(run / f"{e}_final" for e in experts),
            before=fresh(*(run / e for e in experts)),
            planned=lambda: training("experts", "1x1"),
        ),
        Row(
            "experts",
            on("experiments/experts.py", "--mesh", "4x2x2", folder=pooled),
            "4x2x2",
            tuple(pooled / f"{e}_final" for e in experts),
            before=clone,
            planned=lambda: training("experts", "4x2x2"),
        ),
        Row(
            "router",
            on("experiments/router.py"),
            "1x1",
            (run / "checkpoints/router_final",),
            planned=using("router", "1x1", *TRUNK),
        ),
        Row(
            "evaluate",
            on("experiments/evaluate.py"),
            "1x1",
            (run / "evaluation.json",),
            planned=using("evaluate", "1x1", *every),
        ),
        Row(
            "quantize",
            on("tools/quantize.py"),
            "1x1",
            weights,
            SEALING_LIMIT,
            planned=using("calibrate", "1x1", *every),
        ),
        Row(
            "quantize",
            on("tools/quantize.py", "--mesh", "2x2", "--out", root / "sharded/weights"),
            "2x2",
            (root / "sharded/weights",),
            SEALING_LIMIT,
            planned=using("calibrate", "2x2", *every),
        ),
        Row("pack", on("tools/pack.py"), "", (sealed,), SEALING_LIMIT),
        Row("verify", tool("verify", sealed), ""),
        Row("verify, second", tool("s7l_verify", sealed), ""),
        Row("selftest", tool("selftest", sealed), ""),
        Row("selftest by XLA", tool("selftest", sealed, "--engine", "xla", "--mesh", "2x2"), "2x2"),
        Row(
            "generate",
            tool("generate", sealed, *prompt, "--proof", proof),
            "1x1",
            (proof,),
        ),
        Row("replay", tool("verify", sealed, "--replay", proof), ""),
        Row(
            "replay by XLA",
            tool("verify", sealed, "--replay", proof, "--engine", "xla", "--mesh", "2x2"),
            "2x2",
        ),
        Row("serve", tool("serve", sealed, "--rows", "2"), "1x1", during=_ask),
        Row("verify running", tool("verify", sealed, "--run"), "1x1"),
        Row("compare", on("experiments/evaluate.py", "--sealed", sealed), "1x1"),
        Row("inspect", tool("inspect_checkpoint", sealed, "--weights", "--json"), ""),
        Row("inspect trunk", tool("inspect_checkpoint", run / "checkpoints/trunk_final"), ""),
        Row("diff", tool("inspect_checkpoint", "--diff", sealed, sealed), ""),
        Row(
            "extract",
            tool("inspect_checkpoint", sealed, "--extract", "expert1", "--out", bundle),
            "",
            (bundle,),
        ),
        Row("verify bundle", tool("verify", bundle), ""),
        Row(
            "convert",
            tool("convert", sealed, tensors),
            "",
            (tensors,),
        ),
        Row("convert back", tool("convert", tensors, again), "", (again,), before=fresh(again)),
        Row("plan", tool("plan", "--preset", name, "--json"), ""),
        Row(
            "plan, compiled",
            tool("plan", "--preset", name, *compiled, "--set", *small, "experts.batch=2"),
            "2x2",
        ),
    ]


def run_row(row: Row, log: Path) -> Taken:
    """Run one row's process, without what it made before, and measure it.

    Raises:
        InputError: it failed; its last words are in the message.
    """
    _remove(*row.made)
    if row.before:
        row.before()
    taken = log.with_suffix(".json")
    command = [sys.executable, "-S", str(MEASURED), str(taken), sys.executable, *row.command]
    began = time.monotonic()
    port = _free_port() if row.during else 0
    if row.during:
        command += ["--port", str(port)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(log.parent / "programs")}
    with log.open("w") as out:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT
        )
        try:
            if row.during:
                row.during(port)
        finally:
            if row.during:
                process.terminate()
            process.wait()
    if process.returncode not in (0, 128 + signal.SIGTERM if row.during else 0):
        words = log.read_text().strip().splitlines() or ["no message"]
        raise InputError(f"{row.name} on {row.mesh or 'no mesh'} failed: {words[-1]} ({log})")
    usage = json.loads(taken.read_text())
    return Taken(
        row.name,
        row.mesh,
        time.monotonic() - began,
        usage["cpu_s"],
        usage["peak_kib"] / 2**20,
        sum(_size(path) for path in row.made),
        row.limit,
    )


def _remove(*paths: Path) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)


def _ask(port: int) -> None:
    """One completion of a server that may still be starting."""
    body = json.dumps({"prompt": "2 + 2 =", "max_tokens": 16}).encode()
    base, patience = f"http://127.0.0.1:{port}", time.monotonic() + 600
    while True:
        try:
            urllib.request.urlopen(f"{base}/readyz", timeout=5).close()
            break
        except OSError as e:
            if time.monotonic() > patience:
                raise InputError(f"the server does not answer at {base}: {e}") from e
            time.sleep(0.5)
    request = urllib.request.Request(
        f"{base}/v1/completions", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        assert json.load(answer)["choices"][0]["text"] is not None


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def table(taken: Sequence[Taken]) -> str:
    """The rows as Markdown."""
    lines = ["| phase | mesh | wall, s | CPU, s | peak, GiB | planned | at most | written, MB |"]
    lines.append("|---" * 8 + "|")
    for t in taken:
        size = f"{t.size / 1e6:,.1f}" if t.size else ""
        planned = f"{t.planned:.2f}" if t.planned else ""
        cells = [t.name, t.mesh, f"{t.wall:,.0f}", f"{t.cpu:,.0f}", f"{t.peak:.2f}", planned]
        lines.append("| " + " | ".join([*cells, f"{t.limit:.0f}", size]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is not yet measured, write and print the table."""
    parser = cli.parser(__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="s7-140m")
    parser.add_argument("--run", type=Path, default=Path("runs/whole"), metavar="DIR")
    parser.add_argument("--only", nargs="+", metavar="PHASE", help="these, again if need be")
    args: argparse.Namespace = parser.parse_args()
    root = args.run.absolute()
    wanted = rows(root, args.preset)
    labels = [{row.name, f"{row.name} {row.mesh}"} for row in wanted]
    only = set(args.only or [])
    if unknown := only - set[str]().union(*labels):
        raise UsageError(f"--only: no phase {', '.join(sorted(unknown))}")
    root.mkdir(parents=True, exist_ok=True)
    results = root / "whole.json"
    known = json.loads(results.read_text()) if results.exists() else []
    taken = {(t["name"], t["mesh"]): Taken(**t) for t in known}
    for i, row in enumerate(wanted):
        key = row.name, row.mesh
        if labels[i] & only if only else key not in taken:
            print(f"{row.name} {row.mesh}", end=" ", flush=True)
            found = taken[key] = run_row(row, root / f"{i:02}-{row.name.replace(' ', '-')}.log")
            print(f"{found.wall:.0f} s, {found.peak:.2f} GiB", flush=True)
            write_json(results, [asdict(t) for t in taken.values()])
    for row in [] if only else wanted:
        found = taken[row.name, row.mesh]
        if row.planned and not found.planned:
            planned = row.planned() / 2**30
            taken[row.name, row.mesh] = replace(found, planned=planned)
            write_json(results, [asdict(t) for t in taken.values()])
    done = [taken[row.name, row.mesh] for row in wanted if (row.name, row.mesh) in taken]
    write_bytes(root / "whole.md", table(done).encode())
    print(table(done), end="")
    if over := [f"{t.name} {t.mesh}" for t in done if t.peak > t.limit]:
        raise InputError(f"more memory than allowed: {', '.join(over)}")
    said = [t for t in done if t.planned]
    if off := [f"{t.name} {t.mesh}" for t in said if abs(t.planned / t.peak - 1) > WITHIN]:
        raise InputError(f"planned and peak differ by more than {WITHIN:.0%}: {', '.join(off)}")


if __name__ == "__main__":
    cli.main(main)
