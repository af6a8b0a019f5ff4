"""The same network and the same step in PyTorch, to be measured beside ours.

Weights are ours (:func:`load`), so an equal loss shows an equal network. Eager or compiled; on
GPUs bfloat16 autocast, where scaled_dot_product_attention takes its flash kernel.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s7jax.architecture import Architecture, Stack
from s7jax.config import Recipe

EPSILON = 1e-6


def normalize(x: Tensor) -> Tensor:
    """RMS normalisation in float32."""
    return F.rms_norm(x.float(), x.shape[-1:], eps=EPSILON)


class Block(nn.Module):
    """One pre-norm layer with rotary attention, RMS-normalised q and k, GELU."""

    def __init__(self, cfg: Stack, context: int) -> None:
        super().__init__()
        self.heads, self.width = cfg.heads, cfg.head_dim
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, name, nn.Linear(cfg.hidden, cfg.hidden, bias=False))
        self.fc1 = nn.Linear(cfg.hidden, cfg.ffn, bias=False)
        self.fc2 = nn.Linear(cfg.ffn, cfg.hidden, bias=False)
        self.attn_norm = nn.Parameter(torch.ones(cfg.hidden))
        self.ffn_norm = nn.Parameter(torch.ones(cfg.hidden))
        rate = 10_000.0 ** (-torch.arange(0, self.width, 2) / self.width)
        angle = torch.arange(context)[:, None] * rate
        self.register_buffer("sin", angle.sin())
        self.register_buffer("cos", angle.cos())

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] → [B, T, D]."""
        B, T, D = x.shape
        y = (normalize(x) * self.attn_norm).to(x.dtype)
        q, k, v = (
            project(y).view(B, T, self.heads, self.width).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = (self._rotate(normalize(z)).to(v.dtype) for z in (q, k))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o_proj(y.transpose(1, 2).reshape(B, T, D))
        y = (normalize(x) * self.ffn_norm).to(x.dtype)
        return x + self.fc2(F.gelu(self.fc1(y), approximate="tanh"))

    def _rotate(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * self.cos - b * self.sin, b * self.cos + a * self.sin], dim=-1)


class Layers(nn.Module):
    """``cfg.layers`` blocks."""

    def __init__(self, cfg: Stack, context: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(cfg, context) for _ in range(cfg.layers))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] → [B, T, D]."""
        for block in self.blocks:
            x = block(x)
        return x


class Model(nn.Module):
    """Phase 1's model, or with ``phase="experts"`` Phase 2's: an expert on a frozen trunk."""

    def __init__(self, cfg: Architecture, phase: str) -> None:
        super().__init__()
        D, E = cfg.trunk.hidden, cfg.expert.hidden
        self.embedding = nn.Embedding(cfg.vocab, D)
        self.trunk = Layers(cfg.trunk, cfg.context)
        self.final_norm = nn.Parameter(torch.ones(D))
        self.phase = phase
        if phase == "experts":
            self.requires_grad_(False)
            self.in_norm, self.out_norm = (nn.Parameter(torch.ones(n)) for n in (D, E))
            self.in_proj = nn.Linear(D, E, bias=False)
            self.out_proj = nn.Linear(E, D, bias=False)
            self.expert = Layers(cfg.expert, cfg.context)

    def forward(self, tokens: Tensor) -> Tensor:
        """int [B, T + 1] → mean next-token loss."""
        x = self.embedding(tokens[:, :-1])
        if torch.is_autocast_enabled("cuda"):
            x = x.bfloat16()
        h = self.trunk(x)
        if self.phase == "experts":
            y = self.in_proj((normalize(h) * self.in_norm).to(h.dtype))
            y = self.expert(y)
            h = h + self.out_proj((normalize(y) * self.out_norm).to(h.dtype))
        x = (normalize(h) * self.final_norm).to(h.dtype)
        logits = F.linear(x, self.embedding.weight).float()
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def load(model: Model, params: dict[str, Any]) -> None:
    """Take over the weights of our parameter tree (NumPy); W[in, out] becomes W[out, in]."""
    with torch.no_grad():
        model.embedding.weight.copy_(_tensor(params["embedding"]["weight"]))
        model.final_norm.copy_(_tensor(params["trunk"]["final_norm"]["gain"]))
        _load_stack(model.trunk, params["trunk"]["layers"])
        if model.phase == "experts":
            expert = params["expert0"]
            for name in ("in_norm", "out_norm"):
                getattr(model, name).copy_(_tensor(expert[name]["gain"]))
            for name in ("in_proj", "out_proj"):
                getattr(model, name).weight.copy_(_tensor(expert[name]["weight"]).T)
            _load_stack(model.expert, expert["layers"])


def _load_stack(stack: Layers, tree: dict[str, Any]) -> None:
    for i, block in enumerate(stack.blocks):
        for norm in ("attn_norm", "ffn_norm"):
            getattr(block, norm).copy_(_tensor(tree[norm]["gain"][i]))
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            getattr(block, name).weight.copy_(_tensor(tree["attn"][name]["weight"][i]).T)
        for name in ("fc1", "fc2"):
            getattr(block, name).weight.copy_(_tensor(tree["ffn"][name]["weight"][i]).T)


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array))


class Trainer:
    """The recipe's step: microbatches accumulated in float32, clip, AdamW on matrices."""

    def __init__(self, model: Model, recipe: Recipe, device: str, compiled: bool) -> None:
        model = model.to(device)
        self._recipe, self._device = recipe, device
        self._run = torch.compile(model) if compiled else model
        trained = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(
            groups, lr=recipe.peak_lr, betas=recipe.betas, fused=True
        )
        self._trained = trained

    def step(self, tokens: np.ndarray, rate: float | None = None) -> float:
        """One optimizer step on the global batch, at the peak or another rate; returns its loss."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._recipe.peak_lr if rate is None else rate
        total = 0.0
        pieces = torch.from_numpy(tokens).long().to(self._device).split(self._recipe.microbatch)
        cuda = self._device == "cuda"
        for piece in pieces:
            with torch.autocast("cuda", torch.bfloat16, enabled=cuda):
                loss = self._run(piece)
            (loss / len(pieces)).backward()
            total = total + loss.detach() / len(pieces)
        nn.utils.clip_grad_norm_(self._trained, self._recipe.clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(total)
