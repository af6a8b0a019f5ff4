"""The true widths through the whole chain: what only breaks at size breaks here.

`s7-140m` with one layer each and a context of 256; `make whole` runs it in full.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from s7jax import s7l
from s7jax.config import preset

ROOT = Path(__file__).parent.parent
SHORT = """
    model.context=256 model.trunk.layers=1 model.expert.layers=1
    trunk.batch=4 trunk.microbatch=1 trunk.tokens=1024
    experts.batch=4 experts.microbatch=1 domains.*.tokens=1024
    router_sequences=2 eval_sequences=2 calibration_sequences=2
""".split()
MOST = 4.0  # GiB resident


def measured(cwd: Path, script: str, *args: object) -> tuple[str, float]:
    """Standard output of a script that ends well, and the peak of its resident memory in GiB."""
    command = [sys.executable, "-S", ROOT / "benchmarks/measured.py", "taken.json", sys.executable]
    done = subprocess.run(
        [*map(str, (*command, ROOT / script, *args))],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout, json.loads((cwd / "taken.json").read_text())["peak_kib"] / 2**20


@pytest.mark.long(minutes=5)
def test_the_true_widths_go_through_the_chain(tmp_path: Path):
    flags = ("--preset", "s7-140m", "--run", "whole", "--mesh", "2x2", "--set", *SHORT)
    text, peak = measured(tmp_path, "experiments/pipeline.py", *flags)
    assert peak < MOST
    sealed = tmp_path / "runs/whole/model/moe.s7l"
    seal, full = s7l.open(sealed), preset("s7-140m").model
    cfg, root = seal.manifest.dimensions, seal.root.hex()
    assert f"root {root}" in text
    assert (cfg.vocab, cfg.trunk.hidden, cfg.trunk.ffn) == (24_576, 768, 1_024)
    assert (cfg.expert.hidden, cfg.expert.ffn) == (full.expert.hidden, full.expert.ffn)
    report = json.loads((tmp_path / "runs/whole/report.json").read_text())
    assert set(report["quality"]["bits_per_byte"]) == set(full.domains)

    text, peak = measured(tmp_path, "tools/s7l_verify.py", sealed)
    assert root in text
    assert peak < 0.2
    proof = tmp_path / "answer.s7p"
    for script, *args in (
        ("verify", sealed, "--root", root),
        ("selftest", sealed),
        ("generate", sealed, "--prompt", "2 + 2 =", "--max-tokens", 8, "--proof", proof),
        ("verify", sealed, "--replay", proof),
        ("quantize", "--run", "whole", "--mesh", "1x2", "--out", tmp_path / "other/weights"),
    ):
        _, peak = measured(tmp_path, f"tools/{script}.py", *args)
        assert peak < MOST, script
    # Both were calibrated with the same model axis, on other data groups.
    weights = [tmp_path / where / "weights" for where in ("runs/whole/model", "other")]
    for one in sorted(weights[0].glob("*.npy")):
        assert one.read_bytes() == (weights[1] / one.name).read_bytes(), one.name
