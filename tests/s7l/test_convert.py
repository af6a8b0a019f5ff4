"""Import and export: bit by bit, or refused with a reason."""

import hashlib
import json
import struct

import jax.numpy as jnp
import numpy as np
import pytest

from s7jax import commands, s7l
from s7jax.train import checkpoint


@pytest.fixture
def exported(pristine, tmp_path):
    s7l.export_safetensors(s7l.open(pristine / "moe.s7l"), tmp_path / "moe.safetensors")
    return tmp_path / "moe.safetensors"


def test_the_reference_implementation_reads_the_same_bits(pristine, exported):
    safetensors = pytest.importorskip("safetensors.numpy")
    seal = s7l.open(pristine / "moe.s7l")
    found = safetensors.load_file(exported)
    assert sorted(found) == list(seal.tensors)
    for name, array in found.items():
        np.testing.assert_array_equal(array, seal.tensor(name), strict=True)


def test_there_and_back_is_the_same_seal(pristine, exported, tmp_path):
    s7l.import_safetensors(exported, tmp_path / "again")
    sealed = tmp_path / "again/moe.s7l"
    s7l.seal(tmp_path / "again/weights", tmp_path / "again/vocab.json", sealed)
    assert sealed.read_bytes() == (pristine / "moe.s7l").read_bytes()


def test_what_the_reference_implementation_writes_is_read(pristine, exported, tmp_path):
    safetensors = pytest.importorskip("safetensors")
    from safetensors.numpy import load_file, save_file

    with safetensors.safe_open(exported, "np") as file:
        metadata = file.metadata()
    save_file(load_file(exported), tmp_path / "theirs.safetensors", metadata)  # another order
    s7l.import_safetensors(tmp_path / "theirs.safetensors", tmp_path / "out")
    sealed = tmp_path / "out/moe.s7l"
    s7l.seal(tmp_path / "out/weights", tmp_path / "out/vocab.json", sealed)
    assert sealed.read_bytes() == (pristine / "moe.s7l").read_bytes()


def rewrite(path, change):
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    tree = json.loads(data[8 : 8 + size])
    body = change(tree, data[8 + size :]) or data[8 + size :]
    header = json.dumps(tree).encode()
    path.chmod(0o644)
    path.write_bytes(len(header).to_bytes(8, "little") + header + body)


Q = "expert0.layer0.attn.q_proj.weight"
BROKEN = {
    "metadata": ("__metadata__", lambda t, b: t.pop("__metadata__") and None),
    "dtype": (f"{Q}.dtype", lambda t, b: t[Q].update(dtype="F32")),
    "overlap": ("overlap", lambda t, b: t[Q].update(data_offsets=[0, 1024])),
    "short": (f"{Q}.data_offsets", lambda t, b: t[Q].update(data_offsets=[0, 1023])),
    "tensor missing": ("142 tensors", lambda t, b: t.pop(Q) and None),
    "cut": ("not what the header says", lambda t, b: b[:-1]),
    "longer": ("not what the header says", lambda t, b: b + b"\0"),
    "a bit": ("SHA-256", lambda t, b: b[:-1] + bytes([b[-1] ^ 1])),
    "vocabulary": ("vocab.json", lambda t, b: t["__metadata__"].update({"vocab.json": "{}"})),
    "manifest": ("manifest.json", lambda t, b: t["__metadata__"].update({"manifest.json": "["})),
}


@pytest.mark.parametrize(("message", "change"), BROKEN.values(), ids=BROKEN)
def test_a_broken_import_is_refused_and_leaves_nothing(exported, tmp_path, message, change):
    rewrite(exported, change)
    with pytest.raises(s7l.SealError, match=message):
        s7l.import_safetensors(exported, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["moe.safetensors"]


@pytest.mark.parametrize("data", [b"", b"\1", b"\xff" * 16, b"\2\0\0\0\0\0\0\0[]", bytes(64)])
def test_no_safetensors(tmp_path, data):
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(s7l.SealError):
        s7l.import_safetensors(tmp_path / "x.safetensors", tmp_path / "out")


def version2(payloads, ids=(1, 2, 3, 4, 5), head=b"S7LM\0\2\2\5"):
    digests = [hashlib.sha256(p).digest() for p in payloads]
    pair = lambda a, b: hashlib.sha256(a + b).digest()  # noqa: E731
    a, b, c = (pair(*digests[:2]), pair(*digests[2:4]), pair(digests[4], digests[4]))
    data = head + pair(pair(a, b), pair(c, c))
    for number, payload, digest in zip(ids, payloads, digests, strict=True):
        data += struct.pack(">BI", number, len(payload)) + payload + digest
    return data


LANES = [b"dict", b"field" * 9, b"lane", b"edge", b""]


def test_version_2_is_read_and_taken_apart(tool, tmp_path):
    (tmp_path / "old.s7l").write_bytes(version2(LANES))
    assert list(s7l.read_version2(tmp_path / "old.s7l").payloads.values()) == LANES
    done = tool("convert", tmp_path / "old.s7l", tmp_path / "old")
    assert done.returncode == 0, done.stderr
    assert "not under this root" in done.stdout
    assert (tmp_path / "old/field.bin").read_bytes() == LANES[1]


GOOD = version2(LANES)
OLD = {
    "empty": ("head", b""),
    "version 3": ("not version 2", version2(LANES, head=b"S7LM\0\3\2\5")),
    "class": ("class 1", version2(LANES, head=b"S7LM\0\2\1\5")),
    "swapped ids": ("lane id 2", version2(LANES, ids=(2, 1, 3, 4, 5))),
    "repeated id": ("lane id 1", version2(LANES, ids=(1, 1, 3, 4, 5))),
    "four lanes": (r"lane 5 \(BATCH\)", GOOD[: -(5 + 32)]),
    "cut": (r"lane 5 \(BATCH\)", GOOD[:-1]),
    "trailing": ("bound by nothing", GOOD + b"\0"),
    "payload": (r"lane 2 \(FIELD\).*SHA-256", GOOD.replace(b"fieldfield", b"fieldFIELD", 1)),
    "root": ("not the root", GOOD[:8] + bytes(32) + GOOD[40:]),
    "length": (r"lane 1 \(DICT\)", GOOD[:41] + b"\xff\xff\xff\xff" + GOOD[45:]),
}


@pytest.mark.parametrize(("message", "data"), OLD.values(), ids=OLD)
def test_version_2_broken(tmp_path, message, data):
    (tmp_path / "old.s7l").write_bytes(data)
    with pytest.raises(s7l.SealError, match=message):
        s7l.read_version2(tmp_path / "old.s7l")


def test_the_tool(tool, pristine, tmp_path):
    out = tmp_path / "moe.safetensors"
    assert tool("convert", pristine / "moe.s7l", out).returncode == 0
    again = tool("convert", pristine / "moe.s7l", out)
    assert (again.returncode, "identical" in again.stdout) == (0, True)
    assert tool("convert", out, tmp_path / "again").returncode == 0
    twice = tool("convert", out, tmp_path / "again")
    assert (twice.returncode, "nothing is overwritten" in twice.stderr) == (1, True)
    assert "Traceback" not in twice.stderr


def test_a_float_checkpoint_goes_bit_by_bit(tmp_path, capsys):
    safetensors = pytest.importorskip("safetensors.numpy")
    values = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    params = {"trunk": {"weight": jnp.asarray(values), "gain": jnp.ones(5)}}
    checkpoint.save_final(tmp_path / "trunk_final", params, {})
    out = tmp_path / "trunk.safetensors"
    for said in ("written", "already there, identical"):
        with pytest.raises(SystemExit) as end:
            commands.run("convert", [str(tmp_path / "trunk_final"), str(out)])
        assert not end.value.code
        assert capsys.readouterr().out.startswith(f"{said}: {out}\n2 tensors of")
    found = safetensors.load_file(out)
    assert sorted(found) == ["trunk.gain", "trunk.weight"]
    np.testing.assert_array_equal(found["trunk.weight"], values, strict=True)
