"""Measure the training step: the fixed tree against psum, and against the same model in PyTorch.

Each side is a process of its own; they take turns, one step each, so that a slow minute slows
all; both use AdamW. Figures are medians, ratios medians over the turns: our tree's seconds over
theirs. PyTorch (`pip install torch`) gets our weights and data, and must arrive at the same loss.

Examples:
  python benchmarks/train_step.py                               tree, psum on 8 virtual devices
  python benchmarks/train_step.py --torch --threads 2           beside PyTorch on this CPU, as it
                                  is and compiled
  python benchmarks/train_step.py --torch --phase experts
  python benchmarks/train_step.py --preset s7-140m --gpu --torch --microbatch 16 32 64
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, Self

import jax
import numpy as np

from s7jax import mesh as meshes
from s7jax.config import PRESETS, Config, Recipe, override, preset
from s7jax.devices import of_kind
from s7jax.errors import InputError, UsageError
from s7jax.model import parameters
from s7jax.model.flops import flops_per_token
from s7jax.terminal import cli
from s7jax.train import determinism
from s7jax.train.phase import TRUNK
from s7jax.train.step import Loss, Stepper, expert_loss, initial_state, trunk_loss

SAME_LOSS = 2e-3  # relative; the first losses of two implementations in float32 or bfloat16


def parse() -> argparse.Namespace:
    """The command line."""
    parser = cli.parser(__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="s7-nano")
    parser.add_argument("--phase", choices=("trunk", "experts"), default="trunk")
    parser.add_argument(
        "--mesh", help="of ours (default: 8x1; beside PyTorch one data group for each core)"
    )
    parser.add_argument("--torch", action="store_true", help="beside PyTorch")
    parser.add_argument("--gpu", action="store_true", help="on one GPU, in bfloat16")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--microbatch", type=int, nargs="+", help="sequences; several: in turn")
    parser.add_argument("--repeat", type=int, default=15, help="turns")
    parser.add_argument("--json", action="store_true", help="JSON on standard output")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.repeat < 1 or args.threads < 1:
        raise UsageError("--repeat and --threads: expected at least 1")
    return args


def main() -> None:
    """Measure every microbatch size, print."""
    args = parse()
    if args.worker:
        work(Side(**json.loads(args.worker)))
        return
    rows = [row for size in args.microbatch or [None] for row in measure(args, size)]
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()))


@dataclass(frozen=True)
class Side:
    """One of what is compared: who computes, and how."""

    who: str  # "tree", "psum", "torch" or "torch.compile"
    config: dict[str, Any]
    phase: str
    mesh: str
    gpu: bool
    threads: int


def sides(args: argparse.Namespace, microbatch: int | None) -> list[Side]:
    """Everything to be compared in one run; the first is what the others are compared with."""
    config = override(preset(args.preset), [f'{p}.optimizer="adamw"' for p in ("trunk", "experts")])
    if args.gpu:
        config = override(config, ['compute.precision="bf16"'])
    if microbatch:
        config = override(config, [f"{p}.microbatch={microbatch}" for p in ("trunk", "experts")])
    usual = f"{determinism.cores()}x1" if args.torch else "8x1"
    mesh = "1x1" if args.gpu else args.mesh or usual
    names = ["tree", "psum"] if args.gpu or not args.torch else ["tree", "torch"]
    if args.torch:
        names.append("torch.compile")
    return [
        Side(
            who=name,
            config=override(config, [f'reduction="{name}"'] if name == "psum" else []).to_json(),
            phase=args.phase,
            mesh=mesh,
            gpu=args.gpu,
            threads=args.threads,
        )
        for name in names
    ]


class Worker:
    """A side in a process of its own; use as a context manager."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker", json.dumps(asdict(side))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # The sides share a GPU: none may take its memory beforehand.
            env=os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        )

    def step(self) -> dict[str, float]:
        """Seconds and loss of one step, and the peak memory so far in bytes."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print("step", file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise InputError(f"{self.side.who}: its process ended, see above")
        return json.loads(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


def measure(args: argparse.Namespace, microbatch: int | None) -> list[dict[str, Any]]:
    """One row a side, the first being the one that others are compared with.

    Raises:
        InputError: PyTorch computes something else.
    """
    made = sides(args, microbatch)
    results: dict[str, list[dict[str, float]]] = {side.who: [] for side in made}
    with ExitStack() as running:
        workers = [running.enter_context(Worker(side)) for side in made]
        for turn in range(args.repeat + 2):
            for worker in workers if turn % 2 else workers[::-1]:
                results[worker.side.who].append(worker.step())
    losses = {who: found[0]["loss"] for who, found in results.items()}
    if max(losses.values()) > min(losses.values()) * (1 + SAME_LOSS):
        raise InputError(f"the first losses differ: {losses}: not the same network")
    config = Config.from_json(made[0].config)
    return [_row(args, config, who, found, results["tree"]) for who, found in results.items()]


def _row(
    args: argparse.Namespace,
    config: Config,
    who: str,
    found: list[dict[str, float]],
    ours: list[dict[str, float]],
) -> dict[str, Any]:
    recipe = config.trunk if args.phase == "trunk" else config.experts
    seconds = [step["seconds"] for step in found[2:]]  # the first two compile
    tokens = recipe.batch * config.model.context
    pairs = zip(seconds, (step["seconds"] for step in ours[2:]), strict=True)
    row = {
        "who": who,
        "phase": args.phase,
        "microbatch": recipe.microbatch,
        "seconds": round(statistics.median(seconds), 4),
        "tokens_per_second": round(tokens / statistics.median(seconds)),
        "tree_against_it": round(statistics.median(b / a for a, b in pairs), 3),
        "peak_memory_MiB": round(max(step["memory"] for step in found) / 2**20),
        "loss": round(found[0]["loss"], 5),
    }
    if mfu := _mfu(args, config, row["tokens_per_second"], found[0]["device"]):
        row["mfu"] = mfu
    return row


def _mfu(args: argparse.Namespace, config: Config, rate: float, kind: Any) -> str | None:
    device = of_kind(str(kind))
    if device is None or device.peak_bf16 is None:
        return None
    used = rate * flops_per_token(config.model, args.phase, causal=False) / device.peak_bf16
    if used > 1:
        raise InputError(f"{used:.0%} of the peak of {device.name} is impossible")
    return f"{used:.1%}"


def work(side: Side) -> None:
    """Answer every line on standard input with one step."""
    config = Config.from_json(side.config)
    recipe = config.trunk if side.phase == "trunk" else config.experts
    shape = (recipe.batch, config.model.context + 1)
    tokens = np.random.default_rng(0).integers(0, config.model.vocab, shape, np.int32)
    step, memory, device = (torch_side if side.who.startswith("torch") else our_side)(side, config)
    for _ in sys.stdin:
        began = time.perf_counter()
        loss = step(tokens)
        seconds = time.perf_counter() - began
        answer = {"seconds": seconds, "loss": loss, "memory": memory(), "device": device}
        print(json.dumps(answer), flush=True)


def _resident() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def our_side(side: Side, config: Config) -> Any:
    """(step, peak memory, device) of ours."""
    if not side.gpu:
        jax.config.update("jax_platforms", "cpu")
    determinism.enforce()
    shape = meshes.parse(side.mesh)
    meshes.provision(shape)
    mesh = meshes.make(shape)
    with jax.set_mesh(mesh):
        shared = parameters.initial(config.model, 0, mesh, TRUNK)
        loss: Loss = trunk_loss
        params, frozen = shared, {}
        recipe: Recipe = config.trunk
        if side.phase == "experts":
            params = parameters.initial(config.model, 0, mesh, ("expert0",))["expert0"]
            loss, frozen, recipe = expert_loss, shared, config.experts
        state = initial_state(recipe, params)
    made = (config.model, recipe, loss, mesh, state, frozen, config.reduction, config.compute)
    stepper = Stepper(*made)
    device = jax.devices()[0]

    def step(tokens: np.ndarray) -> float:
        found = float(stepper.step(tokens, recipe.peak_lr)["loss"])
        jax.block_until_ready(stepper.state)
        return found

    def memory() -> float:
        stats = device.memory_stats() if side.gpu else None
        return float(stats["peak_bytes_in_use"]) if stats else _resident()

    return step, memory, device.device_kind


def torch_side(side: Side, config: Config) -> Any:
    """(step, peak memory, device) of PyTorch, with our initial weights."""
    jax.config.update("jax_platforms", "cpu")
    try:
        import torch  # noqa: PLC0415 only where it is asked for
        from torch_model import Model, Trainer, load  # noqa: PLC0415
    except ImportError as e:
        raise UsageError(f"--torch: {e}: pip install torch") from None

    torch.set_num_threads(side.threads)
    torch.manual_seed(0)
    model = Model(config.model, side.phase)
    load(model, parameters.host(parameters.initial(config.model, 0, meshes.single())))
    device = "cuda" if side.gpu else "cpu"
    recipe = config.trunk if side.phase == "trunk" else config.experts
    trainer = Trainer(model, recipe, device, compiled=side.who == "torch.compile")

    def step(tokens: np.ndarray) -> float:
        found = trainer.step(tokens)
        if side.gpu:
            torch.cuda.synchronize()
        return found

    def memory() -> float:
        return float(torch.cuda.max_memory_allocated()) if side.gpu else _resident()

    return step, memory, torch.cuda.get_device_name() if side.gpu else "cpu"


if __name__ == "__main__":
    cli.main(main)
