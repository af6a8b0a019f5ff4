# Copyright the s7jax authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The model in PyTorch, for transformers: shared trunk, residual experts, one routed per position.

This file lies in every exported folder and needs torch and transformers alone. Tensors have the
names and the shapes they were trained with; every matrix is W[in, out].

The trunk turns tokens into h. Each expert refines h; the router's logits on h, summed over the
last ``routing_window`` positions, choose whose refinement the head reads at a position.
Shape suffixes: B batch, T positions now, S positions in all, D hidden, H heads, K head width,
E experts, V vocabulary, W routing window.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

NORM_EPSILON = 1e-6
ROPE_BASE = 10_000.0

# How this version of transformers calls the keys and values of earlier positions.
_NAMES = [field.name for field in fields(CausalLMOutputWithPast)]
CACHE = "cache" if "cache" in _NAMES else "past_key_values"

_STACK = {"layers": 1, "hidden": 32, "heads": 1, "ffn": 32}
# What other models take and this one does not: refused, not ignored.
_UNKNOWN = ("inputs_embeds", "position_ids", "output_attentions", "output_hidden_states")


class S7Config(PretrainedConfig):
    """Dimensions: ``trunk`` and ``expert`` have ``layers``, ``hidden``, ``heads`` and ``ffn``."""

    model_type = "s7"
    keys_to_ignore_at_inference = (CACHE,)

    def __init__(
        self,
        vocab_size: int = 32,
        max_position_embeddings: int = 2,
        trunk: dict[str, int] | None = None,
        expert: dict[str, int] | None = None,
        domains: tuple[str, ...] | list[str] = ("general",),
        routing_window: int = 64,
        **others: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.max_position_embeddings = max_position_embeddings
        self.trunk = dict(trunk or _STACK)
        self.expert = dict(expert or _STACK)
        self.domains = list(domains)
        self.routing_window = routing_window
        super().__init__(**others)

    @property
    def num_hidden_layers(self) -> int:
        """Layers of a cache: the trunk's, one for the router's logits, those of every expert."""
        return self.trunk["layers"] + 1 + len(self.domains) * self.expert["layers"]


@dataclass
class S7Output(CausalLMOutputWithPast):
    """Logits float32 [B, T, V], and the expert that gave each position's: int64 [B, T]."""

    routes: Tensor | None = None


def rms_normalize(x: Tensor) -> Tensor:
    """Divide by the root mean square over the last axis, in float32."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPSILON)


def rotation(positions_BT: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary embedding, float32 [B, 1, T, K/2]."""
    pairs = torch.arange(0, width, 2, dtype=torch.float64) / width
    frequencies = (ROPE_BASE**-pairs).to(positions_BT.device, torch.float32)
    angles = positions_BT[:, None, :, None].float() * frequencies
    return angles.cos(), angles.sin()


def rotate(x_BHTK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of channels i and i + K/2."""
    a, b = x_BHTK.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class RMSNorm(nn.Module):
    """RMS normalisation with a gain."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[…, D] → […, D]."""
        return (rms_normalize(x) * self.gain.float()).to(x.dtype)


class Linear(nn.Module):
    """x @ W, no bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * inputs**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[…, in] → […, out]."""
        return x @ self.weight


class Attention(nn.Module):
    """Causal self-attention with rotary positions and RMS-normalised queries and keys."""

    def __init__(self, width: int, heads: int, index: int) -> None:
        super().__init__()
        self.heads = heads
        self.index = index  # of the cache's layer for its keys and values
        for name in "qkvo":
            self.add_module(f"{name}_proj", Linear(width, width))

    def forward(
        self, x_BTD: Tensor, turn: tuple[Tensor, Tensor], visible: Tensor | None, cache: Any
    ) -> Tensor:
        """[B, T, D] → [B, T, D]; ``visible`` is bool [B, 1, T, S], None: plainly causal."""
        B, T, D = x_BTD.shape
        projected = (project(x_BTD) for project in (self.q_proj, self.k_proj, self.v_proj))
        q, k, v = (x.view(B, T, self.heads, D // self.heads).transpose(1, 2) for x in projected)
        q, k = (rotate(rms_normalize(x), *turn).to(v.dtype) for x in (q, k))
        if cache is not None:
            k, v = cache.update(k, v, self.index)
        y_BHTK = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=visible, is_causal=visible is None
        )
        return self.o_proj(y_BHTK.transpose(1, 2).reshape(B, T, D))


class FeedForward(nn.Module):
    """fc1, GELU (tanh form), fc2."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, inner)
        self.fc2 = Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """[…, D] → […, D]."""
        return self.fc2(functional.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """x + attention(norm(x)), then x + FFN(norm(x))."""

    def __init__(self, stack: dict[str, int], index: int) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(stack["hidden"])
        self.attn = Attention(stack["hidden"], stack["heads"], index)
        self.ffn_norm = RMSNorm(stack["hidden"])
        self.ffn = FeedForward(stack["hidden"], stack["ffn"])

    def forward(self, x: Tensor, *how: Any) -> Tensor:
        """[B, T, D] → [B, T, D]; the rest as :class:`Attention` takes it."""
        x = x + self.attn(self.attn_norm(x), *how)
        return x + self.ffn(self.ffn_norm(x))


class Stack(nn.Module):
    """Blocks called ``layer0``, ``layer1``, … whose part of the cache begins at ``first``."""

    def __init__(self, stack: dict[str, int], first: int) -> None:
        super().__init__()
        self.names = [f"layer{i}" for i in range(stack["layers"])]
        self.head_width = stack["hidden"] // stack["heads"]
        for i, name in enumerate(self.names):
            self.add_module(name, Block(stack, first + i))

    def blocks(
        self, x_BTD: Tensor, positions_BT: Tensor, visible: Tensor | None, cache: Any
    ) -> Tensor:
        """Block after block, [B, T, D] → [B, T, D]."""
        turn = rotation(positions_BT, self.head_width)
        for name in self.names:
            x_BTD = getattr(self, name)(x_BTD, turn, visible, cache)
        return x_BTD


class Trunk(Stack):
    """The shared layers; its final norm is applied by whoever reads h."""

    def __init__(self, config: S7Config) -> None:
        super().__init__(config.trunk, 0)
        self.final_norm = RMSNorm(config.trunk["hidden"])

    def forward(self, x_BTD: Tensor, *how: Any) -> Tensor:
        """Embedded tokens → h, before the final norm."""
        return self.blocks(x_BTD, *how)


class Expert(Stack):
    """h + out_proj(norm(layers(in_proj(norm(h)))))."""

    def __init__(self, config: S7Config, e: int) -> None:
        super().__init__(config.expert, config.trunk["layers"] + 1 + e * config.expert["layers"])
        outer, inner = config.trunk["hidden"], config.expert["hidden"]
        self.in_norm = RMSNorm(outer)
        self.in_proj = Linear(outer, inner)
        self.out_norm = RMSNorm(inner)
        self.out_proj = Linear(inner, outer)

    def forward(self, h_BTD: Tensor, *how: Any) -> Tensor:
        """H → h refined."""
        x = self.blocks(self.in_proj(self.in_norm(h_BTD)), *how)
        return h_BTD + self.out_proj(self.out_norm(x))


class Router(nn.Module):
    """One logit per expert, and the choice by their sums over the window."""

    def __init__(self, config: S7Config) -> None:
        super().__init__()
        self.window = config.routing_window
        self.index = config.trunk["layers"]  # of the cache's layer for its logits
        self.weight = nn.Parameter(torch.zeros(config.trunk["hidden"], len(config.domains)))
        self.bias = nn.Parameter(torch.zeros(len(config.domains)))

    def forward(self, x_BTD: Tensor, real_BT: Tensor | None, cache: Any) -> Tensor:
        """Normalised h → the expert of each position, int64 [B, T]; padding counts for nothing."""
        T = x_BTD.shape[1]
        evidence = x_BTD.float() @ self.weight.float() + self.bias.float()
        if real_BT is not None:
            evidence = evidence * real_BT[..., None]
        if cache is not None:  # as one head's keys, so that it follows beams and crops as they do
            evidence, _ = cache.update(evidence[:, None], evidence[:, None, :, :0], self.index)
            evidence = evidence[:, 0]
        recent = evidence[:, -(T + self.window - 1) :]
        missing = T + self.window - 1 - recent.shape[1]
        windows_BTEW = functional.pad(recent, (0, 0, missing, 0)).unfold(1, self.window, 1)
        return windows_BTEW.sum(-1).argmax(-1)  # ties go to the lowest


class S7ForCausalLM(PreTrainedModel, GenerationMixin):
    """The routed model, its head tied to the embedding."""

    config_class = S7Config
    # A second router that the folder holds for s7jax, which compares the two.
    _keys_to_ignore_on_load_unexpected = [r"^nearest_centroid\."]  # noqa: RUF012

    def __init__(self, config: S7Config) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.trunk["hidden"])
        self.trunk = Trunk(config)
        for e in range(len(config.domains)):
            self.add_module(f"expert{e}", Expert(config, e))
        self.router = Router(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The token table, which is the head too."""
        return self.embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token table."""
        self.embedding = value

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        cache: Any = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **others: Any,
    ) -> S7Output | tuple[Any, ...]:
        """Logits of each position for the token after it, by the expert that is routed to it.

        Args:
            input_ids: [B, T].
            attention_mask: [B, S], 1 for tokens and 0 for padding, at either end of a row.
            past_key_values: a ``DynamicCache`` of the positions before, the same as ``cache``.
            cache: the same, as later versions of transformers call it.
            labels: [B, T], usually ``input_ids``, -100 where no loss is wanted.
            use_cache: return a cache; all experts then run at all positions.
            logits_to_keep: only the last so many positions' logits, or those of these indices.
            return_dict: False: a tuple.
            others: passed to the loss function.

        Raises:
            ValueError: an argument that this model does not know, or padding between tokens.
        """
        for name in _UNKNOWN:
            given = others.pop(name, None)
            if given is not None and given is not False:
                raise ValueError(f"{name}: this model takes input_ids, and returns logits alone")
        cache = past_key_values if cache is None else cache
        if cache is None and use_cache:
            cache = DynamicCache()
        past, T = cache.get_seq_length() if cache is not None else 0, input_ids.shape[1]
        how = (*self._places(attention_mask, past, T, input_ids), cache)
        real_BT = None if attention_mask is None else attention_mask[:, -T:]

        h_BTD = self.trunk(self.embedding(input_ids), *how)
        routes_BT = self.router(self.trunk.final_norm(h_BTD), real_BT, cache)
        chosen_BTD = h_BTD
        for e in range(len(self.config.domains)):
            mine_BT1 = (routes_BT == e)[..., None]
            # With a cache an expert also runs where it is not chosen: it may be later.
            if cache is not None or mine_BT1.any():
                refined_BTD = getattr(self, f"expert{e}")(h_BTD, *how)
                chosen_BTD = torch.where(mine_BT1, refined_BTD, chosen_BTD)

        kept = logits_to_keep
        kept = slice(-kept, None) if isinstance(kept, int) else kept
        x_BTD = self.trunk.final_norm(chosen_BTD[:, kept])
        logits = functional.linear(x_BTD, self.embedding.weight).float()
        loss = None
        if labels is not None:
            sizes = {"vocab_size": self.config.vocab_size}
            loss = self.loss_function(logits=logits, labels=labels, **sizes, **others)
        output = S7Output(loss=loss, logits=logits, routes=routes_BT, **{CACHE: cache})
        return output.to_tuple() if return_dict is False else output

    def _places(
        self, mask_BS: Tensor | None, past: int, T: int, input_ids: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Positions [B or 1, T] counted without padding, and which keys each of them sees."""
        slots_S = torch.arange(past + T, device=input_ids.device)
        if mask_BS is None:
            here = slots_S[None, past:]
            visible = slots_S[None] <= here[0, :, None] if past else None
            return here, None if visible is None else visible[None, None]
        if mask_BS.ndim != 2 or mask_BS.shape[1] != past + T:
            shape = list(mask_BS.shape)
            raise ValueError(f"attention_mask is {shape}; expected [batch, {past + T}] of 0 and 1")
        mask_BS = mask_BS.bool()
        begins = mask_BS.int().diff(dim=1, prepend=torch.zeros_like(mask_BS[:, :1]).int()) > 0
        if (begins.sum(1) > 1).any():
            raise ValueError("attention_mask: padding between tokens; expected it at an end alone")
        positions = (mask_BS.int().cumsum(1) - 1).clamp(min=0)[:, past:]
        causal_TS = slots_S[None] <= slots_S[past:, None]
        itself_TS = slots_S[None] == slots_S[past:, None]  # padding too sees something
        return positions, ((causal_TS & mask_BS[:, None]) | itself_TS)[:, None]
