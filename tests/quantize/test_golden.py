"""The whole of Phase 3 on a small model, against what it gave before."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from golden import GOLDEN


def test_the_quantised_model_is_the_golden_one():
    """To the bit where the golden one was made on such a machine, else closely.

    ``python tests/quantize/golden.py --update`` makes it anew after a change that is meant.
    """
    script = Path(__file__).with_name("golden.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    found, golden = json.loads(done.stdout), json.loads(GOLDEN.read_text())
    if found["made_on"] == golden["made_on"]:
        assert found["sha256"] == golden["sha256"]
    assert found["sums"] == pytest.approx(golden["sums"], rel=1e-3)
