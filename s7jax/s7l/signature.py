"""Detached signatures: who released a sealed file, and which release it is.

``model.s7l.sig`` is a signed note (:mod:`s7jax.s7l.note`) of root, length and version of the file.

The version is the publisher's own ascending release number. It is under the signature and
nowhere else, so it can refuse an older release that is validly signed (a rollback), and says
nothing about a file without its note.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from s7jax.s7l import note
from s7jax.s7l.note import Note
from s7jax.s7l.reader import Seal
from s7jax.s7l.reader import open as open_seal
from s7jax.s7l.schema import SealError

MAX_VERSION: Final = (1 << 32) - 1
_TEXT = re.compile(
    r"s7l release\nroot ([0-9a-f]{64})\nlength ([1-9][0-9]{0,18})\nversion (0|[1-9][0-9]{0,9})\n"
)


@dataclass(frozen=True)
class Release:
    """What is signed."""

    root: bytes
    length: int  # bytes of the sealed file
    version: int

    def text(self) -> str:
        """The note's text, signed byte for byte."""
        lines = (f"root {self.root.hex()}", f"length {self.length}", f"version {self.version}")
        return "".join(f"{line}\n" for line in ("s7l release", *lines))

    @classmethod
    def of(cls, signed: Note, path: Path) -> Self:
        """What a note is of.

        Raises:
            SealError: not a sealed file.
        """
        found = _TEXT.fullmatch(signed.text)
        if found is None:
            raise SealError(str(path), "not a signed note of a sealed file")
        root, length, version = found.groups()
        if int(version) > MAX_VERSION:
            raise SealError(f"{path} version", f"{version}; at most {MAX_VERSION}")
        return cls(bytes.fromhex(root), int(length), int(version))


def note_path(sealed: Path) -> Path:
    """Where the note of a sealed file lies: beside it, with ``.sig`` after its name."""
    return sealed.with_name(f"{sealed.name}.sig")


def sign(path: Path, release: Release, keys: Sequence[Path]) -> Note:
    """Write the note of a release, or add signatures to the one that is there.

    Raises:
        SealError: a key is unreadable, or ``path`` is the note of another release.
        UsageError: the package ``cryptography`` is missing.
        OSError: the note cannot be written.
    """
    if path.exists() and (there := Release.of(note.read(path), path)) != release:
        found, wanted = _show(there), _show(release)
        raise SealError(str(path), f"signs {found}, not {wanted}; move it away to sign anew")
    return note.sign(path, release.text(), keys)


def verify(
    path: Path, root: bytes, length: int, trusted: Iterable[Path], min_version: int = 0
) -> tuple[Release, list[Path]]:
    """Verify the note of an open seal or bundle.

    Args:
        path: the note.
        root: root of the seal, recomputed from its bytes.
        length: bytes of the sealed file.
        trusted: public keys; one good signature by any of them is enough.
        min_version: the oldest release that is accepted.

    Returns:
        The release, and those of ``trusted`` that signed it.

    Raises:
        SealError: no signature by a trusted key, a wrong one, another root or length, or
            an older version.
        UsageError: the package ``cryptography`` is missing.
    """
    signed = note.read(path)
    release, signers = Release.of(signed, path), signed.signed_by(trusted, path)
    if release.root != root:
        raise SealError(f"{path} root", f"{release.root.hex()}; the file has {root.hex()}")
    if release.length != length:
        raise SealError(f"{path} length", f"{release.length}; the file has {length}")
    if release.version < min_version:
        raise SealError(f"{path} version", f"{release.version}; at least {min_version} is wanted")
    return release, signers


def open_trusted(
    path: Path | str,
    *,
    root: bytes | None = None,
    trust: Sequence[Path] = (),
    min_version: int = 0,
) -> Seal:
    """Open a sealed file that must have a root, or be signed by one of some keys (``PATH.sig``).

    Raises:
        SealError: as :func:`s7jax.s7l.open` and :func:`verify`.
    """
    seal = open_seal(path, root=root)
    if trust:
        verify(note_path(Path(path)), seal.root, seal.length, trust, min_version)
    return seal


def _show(release: Release) -> str:
    return f"root {release.root.hex()[:16]}… version {release.version}"
