"""Phase 1 as nanoGPT would train it, in PyTorch: what our recipe is measured beside.

The network, the text, its order and the budget are ours. Initial weights (normal, 0.02; into the
residual stream over √(2 · layers)), AdamW (0.9, 0.95; decay 0.1 on matrices), the clip, 100 steps
of warmup and a cosine down to a tenth of the peak are nanoGPT's (its ``train.py``); its peaks are
6e-4 for GPT-2 and 1e-3 for its small model. Compiled, on as many threads as there are cores.

Example:
  python benchmarks/nanogpt.py --prepared data/nano --peak 0.001 --out found.json
"""

import dataclasses
import math
import os
from pathlib import Path

import numpy as np
import torch
from torch_model import Model, Trainer

from s7jax.architecture import Architecture
from s7jax.config import PRESETS, Config, override, preset
from s7jax.data.mixture import held_out, prefetch
from s7jax.data.prepared import Prepared
from s7jax.storage import write_json
from s7jax.terminal import cli
from s7jax.terminal.progress import Progress
from s7jax.train.phase import Phase
from s7jax.train.run import batches

WARMUP = 100  # steps
ROWS = 8  # sequences that are scored at a time


def initialize(model: Model, layers: int) -> None:
    """Weights as nanoGPT draws them."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            inward = name.endswith(("o_proj.weight", "fc2.weight"))
            torch.nn.init.normal_(parameter, 0.0, 0.02 / math.sqrt(2 * layers) if inward else 0.02)


def rate(step: int, steps: int, peak: float) -> float:
    """The learning rate of a step."""
    if step < WARMUP:
        return peak * (step + 1) / (WARMUP + 1)
    done = (step - WARMUP) / max(1, steps - WARMUP)
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))


def train(config: Config, prepared: Prepared, peak: float) -> Model:
    """Phase 1's tokens, once."""
    phase, model = Phase(config), Model(config.model, "trunk")
    initialize(model, config.model.trunk.layers)
    recipe = dataclasses.replace(config.trunk, betas=(0.9, 0.95), weight_decay=0.1, clip=1.0)
    trainer = Trainer(model, recipe, "cpu", compiled=True)
    data = batches(prepared, phase)
    with Progress("nanoGPT", phase.steps, "steps") as progress:
        for step, batch in enumerate(prefetch(data.batch, 0, phase.steps)):
            trainer.step(batch.tokens, rate(step, phase.steps, peak))
            progress.advance(1)
    return model


def score(cfg: Architecture, model: Model, prepared: Prepared, sequences: int) -> dict[str, float]:
    """Held-out bits per byte of every domain, on the text that our evaluation reads."""
    bits = {}
    for domain in cfg.domains:
        rows, nats = held_out(prepared, domain, sequences), 0.0
        for piece in torch.from_numpy(rows).long().split(ROWS):
            with torch.no_grad():
                nats += float(model(piece)) * piece[:, 1:].numel()
        bits[domain] = nats / np.log(2) / prepared.tokenizer.token_lengths[rows[:, 1:]].sum()
    return bits


def main() -> None:
    """Train, score, write."""
    parser = cli.parser(__doc__)
    parser.add_argument("--prepared", type=Path, required=True, help="by s7jax prepare")
    parser.add_argument("--preset", choices=PRESETS, default="s7-nano")
    parser.add_argument("--peak", type=float, default=1e-3, help="learning rate")
    parser.add_argument("--out", type=Path, required=True, help="for bits per byte, JSON")
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE")
    args = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    config, prepared = override(preset(args.preset), args.set), Prepared.load(args.prepared)
    model = train(config, prepared, args.peak)
    write_json(args.out, score(config.model, model, prepared, config.eval_sequences))


if __name__ == "__main__":
    cli.main(main)
