"""Could training give one digest whatever the model axis? What it takes, and what it costs.

A transformer of its own (pre-norm, tied head, GELU), whose loss and gradient are computed in two
ways: ``plain``, as the compiler partitions it; and ``tree``, where a split product is one over L
logical shards, each a product of its own of one fixed shape, and the L parts are gathered and
added in a fixed binary tree, forward and backward. Each side of each size is a process of its own,
on as many virtual CPU devices as the largest needs. Printed are digests of the gradient, and CPU
seconds over those of ``plain`` on one device. With ``--count h100`` nothing runs: what the compiled
program of a GPU reads, writes and sends is counted (`pip install "jax[cuda13]"`).

Examples:
  python benchmarks/model_axis.py
  python benchmarks/model_axis.py --shards 4
  python benchmarks/model_axis.py --count h100
"""

import argparse
import hashlib
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from s7jax.devices import DEVICES
from s7jax.terminal import cli
from s7jax.train import determinism

AXES = (1, 2, 4)
Params = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """Of the model and its batch."""

    batch: int = 2
    length: int = 512
    hidden: int = 512
    heads: int = 8
    ffn: int = 2_048
    vocab: int = 8_192
    layers: int = 4


def parse() -> argparse.Namespace:
    """The command line."""
    parser = cli.parser(__doc__)
    parser.add_argument("--shards", type=int, default=8, help="logical shards L (default: 8)")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--count", choices=("h100",), help="count a GPU's program instead")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Every way on every axis."""
    args = parse()
    if args.worker:
        way, axis = args.worker.split()
        print(json.dumps(work(way, int(axis), args)))
        return
    first: dict[str, float] = {}
    for way in ("plain", "tree"):
        for axis in AXES:
            command = [sys.executable, __file__, *sys.argv[1:], "--worker", f"{way} {axis}"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            numbers = {k: v for k, v in found.items() if isinstance(v, float)}
            first = first or numbers
            ratios = "  ".join(
                f"{k} {v:.2f} ({v / (first[k] or 1):.2f} x)" for k, v in numbers.items()
            )
            print(f"{way:<6} 1x{axis}  {found.get('digest', ''):<18}{ratios}", flush=True)


def work(way: str, axis: int, args: argparse.Namespace) -> dict[str, Any]:
    """One way on one axis: digest and seconds, or what a GPU's program moves."""
    size = Size(8, 1_024, 512, 8, 2_048, 24_576, 2) if args.count else Size()
    mesh = Mesh(np.array(_devices(axis, args.count)), ("model",), axis_types=(AxisType.Explicit,))
    model = Model(size, args.shards, axis, unrolled=args.count is not None)
    with jax.set_mesh(mesh):
        specs = model.specs if way == "tree" else model.plain_specs
        shapes = model.parameters(way == "tree")
        gradient = jax.jit(model.tree_gradient if way == "tree" else model.plain_gradient)
        rng = np.random.default_rng(0)
        tokens = rng.integers(0, size.vocab, (size.batch, size.length + 1), np.int32)
        if args.count:
            abstract = jax.tree.map(
                lambda x, spec: jax.ShapeDtypeStruct(
                    x.shape, x.dtype, sharding=NamedSharding(mesh, spec)
                ),
                (shapes, tokens),
                (specs, P()),
            )
            return moved(gradient.lower(*abstract).compile().as_text() or "")
        placed = jax.tree.map(
            lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)),
            (shapes, tokens),
            (specs, P()),
        )
        found = jax.block_until_ready(gradient(*placed))
        spent = []
        for _ in range(args.repeat):
            start = time.process_time()
            jax.block_until_ready(gradient(*placed))
            spent.append(time.process_time() - start)
    sha = hashlib.sha256()
    for leaf in jax.tree.leaves(found):
        sha.update(np.asarray(leaf).tobytes())
    return {"digest": sha.hexdigest()[:16], "CPU s": statistics.median(spent)}


def _devices(axis: int, count: str | None) -> list[Any]:
    if count is None:
        jax.config.update("jax_num_cpu_devices", max(AXES))
        determinism.enforce()
        return jax.devices()[:axis]
    os.environ |= {"JAX_PLATFORMS": "cpu,cuda", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}
    os.environ["XLA_FLAGS"] = "--xla_gpu_autotune_level=0"
    from jax.experimental import topologies  # noqa: PLC0415

    from s7jax.sizing.compiled import cuda_target  # noqa: PLC0415

    target = cuda_target(DEVICES[count])
    found = topologies.get_topology_desc(
        "cuda", "cuda", topology=f"1x1x{axis}", target_config=target
    )
    return list(found.devices[:axis])


_WIDTH = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s64": 8}
_LINE = re.compile(r"\s+(?:ROOT )?(%?[\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)")
_FREE = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "opt-barrier"}


def moved(program: str) -> dict[str, Any]:
    """GB that the kernels of a compiled program read and write, and GB that collectives give."""
    sizes: dict[str, int] = {}
    total = sent = 0
    for line in program[program.index("ENTRY") :].splitlines()[1:]:
        if (match := _LINE.match(line)) is None:
            continue
        name, kind, op, operands = match.groups()
        sizes[name] = sum(
            _WIDTH.get(dtype, 4) * int(np.prod([int(n) for n in shape.split(",") if n] or [1]))
            for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", kind)
        )
        if op not in _FREE:
            total += sizes[name]
            total += sum(sizes.get(x.split(" ")[-1], 0) for x in operands.split(", "))
            sent += sizes[name] if op.startswith(("all-gather", "all-reduce")) else 0
    return {"GB": total / 1e9, "collectives GB": sent / 1e9}


class Model:
    """The transformer, both ways. In the tree every split tensor has a leading axis of shards."""

    def __init__(self, size: Size, shards: int, axis: int, unrolled: bool) -> None:
        self.size, self.shards, self.local, self.unrolled = size, shards, shards // axis, unrolled
        layer = P(None, "model", None, None)
        whole = P(None, None)
        gains = {"attn_norm": whole, "ffn_norm": whole}
        self.specs: Params = {
            "embedding": P("model", None, None),
            "layers": {**dict.fromkeys(("q", "k", "v", "o", "fc1", "fc2"), layer), **gains},
        }
        by_output, by_input = P(None, None, "model"), P(None, "model", None)
        self.plain_specs: Params = {
            "embedding": P("model", None),
            "layers": {
                **dict.fromkeys(("q", "k", "v", "fc1"), by_output),
                **dict.fromkeys(("o", "fc2"), by_input),
                **gains,
            },
        }

    def parameters(self, in_shards: bool) -> Params:
        """The same values for both ways."""
        s, rng = self.size, np.random.default_rng(1)

        def normal(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape, np.float32) * np.float32(0.05)

        embedding = normal(s.vocab, s.hidden)
        layers = {n: normal(s.layers, s.hidden, s.hidden) for n in ("q", "k", "v", "o")}
        layers |= {
            "fc1": normal(s.layers, s.hidden, s.ffn),
            "fc2": normal(s.layers, s.ffn, s.hidden),
        }
        if in_shards:
            embedding = embedding.reshape(self.shards, -1, s.hidden)
            for name in ("q", "k", "v", "fc1"):
                split = layers[name].reshape(s.layers, s.hidden, self.shards, -1)
                layers[name] = np.moveaxis(split, 2, 1)
            for name in ("o", "fc2"):
                layers[name] = layers[name].reshape(s.layers, self.shards, -1, s.hidden)
        ones = np.ones((s.layers, s.hidden), np.float32)
        return {"embedding": embedding, "layers": {**layers, "attn_norm": ones, "ffn_norm": ones}}

    # One way: the compiler's.

    def plain_gradient(self, params: Params, tokens: jax.Array) -> Any:
        """Loss and gradient."""
        return jax.value_and_grad(self._plain_loss)(params, tokens)

    def _plain_loss(self, params: Params, tokens: jax.Array) -> jax.Array:
        s, split = self.size, P(None, None, "model")

        def block(x: jax.Array, w: Params) -> jax.Array:
            a, heads = norm(x) * w["attn_norm"], (s.batch, s.length, s.heads, -1)
            q, k, v = (
                jnp.reshape(
                    product(a, w[n], split), heads, out_sharding=P(*split[:2], "model", None)
                )
                for n in "qkv"
            )
            y = jnp.reshape(attention(q, k, v), x.shape, out_sharding=split)
            x = x + product(y, w["o"], P(None, None, None))
            y = jax.nn.gelu(product(norm(x) * w["ffn_norm"], w["fc1"], split))
            return x + product(y, w["fc2"], P(None, None, None))

        x = params["embedding"].at[tokens[:, :-1]].get(out_sharding=P(None, None, None))
        x = norm(self._layers(block, x, params["layers"]))
        logits = jnp.einsum("BTD,VD->BTV", x, params["embedding"], out_sharding=split)
        ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2, out_sharding=split)
        label = jnp.sum(jnp.where(ids == tokens[:, 1:, None], logits, 0.0), -1)
        return jnp.sum(jax.nn.logsumexp(logits, -1) - label)

    # The other: shard by shard, added in a tree.

    def tree_gradient(self, params: Params, tokens: jax.Array) -> Any:
        """Loss and gradient."""
        local = jax.value_and_grad(self._tree_loss)
        every = jax.shard_map(
            local, in_specs=(self.specs, P()), out_specs=(P(), self.specs), check_vma=False
        )
        return every(params, tokens)

    def _tree_loss(self, params: Params, tokens: jax.Array) -> jax.Array:
        s, rows = self.size, self.size.vocab // self.shards
        first = jax.lax.axis_index("model") * self.local + jnp.arange(self.local)

        def attend(inputs: Any) -> jax.Array:
            a, q, k, v, o = inputs
            heads = (s.batch, s.length, s.heads // self.shards, -1)
            y = attention(*((a @ w).reshape(heads) for w in (q, k, v)))
            return y.reshape(*a.shape[:2], -1) @ o

        def block(x: jax.Array, w: Params) -> jax.Array:
            a = self._spread(norm(x) * w["attn_norm"])
            x = x + self._added(self._each(attend, (a, w["q"], w["k"], w["v"], w["o"])))
            a = self._spread(norm(x) * w["ffn_norm"])
            feed = self._each(lambda i: jax.nn.gelu(i[0] @ i[1]) @ i[2], (a, w["fc1"], w["fc2"]))
            return x + self._added(feed)

        def look_up(inputs: Any) -> jax.Array:
            shard, table = inputs
            at = tokens[:, :-1] - shard * rows
            here = (at >= 0) & (at < rows)
            return jnp.where(here[..., None], table[jnp.clip(at, 0, rows - 1)], 0.0)

        x = self._added(self._each(look_up, (first, params["embedding"])))
        x = norm(self._layers(block, x, params["layers"]))
        return self._head(x, params["embedding"], tokens[:, 1:], first)

    def _head(
        self, x: jax.Array, table: jax.Array, labels: jax.Array, first: jax.Array
    ) -> jax.Array:
        rows = self.size.vocab // self.shards

        def forward(x: jax.Array, table: jax.Array) -> tuple[jax.Array, Any]:
            logits = self._each(lambda e: jnp.einsum("BTD,VD->BTV", x, e), table)
            top = jax.lax.pmax(jnp.max(logits, (0, 3)), "model")

            def sums(inputs: Any) -> Any:
                shard, one = inputs
                ids = jax.lax.broadcasted_iota(jnp.int32, one.shape, 2) + rows * shard
                at, e = ids == labels[..., None], jnp.exp(one - top[..., None])
                return e, at, jnp.sum(e, -1), jnp.sum(jnp.where(at, one, 0.0), -1)

            e, at, mass, label = self._each(sums, (first, logits))
            total = self._sum(mass)
            loss = jnp.sum(jnp.log(total) + top - self._sum(label))

            def backward(inputs: Any) -> Any:
                e, at, one = inputs
                g = e / total[..., None] - at.astype(jnp.float32)
                return jnp.einsum("BTV,VD->BTD", g, one), jnp.einsum("BTV,BTD->VD", g, x)

            to_x, to_table = self._each(backward, (e, at, table))
            return loss, (self._sum(to_x), to_table)

        @jax.custom_vjp
        def head(x: jax.Array, table: jax.Array) -> jax.Array:
            return forward(x, table)[0]

        head.defvjp(forward, lambda saved, c: (c * saved[0], c * saved[1]))
        return head(x, table)

    def _each(self, f: Callable[[Any], Any], inputs: Any) -> Any:
        """``f`` of each of this device's shards: the body of a loop, the same on any axis."""
        if not self.unrolled:
            return jax.lax.map(f, inputs)
        parts = [f(jax.tree.map(lambda x, i=i: x[i], inputs)) for i in range(self.local)]
        return jax.tree.map(lambda *x: jnp.stack(x), *parts)

    def _layers(self, block: Callable[..., jax.Array], x: jax.Array, layers: Params) -> jax.Array:
        if not self.unrolled:
            return jax.lax.scan(lambda x, w: (block(x, w), None), x, layers)[0]
        for i in range(self.size.layers):
            x = block(x, jax.tree.map(lambda w, i=i: w[i], layers))
        return x

    def _sum(self, parts: jax.Array) -> jax.Array:
        """The parts of all shards, gathered, in a fixed tree."""
        mine = jax.lax.optimization_barrier(parts)
        every = jax.lax.all_gather(mine, "model", axis=0, tiled=True)
        sums = list(jax.lax.optimization_barrier(every))
        while len(sums) > 1:
            pairs = zip(sums[::2], sums[1::2], strict=True)
            sums = [jax.lax.optimization_barrier(a + b) for a, b in pairs]
        return sums[0]

    def _copies(self, x: jax.Array) -> jax.Array:
        return jax.lax.optimization_barrier(jnp.broadcast_to(x[None], (self.local, *x.shape)))

    def _spread(self, x: jax.Array) -> jax.Array:
        """A copy for each shard; backward, their gradients in the tree."""
        spread = jax.custom_vjp(self._copies)
        spread.defvjp(lambda x: (self._copies(x), None), lambda _, g: (self._sum(g),))
        return spread(x)

    def _added(self, parts: jax.Array) -> jax.Array:
        """The sum in the tree; backward, a copy for each shard."""
        added = jax.custom_vjp(self._sum)
        added.defvjp(lambda x: (self._sum(x), None), lambda _, g: (self._copies(g),))
        return added(parts)


def norm(x: jax.Array) -> jax.Array:
    """Over the root mean square."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


def product(x: jax.Array, weight: jax.Array, out: P) -> jax.Array:
    """x @ W, split as ``out`` says."""
    return jnp.einsum("BTD,DF->BTF", x, weight, out_sharding=out)


def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Causal attention, [B, T, heads, width]."""
    scores = jnp.einsum("BTHK,BSHK->BHTS", q, k) * q.shape[3] ** -0.5
    visible = jnp.tril(jnp.ones((q.shape[1],) * 2, jnp.bool_))
    weights = jax.nn.softmax(jnp.where(visible[None, None], scores, -1e30))
    return jnp.einsum("BHTS,BSHK->BTHK", weights, v)


if __name__ == "__main__":
    cli.main(main)
