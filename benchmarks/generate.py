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
from s7jax.mesh import single
from s7jax.model.parameters import host, initial
from s7jax.runtime import Engine, Model, Request
from s7jax.runtime.compute import ENGINES
from s7jax.terminal import cli

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = {
    "code": "def area(width, height):\n    return width * height\n\n\ndef volume(width, height,",
    "math": "Solve 3x + 4 = 19. Subtract 4 from both sides: 3x = 15. Divide by 3: x = 5.\nSolve 2x",
}
ROWS = (1, 2, 4, 8)
DRAFTS = {"no drafts": (0, "lookup"), "2 by lookup": (2, "lookup"), "4 by lookup": (4, "lookup")}
DRAFTS |= {"2 by the trunk": (2, "trunk")}


def main() -> None:
    """Open or make the model, measure, print."""
    parser = cli.parser(__doc__)
    parser.add_argument("file", type=Path, nargs="?", help="sealed model")
    parser.add_argument("--preset", choices=PRESETS, default="s7-nano")
    parser.add_argument("--engine", choices=ENGINES, default="auto")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--repeat", type=int, default=9, help="measurements of each figure")
    parser.add_argument("--json", action="store_true", help="JSON on standard output")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cfg = preset(args.preset).model
        path = args.file or make_seal(Path(folder), cfg, initial(cfg, 0, single()))
        rows = measure(path, args.engine, args.tokens, args.repeat)
    if args.json:
        print(json.dumps(rows, indent=1))
    else:
        for name, value in rows.items():
            print(f"{name:<56}{value:>12.2f}")


def measure(path: Path, engine: str, tokens: int, repeat: int) -> dict[str, float]:
    """Every figure by name."""
    model = Model(s7l.open(path), engine=engine)
    compute, policy = model.compute, model.policy(max_new_tokens=tokens, stop=())
    sides = {
        f"{rows} rows" if rows > 1 else "1 row": (Engine(compute, rows, drafts=0), "code", rows)
        for rows in ROWS
    }
    for domain in PROMPTS:
        for name, (drafts, drafter) in DRAFTS.items():
            alone = Engine(compute, 1, drafts=drafts, drafter=drafter)
            sides[f"{domain}, {name}"] = alone, domain, 1
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeat + 1):  # the first compiles
        for name, (one, domain, rows) in sides.items():
            began = time.perf_counter()
            for _ in range(rows):
                one.submit(Request(model.prompt(PROMPTS[domain]), policy))
            one.run()
            times[name].append(time.perf_counter() - began)
    first = [statistics.median(cold(path, engine, 4, keep)[1:]) for keep in "01"]
    found = {
        "first token from a new process, nothing kept, s": first[0],
        "first token from a new process, s": first[1],
    }
    for name, (_, domain, rows) in sides.items():
        plain = times["1 row" if "row" in name else f"{domain}, no drafts"]
        found[f"{name}, tokens/s"] = rows * tokens / statistics.median(times[name][1:])
        if times[name] is not plain:
            pairs = zip(plain[1:], times[name][1:], strict=True)
            found[f"{name}, against plain"] = statistics.median(rows * a / b for a, b in pairs)
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


def cold(path: Path, engine: str, repeat: int, keep: str) -> list[float]:
    """Seconds from starting a process to its first token; ``"1"`` to keep compiled programs."""
    command = [sys.executable, str(ROOT / "tools/generate.py"), str(path), "--engine", engine]
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
