import ast
import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from attacker import patch
from tiny import MODEL, write_inputs

from s7jax import s7l
from s7jax.s7l.dimensions import architecture_tree

Q = "expert0.layer0.attn.q_proj.weight"
WIDE = {**MODEL, "trunk": {"layers": 1, "hidden": 48, "heads": 2, "ffn": 43_700}}
FC1 = "trunk.layer0.ffn.fc1.weight"  # 48 · 43,700 bytes: three chunks


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """A seal with tensors of three chunks."""
    root = write_inputs(tmp_path_factory.mktemp("wide"), WIDE)
    s7l.seal(root / "weights", root / "vocab.json", root / "moe.s7l")
    return root


def spoil(path, source, name, index):
    """A copy with one bit of a tensor's stored bytes flipped."""
    seal = s7l.open(source)
    at = seal.head.lanes[1].offset + seal.tensors[name].offset + index
    data = source.read_bytes()
    path.write_bytes(patch(data, at, bytes([data[at] ^ 1]), hashed=False))
    return path


def test_views_are_the_sealed_arrays(pristine):
    seal = s7l.open(pristine / "moe.s7l")
    names = sorted(path.stem for path in (pristine / "weights").glob("*.npy"))
    assert list(seal.tensors) == names
    for name in names:
        expected = np.load(pristine / "weights" / f"{name}.npy")
        np.testing.assert_array_equal(seal.tensor(name), expected, strict=True)


def test_views_are_aligned_read_only_and_outlive_the_seal(pristine):
    view = s7l.open(pristine / "moe.s7l").tensor(Q)
    assert view.ctypes.data % 64 == 0
    with pytest.raises(ValueError, match="read-only"):
        view[0, 0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        view.flags.writeable = True
    np.testing.assert_array_equal(view, np.load(pristine / "weights" / f"{Q}.npy"))


def test_lanes_are_what_was_given(pristine):
    seal = s7l.open(pristine / "moe.s7l")
    assert architecture_tree(seal.manifest.dimensions) == MODEL
    assert seal.manifest.provenance["quality"] == {"math": 0.125}
    assert seal.tensors["router.bias"].exponent == -7
    assert seal.tensors[Q].exponent is None
    assert seal.vocabulary.tokens[256] == b"<|eod|>"
    assert seal.vocabulary.merges[0] == (97, 97)
    assert seal.stream["defaults"]["stop"] == (256,)
    assert seal.permissions == 0o444


def test_open_reads_no_weight(wide, tmp_path):
    path = spoil(tmp_path / "spoilt.s7l", wide / "moe.s7l", FC1, 2_000_000)
    seal = s7l.open(path)
    seal.verify_chunk(FC1, 0)
    seal.verify_component("expert0")
    seal.tensor("embedding.weight")
    for touch in (
        lambda: seal.verify_chunk(FC1, 1),
        lambda: seal.verify_tensor(FC1),
        lambda: seal.verify_component("trunk"),
        lambda: seal.tensor(FC1),
        seal.verify,
    ):
        with pytest.raises(s7l.SealError, match=rf"FIELD tensor {FC1} chunk 1"):
            touch()


def test_open_faults_no_field_page_in(wide, tmp_path):
    # The FIELD lane is replaced by a hole: opening must not notice.
    seal = s7l.open(wide / "moe.s7l")
    data = bytearray((wide / "moe.s7l").read_bytes())
    field = seal.head.lanes[1]
    data[field.offset : field.end] = bytes(field.length)
    (tmp_path / "hole.s7l").write_bytes(data)
    assert s7l.open(tmp_path / "hole.s7l").root == seal.root


def test_whole_and_parts_agree(wide):
    seal = s7l.open(wide / "moe.s7l")
    seal.verify()
    for name, tensors in seal.manifest.components.items():
        seal.verify_component(name)
        for tensor in tensors:
            for index in range(len(tensor.chunks)):
                seal.verify_chunk(tensor.name, index)
    assert len(seal.tensors[FC1].chunks) == 3


def test_unknown_names(pristine):
    seal = s7l.open(pristine / "moe.s7l")
    with pytest.raises(KeyError):
        seal.tensor("no.such")
    with pytest.raises(KeyError):
        seal.verify_component("expert9")
    with pytest.raises(IndexError):
        seal.verify_chunk(Q, 1)


def test_expert_root_does_not_depend_on_the_others(pristine, tmp_path):
    # Offsets move when the trunk grows; an expert's proof must not.
    model = {**MODEL, "vocab": 320}
    root = write_inputs(tmp_path, model)
    s7l.seal(root / "weights", root / "vocab.json", root / "moe.s7l")
    one, other = s7l.open(pristine / "moe.s7l"), s7l.open(root / "moe.s7l")
    assert one.tensors[Q].offset != other.tensors[Q].offset
    assert one.manifest.component_root("expert0") == other.manifest.component_root("expert0")
    assert one.manifest.component_root("expert0") != one.manifest.component_root("expert1")


def test_pinned_root(pristine):
    root = s7l.open(pristine / "moe.s7l").root
    assert s7l.open(pristine / "moe.s7l", root=root).root == root
    with pytest.raises(s7l.SealError, match="expected 0000"):
        s7l.open(pristine / "moe.s7l", root=bytes(32))


@pytest.mark.parametrize("kind", ["missing", "folder", "fifo", "device", "nul", "empty"])
def test_not_a_regular_file(tmp_path, kind):
    path = tmp_path / "x"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "empty":
        path.touch()
    elif kind in ("device", "nul"):
        path = {"device": "/dev/zero", "nul": "a\0b"}[kind]
    regular = {"missing": "No such file", "nul": "null byte", "empty": r"head\[0:4096\]"}
    with pytest.raises(s7l.SealError, match=regular.get(kind, "not a regular file")):
        s7l.open(path)


def test_sparse_terabyte_is_refused_at_once(tmp_path):
    with (tmp_path / "x").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(s7l.SealError, match="magic"):
        s7l.open(tmp_path / "x")


def test_random_bytes_raise_nothing_else(tmp_path):
    rng = np.random.default_rng(0)
    for size in (*range(0, 100, 7), 4_095, 4_096, 4_097, 20_000):
        (tmp_path / "x").write_bytes(b"S7LM\0\3\2\5" + rng.bytes(size))
        with pytest.raises(s7l.SealError):
            s7l.open(tmp_path / "x")


def test_room_imports_neither_jax_nor_other_rooms():
    code = "import sys, s7jax.s7l; print(*[m for m in sys.modules if m.split('.')[0] in sys.argv])"
    done = subprocess.run(
        [sys.executable, "-c", code, "jax", "flax", "rich", "tokenizers"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == ""
    for path in Path(s7l.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for module in modules:
                first = module.split(".")[0]
                lazy = {"cryptography"} if node.col_offset else set()  # never on import
                assert first in {"s7jax", "numpy", "msgpack"} | sys.stdlib_module_names | lazy
                if first == "s7jax":
                    allowed = ("s7l", "errors", "architecture", "extras", "fields", "storage")
                    assert module.split(".")[1] in allowed


def test_the_collector_is_left_as_it_was(pristine, tmp_path):
    (tmp_path / "x").write_bytes((pristine / "moe.s7l").read_bytes()[:-1] + b"\xff")
    for enabled in (True, False):
        gc.enable() if enabled else gc.disable()
        try:
            s7l.open(pristine / "moe.s7l")
            with pytest.raises(s7l.SealError):
                s7l.open(tmp_path / "x")
            assert gc.isenabled() is enabled
        finally:
            gc.enable()
