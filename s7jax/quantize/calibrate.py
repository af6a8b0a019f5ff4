"""Calibration: how large activations get, channel by channel, on held-out text.

The float model itself is run and watched: on the way into every matrix the largest magnitude of
each channel is kept, on the way into every norm that of the residual stream, and for keys and
values, whose scales are fixed, the 99.99th percentile of each channel as well. Maxima are exact,
and percentiles come from exact counts (of magnitudes in eighths of an octave), and every device
runs the same program on the same number of sequences, so the result does not depend on the order
or grouping of the sequences or on the data axis of the mesh. The model axis does change it by
rounding: it decides in which order products are summed.

Each activation is reduced where it arises, inside the scan over layers, and trunk and experts are
programs of their own: one layer's activations exist at a time, whatever the depth.
"""

import hashlib
import io
import time
import zipfile
import zlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from s7jax.architecture import Architecture
from s7jax.data.batching import full_batches
from s7jax.errors import InputError
from s7jax.mesh import DATA, MODEL
from s7jax.model.language_model import Embedding, Expert, Params, Trunk
from s7jax.model.layers import RANGES, Linear, Probe, RMSNorm
from s7jax.model.parameters import digest, host, named_tensors
from s7jax.quantize.rounding import check_finite
from s7jax.storage import write_bytes
from s7jax.terminal.progress import Progress

PERCENTILE = 0.9999
ROWS = 4  # sequences of one forward pass in each data-parallel group; decides last bits
SAVE_SECONDS = 60.0  # between two writes of the resumable state

_OCTAVE_BITS = 3  # bins of an eighth of an octave: the top bits of a float32 as an integer
_DROPPED = 23 - _OCTAVE_BITS  # bits of a float32's mantissa that do not decide its bin
_LOWEST = (127 - 20) << _OCTAVE_BITS  # magnitudes below 2^-20 share a bin
_BINS = 40 << _OCTAVE_BITS
_MOST = 1 << 30  # positions counted on the device before its int32 counts are emptied

Measured = dict[str, np.ndarray]


@dataclass(frozen=True)
class Ranges:
    """What calibration found; every array is float64 with one entry per channel."""

    largest: Measured  # name of a matrix → its input's largest magnitudes
    usual: Measured  # ``….attn.k`` and ``….attn.v`` → percentiles, never over the largest
    streams: dict[str, float]  # segment (trunk, expert0 …) → largest magnitude of its residuals
    sequences: dict[str, int]  # per domain


def calibrate(
    cfg: Architecture,
    params: Params,
    tokens: dict[str, np.ndarray],
    saved: Path | None = None,
    added: Collection[str] = (),
) -> Ranges:
    """Ranges over sequences int32 [N, context + 1] of every domain, each seen by every expert.

    A domain that was added to a finished model is seen by its own expert alone: the ranges of
    trunk and other experts, and with them their integers, stay as they were.

    Args:
        cfg: the model.
        params: every parameter, laid out on the mesh that is to compute: sequences are split
            over its data axis, the model over its model axis.
        tokens: sequences per domain, in expert order.
        saved: file for the state of an unfinished calibration. If it holds one of these very
            parameters and sequences, that one is resumed. Whoever has used the result removes it.
        added: domains that were added to a finished model.

    Raises:
        InputError: a weight or an activation is NaN or infinite.
    """
    for name in sorted(params):
        for tensor_name, tensor in named_tensors(host({name: params[name]})):
            check_finite(tensor_name, tensor)
    mesh = params["embedding"]["weight"].sharding.mesh
    experts = {domain: f"expert{e}" for e, domain in enumerate(cfg.domains)}
    common = np.concatenate([rows for domain, rows in tokens.items() if domain not in added])
    passes = [(common, tuple(cfg.segments))]
    passes += [(rows, (experts[domain],)) for domain, rows in tokens.items() if domain in added]
    total = sum(len(rows) for rows, _ in passes)
    state = _State("" if saved is None else _identity(params, passes, mesh.shape[MODEL]))
    if saved is not None:
        state.load(saved)
    groups, split = mesh.shape[DATA], NamedSharding(mesh, P(DATA))
    with jax.set_mesh(mesh), Progress("calibrate", total, "sequences", done=state.done) as progress:
        written = time.monotonic()
        first = 0
        for rows, watched in passes:
            left = rows[max(0, state.done - first) :, :-1]
            first += len(rows)
            for batch, counted in full_batches(left, ROWS * groups):
                tokens_BT, counted_B = jax.device_put((batch, counted), split)
                seen = _observe(cfg, params, tokens_BT, counted_B, watched)
                state.take(seen, int(counted.sum()), batch.shape[1])
                progress.advance(int(counted.sum()))
                if saved is not None and time.monotonic() - written >= SAVE_SECONDS:
                    state.save(saved)
                    written = time.monotonic()
            state.empty()  # the next pass watches other components
    if saved is not None:
        state.save(saved)
    return _ranges(state, {domain: len(rows) for domain, rows in tokens.items()})


def _observe(
    cfg: Architecture,
    params: Params,
    tokens_BT: jax.Array,
    counted_B: jax.Array,
    watched: tuple[str, ...],
) -> dict[str, Any]:
    """What a batch shows of the watched components, as trees like the parameters'."""
    shared = {name: params[name] for name in ("embedding", "trunk")}
    h_BTD, seen = observe_trunk(cfg, shared, tokens_BT, counted_B)
    found = {"trunk": seen} if "trunk" in watched else {}
    for name in watched:
        if name != "trunk":
            found[name] = observe_expert(cfg, params[name], h_BTD, counted_B)
    return found


@partial(jax.jit, static_argnums=0)
def observe_trunk(
    cfg: Architecture, params: Params, tokens_BT: jax.Array, counted_B: jax.Array
) -> tuple[jax.Array, Any]:
    """The trunk's output for the experts, and what a batch shows of the trunk."""
    x_BTD = Embedding(cfg).apply({"params": params["embedding"]}, tokens_BT)
    with nn.intercept_methods(_measuring(counted_B)):
        h_BTD, seen = Trunk(cfg).apply({"params": params["trunk"]}, x_BTD, mutable=[RANGES])
    return h_BTD, seen[RANGES]


@partial(jax.jit, static_argnums=0)
def observe_expert(
    cfg: Architecture, params: Params, h_BTD: jax.Array, counted_B: jax.Array
) -> Any:
    """What a batch shows of one expert."""
    with nn.intercept_methods(_measuring(counted_B)):
        _, seen = Expert(cfg).apply({"params": params}, h_BTD, mutable=[RANGES])
    return seen[RANGES]


def _measuring(counted_B: jax.Array) -> Callable[..., Any]:
    """A Flax interceptor: what enters a matrix, norm or probe is measured under its name."""

    def intercept(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        if context.method_name == "__call__" and isinstance(module, Linear | RMSNorm | Probe):
            for name, value in _measure(args[0], counted_B, isinstance(module, Probe)).items():
                module.sow(RANGES, name, value, init_fn=lambda: None, reduce_fn=lambda _, new: new)
        return call(*args, **kwargs)

    return intercept


def _measure(x: jax.Array, counted_B: jax.Array, count: bool) -> dict[str, jax.Array]:
    """Of x [B, T, C] or [B, T, H, K], over the rows that count: see :func:`_measure_shard`."""
    spec = jax.typeof(x).sharding.spec
    channels = spec[2]
    outs = {"largest": P(channels)} | ({"bins": P(channels, None)} if count else {})
    measure = jax.shard_map(
        partial(_measure_shard, count=count),
        in_specs=(spec, P(DATA)),
        out_specs=outs,
        check_vma=False,
    )
    return measure(x, counted_B)


def _measure_shard(x: jax.Array, counted_B: jax.Array, count: bool) -> dict[str, jax.Array]:
    """``largest`` float32 [C], and with ``count`` the magnitudes' histogram ``bins`` int32 [C, N].

    Each over all of the data axis.
    """
    B, T = x.shape[:2]
    counted_BTC = counted_B[:, None, None]
    size = jnp.where(counted_BTC, jnp.abs(x.reshape(B, T, -1).astype(jnp.float32)), 0)
    found = {"largest": jax.lax.pmax(size.max(axis=(0, 1)), DATA)}
    if count:
        C = size.shape[-1]
        top = jax.lax.bitcast_convert_type(size, jnp.int32) >> _DROPPED
        first_C = jnp.arange(C, dtype=jnp.int32) * _BINS
        index = jnp.clip(top - _LOWEST, 0, _BINS - 1) + first_C[None, None]
        weight = jnp.broadcast_to(counted_BTC, index.shape).astype(jnp.int32)
        bins = jnp.zeros(C * _BINS, jnp.int32).at[index].add(weight)
        found["bins"] = jax.lax.psum(bins.reshape(C, _BINS), DATA)
    return found


@dataclass
class _State:
    """What has been measured so far: exact sums and maxima, so any order gives the same."""

    identity: str  # of parameters, sequences and program
    done: int = 0  # sequences, of all domains one after the other
    totals: Measured = field(default_factory=dict)  # name → float32 maxima or int64 counts
    _recent: Any = None  # the same on the device, counts int32
    _positions: int = 0  # that the recent counts hold

    def take(self, seen: Any, rows: int, length: int) -> None:
        """Add a batch of ``rows`` sequences that count."""
        self._recent = seen if self._recent is None else _merged(self._recent, seen)
        self.done += rows
        self._positions += rows * length
        if self._positions >= _MOST:
            self.empty()

    def empty(self) -> None:
        """Move what the device holds into the totals."""
        for name, value in named_tensors(host(self._recent or {})):
            if name.endswith(".bins"):
                self.totals[name] = self.totals.get(name, 0) + value.astype(np.int64)
            else:
                self.totals[name] = np.maximum(self.totals.get(name, value), value)
        self._recent, self._positions = None, 0

    def save(self, path: Path) -> None:
        """Write everything to ``path``, whole or not at all."""
        self.empty()
        data = io.BytesIO()
        meta = {"identity": np.array(self.identity), "done": np.array(self.done)}
        np.savez_compressed(data, allow_pickle=False, **meta, **self.totals)
        write_bytes(path, data.getvalue())

    def load(self, path: Path) -> None:
        """Resume what ``path`` holds, if it is of the same parameters and sequences."""
        if not path.exists():
            return
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
                arrays = dict(file)
            identity, done = str(arrays.pop("identity")), int(arrays.pop("done"))
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as e:
            raise InputError(
                f"{path}: no state of a calibration ({e}). Remove it to start afresh"
            ) from e
        if identity == self.identity:
            self.done, self.totals = done, arrays
            print(f"calibrate: resumed after {done} sequences")


@partial(jax.jit, donate_argnums=0)
def _merged(a: Any, b: Any) -> Any:
    """Two trees of maxima (float32) and counts (int32) as one."""
    return jax.tree.map(lambda x, y: x + y if x.dtype == jnp.int32 else jnp.maximum(x, y), a, b)


def _identity(params: Params, passes: list[Any], model_axis: int) -> str:
    """SHA-256 of whatever decides what is measured."""
    sha = hashlib.sha256(digest(params).encode())
    for rows, watched in passes:
        sha.update(f"{rows.shape} {watched}".encode())
        sha.update(np.ascontiguousarray(rows, "<i4").tobytes())
    parts = (model_axis, ROWS, _BINS, _LOWEST, jax.__version__, jax.devices()[0].device_kind)
    sha.update(repr(parts).encode())
    return sha.hexdigest()


def _ranges(state: _State, sequences: dict[str, int]) -> Ranges:
    state.empty()
    every: Measured = {}
    bins: Measured = {}
    for name, value in state.totals.items():
        owner, _, kind = name.rpartition(".")
        (bins if kind == "bins" else every)[owner] = value
    if wrong := [owner for owner, largest in every.items() if not np.isfinite(largest).all()]:
        first = min(wrong, key=lambda owner: (not owner.startswith("trunk"), owner))
        raise InputError(
            f"calibrate: activations into {first} are NaN or infinite; expected finite ones. "
            "Training has diverged: quantise an earlier checkpoint"
        )
    wide = {owner: largest.astype(np.float64) for owner, largest in every.items()}
    streams: dict[str, float] = {}
    for owner, largest in wide.items():
        if owner.endswith(".in_norm"):
            # It reads what the trunk hands over: the same for every expert. Expert 0 is never one
            # that was added.
            if owner.startswith("expert0."):
                streams["trunk"] = max(streams.get("trunk", 0.0), float(largest.max()))
        elif owner.endswith("_norm"):
            segment = owner.split(".")[0]
            streams[segment] = max(streams.get(segment, 0.0), float(largest.max()))
    usual = {owner: np.minimum(_percentile(b), wide[owner]) for owner, b in bins.items()}
    matrices = {o: x for o, x in wide.items() if o not in usual and not o.endswith("_norm")}
    return Ranges(matrices, usual, streams, sequences)


def _percentile(bins: np.ndarray) -> np.ndarray:
    """Upper edge of the bin that holds the percentile: int64 [C, N] → float64 [C]."""
    running = np.cumsum(bins, axis=-1)
    at = (running < PERCENTILE * running[..., -1:]).sum(axis=-1) + 1 + _LOWEST
    return (at << _DROPPED).astype(np.int32).view(np.float32).astype(np.float64)
