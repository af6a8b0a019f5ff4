"""``s7jax audit`` from a checkout, with its own environment, activated or not."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from s7jax.checkout import script

    script("audit")
