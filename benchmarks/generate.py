"""Measure generation from a sealed model: first token from a new process, then tokens per second.

Speculative drafts and batches against plain decoding of one row, medians of one run, measured in
turns. Without a file a model with the preset's dimensions and initial weights is made; drafts
are of use only with a trained one.

Examples:
  python benchmarks/generate.py runs/demo/model/moe.s7l
  python benchmarks/generate.py --preset s7-140m --repeat 5 --json
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from integer import float_step, make_seal

from s7jax import s7l
from s7jax.config import PRESETS, preset
from s7jax.mesh import parse, pools, single
from s7jax.model.parameters import host, initial
from s7jax.runtime import Compute, Engine, Request
from s7jax.runtime.policy import Policy
from s7jax.runtime.prompt import Prompt
from s7jax.terminal import cli

ROOT = Path(__file__).resolve().parents[1]
PROMPT = tuple(range(1, 17))
ROWS, DRAFTS = (1, 2, 4, 8), (0, 2, 4)


def main() -> None:
    """Open or make the model, measure, print."""
    parser = cli.parser(__doc__)
    parser.add_argument("file", type=Path, nargs="?", help="sealed model")
    parser.add_argument("--preset", choices=PRESETS, default="s7-nano")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--repeat", type=int, default=9, help="measurements of each figure")
    parser.add_argument("--json", action="store_true", help="JSON on standard output")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cfg = preset(args.preset).model
        path = args.file or make_seal(Path(folder), cfg, initial(cfg, 0, single()))
        rows = measure(path, args.tokens, args.repeat)
    if args.json:
        print(json.dumps(rows, indent=1))
    else:
        for name, value in rows.items():
            print(f"{name:<56}{value:>12.2f}")


def measure(path: Path, tokens: int, repeat: int) -> dict[str, float]:
    """Every figure by name."""
    compute = Compute(s7l.open(path), pools(parse("1x1")))
    engines = {(rows, 0): Engine(compute, rows) for rows in ROWS}
    engines |= {(1, drafts): Engine(compute, 1, drafts=drafts) for drafts in DRAFTS if drafts}
    times: dict[tuple[int, int], list[float]] = {key: [] for key in engines}
    for _ in range(repeat + 1):  # the first compiles
        for (rows, drafts), engine in engines.items():
            policy = Policy(max_new_tokens=tokens)
            began = time.perf_counter()
            for _ in range(rows):
                engine.submit(Request(Prompt(PROMPT), policy))
            engine.run()
            times[rows, drafts].append(time.perf_counter() - began)
    found = {
        "first token from a new process, nothing kept, s": statistics.median(cold(path, 3, "0")),
        "first token from a new process, s": statistics.median(cold(path, 4, "1")[1:]),
    }
    plain = times[1, 0][1:]
    for (rows, drafts), seconds in times.items():
        what = f"{rows} rows" if rows > 1 else "1 row"
        name = f"{what}, {drafts} drafts" if drafts else what
        found[f"{name}, tokens/s"] = rows * tokens / statistics.median(seconds[1:])
        if (rows, drafts) != (1, 0):
            pairs = zip(plain, seconds[1:], strict=True)
            found[f"{name}, over 1 row"] = statistics.median(rows * a / b for a, b in pairs)
    cfg = compute.cfg
    step = float_step(cfg, host(initial(cfg, 0, single())), tokens)
    step(0, 16)
    spent = []
    for i in range(tokens):
        began = time.perf_counter()
        step(16 + i % (tokens - 1), 1)
        spent.append(time.perf_counter() - began)
    found["float model in XLA, 1 row, tokens/s"] = 1 / statistics.median(spent[1:])
    return found


def cold(path: Path, repeat: int, keep: str) -> list[float]:
    """Seconds from starting a process to its first token; ``"1"`` to keep compiled programs."""
    command = [sys.executable, str(ROOT / "tools/generate.py"), str(path)]
    command += ["--prompt", "The", "--max-tokens", "1"]
    seconds = []
    for _ in range(repeat):
        began = time.perf_counter()
        environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": keep}
        subprocess.run(command, check=True, capture_output=True, env=environment)
        seconds.append(time.perf_counter() - began)
    return seconds


if __name__ == "__main__":
    cli.main(main)
