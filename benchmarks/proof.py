"""Measure how long a proof takes to read, beside msgpack alone and beside its hashes alone.

Proofs of steps that nothing has computed, 5,000 to 40,000 of them. Every figure is a median of
one run, in seconds of one core. Exit code 1 if a bound is missed.

Examples:
  python benchmarks/proof.py
"""

import hashlib
import statistics
import time
from collections.abc import Callable

import msgpack

from s7jax.runtime.policy import Policy
from s7jax.runtime.proof import Growing, Step, parse
from s7jax.s7l.canonical import decode, encode
from s7jax.terminal import cli

COUNTS = (5_000, 10_000, 20_000, 40_000)
BOUND = 0.5  # seconds for the longest
HEAD = {
    "root": bytes(32),
    "hashes": {"abi": bytes(32), "policy": bytes(32), "meta": bytes(32)},
    "experts": {"expert0": bytes(32)},
    "prompt": {"start": True, "text": b"a"},
    "policy": Policy().tree(),
    "trace": False,
}


def proof(steps: int) -> bytes:
    """The file of a proof of so many steps."""
    growing = Growing(HEAD)
    for i in range(steps):
        logits = hashlib.sha256(i.to_bytes(4, "little")).digest()
        growing.extend(Step(1 + i, 9, 0, logits, logits, 9))
    return encode(growing.close(b"", "client").tree())


def seconds(run: Callable[[], object], repeat: int) -> float:
    """Median time of a call."""
    found = []
    for _ in range(repeat):
        started = time.process_time()
        run()
        found.append(time.process_time() - started)
    return statistics.median(found)


def main() -> int:
    """Measure and print."""
    p = cli.parser(__doc__)
    p.add_argument("--repeat", type=int, default=5)
    repeat = p.parse_args().repeat
    print(f"{'steps':>7} {'bytes':>10} {'read s':>8} {'msgpack s':>10} {'hashes s':>9}")
    for steps in COUNTS:
        data = proof(steps)
        size = len(data) // steps
        whole = seconds(lambda: parse(decode(data, "proof")), repeat)  # noqa: B023
        unpacked = seconds(lambda: msgpack.unpackb(data), repeat)  # noqa: B023
        hashes = seconds(lambda: [hashlib.sha256(data[:size]) for _ in range(steps)], repeat)  # noqa: B023
        print(f"{steps:>7,} {len(data):>10,} {whole:>8.3f} {unpacked:>10.3f} {hashes:>9.3f}")
    return 0 if whole <= BOUND else 1


if __name__ == "__main__":
    cli.main(main)
