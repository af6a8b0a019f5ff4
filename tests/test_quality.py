"""The figures of README.md and docs/quantization.md: one set, and what the commands print.

The figures stand in the README alone; here they are read from it. Whether they are still what
the commands print takes the real text they were measured on, and a quarter of an hour.
"""

import json
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

from s7jax import s7l, sample
from s7jax.config import preset

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text().replace("\n", " ").replace("−", "-")
QUANTIZATION = (ROOT / "docs/quantization.md").read_text().replace("−", "-")
TEXT = ROOT.parent / "shared/data"
DOMAINS = preset("s7-nano").model.domains
SOURCES = {d: TEXT / f"{d}.jsonl.zst" for d in DOMAINS} | {"reason": TEXT / "reasoning.jsonl.zst"}

NUMBER = r"([-+]?\d+\.\d+)"
CLOSE = 0.005  # bits per byte that another kind of processor may give more or less
CLOSE_SHARE = 0.5  # points, of windows and of positions
CLOSE_PERPLEXITY = 0.05  # points


def said(pattern: str) -> tuple[float, ...]:
    """The numbers in one sentence of the README."""
    (found,) = re.finditer(pattern.replace("N", NUMBER), README)
    return tuple(map(float, found.groups()))


@pytest.fixture(scope="module")
def figures() -> SimpleNamespace:
    """What the README says; shares and changes in %."""
    columns = ("trunk", "oracle", "routed", "random")
    rows = {domain: said(rf"\| {domain} \|" + r" N \|" * 4) for domain in DOMAINS}
    return SimpleNamespace(
        bits={domain: dict(zip(columns, row, strict=True)) for domain, row in rows.items()},
        within=said("within N % of the oracle in every domain")[0],
        shares=said(r"right on N % of 256-token windows \(nearest centroid N %\)"),
        perplexity=said("perplexity between N % and N % in every domain"),
        same_token=said("the same most likely token at N to N % of positions"),
    )


def test_the_sentences_are_true_of_the_table(figures):
    for row in figures.bits.values():
        assert row["oracle"] < min(row["trunk"], row["random"])
    worst = max(row["routed"] / row["oracle"] for row in figures.bits.values())
    assert round(100 * (worst - 1), 1) == figures.within


def test_the_sealed_figures_are_those_of_the_quantization_page(figures):
    """Its first table; a row is FP32, sealed, perplexity, same token, KL."""
    nano = QUANTIZATION.split("`s7-nano` (")[1].split("`s7-mini` (")[0]
    rows = re.findall(rf"\|{NUMBER}\|{NUMBER}\|{NUMBER}%\|{NUMBER}%\|", nano.replace(" ", ""))
    exact, _, perplexity, same = zip(*(map(float, row) for row in rows), strict=True)
    names = ("trunk", "oracle", "routed")
    assert list(exact) == [figures.bits[domain][name] for domain in DOMAINS for name in names]
    assert (min(perplexity), max(perplexity)) == figures.perplexity
    assert (min(same), max(same)) == figures.same_token


def command(*arguments: object, cwd: Path) -> dict:
    """What a command prints as JSON."""
    line = [sys.executable, *map(str, arguments)]
    done = subprocess.run(line, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.long(minutes=8)
@pytest.mark.skipif(not TEXT.is_dir(), reason=f"the real text is not in {TEXT}")
def test_real_text_gives_what_the_readme_says(figures, tmp_path: Path):
    data = [f"{domain}={path}" for domain, path in SOURCES.items()]
    pipeline = ("experiments/pipeline.py", "--preset", "s7-nano", "--json", "--data", *data)
    quality = command(ROOT / pipeline[0], *pipeline[1:], cwd=tmp_path)["quality"]
    for domain, row in figures.bits.items():
        found = quality["bits_per_byte"][domain]
        found["random"] = quality["routers"]["random"]["bits_per_byte"][domain]
        for name, bits in row.items():
            assert found[name] == pytest.approx(bits, abs=CLOSE), (domain, name)
        assert found["oracle"] < min(found["trunk"], found["random"])
        assert 100 * (found["routed"] / found["oracle"] - 1) < figures.within + 0.05
    for name, share in zip(("router", "nearest_centroid"), figures.shares, strict=True):
        assert 100 * quality["routers"][name]["accuracy"] == pytest.approx(share, abs=CLOSE_SHARE)

    model = "runs/s7-nano/model/moe.s7l"
    sealed = command(ROOT / "experiments/evaluate.py", "--json", "--sealed", model, cwd=tmp_path)
    for row in (row for domain in sealed["sealed"].values() for row in domain.values()):
        change = 100 * (row["perplexity_ratio"] - 1)
        assert figures.perplexity[0] - CLOSE_PERPLEXITY <= change
        assert change <= figures.perplexity[1] + CLOSE_PERPLEXITY
        same = 100 * row["agreement"]
        assert figures.same_token[0] - CLOSE_SHARE <= same <= figures.same_token[1] + CLOSE_SHARE


def made_with() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "jaxlib": version("jaxlib"),
        "machine": platform.machine(),
    }


@pytest.mark.long(minutes=7)
def test_the_demo_shows_it_on_the_built_in_corpus(figures, tmp_path: Path):
    arguments = ("--preset", "s7-nano", "--json")
    report = command(ROOT / "experiments/pipeline.py", *arguments, cwd=tmp_path)
    # Other versions sum in another order; another Python has other sources.
    if made_with() == sample.MADE_WITH:
        assert s7l.open(sample.SEALED).root.hex() in {row[-1] for row in report["artifacts"]}
    quality = report["quality"]
    bits = quality["bits_per_byte"]
    for domain, row in bits.items():
        assert row["oracle"] < row["trunk"], domain
    # Single domains can do worse: the built-in proofs are short, and routing has little to go by.
    oracle, routed, trunk = (
        sum(row[k] for row in bits.values()) for k in ("oracle", "routed", "trunk")
    )
    assert routed < trunk
    assert 100 * (routed / oracle - 1) < figures.within + 0.05
    assert 100 * quality["routers"]["router"]["accuracy"] > figures.shares[0] - CLOSE_SHARE
