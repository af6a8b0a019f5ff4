"""Measure the sealed integer model against the float one in XLA: prefill and decode.

The model has the preset's dimensions and initial weights (speed does not depend on values). Both
sides run trunk, one expert and the head of the last token, with a cache, on one device, in turns;
figures are medians of one run.

Examples:
  python benchmarks/integer.py
  python benchmarks/integer.py --preset s7-nano --repeat 51 --json
"""

import dataclasses
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from seal import vocabulary

from s7jax import s7l
from s7jax.architecture import Architecture, Stack
from s7jax.config import PRESETS, preset
from s7jax.integer.program import Program
from s7jax.mesh import single
from s7jax.model.layers import rms_normalize, rope
from s7jax.model.parameters import host, initial, named_tensors
from s7jax.quantize.calibrate import calibrate
from s7jax.quantize.export import integer_tensors
from s7jax.terminal import cli

Cache = list[tuple[jax.Array, jax.Array]]
Step = Callable[[int, int], Any]  # (start, length) → logits, waited for


def main() -> None:
    """Make the model, measure, print."""
    parser = cli.parser(__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="s7-140m")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of one prefill")
    parser.add_argument("--repeat", type=int, default=21, help="measurements of each figure")
    parser.add_argument("--json", action="store_true", help="JSON on standard output")
    args = parser.parse_args()
    cfg = preset(args.preset).model
    params = initial(cfg, 0, single())
    with tempfile.TemporaryDirectory() as folder:
        sealed = make_seal(Path(folder), cfg, params)
        steps = {
            "int8": integer_step(Program(s7l.open(sealed), [single()]), args.prompt),
            "fp32": float_step(cfg, host(params), args.prompt),
        }
        rows = measure(steps, cfg, args.prompt, args.repeat)
    if args.json:
        print(json.dumps(rows, indent=1))
    else:
        for name, value in rows.items():
            print(f"{name:<44}{value:>12.2f}")


def measure(
    steps: dict[str, Step], cfg: Architecture, prompt: int, repeat: int
) -> dict[str, float]:
    """Tokens per second of both, their ratio, and the weights read per second."""
    rows: dict[str, float] = {}
    for what, start, length in (("prefill", 0, prompt), ("decode", prompt, 1)):
        times: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(repeat + 2):  # the first two compile and warm up
            for name, step in steps.items():
                began = time.perf_counter()
                step(start, length)
                times[name].append(time.perf_counter() - began)
        for name in steps:
            times[name] = times[name][2:]
            middle = statistics.median(times[name])
            rows[f"{what}, {name}, tokens/s"] = length / middle
            if what == "decode":
                size = active(cfg) * (1 if name == "int8" else 4)
                rows[f"{what}, {name}, GB/s of weights"] = size / middle / 1e9
        pairs = zip(times["fp32"], times["int8"], strict=True)
        rows[f"{what}, int8 over fp32, tokens/s"] = statistics.median(f / i for f, i in pairs)
    return rows


def active(cfg: Architecture) -> int:
    """Weights that one token reads: trunk, one expert, the head."""

    def stack(s: Stack) -> int:
        return s.layers * (4 * s.hidden**2 + 2 * s.hidden * s.ffn)

    ends = cfg.trunk.hidden * (cfg.vocab + 2 * cfg.expert.hidden)
    return stack(cfg.trunk) + stack(cfg.expert) + ends


def make_seal(root: Path, cfg: Architecture, params: Any) -> Path:
    """A sealed model of these parameters, calibrated on a few random tokens."""
    tokens = np.random.default_rng(0).integers(0, cfg.vocab, (1, 33)).astype(np.int32)
    ranges = calibrate(cfg, params, {domain: tokens for domain in cfg.domains})
    (root / "vocab.json").write_text(json.dumps(vocabulary(cfg.vocab, random.Random(0))))
    tensors = integer_tensors(params, ranges)
    s7l.write_weights(root / "weights", dataclasses.asdict(cfg), tensors, {})
    s7l.seal(root / "weights", root / "vocab.json", root / "model.s7l")
    return root / "model.s7l"


def integer_step(program: Program, prompt: int) -> Step:
    """One chunk through the sealed model; its caches grow from call to call."""
    slots = 2 * prompt
    caches = [program.trunk_cache(1, slots), program.expert_cache(0, 1, slots)]

    def step(start: int, length: int) -> Any:
        at, tokens = np.full(1, start), np.zeros((1, length), np.int32)
        h, _, caches[0] = program.trunk(tokens, at, caches[0])
        y, caches[1] = program.expert(0, h, at, caches[1])
        return jax.block_until_ready(program.head(y[:, -1:]))

    return step


def float_step(cfg: Architecture, params: Any, prompt: int) -> Step:
    """The same of the float model, every layer a copy of its own as XLA likes it best."""
    slots = 2 * prompt
    model = {n: t for n, t in named_tensors(params) if n.split(".")[0] in USED}
    on_device = {name: jnp.asarray(tensor) for name, tensor in model.items()}
    caches = [empty(cfg.trunk, slots), empty(cfg.expert, slots)]
    run = jax.jit(partial(forward, cfg), donate_argnums=(3, 4))

    def step(start: int, length: int) -> Any:
        tokens = jnp.zeros((1, length), jnp.int32)
        logits, *caches[:] = run(on_device, tokens, jnp.int32(start), *caches)
        return jax.block_until_ready(logits)

    return step


USED = ("embedding", "trunk", "expert0")


def empty(stack: Stack, slots: int) -> Cache:
    """Float keys and values [1, H, S, K] for every layer."""
    shape = (1, stack.heads, slots, stack.head_dim)
    return [(jnp.zeros(shape), jnp.zeros(shape)) for _ in range(stack.layers)]


def forward(
    cfg: Architecture, p: dict[str, jax.Array], tokens: jax.Array, start: jax.Array, *caches: Cache
) -> tuple[jax.Array, Cache, Cache]:
    """Logits [1, 1, V] of the chunk's last token, and both caches."""
    x = p["embedding.weight"][tokens]
    h, trunk_cache = stacked(cfg.trunk, p, "trunk", x, start, caches[0])
    x = norm(h, p["expert0.in_norm.gain"]) @ p["expert0.in_proj.weight"]
    x, expert_cache = stacked(cfg.expert, p, "expert0", x, start, caches[1])
    h = h + norm(x, p["expert0.out_norm.gain"]) @ p["expert0.out_proj.weight"]
    last = norm(h[:, -1:], p["trunk.final_norm.gain"])
    return last @ p["embedding.weight"].T, trunk_cache, expert_cache


def stacked(
    stack: Stack,
    p: dict[str, jax.Array],
    name: str,
    x: jax.Array,
    start: jax.Array,
    cache: Cache,
) -> tuple[jax.Array, Cache]:
    """The blocks of one segment."""
    B, T, _ = x.shape
    kept = []
    slots = cache[0][0].shape[2]
    seen = jnp.arange(slots) <= start + jnp.arange(T)[:, None]
    for i in range(stack.layers):
        layer = f"{name}.layer{i}"
        a = norm(x, p[f"{layer}.attn_norm.gain"])
        q, k, v = (
            (a @ p[f"{layer}.attn.{n}_proj.weight"]).reshape(B, T, stack.heads, stack.head_dim)
            for n in "qkv"
        )
        # The rotation of a chunk that starts elsewhere costs the same.
        q, k, v = (t.transpose(0, 2, 1, 3) for t in (turned(q), turned(k), v))
        keys, values = (
            jax.lax.dynamic_update_slice(old, new, (0, 0, start, 0))
            for old, new in zip(cache[i], (k, v), strict=True)
        )
        z = jnp.where(seen, q @ keys.transpose(0, 1, 3, 2) * stack.head_dim**-0.5, -jnp.inf)
        y = (jax.nn.softmax(z) @ values).transpose(0, 2, 1, 3).reshape(B, T, -1)
        x = x + y @ p[f"{layer}.attn.o_proj.weight"]
        u = jax.nn.gelu(norm(x, p[f"{layer}.ffn_norm.gain"]) @ p[f"{layer}.ffn.fc1.weight"])
        x = x + u @ p[f"{layer}.ffn.fc2.weight"]
        kept.append((keys, values))
    return x, kept


def turned(x: jax.Array) -> jax.Array:
    """QK-norm and rotation of [B, T, H, K]."""
    return rope(rms_normalize(x))


def norm(x: jax.Array, gain: jax.Array) -> jax.Array:
    """RMSNorm."""
    return rms_normalize(x) * gain


if __name__ == "__main__":
    cli.main(main)
