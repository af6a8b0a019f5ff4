import errno
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from tiny import MODEL, vocab_tree, write_weights

from s7jax import s7l
from s7jax.errors import InputError
from s7jax.s7l import publish, writer

Q = "expert0.layer0.attn.q_proj.weight"


def seal(root, **options):
    return s7l.seal(root / "weights", root / "vocab.json", root / "moe.s7l", **options)


def listing(root):
    return sorted(path.name for path in root.iterdir())


def edit(path, change):
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def replace(root, name, array):
    """Another array under the same name, with its right digest."""
    np.save(root / "weights" / f"{name}.npy", array)
    digest = hashlib.sha256(array.tobytes()).hexdigest()
    edit(root / "weights/manifest.json", lambda t: t["tensors"][name].update(sha256=digest))


def test_same_inputs_same_bytes(model, pristine):
    assert seal(model).created
    assert (model / "moe.s7l").read_bytes() == (pristine / "moe.s7l").read_bytes()


def test_order_of_keys_and_files_does_not_matter(model, pristine):
    def backwards(tree):
        if isinstance(tree, dict):
            return {key: backwards(tree[key]) for key in reversed(tree)}
        return tree

    for path in (model / "weights/manifest.json", model / "vocab.json"):
        path.write_text(json.dumps(backwards(json.loads(path.read_text()))))
    for path in sorted((model / "weights").glob("*.npy"), reverse=True):
        path.write_bytes(path.read_bytes())
    seal(model)
    assert (model / "moe.s7l").read_bytes() == (pristine / "moe.s7l").read_bytes()


def test_column_major_arrays_are_the_same_weights(model, pristine):
    path = model / "weights" / f"{Q}.npy"
    np.save(path, np.asfortranarray(np.load(path)))
    seal(model)
    assert (model / "moe.s7l").read_bytes() == (pristine / "moe.s7l").read_bytes()


def test_every_input_is_in_the_root(model, pristine):
    roots = {s7l.open(pristine / "moe.s7l").root}
    vocab, weights = model / "vocab.json", model / "weights"
    stop = {"max_new_tokens": 3, "temperature_q16": 0, "seed": 0, "stop": []}
    answer = {"domain": "code", "prompt": [1], "output": [2], "logits": [bytes(32)]}
    variants = [{"defaults": stop}, {"parent": bytes(32)}, {"answers": [answer]}]
    for i, options in enumerate(variants):
        roots.add(s7l.seal(weights, vocab, model / f"{i}.s7l", **options).root)
    edit(weights / "manifest.json", lambda t: t["tensors"]["router.bias"].update(exponent=3))
    roots.add(s7l.seal(weights, vocab, model / "exponent.s7l").root)
    edit(weights / "manifest.json", lambda t: t["provenance"].update(note="x"))
    roots.add(s7l.seal(weights, vocab, model / "provenance.s7l").root)
    assert len(roots) == 6


def test_published_read_only_and_alone(model):
    seal(model)
    assert (model / "moe.s7l").stat().st_mode & 0o777 == 0o444
    assert (model / "moe.s7l").stat().st_nlink == 1
    assert listing(model) == ["moe.s7l", "vocab.json", "weights"]


def test_without_nameless_files(model, pristine, monkeypatch):
    monkeypatch.setattr(publish, "_nameless", lambda folder: None)
    monkeypatch.chdir(model)
    s7l.seal(model / "weights", model / "vocab.json", writer.Path("moe.s7l"))
    assert (model / "moe.s7l").read_bytes() == (pristine / "moe.s7l").read_bytes()
    assert (model / "moe.s7l").stat().st_nlink == 1
    assert listing(model) == ["moe.s7l", "vocab.json", "weights"]


def test_identical_is_recognised_other_is_never_overwritten(model):
    first = seal(model)
    inode = (model / "moe.s7l").stat().st_ino
    again = seal(model)
    assert (first.created, again.created) == (True, False)
    assert first.root == again.root
    assert (model / "moe.s7l").stat().st_ino == inode
    before = (model / "moe.s7l").read_bytes()
    edit(model / "weights/manifest.json", lambda t: t["provenance"].update(note="x"))
    with pytest.raises(s7l.SealError, match="never overwritten"):
        seal(model)
    assert (model / "moe.s7l").read_bytes() == before


@pytest.mark.parametrize("kind", ["empty", "longer", "folder", "link", "fifo"])
def test_whatever_has_the_name_stays(model, pristine, kind):
    out = model / "moe.s7l"
    {
        "empty": out.touch,
        "longer": lambda: out.write_bytes((pristine / "moe.s7l").read_bytes() + b"\0"),
        "folder": out.mkdir,
        "link": lambda: out.symlink_to(model / "nowhere"),
        "fifo": lambda: os.mkfifo(out),
    }[kind]()
    before = os.lstat(out)
    with pytest.raises(s7l.SealError, match="never overwritten"):
        seal(model)
    after = os.lstat(out)
    assert (before.st_ino, before.st_size) == (after.st_ino, after.st_size)
    assert listing(model) == ["moe.s7l", "vocab.json", "weights"]


def test_longer_by_a_whole_block_is_not_the_same(tmp_path):
    (tmp_path / "x").write_bytes(bytes((1 << 20) + 1))
    assert not publish._same(io.BytesIO(bytes(1 << 20)), tmp_path / "x")
    assert publish._same(io.BytesIO(bytes((1 << 20) + 1)), tmp_path / "x")


def test_a_file_that_appears_meanwhile_stays(model, monkeypatch):
    link = publish._link

    def race(name, out):
        out.write_text("mine")
        return link(name, out)

    monkeypatch.setattr(publish, "_link", race)
    with pytest.raises(s7l.SealError, match="never overwritten"):
        seal(model)
    assert (model / "moe.s7l").read_text() == "mine"


@pytest.mark.parametrize("nameless", [True, False])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full"), MemoryError])
@pytest.mark.parametrize(("room", "stage"), [(writer, "_write_field"), (publish, "_link")])
def test_failure_leaves_nothing(model, monkeypatch, room, stage, error, nameless):
    def fail(*_):
        raise error

    monkeypatch.setattr(room, stage, fail)
    if not nameless:
        monkeypatch.setattr(publish, "_nameless", lambda folder: None)
    with pytest.raises(error if isinstance(error, type) else type(error)):
        seal(model)
    assert listing(model) == ["vocab.json", "weights"]


def test_a_full_disk_is_told_with_the_files_name(model, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer, "_write_field", fail)
    with pytest.raises(OSError, match=r"No space left on device: .*/moe\.s7l'"):
        seal(model)
    assert listing(model) == ["vocab.json", "weights"]


def test_what_the_reader_would_refuse_is_never_published(model, monkeypatch):
    wrong = writer.merkle.chunks
    monkeypatch.setattr(writer.merkle, "chunks", lambda data: wrong(bytes(data) + b"\0"))
    with pytest.raises(s7l.SealError, match="chunk 0"):
        seal(model)
    assert listing(model) == ["vocab.json", "weights"]


KILLED = """
import sys
from pathlib import Path
from s7jax import s7l
from s7jax.s7l import publish, writer
def wait(name, out):
    print("written", flush=True)
    sys.stdin.read()
publish._link = wait
root = Path(sys.argv[1])
s7l.seal(root / "weights", root / "vocab.json", root / "moe.s7l")
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_with_every_byte_written_leaves_nothing(model, number):
    command = [sys.executable, "-c", KILLED, str(model)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout.readline() == b"written\n"
        process.send_signal(number)
        assert process.wait() != 0
    assert listing(model) == ["vocab.json", "weights"]


def bad_json(path, text):
    return lambda root: (root / path).write_text(text)


def in_manifest(change):
    return lambda root: edit(root / "weights/manifest.json", change)


def in_entry(name, **values):
    return in_manifest(lambda t: t["tensors"][name].update(values))


def in_vocab(**values):
    return lambda root: edit(root / "vocab.json", lambda t: t.update(values))


def in_tokens(index, value):
    return lambda root: edit(root / "vocab.json", lambda t: t["tokens"].__setitem__(index, value))


def array(name, values):
    return lambda root: np.save(root / "weights" / f"{name}.npy", values, allow_pickle=True)


def shorten(root):
    tree = vocab_tree(257)
    tree["tokens"].pop()
    (root / "vocab.json").write_text(json.dumps({**tree, "specials": {}}))


NPY = f"{Q}.npy"
BIG = np.zeros((32, 32), ">i4")
WRONG = {
    "no manifest": ("manifest.json", lambda r: (r / "weights/manifest.json").unlink()),
    "no JSON": ("manifest.json", bad_json("weights/manifest.json", "{")),
    "deep JSON": ("manifest.json", bad_json("weights/manifest.json", "[" * 100_000)),
    "NaN": ("manifest.json", in_manifest(lambda t: t["provenance"].update(x=float("nan")))),
    "repeated key": ("repeats a key", bad_json("weights/manifest.json", '{"a": 1, "a": 2}')),
    "format": (".format", in_manifest(lambda t: t.update(format="s7"))),
    "version": (".version", in_manifest(lambda t: t.update(version=True))),
    "method": (".method", in_manifest(lambda t: t.update(method="int4"))),
    "extra key": ("unknown key 'x'", in_manifest(lambda t: t.update(x=1))),
    "tensor missing": (Q, in_manifest(lambda t: t["tensors"].pop(Q))),
    "tensor extra": ("'bias'", in_manifest(lambda t: t["tensors"].update(bias={}))),
    "path as name": ("passwd", in_manifest(lambda t: t["tensors"].update({"../passwd": {}}))),
    "shape": (f"[{Q}].shape", in_entry(Q, shape=[32, 33])),
    "axis": (f"[{Q}].axis", in_entry(Q, axis=0)),
    "scale": (f"[{Q}].scale", in_entry(Q, scale="router.scale")),
    "dtype": (f"[{Q}].dtype", in_entry(Q, dtype="float32")),
    "exponent": ("[router.bias].exponent", in_entry("router.bias", exponent=1.0)),
    "digest": (NPY, in_entry(Q, sha256="0" * 64)),
    "digest form": (f"[{Q}].sha256", in_entry(Q, sha256="0" * 64 + "\n")),
    "huge integer": (".provenance", in_manifest(lambda t: t["provenance"].update(x=1 << 70))),
    "surrogate": (".provenance", in_manifest(lambda t: t["provenance"].update(x="\ud800"))),
    "npy missing": (NPY, lambda r: (r / "weights" / NPY).unlink()),
    "npy empty": (NPY, lambda r: (r / "weights" / NPY).write_bytes(b"")),
    "npy text": (NPY, lambda r: (r / "weights" / NPY).write_bytes(b"hello")),
    "npy cut": (NPY, lambda r: os.truncate(r / "weights" / NPY, 200)),
    "npy header": (NPY, lambda r: (r / "weights" / NPY).write_bytes(b"\x93NUMPY\1\0\4\0(((\n")),
    "npy pickle": (NPY, array(Q, np.array([[{}]], dtype=object))),
    "npy float": (NPY, array(Q, np.zeros((32, 32), np.float32))),
    "npy big-endian": ("trunk.final_norm.gain.npy", array("trunk.final_norm.gain", BIG[:1])),
    "npy shape": (NPY, array(Q, np.zeros((32, 31), np.int8))),
    "npy empty array": (NPY, array(Q, np.zeros((0, 32), np.int8))),
    "-128": (f"{NPY}: value 0", lambda r: replace(r, Q, np.full((32, 32), -128, np.int8))),
    "negative scale": (
        "router.scale.npy: scale 0",
        lambda r: replace(r, "router.scale", np.full(4, -1, np.int32)),
    ),
    "heads": (".model.trunk.heads", in_manifest(lambda t: t["model"]["trunk"].update(heads=5))),
    "vocab missing": ("vocab.json", lambda r: (r / "vocab.json").unlink()),
    "vocab size": ("vocab.json .tokens: 256", shorten),
    "vocab format": ("vocab.json .format", in_vocab(format="bpe")),
    "vocab merges": (".merges[0]", in_vocab(merges=[[0, 1]])),
    "vocab special": (".specials", in_vocab(specials={"<|eot|>": 256})),
    "vocab id": (".specials", in_vocab(specials={"<|eod|>": 256.0})),
    "vocab merge of special": (".merges[0]", in_vocab(merges=[[256, 97]])),
    "vocab pattern": (".pattern", in_vocab(pattern="x")),
    "vocab twice": (".tokens[260]", in_tokens(260, "6161")),
    "vocab no hex": (".tokens[5]", in_tokens(5, "0G")),
    "vocab empty": (".tokens[5]", in_tokens(5, "")),
}


@pytest.mark.parametrize(("place", "spoil"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_named(model, place, spoil):
    spoil(model)
    with pytest.raises(InputError) as error:
        seal(model)
    assert place in str(error.value)
    assert not (model / "moe.s7l").exists()


def test_no_such_folder(model):
    with pytest.raises(InputError, match="no such folder"):
        s7l.seal(model / "weights", model / "vocab.json", model / "none" / "moe.s7l")


def test_concurrent_seals_publish_once(model):
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(seal(model).created)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False, False, False, True]
    assert listing(model) == ["moe.s7l", "vocab.json", "weights"]


def test_clock_and_locale_do_not_matter(model, pristine, monkeypatch):
    monkeypatch.setenv("LC_ALL", "tr_TR.UTF-8")
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    monkeypatch.setattr(time, "time", lambda: 0.0)
    seal(model)
    assert (model / "moe.s7l").read_bytes() == (pristine / "moe.s7l").read_bytes()


def test_other_seed_other_root(tmp_path, pristine):
    write_weights(tmp_path / "weights", MODEL, seed=1)
    done = s7l.seal(tmp_path / "weights", pristine / "vocab.json", tmp_path / "moe.s7l")
    assert done.root != s7l.open(pristine / "moe.s7l").root
