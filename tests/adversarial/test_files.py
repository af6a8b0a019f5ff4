"""Attacks around the file: its kind, its size, and what happens to it while it is in use."""

import fcntl
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from second import agree, second

from s7jax import s7l
from s7jax.s7l.memory import default_mode

Q = "expert0.layer0.attn.q_proj.weight"


@pytest.fixture
def copy(pristine, tmp_path):
    path = tmp_path / "own" / "moe.s7l"
    path.parent.mkdir()
    path.write_bytes((pristine / "moe.s7l").read_bytes())
    return path


SESSION = """
import sys, hashlib
from s7jax import s7l
seal = s7l.open(sys.argv[1], mode=sys.argv[2])
def digest():
    h = hashlib.sha256()
    for name in seal.tensors:
        h.update(seal.tensor(name).tobytes())
    return h.hexdigest()
print(digest() if sys.argv[3] == "touched" else "opened", flush=True)
for line in sys.stdin:
    seal.verify()
    print(digest(), flush=True)
"""


def overwrite(path):
    with path.open("r+b") as file:
        file.write(os.urandom(path.stat().st_size))


def replace(path):
    path.with_name("new").write_bytes(b"another")
    path.with_name("new").replace(path)


ATTACKS = {
    "truncate": lambda path: os.truncate(path, 100),
    "empty": lambda path: os.truncate(path, 0),
    "overwrite": overwrite,
    "rename": lambda path: path.rename(path.with_name("gone")),
    "replace": replace,
    "delete": lambda path: path.unlink(),
}


@pytest.mark.parametrize("touched", ["touched", "untouched"])
@pytest.mark.parametrize("mode", ["memfd", "copy"])
def test_116_117_118_a_session_outlives_any_attack(pristine, tmp_path, mode, touched):
    command = [sys.executable, "-c", SESSION]
    before = None
    for name, attack in ATTACKS.items():
        folder = tmp_path / name
        folder.mkdir()
        path = folder / "moe.s7l"
        path.write_bytes((pristine / "moe.s7l").read_bytes())
        with subprocess.Popen(
            [*command, str(path), mode, touched],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as session:
            first = session.stdout.readline()
            attack(path)
            session.stdin.write("again\n")
            session.stdin.flush()
            after = session.stdout.readline()
            session.stdin.close()
            assert session.wait() == 0, name
        if touched == "touched":
            assert first == after, name
        before = before or after
        assert after == before != "", name


def test_117_mapped_and_overwritten_is_noticed_when_touched(copy):
    seal = s7l.open(copy, mode="mmap")
    at = seal.head.lanes[1].offset + seal.tensors[Q].offset
    with copy.open("r+b") as file:
        file.seek(at)
        file.write(b"\x55" * 64)
    with pytest.raises(s7l.SealError, match=rf"{Q} chunk 0"):
        seal.tensor(Q)


def test_116_truncated_while_it_is_opened_is_an_error(copy, monkeypatch):
    from s7jax.s7l import memory

    for mode in ("mmap", "memfd", "copy"):
        load = memory.load
        data = copy.read_bytes()

        def cut(fd, size, how, load=load):
            os.truncate(copy, 5000)
            return load(fd, size, how)

        monkeypatch.setattr(memory, "load", cut)
        with pytest.raises(s7l.SealError, match=r"truncated|greater than file size"):
            s7l.open(copy, mode=mode)
        monkeypatch.undo()
        copy.write_bytes(data)


@pytest.mark.parametrize("mode", ["memfd", "copy"])
def test_118_changed_between_check_and_copy_is_noticed(copy, monkeypatch, mode):
    from s7jax.s7l import memory

    load = memory.load
    data = copy.read_bytes()
    for at in (9, 4200, len(data) - 5):

        def change(fd, size, how, at=at):
            copy.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            return load(fd, size, how)

        monkeypatch.setattr(memory, "load", change)
        with pytest.raises(s7l.SealError, match=r"head|lane"):
            s7l.open(copy, mode=mode)
        copy.write_bytes(data)


def test_the_kernel_refuses_to_change_a_memfd(copy):
    seal = s7l.open(copy, mode="memfd")
    view = seal.tensor(Q)
    assert not view.flags.writeable
    assert view.ctypes.data % 64 == 0
    with pytest.raises(ValueError, match="WRITEABLE"):
        view.flags.writeable = True
    lines = Path("/proc/self/maps").read_text().splitlines()
    maps = [line for line in lines if "memfd:s7l" in line]
    assert maps
    assert all(" r--p " in line for line in maps)


def test_a_memfd_can_be_neither_written_nor_resized(copy, monkeypatch):
    create, kept = os.memfd_create, []

    def keep(*args):
        fd = create(*args)
        kept.append(os.dup(fd))
        return fd

    monkeypatch.setattr(os, "memfd_create", keep)
    seal = s7l.open(copy, mode="memfd")
    (fd,) = kept
    for attack in (
        lambda: os.pwrite(fd, b"x", 0),
        lambda: os.ftruncate(fd, 100),
        lambda: os.ftruncate(fd, seal.length + 1),
        lambda: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
    ):
        with pytest.raises(PermissionError):
            attack()
    os.close(fd)


@pytest.mark.parametrize("mode", ["mmap", "memfd", "copy"])
def test_every_mode_gives_the_same_tensors(pristine, mode):
    seal = s7l.open(pristine / "moe.s7l", mode=mode)
    assert seal.mode == mode
    seal.verify()
    for name in seal.tensors:
        expected = np.load(pristine / "weights" / f"{name}.npy")
        np.testing.assert_array_equal(seal.tensor(name), expected, strict=True)


def test_a_copy_is_the_default_where_others_can_write(copy):
    link = copy.parent.parent / "link.s7l"
    link.symlink_to(copy)
    for mode, expected in ((0o644, "mmap"), (0o646, "memfd"), (0o664, "memfd")):
        copy.chmod(mode)
        for path in (copy, link):
            assert s7l.open(path).mode == expected


def test_the_open_file_is_judged_and_not_its_name(copy):
    # Whoever can write to the folder can swap the name between a look at it and the opening.
    fd = os.open(copy, os.O_RDONLY)
    moved = copy.rename(copy.with_name("moved.s7l"))
    copy.write_bytes(moved.read_bytes())
    moved.chmod(0o666)
    assert default_mode(fd) == "memfd"
    os.close(fd)


def test_device_put_of_a_view_shares_its_memory(pristine):
    import jax

    for mode in ("mmap", "memfd", "copy"):
        seal = s7l.open(pristine / "moe.s7l", mode=mode)
        view = seal.tensor(Q)
        cpu = jax.devices("cpu")[0]
        assert jax.device_put(view, cpu).unsafe_buffer_pointer() == view.ctypes.data


def test_119_only_regular_files(pristine, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", "/dev/zero", "/dev/null", tmp_path, tmp_path / "none", "a\0b"):
        assert agree(path) is None
    (tmp_path / "link.s7l").symlink_to(pristine / "moe.s7l")
    os.link(pristine / "moe.s7l", tmp_path / "hard.s7l")
    for name in ("link.s7l", "hard.s7l"):  # the bytes are what is verified
        assert agree(tmp_path / name) == s7l.open(pristine / "moe.s7l").root


def touched() -> int:
    """Bytes that this process has read so far, by calls and as pages of memory."""
    lines = Path("/proc/self/io").read_text().splitlines()
    used = resource.getrusage(resource.RUSAGE_SELF)
    pages = used.ru_minflt + used.ru_majflt
    return int(lines[0].removeprefix("rchar: ")) + pages * resource.getpagesize()


@pytest.mark.parametrize("mode", ["mmap", "memfd", "copy"])
def test_120_a_sparse_terabyte(pristine, tmp_path, mode):
    from attacker import reroot

    data = bytearray((pristine / "moe.s7l").read_bytes())
    size = 1 << 40
    data[40:48] = size.to_bytes(8, "big")
    path = tmp_path / "sparse.s7l"
    path.write_bytes(reroot(data))
    os.truncate(path, size)
    before = touched()
    with pytest.raises(s7l.SealError):
        s7l.open(path, mode=mode)
    assert agree(path) is None
    data[144:152] = (size - 65536).to_bytes(8, "big")  # a FIELD that fills it
    path.write_bytes(reroot(data))
    os.truncate(path, size)
    with pytest.raises(s7l.SealError):
        s7l.open(path, mode=mode)
    assert agree(path) is None
    assert touched() - before < 1 << 30, "a thousandth of what the file claims"


def test_121_unreadable(copy):
    # Root may read anything: there the file is made unreadable by a folder in its path.
    if os.geteuid():
        copy.chmod(0)
        assert agree(copy) is None
    assert agree(copy / "below") is None


def test_the_second_verifier_is_one_file_for_any_machine(pristine, tmp_path):
    alone = tmp_path / "s7l_verify.py"
    alone.write_text(second.__spec__.loader.get_data(second.__file__).decode())
    assert len(alone.read_text().splitlines()) <= 300

    def run(*args):
        command = [sys.executable, "-I", str(alone), *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    root = s7l.open(pristine / "moe.s7l").root.hex()
    good = run(pristine / "moe.s7l", "--root", root)
    assert (good.returncode, root in good.stdout) == (0, True), good.stderr
    for args, code in [
        ((pristine / "moe.s7l", "--root", "00"), 1),
        ((alone,), 1),
        ((tmp_path,), 1),
        ((), 2),
    ]:
        bad = run(*args)
        assert bad.returncode == code
        assert "Traceback" not in bad.stderr
