"""Fuzz the reader with atheris: mutants re-sealed by the attacker, guided by coverage.

The fuzzer's bytes are the random numbers that draw a mutant, so that it learns which changes
reach new code. A mutant that is accepted must be accepted by the second verifier, with the
same root; any error but the one error class stops the run.

Examples:
  python tests/adversarial/fuzz.py 10000000
"""

import sys
import time
from pathlib import Path

import atheris

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "s7l"), str(HERE.parents[1])]

with atheris.instrument_imports(include=["s7jax.s7l"]):
    from micro import Judge, Mutants, make


class Numbers:
    """As much of ``random.Random`` as drawing a mutant needs, out of the fuzzer's bytes."""

    def __init__(self, data: bytes):
        self.source = atheris.FuzzedDataProvider(data)

    def randrange(self, start, stop=None):
        low, high = (0, start) if stop is None else (start, stop)
        return self.source.ConsumeIntInRange(low, high - 1)

    def choice(self, items):
        return items[self.randrange(len(items))]

    def random(self):
        return self.source.ConsumeProbability()


def main() -> None:
    """Run until the number of inputs is reached, saying how it goes."""
    inputs = int(sys.argv[1])
    mutants, judge = Mutants(make()), Judge()
    counts = {"refused": 0, "accepted": 0}
    start = time.monotonic()

    def one(data: bytes) -> None:
        made = mutants.draw(Numbers(data))
        accepted = judge.judged(mutants, made, both=False)
        counts["accepted" if accepted else "refused"] += 1
        tried = sum(counts.values())
        if tried % 10_000 == 0 or tried == inputs:  # libFuzzer never returns from Fuzz()
            minutes = (time.monotonic() - start) / 60
            print(f"{tried:,} mutants in {minutes:.1f} minutes: {counts}", flush=True)

    atheris.Setup([sys.argv[0], f"-runs={inputs}", "-verbosity=0", "-max_len=64"], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
