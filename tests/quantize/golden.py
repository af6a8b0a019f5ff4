"""The quantised tensors of a small model: their digest, computed anew or written as the golden one.

Examples:
  python tests/quantize/golden.py             print it
  python tests/quantize/golden.py --update    write tests/quantize/golden.json
"""

import hashlib
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path

from s7jax.train import determinism

GOLDEN = Path(__file__).with_name("golden.json")


def quantised() -> dict[str, object]:
    """SHA-256 of every integer and exponent, what its last bits depend on, and a coarse sum."""
    determinism.enforce()
    from reference import CFG, lively, tokens

    from s7jax.quantize.calibrate import calibrate
    from s7jax.quantize.export import integer_tensors

    params = lively()
    ranges = calibrate(CFG, params, {"rows": tokens(6)})
    sha, sums = hashlib.sha256(), {}
    for name, array, attributes in sorted(integer_tensors(params, ranges), key=lambda t: t[0]):
        sha.update(f"{name} {array.dtype} {array.shape} {attributes}\n".encode())
        sha.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
        exponent = attributes.get("exponent", 31)
        sums[name] = float(f"{abs(array.astype(float)).sum() * 2.0 ** (exponent - 31):.5g}")
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    made_on = {"jaxlib": version("jaxlib"), "machine": platform.machine()}
    made_on |= {"avx512": "avx512f" in flags}
    return {"made_on": made_on, "sha256": sha.hexdigest(), "sums": sums}


if __name__ == "__main__":
    found = json.dumps(quantised(), indent=1) + "\n"
    GOLDEN.write_text(found) if "--update" in sys.argv else print(found, end="")
