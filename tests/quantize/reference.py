"""The model in float64 NumPy, written anew from its definition, and a small model to try it on.

Takes parameters by sealed name. Where the gains of a smoothed model are absent they are 1, so the
same text computes a model before and after smoothing. T positions, D width, H heads, K head width.
"""

import dataclasses

import jax
import numpy as np

from s7jax.architecture import Architecture, Stack
from s7jax.mesh import single
from s7jax.model.parameters import initial, named_tensors, put_on_mesh, table

CFG = Architecture(
    vocab=96,
    context=32,
    trunk=Stack(layers=2, hidden=32, heads=2, ffn=48),
    expert=Stack(layers=1, hidden=16, heads=2, ffn=32),
    domains=("code", "math"),
    routing_window=4,
)


def lively(cfg=CFG, seed=0, change=lambda named: None):
    """Parameters on one device whose every tensor does something: nothing zero, no gain alike.

    ``change`` may alter the tensors by name, in place.
    """
    params = jax.tree.map(np.array, initial(cfg, seed, single()))
    rng = np.random.default_rng(seed)
    named = dict(named_tensors(params))  # views: layers are slices of the stacked arrays
    for name, tensor in named.items():
        if tensor.ndim == 1:
            tensor[:] = rng.uniform(0.5, 2, tensor.shape)
        elif name.endswith("out_proj.weight") or name == "router.weight":
            tensor[:] = rng.normal(size=tensor.shape) / np.sqrt(len(tensor))
    change(named)
    return put_on_mesh(params, table(cfg), single())


def on(params, cfg, mesh):
    """The same parameters on another mesh."""
    return put_on_mesh(params, table(cfg), mesh)


def tokens(count, cfg=CFG, seed=1):
    """int32 [count, context + 1]."""
    shape = (count, cfg.context + 1)
    return np.random.default_rng(seed).integers(0, cfg.vocab, shape).astype(np.int32)


@dataclasses.dataclass
class Reference:
    """``trunk`` and ``expert`` give what their names say; ``seen`` what stood where."""

    p: dict
    cfg: Architecture = CFG

    def __post_init__(self):
        self.p = {name: np.asarray(x, np.float64) for name, x in self.p.items()}
        self.seen = {}

    def trunk(self, row_T):
        return self._layers("trunk", self.cfg.trunk, self.p["embedding.weight"][row_T])

    def expert(self, e, h_TD):
        name = f"expert{e}"
        x = self._matrix(f"{name}.in_proj", self._norm(f"{name}.in_norm", h_TD))
        x = self._layers(name, self.cfg.expert, x)
        return h_TD + self._matrix(f"{name}.out_proj", self._norm(f"{name}.out_norm", x))

    def head(self, h_TD):
        return self._norm("trunk.final_norm", h_TD) @ self.p["embedding.weight"].T

    def _layers(self, segment, stack, x):
        for layer in (f"{segment}.layer{i}" for i in range(stack.layers)):
            x = x + self._attention(f"{layer}.attn", stack, self._norm(f"{layer}.attn_norm", x))
            u = self._matrix(f"{layer}.ffn.fc1", self._norm(f"{layer}.ffn_norm", x))
            u = 0.5 * u * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3)))
            x = x + self._matrix(f"{layer}.ffn.fc2", u * self._gain(f"{layer}.ffn.fc2"))
        return x

    def _attention(self, name, stack, a):
        T, H, K = len(a), stack.heads, stack.head_dim

        def turned(key):
            x = self._matrix(f"{name}.{key}_proj", a).reshape(T, H, K)
            x = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)
            angle = np.arange(T)[:, None] * 10_000.0 ** (-np.arange(0, K, 2) / K)
            cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
            p, q = x[..., : K // 2], x[..., K // 2 :]
            return np.concatenate([p * cos - q * sin, q * cos + p * sin], axis=-1).reshape(T, -1)

        q = turned("q") * self._gain(f"{name}.q")
        k = self._keep(f"{name}.k", turned("k")) * self._gain(f"{name}.k")
        v = self._keep(f"{name}.v", self._matrix(f"{name}.v_proj", a))
        q, k, v = (x.reshape(T, H, K) for x in (q, k, v))
        z = np.einsum("thk,shk->hts", q, k) / np.sqrt(K)
        z = np.where(np.tril(np.ones((T, T), bool)), z, -np.inf)
        w = np.exp(z - z.max(axis=-1, keepdims=True))
        y = np.einsum("hts,shk->thk", w / w.sum(axis=-1, keepdims=True), v).reshape(T, H * K)
        return self._matrix(f"{name}.o_proj", y * self._gain(f"{name}.o_proj"))

    def _norm(self, name, x):
        x = self._keep(name, x)
        x = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)
        return x * self.p[f"{name}.gain"]

    def _matrix(self, name, a):
        return self._keep(name, a) @ self.p[f"{name}.weight"]

    def _gain(self, name):
        return self.p.get(f"{name}.gain", 1.0)

    def _keep(self, name, x):
        self.seen.setdefault(name, []).append(x)
        return x

    def outputs(self, rows):
        """Logits of every row by trunk and experts: [N, 1 + E, T, V]."""
        result = []
        for row in rows:
            h = self.trunk(row)
            refined = [self.expert(e, h) for e in range(len(self.cfg.domains))]
            result.append([self.head(x) for x in (h, *refined)])
        return np.array(result)
