"""The loss curve of a tiny trunk at full precision: computed anew, or written as the golden one.

Examples:
  python tests/train/golden.py             print it
  python tests/train/golden.py --update    write tests/train/golden.json
"""

import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path

from s7jax.train import determinism

GOLDEN = Path(__file__).with_name("golden.json")
STEPS = 20


def curve() -> dict[str, object]:
    """Losses as hexadecimal floats, and what their last bits depend on."""
    determinism.enforce()
    import jax
    import numpy as np

    from s7jax import mesh
    from s7jax.config import override, preset
    from s7jax.model import parameters
    from s7jax.train.optimizer import learning_rate
    from s7jax.train.phase import TRUNK
    from s7jax.train.step import Stepper, initial_state, trunk_loss

    small = "vocab=320 context=32 trunk.layers=2 trunk.hidden=32 trunk.ffn=64"
    changes = [f"model.{change}" for change in small.split()]
    changes += ["trunk.batch=8", "trunk.microbatch=2", "trunk.peak_lr=0.01"]
    config, single = override(preset("s7-nano"), changes), mesh.single()
    numbers = np.random.default_rng(0)
    with jax.set_mesh(single):
        params = parameters.initial(config.model, 0, single, TRUNK)
        state = initial_state(config.trunk, params)
        stepper = Stepper(config.model, config.trunk, trunk_loss, single, state, {})
        losses = []
        for step in range(STEPS):
            first, stride = numbers.integers(0, 320, (2, 8, 1))
            tokens = ((first + stride % 4 * np.arange(33)) % 320).astype(np.int32)
            rate = learning_rate(config.trunk, step, STEPS)
            losses.append(float(stepper.step(tokens, rate)["loss"]).hex())
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    made_on = {"jaxlib": version("jaxlib"), "machine": platform.machine()}
    return {"made_on": made_on | {"avx512": "avx512f" in flags}, "losses": losses}


if __name__ == "__main__":
    found = json.dumps(curve(), indent=1) + "\n"
    GOLDEN.write_text(found) if "--update" in sys.argv else print(found, end="")
