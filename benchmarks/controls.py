"""Whether the experts of a run are worth having: against dense models that cost as much to train.

The dense control is the run's own trunk, trained on for longer, on the same mixture, with the
schedule stretched: once for as many operations as all phases of the run together, and once for as
many tokens. All are scored on the run's held-out sequences, position by position; intervals are
95 % by bootstrap over sequences, paired, domains weighing alike.

Examples:
  python benchmarks/controls.py runs/real                 trains both beside it, in runs/real-…
  python benchmarks/controls.py runs/real --control tokens --json
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from s7jax import mesh as meshes
from s7jax.config import Config
from s7jax.data.mixture import held_out
from s7jax.data.prepared import Prepared
from s7jax.errors import UsageError
from s7jax.model.flops import flops_per_token
from s7jax.model.language_model import Params
from s7jax.runs.pipeline import final_params
from s7jax.storage import write_json
from s7jax.terminal import cli
from s7jax.train import determinism, loop
from s7jax.train.evaluate import score
from s7jax.train.folder import RunFolder
from s7jax.train.phase import Phase
from s7jax.train.run import Run, load_trunk

CONTROLS = ("flops", "tokens")
RESAMPLES = 10_000


def parse() -> argparse.Namespace:
    """The command line."""
    parser = cli.parser(__doc__)
    parser.add_argument("run", type=Path, help="a finished run")
    parser.add_argument("--control", choices=CONTROLS, nargs="+", default=CONTROLS)
    parser.add_argument("--json", action="store_true", help="JSON on standard output")
    return parser.parse_args()


def dense_tokens(config: Config, equal: str) -> int:
    """Tokens of Phase 1 that cost what all phases of a run cost, in operations or in tokens."""
    experts = sum(domain.tokens for domain in config.domains)
    if equal == "tokens":
        return config.trunk.tokens + experts
    trunk, expert = (flops_per_token(config.model, phase, causal=False) for phase in (True, False))
    return config.trunk.tokens + experts * expert // trunk


def dense(run: Run, equal: str) -> tuple[int, Params]:
    """Tokens and parameters of a dense control, trained where it is not yet."""
    tokens = dense_tokens(run.config, equal)
    longer = dataclasses.replace(run.config.trunk, tokens=tokens)
    config = dataclasses.replace(run.config, trunk=longer)
    folder = RunFolder(run.folder.path.with_name(f"{run.folder.path.name}-dense-{equal}"))
    folder.path.mkdir(exist_ok=True)
    control = dataclasses.replace(run, folder=folder, config=config)
    loop.train(control, Phase(config), {})
    return tokens, load_trunk(control)


def nats(run: Run, params: Params, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Loss of each sequence, float64 [N], of trunk, experts and routed model."""
    config, rows = run.config, []
    with jax.set_mesh(run.mesh):
        for scores in score(config.model, params, tokens, run.mesh, config.compute):
            each = scores["nll"].astype(np.float64)
            route = scores["router_route"][None]
            routed = np.take_along_axis(each[1:], route, axis=0)
            rows.append(np.concatenate([each, routed]).sum(axis=2))
    names = ("trunk", *(f"expert{e}" for e in range(len(config.domains))), "routed")
    return dict(zip(names, np.concatenate(rows, axis=1), strict=True))


def compare(run: Run, controls: dict[str, Params]) -> dict[str, Any]:
    """Bits per byte by domain and model, and what routing gains on each in mean, in %."""
    params = final_params(run)
    bits: dict[str, dict[str, float]] = {}
    draws = np.random.default_rng(0)
    ratios: dict[str, list[np.ndarray]] = {name: [] for name in ("trunk", *controls)}
    for e, domain in enumerate(run.config.model.domains):
        rows = held_out(run.prepared, domain, run.config.eval_sequences)
        found = nats(run, params, rows)
        found["oracle"] = found[f"expert{e}"]
        for name, control in controls.items():
            found[name] = nats(run, params | control, rows)["trunk"]
        size = run.prepared.tokenizer.token_lengths[rows[:, 1:]].sum(axis=1)
        bits[domain] = {
            name: float(each.sum() / size.sum() / np.log(2)) for name, each in found.items()
        }
        again = draws.integers(0, len(rows), (RESAMPLES, len(rows)))
        for name, those in ratios.items():
            those.append(found["routed"][again].sum(1) / found[name][again].sum(1))
    gains = {
        name: {
            "mean": 100 * (1 - np.mean([row["routed"] / row[name] for row in bits.values()])),
            "interval": [
                float(100 * (1 - q)) for q in np.quantile(np.mean(those, axis=0), (0.975, 0.025))
            ],
        }
        for name, those in ratios.items()
    }
    return {"bits_per_byte": bits, "routed_gains_percent": gains}


def show(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    names = ("trunk", "oracle", "routed", *report["tokens"])
    lines = ["| domain | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|"]
    for domain, row in report["bits_per_byte"].items():
        lines.append(f"| {domain} | " + " | ".join(f"{row[name]:.4f}" for name in names) + " |")
    lines.append("")
    for name, gain in report["routed_gains_percent"].items():
        low, high = gain["interval"]
        lines.append(
            f"Fewer bits than {name}, routed: {gain['mean']:.2f} % ({low:.2f} to {high:.2f})"
        )
    return "\n".join(lines)


def main() -> None:
    """Train the controls, compare, print."""
    args = parse()
    determinism.enforce()
    if not (args.run / "config.json").is_file():
        raise UsageError(f"{args.run}: not a run")
    folder = RunFolder(args.run)
    pools = tuple(meshes.pools(meshes.SINGLE))
    run = Run(folder, folder.config(), Prepared.load(folder.prepared), pools)
    with cli.quiet(args.json):
        controls = {f"dense, equal {equal}": dense(run, equal) for equal in args.control}
        report = compare(run, {name: params for name, (_, params) in controls.items()})
        report["tokens"] = {name: tokens for name, (tokens, _) in controls.items()}
        write_json(args.run / "controls.json", report)
    print(json.dumps(report) if args.json else show(report))


if __name__ == "__main__":
    cli.main(main)
