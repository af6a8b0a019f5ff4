"""Bits per byte for the CPU-minutes of training: one recipe after another on the same data.

Each row is Phase 1 in a process of its own, with nothing changed but what the row says; bits per
byte are those of its last step on the held-out text, CPU seconds those of the whole process. Rows
of nanoGPT are the same network, text and budget by its recipe in PyTorch (benchmarks/nanogpt.py).
The first row is what the others are compared with. A row that is already trained is not trained
again.

Examples:
  s7jax prepare --preset s7-nano --out data/nano --data code=… math=… reason=… general=…
  python benchmarks/recipe.py --prepared data/nano
  python benchmarks/recipe.py --prepared data/nano --rows adamw default --tokens 4000000
  python benchmarks/recipe.py --prepared data/nano --rows default nanogpt-0.001 nanogpt-0.003
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from s7jax.config import PRESETS, preset
from s7jax.errors import InputError
from s7jax.terminal import cli

ROOT = Path(__file__).parents[1]
ADAMW = 'trunk.optimizer="adamw"'
LARGE = ("trunk.batch=40", "trunk.microbatch=5")
SMALL = ("trunk.batch=20", "trunk.microbatch=5")
SCORES = "bits_per_byte.json"
FIRST_RATE = {"s7-140m": 6e-4, "s7-mini": 2e-3, "s7-nano": 1e-2}  # what the presets began with
ROWS: dict[str, tuple[float | None, tuple[str, ...]]] = {  # times that rate, and what else differs
    "adamw, batch 40": (1, (ADAMW, *LARGE)),
    "adamw": (1, (ADAMW,)),
    "muon, batch 40": (1, LARGE),
    "muon": (1, ()),
    "muon, batch 20, to a rate of 0": (1, (*SMALL, "trunk.final_lr=0", "trunk.muon_rate=3")),
    "muon, to a rate of 0": (1, ("trunk.final_lr=0",)),
    "muon, to three tenths of the rate": (1, ("trunk.final_lr=0.3",)),
    "muon, a fifth of the decay": (1, ("trunk.weight_decay=0.02",)),
    "muon, 1.5 times the rate": (1.5, ()),
    "muon, 3.2 times the rate": (3.2, ()),
    "default": (None, ()),
}
NANOGPT = {f"nanogpt-{peak}": peak for peak in (0.0006, 0.001, 0.003, 0.01)}  # learning rates


def parse() -> argparse.Namespace:
    """The command line."""
    parser = cli.parser(__doc__)
    parser.add_argument("--prepared", type=Path, required=True, help="by s7jax prepare")
    parser.add_argument("--preset", choices=PRESETS, default="s7-nano")
    parser.add_argument("--tokens", type=int, help="of Phase 1 (default: the preset's)")
    parser.add_argument("--rows", nargs="+", choices=[*ROWS, *NANOGPT], default=list(ROWS))
    parser.add_argument("--out", type=Path, default=Path("runs/recipe"), help="for the runs")
    parser.add_argument("--json", action="store_true", help="JSON on standard output")
    return parser.parse_args()


def measure(args: argparse.Namespace, row: str) -> dict[str, Any]:
    """Train one row; its bits per byte by domain, and its CPU seconds.

    Raises:
        InputError: it failed.
    """
    name = f"{args.preset}-{row}-{args.tokens or 'all'}".replace(", ", "-").replace(" ", "-")
    folder = args.out.absolute() / "runs" / name
    taken = folder.with_name(f"{name}.json")  # a rate has a point of its own
    if not taken.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        changes = [f"trunk.tokens={args.tokens}"] if args.tokens else []
        command = [sys.executable, "-S", ROOT / "benchmarks/measured.py", taken, sys.executable]
        if row in NANOGPT:
            command += [ROOT / "benchmarks/nanogpt.py", "--peak", NANOGPT[row]]
            folder.mkdir(exist_ok=True)
            command += ["--out", folder / SCORES]
            changes += [f"trunk.microbatch={preset(args.preset).trunk.batch}"]
        else:
            command += [ROOT / "experiments/trunk.py", "--run", name]
            times, others = ROWS[row]
            changes += [f"trunk.peak_lr={times * FIRST_RATE[args.preset]:g}"] if times else []
            changes += others
        command += ["--preset", args.preset, "--prepared", args.prepared.absolute()]
        command += ["--set", *changes] if changes else []
        done = subprocess.run([*map(str, command)], cwd=args.out, check=False)
        if done.returncode:
            taken.unlink(missing_ok=True)
            raise InputError(f"{row}: training ended with exit code {done.returncode}")
    if row in NANOGPT:
        bits = json.loads((folder / SCORES).read_text())
    else:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        bits = [found["held_out"] for found in map(json.loads, lines) if "held_out" in found][-1]
    return {"row": row, "bits_per_byte": bits, "cpu_s": json.loads(taken.read_text())["cpu_s"]}


def show(rows: list[dict[str, Any]]) -> str:
    """A table in Markdown; the last column is the mean of the domains' ratios to the first row."""
    first, domains = rows[0], list(rows[0]["bits_per_byte"])
    lines = [f"| recipe | {' | '.join(domains)} | CPU s | bits, to the first |"]
    lines.append("|---" * (3 + len(domains)) + "|")
    for row in rows:
        bits = [row["bits_per_byte"][domain] for domain in domains]
        ratios = [b / first["bits_per_byte"][d] for b, d in zip(bits, domains, strict=True)]
        figures = " | ".join(f"{b:.4f}" for b in bits)
        change = 100 * (statistics.mean(ratios) - 1)
        lines.append(f"| {row['row']} | {figures} | {row['cpu_s']:.0f} | {change:+.1f} % |")
    return "\n".join(lines)


def main() -> None:
    """Train every row, print."""
    args = parse()
    with cli.quiet(args.json):
        rows = [measure(args, row) for row in args.rows]
    print(json.dumps(rows) if args.json else show(rows))


if __name__ == "__main__":
    cli.main(main)
