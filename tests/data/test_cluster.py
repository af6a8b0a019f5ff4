"""Preparing on a Ray cluster of two nodes on this machine: the same bytes, also when one goes."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from s7jax.data.builtin import math, reason
from s7jax.data.prepared import Prepared

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.long(minutes=3)


@pytest.fixture
def cluster(monkeypatch):
    """Two nodes of one core each, as separate processes."""
    pytest.importorskip("ray", reason="pip install 's7jax[long]'")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    there = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    there.add_node(num_cpus=1)
    yield there
    there.shutdown()


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    for i, domain in enumerate(("code", "math", "reason", "general")):
        generator = (math, reason)[i % 2]
        texts = [f"{generator.document(i, n)} {n * 7919:x}" for n in range(6_000)]
        lines = "\n".join(json.dumps({"text": text}) for text in texts)
        (folder / f"{domain}.jsonl").write_text(lines)
    return [f"{path.stem}={path}" for path in sorted(folder.iterdir())]


def start(out, sources, *flags):
    command = [sys.executable, ROOT / "tools/prepare.py", "--preset", "s7-nano", "--out", out]
    return subprocess.Popen(
        [*map(str, command), "--data", *sources, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.filterwarnings("ignore")
def test_the_same_bytes_here_and_on_a_cluster_that_loses_a_node(cluster, sources, tmp_path):
    for out, flags in (("one", ["--workers", "1"]), ("eight", ["--workers", "8"])):
        run = start(tmp_path / out, sources, *flags)
        _, err = run.communicate(timeout=300)
        assert run.returncode == 0, err
    ray = start(tmp_path / "ray", sources, "--cluster", cluster.address)
    while not list((tmp_path / "ray").glob(".work/clean/*.json")) and ray.poll() is None:
        time.sleep(0.05)
    assert ray.poll() is None, ray.communicate()
    (second,) = cluster.worker_nodes
    cluster.remove_node(second, allow_graceful=False)
    assert not (tmp_path / "ray/manifest.json").exists()
    _, err = ray.communicate(timeout=300)
    assert ray.returncode == 0, err
    one, eight, far = (
        {
            p.relative_to(tmp_path / out): p.read_bytes()
            for p in (tmp_path / out).rglob("*")
            if p.is_file()
        }
        for out in ("one", "eight", "ray")
    )
    assert one == eight == far
    assert Prepared.load(tmp_path / "ray").digest == Prepared.load(tmp_path / "one").digest
