"""What the README promises of s7-nano on the built-in corpus; takes minutes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.long
def test_experts_beat_the_trunk_and_routing_nearly_finds_them(tmp_path: Path):
    command = [sys.executable, ROOT / "experiments/pipeline.py", "--preset", "s7-nano", "--json"]
    result = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    quality = json.loads(result.stdout)["quality"]
    for domain, bits in quality["bits_per_byte"].items():
        assert bits["oracle"] < bits["trunk"], domain
        assert bits["routed"] < 1.02 * bits["oracle"], domain
    assert quality["routers"]["router"]["accuracy"] >= 0.9
