"""Files are written whole or not at all, and under no name that somebody else has put there."""

import errno
import os
import secrets
from pathlib import Path

import pytest

from s7jax import storage


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    storage.write_bytes(tmp_path / "a", b"old")

    def fail(fd: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        storage.write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_is_not_there_is_said_of_the_file_that_was_asked_for(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"'.*/nowhere/a'$"):
        storage.write_bytes(tmp_path / "nowhere/a", b"new")


@pytest.mark.parametrize("kind", ["link", "dangling link", "file"])
def test_a_temporary_name_that_exists_is_not_written_through(tmp_path: Path, monkeypatch, kind):
    victim, trap = tmp_path / "victim", tmp_path / ".a.00"
    if kind != "dangling link":
        victim.write_bytes(b"precious")
    if kind == "file":
        os.link(victim, trap)
    else:
        trap.symlink_to(victim)
    monkeypatch.setattr(secrets, "token_hex", lambda size: "00")
    with pytest.raises(FileExistsError):
        storage.write_bytes(tmp_path / "a", b"x" * 100)
    assert os.path.lexists(trap)
    assert not (tmp_path / "a").exists()
    assert victim.exists() == (kind != "dangling link")
    assert kind == "dangling link" or victim.read_bytes() == b"precious"
