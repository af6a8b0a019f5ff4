"""Phase 3 and running: calibration's work, and what a sealed model takes and can reach."""

import math
from typing import Any

from s7jax.architecture import Stack
from s7jax.config import Config
from s7jax.devices import Device
from s7jax.errors import UsageError
from s7jax.model.flops import breakdown
from s7jax.native import library, machine
from s7jax.sizing import budget
from s7jax.sizing.schedule import HOUR

PANEL_COLUMNS = 32  # of the native engine's widest instructions
HALVES = 2  # int8 products of a 15-bit activation


def quantize(config: Config, device: Device, mfu: float, price: float | None) -> dict[str, Any]:
    """Calibration: a forward pass of trunk and every expert over the held-out samples (§5)."""
    cfg = config.model
    domains = len(cfg.domains)
    parts = breakdown(cfg, training_trunk=False, causal=False)
    shared = sum(part.forward for name, part in parts.items() if name.startswith("trunk"))
    expert = sum(part.forward for name, part in parts.items() if name not in ("head",)) - shared
    tokens = domains * config.calibration_sequences * cfg.context
    flops = tokens * (shared + domains * expert)
    tree: dict[str, Any] = {
        "samples": domains * config.calibration_sequences,
        "tokens": tokens,
        "flops": flops,
    }
    if device.peak_bf16 is not None:
        hours = flops / (device.peak_bf16 * mfu) / HOUR
        paid = device.price if price is None else price
        tree |= {"device_hours": hours, "cost": None if paid is None else hours * paid}
    return tree


def infer(config: Config, device: Device) -> dict[str, Any]:
    """A sealed model at work: bytes held, bytes of cache, and what bounds decoding."""
    cfg = config.model
    parts = budget.sealed(cfg)
    whole = sum(part.padded + part.constants for part in parts.values())
    read = sum(
        parts[name].padded + parts[name].constants for name in ("embedding", "trunk", "expert0")
    )
    trunk, expert = _cache(cfg.trunk), _cache(cfg.expert)
    tree: dict[str, Any] = {
        "weights_bytes": whole,
        "read_per_token_bytes": read,
        "cache_per_token_bytes": trunk + expert,
        "cache_per_sequence_bytes": cfg.context * (trunk + len(cfg.domains) * expert),
        "operations_per_token": HALVES * 2 * read,
    }
    if device.bandwidth is not None:
        tree["most_tokens_per_second"] = device.bandwidth / read
    if device.name == "cpu" and library.available():  # §8: tiles in L1, rows read ahead
        sizes = library.tuning()
        tree |= {
            "native_panel_bytes": 2 * sizes["panel"] * PANEL_COLUMNS,
            "native_rows_read_ahead": sizes["ahead"],
            "native_memory_nodes": len(machine.nodes()),
        }
    return tree


def phase(
    name: str, config: Config, device: Device, mfu: float, price: float | None
) -> dict[str, Any]:
    """The figures of ``quantize`` or ``infer``; empty for any other phase.

    Raises:
        UsageError: no such phase.
    """
    if name in ("trunk", "experts"):
        return {}
    if name not in ("quantize", "infer", "all"):
        raise UsageError(f"--phase {name}: expected trunk, experts, quantize, infer or all")
    found: dict[str, Any] = {}
    if name in ("quantize", "all"):
        found["quantize"] = quantize(config, device, mfu, price)
    if name in ("infer", "all"):
        found["infer"] = infer(config, device)
    return found


def _cache(stack: Stack) -> int:
    """Bytes of keys and values of one position, int8."""
    return 2 * math.prod(stack.cache_shape(1, 1))
