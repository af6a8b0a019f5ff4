"""One model, one file: whatever the order of keys, the hash seed or the Python version."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from micro import make, write_micro
from second import agree

from s7jax import s7l

ROOT = Path(s7l.__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden/micro.s7l"
GOLDEN_ROOT = "65ff172d9f2a478fab82f34beb53cd5a3415b1c728ceb884bc10a7cbcc747d8b"
OLD = GOLDEN.with_name("micro-int8-1.s7l")  # the same model, sealed under numeric scheme s7-int8-1
OLD_ROOT = "bee6f7d0bed9fff97bc06ea9f97678af041747379c1b23294c2b278b3902cf16"
SEEDS = (0, 1, 2, 3)
ORDERS = [  # of keys, with each hash seed: a hundred seals for each Python, or a thousand
    25,
    pytest.param(250, marks=pytest.mark.long(minutes=1)),
]

SHUFFLE = """
import hashlib, json, random, sys
from pathlib import Path
from s7jax import s7l
root, orders = Path(sys.argv[1]), int(sys.argv[2])
paths = [root / "weights/manifest.json", root / "vocab.json"]
trees = [json.loads(path.read_text()) for path in paths]
rng = random.Random(hash("a hash seed changes this"))
def shuffled(tree):
    if isinstance(tree, dict):
        return {key: shuffled(tree[key]) for key in rng.sample(list(tree), len(tree))}
    return [shuffled(item) for item in tree] if isinstance(tree, list) else tree
found = set()
for i in range(orders):
    for path, tree in zip(paths, trees):
        path.write_text(json.dumps(shuffled(tree)))
    s7l.seal(paths[0].parent, paths[1], root / "moe.s7l")
    found.add(hashlib.sha256((root / "moe.s7l").read_bytes()).hexdigest())
    (root / "moe.s7l").unlink()
print(json.dumps([sys.version_info[:2], sorted(found)]))
"""


def run(python, folder, seed, orders):
    """Python's version and the hashes of all the files it sealed."""
    write_micro(folder)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": str(seed)}
    done = subprocess.run(
        [python, "-c", SHUFFLE, str(folder), str(orders)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def wanted():
    return [hashlib.sha256(GOLDEN.read_bytes()).hexdigest()]


@pytest.fixture(scope="module")
def other_python(tmp_path_factory):
    """Another version of Python in a throw-away environment with NumPy and msgpack alone."""
    minors = [minor for minor in (12, 13, 11) if minor != sys.version_info[1]]
    named = [shutil.which(f"python3.{minor}") for minor in minors]
    pyenv = [
        path for n in minors for path in Path.home().glob(f".pyenv/versions/3.{n}.*/bin/python")
    ]
    for python in filter(None, [*pyenv, *named]):
        folder = tmp_path_factory.mktemp("other")
        install = [folder / "bin/pip", "install", "numpy", "msgpack"]
        steps = ([python, "-m", "venv", folder], install)
        if all(subprocess.run(s, capture_output=True, check=False).returncode == 0 for s in steps):
            return folder / "bin/python"
    pytest.skip("no other Python 3.11 to 3.13 here, or no NumPy and msgpack for it")


@pytest.mark.parametrize("orders", ORDERS)
@pytest.mark.parametrize("seed", SEEDS)
def test_any_order_and_hash_seed(tmp_path, wanted, seed, orders):
    assert run(sys.executable, tmp_path, seed, orders)[1] == wanted


@pytest.mark.parametrize("orders", ORDERS)
def test_another_python(tmp_path, wanted, other_python, orders):
    for seed in SEEDS:
        version, found = run(other_python, tmp_path / str(seed), seed, orders)
        assert version != list(sys.version_info[:2])
        assert found == wanted


def test_the_golden_file():
    # A change of this root is a change of the format: files sealed before become unreadable.
    assert agree(GOLDEN).hex() == GOLDEN_ROOT
    assert make() == GOLDEN.read_bytes()


def test_a_seal_of_the_old_scheme_is_refused_and_sealed_again(tmp_path):
    with pytest.raises(s7l.SealError, match=r"s7-int8-1.*s7jax pack --reseal"):
        s7l.open(OLD)
    command = [sys.executable, ROOT / "tools/pack.py", "--reseal", OLD, "--out", "new.s7l"]
    command.append("--no-answers")  # its vocabulary is too small for a prompt
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    new, same = s7l.open(tmp_path / "new.s7l"), s7l.open(GOLDEN)
    assert agree(tmp_path / "new.s7l") == new.root
    assert new.manifest.parent.hex() == OLD_ROOT
    assert list(new.tensors) == list(same.tensors)
    for name in same.tensors:
        assert new.tensor(name).tobytes() == same.tensor(name).tobytes()
