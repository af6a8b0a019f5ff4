"""Try mutants re-sealed by the attacker by the million, on every core.

Block b of a thousand mutants is drawn from seed b alone, so that a failure names the seed that
repeats it. Every accepted mutant, and every 25th refused one, goes to the second verifier too;
any error but the one error class ends the run.

Examples:
  python tests/adversarial/mutants.py 10000000
"""

import multiprocessing
import os
import random
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "s7l"), str(HERE.parents[1])]

from micro import Judge, Mutants, make  # noqa: E402

BLOCK = 1_000
SAID = 100  # blocks between two lines


def start() -> None:
    """The seal and the judge of one worker."""
    global mutants, judge
    mutants, judge = Mutants(make()), Judge()


def block(seed: int) -> int:
    """How many of one block are accepted."""
    rng = random.Random(seed)
    try:
        return sum(judge.judged(mutants, mutants.draw(rng), both=i % 25 == 0) for i in range(BLOCK))
    except Exception as error:
        raise AssertionError(f"block {seed}: {error!r}") from error


def main() -> None:
    """Run until the number of inputs is reached, saying how it goes."""
    blocks = -(-int(sys.argv[1]) // BLOCK)
    accepted, began = 0, time.monotonic()
    with multiprocessing.Pool(os.cpu_count(), start) as pool:
        for done, found in enumerate(pool.imap_unordered(block, range(blocks)), 1):
            accepted += found
            if done % SAID == 0 or done == blocks:
                minutes = (time.monotonic() - began) / 60
                tried = done * BLOCK
                print(
                    f"{tried:,} mutants in {minutes:.1f} minutes: {tried - accepted:,} refused, "
                    f"{accepted:,} accepted by both verifiers",
                    flush=True,
                )


if __name__ == "__main__":
    main()
