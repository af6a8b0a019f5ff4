"""The executable specification: what a sealed model answers, in NumPy alone.

Reads a sealed file and gives the int32 logits of every position, for the trunk, for each expert,
and routed. Written to be read, not to be fast: one sequence, no cache; products
of 32-bit numbers are taken in int64 and cut. It shares the constant tables with
:mod:`s7jax.integer.layers` and nothing else, and the two must agree to the bit.

Formats: an activation is int16 ``a`` with a scale, a real number m · 2^e (2^29 ≤ m < 2^30); "Qn"
is an integer with n fraction bits. T positions, D width, H heads, K head width, S seen positions.
"""

from collections.abc import Callable
from math import isqrt
from typing import Any

import numpy as np

from s7jax.integer import tables
from s7jax.s7l import Seal, SealError

Ints = np.ndarray[Any, Any]  # int64, every value within 32 bits
Scale = tuple[Any, Any]
Watch = Callable[[str, Ints], None]

TOP = (1 << 30) - 1
BLOCK = 256  # queries of one piece of attention
LOG2_E = 1_663_351_252_389_300_929  # log2(e) · 2^60


# --- Fixed-point arithmetic -----------------------------------------------------------------


def rsr(x: Any, k: Any) -> Any:
    """The one rounding rule: half up."""
    return (x + ((1 << k) >> 1)) >> k


def mulhi(a: Any, b: Any) -> Any:
    """High half of a 32 × 32 bit product."""
    return (a * b) >> 32


def shift(x: Any, k: Any) -> Any:
    """x · 2^k: rounded to the right, saturating to the left."""
    left, right = np.clip(k, 0, 30), np.clip(np.negative(k), 0, 30)
    bound = TOP >> left
    return rsr(np.clip(x, -bound, bound) << left, right)


def bits(x: Any) -> Any:
    """Bit length of x ≥ 0."""
    return sum((x >= 1 << n).astype(np.int64) for n in range(31))


def scale(m: Any, e: Any) -> Scale:
    """m · 2^e with 30 bits in m."""
    n = bits(m) - 30
    return np.where(n > 0, m >> 1, m << np.clip(-n, 0, 30)), e + n


def times(a: Scale, b: Scale) -> Scale:
    """Product of two scales."""
    return scale(mulhi(a[0] << 1, b[0] << 1), a[1] + b[1] + 30)


def constant(numerator: int, fraction_bits: int) -> Scale:
    """numerator · 2^-fraction_bits."""
    excess = numerator.bit_length() - 30
    m = numerator >> excess if excess > 0 else numerator << -excess
    return np.array(m), np.array(excess - fraction_bits)


def normalize(x: Ints) -> tuple[Ints, Ints, Ints]:
    """The last axis as y · 2^e with 15 bits in the largest |y|: y, that bound, e."""
    largest = np.abs(x).max(axis=-1, keepdims=True)
    e = bits(largest) - 15
    y = np.clip(shift(x, -e), -32_767, 32_767)
    return y, np.minimum(shift(largest, -e), 32_767), e


def quantize(x: Ints, gain: Ints, exponent: int, top: int = 127 * 128) -> tuple[Ints, Scale]:
    """x · gain · 2^exponent with its largest value made ``top``; the scale of top/127 units."""
    y, _, e = normalize(x)
    y, largest, e2 = normalize(y * gain)
    inverse = (127 << 23) // np.maximum(largest, 1)
    a = rsr(y * inverse, 23 if top == 127 else 16)
    return a, times(scale(largest, e + e2 + exponent), constant((1 << 60) // 127, 60))


def rsqrt(x: Ints) -> Scale:
    """1/√x: table and one Newton step."""
    k = (30 - bits(x)) & ~1
    y = x << k
    r = tables.rsqrt().astype(np.int64)[(y >> 21) - 128]
    t = 3 * (1 << 26) - mulhi(y, r * r)
    return scale(mulhi(r << 15, t << 3), (k >> 1) - 42)


def inverse_rms(x: Ints) -> Scale:
    """1 over the root mean square of the last axis of 15-bit values."""
    n = x.shape[-1]
    cut = n.bit_length()
    total = ((x * x) >> cut).sum(axis=-1, keepdims=True)
    return times(rsqrt(np.maximum(total, 1)), constant(isqrt(n << (100 - cut)), 50))


def rms_quantize(x: Ints, gain: tuple[Ints, int]) -> tuple[Ints, Scale]:
    """RMSNorm and quantisation; the RMS enters the scale alone."""
    y, _, _ = normalize(x)
    a, unit = quantize(y, *gain)
    return a, times(unit, inverse_rms(y))


def spare_bits(bound: int) -> int:
    """Bits below ``high`` that the sum of both halves can keep."""
    return max(0, min(7, 29 - bound.bit_length()))


def interpolate(table: Ints, x: Ints, low_bits: int) -> Ints:
    """Linear between entries x >> low_bits and the next."""
    wide, i = table.astype(np.int64), x >> low_bits
    low, high = wide[i], wide[np.minimum(i + 1, len(wide) - 1)]
    return low + rsr((high - low) * (x & ((1 << low_bits) - 1)), low_bits)


def gelu(x: Ints) -> Ints:
    """Q12 → Q14."""
    edge = 8 << 12
    inner = interpolate(tables.gelu(), np.clip(x, -edge, edge - 1) + edge, 7)
    return np.where(x >= edge, x << 2, np.where(x < -edge, 0, inner))


def exp2(x: Ints) -> Ints:
    """2^-x of x ≥ 0 in Q16, as a probability of 14 bits."""
    return rsr(interpolate(tables.exp2(), x & 0xFFFF, 10), 5 + np.minimum(x >> 16, 25))


# --- The model ------------------------------------------------------------------------------


class Specification:
    """A sealed model as this page defines it.

    ``watch`` is told the name and the output, integers [T, …], of every operator in order.
    """

    def __init__(self, seal: Seal, watch: Watch = lambda _, __: None) -> None:
        self._seal = seal
        self._d = seal.manifest.dimensions
        self._watch = watch

    def trunk(self, tokens: Ints) -> Ints:
        """Token ids [T] → residual stream h [T, D] in the trunk's format."""
        rows = self._weight("embedding.weight")[tokens]
        m, exponent = self._fixed("embedding.scale")
        product = mulhi(rows << 22, m[tokens][:, None])
        x = shift(product, 10 + exponent - 31 + self._residual("trunk"))
        self._watch("embedding", x)
        return self._layers("trunk", self._d.trunk, x)

    def expert(self, e: int, h: Ints) -> Ints:
        """The trunk's h [T, D], refined by one expert."""
        name, d = f"expert{e}", self._d
        a, unit = rms_quantize(h, self._gain(f"{name}.in_norm"))
        self._watch(f"{name}.in_norm", a)
        x = self._linear(a, unit, f"{name}.in_proj", self._residual(name))
        x = self._layers(name, d.expert, x)
        a, unit = rms_quantize(x, self._gain(f"{name}.out_norm"))
        self._watch(f"{name}.out_norm", a)
        y = self._linear(a, unit, f"{name}.out_proj", self._residual("trunk"))
        refined = np.clip(h + y, -TOP, TOP)
        self._watch(f"{name}.residual_add", refined)
        return refined

    def head(self, h: Ints, name: str = "head") -> np.ndarray[Any, np.dtype[np.int32]]:
        """h [T, D] → logits int32 [T, V], Q16."""
        a, unit = rms_quantize(h, self._gain("trunk.final_norm"))
        self._watch(f"{name}.final_norm", a)
        weight = self._weight("embedding.weight").T
        logits = self._product(a, unit, weight, "embedding", 16).astype(np.int32)
        self._watch(f"{name}.logits", logits)
        return logits

    def route(self, router: Ints) -> np.ndarray[Any, np.dtype[np.int32]]:
        """The expert of every position, int32 [T], from router logits [T, E]."""
        evidence = np.cumsum(router, axis=0, dtype=np.int64)
        window = self._d.routing_window
        evidence[window:] -= evidence[:-window].copy()
        return evidence.argmax(axis=-1).astype(np.int32)

    def router(self, h: Ints) -> np.ndarray[Any, np.dtype[np.int32]]:
        """The trunk's h → router logits int32 [T, E], Q16."""
        a, unit = rms_quantize(h, self._gain("trunk.final_norm"))
        m, exponent = self._fixed("router.bias")
        logits = self._linear(a, unit, "router", 16) + shift(m >> 1, exponent - 30 + 16)
        bound = TOP // self._d.routing_window
        logits = np.clip(np.clip(logits, -TOP, TOP), -bound, bound).astype(np.int32)
        self._watch("router", logits)
        return logits

    def logits(self, tokens: Ints) -> np.ndarray[Any, np.dtype[np.int32]]:
        """Routed logits int32 [T, V] of a sequence: each position's by its own expert."""
        h = self.trunk(tokens)
        route = self.route(self.router(h))
        chosen = np.zeros((len(tokens), self._d.vocab), np.int32)
        for e in np.unique(route):
            chosen[route == e] = self.head(self.expert(int(e), h)[route == e])
        return chosen

    def _layers(self, segment: str, stack: Any, x: Ints) -> Ints:
        out_bits = self._residual(segment)
        for layer in (f"{segment}.layer{i}" for i in range(stack.layers)):
            a, unit = rms_quantize(x, self._gain(f"{layer}.attn_norm"))
            self._watch(f"{layer}.attn_norm", a)
            y = self._attention(f"{layer}.attn", stack, a, unit, out_bits)
            x = np.clip(x + y, -TOP, TOP)
            self._watch(f"{layer}.attn.residual_add", x)
            a, unit = rms_quantize(x, self._gain(f"{layer}.ffn_norm"))
            self._watch(f"{layer}.ffn_norm", a)
            u = np.clip(self._linear(a, unit, f"{layer}.ffn.fc1", 12), -(1 << 18), 1 << 18)
            gain, exponent = self._gain(f"{layer}.ffn.fc2")
            a, unit = quantize(gelu(u), gain, exponent - 14)
            self._watch(f"{layer}.ffn.gelu", a)
            x = np.clip(x + self._linear(a, unit, f"{layer}.ffn.fc2", out_bits), -TOP, TOP)
            self._watch(f"{layer}.ffn.residual_add", x)
        return x

    def _attention(self, name: str, stack: Any, a: Ints, unit: Scale, out_bits: int) -> Ints:
        T, H = len(a), stack.heads
        K = stack.hidden // H
        head_bits = 15 - ((K - 1).bit_length() + 1) // 2
        turns = tables.rope(1 << (T - 1).bit_length(), K)  # few lengths; a prefix is the same
        cosine, sine = (table.astype(np.int64)[:T, None] for table in turns)

        def turned(key: str) -> Ints:
            acc, bound, _ = self._accumulate(a, self._weight(f"{name}.{key}_proj.weight"))
            m, _ = self._fixed(f"{name}.{key}_proj.scale")
            x, _, _ = normalize(mulhi(acc << (30 - bound.bit_length()), m).reshape(T, H, K))
            m, e = inverse_rms(x)
            x = x * np.minimum(rsr(m, 15), 32_767)
            x = np.clip(shift(x, np.minimum(e + 15 + head_bits, 0)), -32_767, 32_767)
            p, q = x[..., : K // 2], x[..., K // 2 :]
            x = np.concatenate([p * cosine - q * sine, q * cosine + p * sine], axis=-1)
            return np.clip(rsr(x, 14), -32_767, 32_767)

        gain, exponent = self._gain(f"{name}.k")
        k = np.clip(shift(turned("k") * gain.reshape(H, K), exponent - head_bits), -127, 127)
        gain, exponent = self._gain(f"{name}.q")
        q, q_unit = quantize(turned("q"), gain.reshape(H, K), exponent - head_bits, top=127)
        v = np.clip(self._linear(a, unit, f"{name}.v_proj", 0), -127, 127).reshape(T, H, K)
        for key, value in (("q", q), ("k", k), ("v", v)):
            self._watch(f"{name}.{key}", value)

        # Queries in blocks, against the keys they can see: memory stays in proportion to T.
        blocks = [slice(i, min(i + BLOCK, T)) for i in range(0, T, BLOCK)]
        ms, es = q_unit
        y = np.concatenate(
            [self._mix(q[b], (ms[b], es[b]), k[: b.stop], v[: b.stop], b.start) for b in blocks]
        )
        self._watch(f"{name}.mix", y)
        gain, exponent = self._gain(f"{name}.o_proj")
        a, unit = quantize(y.reshape(T, H * K), gain, exponent - 8)
        y = self._linear(a, unit, f"{name}.o_proj", out_bits)
        self._watch(f"{name}.o_proj", y)
        return y

    def _mix(self, q: Ints, q_unit: Scale, k: Ints, v: Ints, first: int) -> Ints:
        """Queries [N, H, K] of positions from ``first`` on over keys and values [S, H, K]."""
        N, _, K = q.shape
        bound = 127 * 127 * K
        spare = 30 - bound.bit_length()
        m, e = times(q_unit, constant((LOG2_E << 40) // isqrt(K << 80), 60))
        m, e = (s.transpose(1, 0, 2) for s in (m, e))  # [H, T, 1]
        acc = np.einsum("thk,shk->hts", q, k)
        z = shift(mulhi(acc << spare, m << 1), 31 - spare + e + 16)
        seen = np.arange(len(k)) <= np.arange(first, first + N)[:, None]
        largest = np.where(seen, z, -(1 << 30)).max(axis=-1, keepdims=True)
        p = np.where(seen, exp2(np.maximum(largest - z, 0)), 0)

        spare = spare_bits(127 * 127 * self._d.context)
        high, low = (np.einsum("hts,shk->htk", half, v) for half in (p >> 7, p & 127))
        total = p.sum(axis=-1, keepdims=True)
        n = bits(total) - 15
        reciprocal = (1 << 30) // shift(total, -n)
        y = mulhi((high << spare) + rsr(low, 7 - spare), reciprocal << 14)
        y = shift(y, 32 - 14 - 30 - n + 7 - spare + 8)
        return y.transpose(1, 0, 2)

    def _linear(self, a: Ints, unit: Scale, name: str, out_bits: int) -> Ints:
        return self._product(a, unit, self._weight(f"{name}.weight"), name, out_bits)

    def _product(self, a: Ints, unit: Scale, weight: Ints, name: str, out_bits: int) -> Ints:
        """Activations times a matrix, with ``out_bits`` fraction bits."""
        acc, bound, kept = self._accumulate(a, weight)
        m, exponent = self._fixed(f"{name}.scale")
        spare = 30 - bound.bit_length()
        product = mulhi(mulhi(acc << spare, m), unit[0] << 1)
        return shift(product, 32 - spare + exponent + unit[1] - kept + out_bits)

    @staticmethod
    def _accumulate(a: Ints, weight: Ints) -> tuple[Ints, int, int]:
        """Both int8 halves of 15-bit activations times the weights, as one sum; its bounds."""
        high = (a + 64) >> 7
        low = a - (high << 7)
        bound = 127 * 127 * len(weight)
        spare = spare_bits(bound)
        acc = ((high @ weight) << spare) + rsr(low @ weight, 7 - spare)
        return acc, (bound << spare) + (bound >> 1), spare

    def _weight(self, name: str) -> Ints:
        return self._seal.tensor(name).astype(np.int64)

    def _fixed(self, name: str) -> tuple[Ints, int]:
        exponent = self._seal.exponent(name)
        assert exponent is not None
        return self._seal.tensor(name).astype(np.int64), exponent

    def _gain(self, name: str) -> tuple[Ints, int]:
        """15 bits of a gain, and the exponent of one unit."""
        m, exponent = self._fixed(f"{name}.gain")
        return np.clip((m + (1 << 15)) >> 16, -32_767, 32_767), exponent - 15

    def _residual(self, segment: str) -> int:
        value, exponent = self._fixed(f"{segment}.residual")
        if exponent != 31 or not -16 <= value[0] <= 29:
            raise SealError(f"{segment}.residual", "expected −16..29 with exponent 31")
        return int(value[0])
