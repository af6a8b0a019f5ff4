"""Signed notes (github.com/C2SP/C2SP, signed-note.md): a short text and Ed25519 signatures.

A text, an empty line, and one line for each signer. Keys to be trusted come from the caller,
never from the note.
"""

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from s7jax.errors import UsageError
from s7jax.extras import how_to_install
from s7jax.s7l.memory import read_regular
from s7jax.s7l.schema import SealError
from s7jax.storage import write_bytes

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

_NAME: Final = "s7l"  # names the signature lines; the key id tells signers apart
_MAX_NOTE: Final = 1 << 16
_MAX_KEY: Final = 1 << 14
_FORM = re.compile(r"((?:.+\n)+)\n((?:— \S+ [A-Za-z0-9+/=]+\n)+)")
_LINE = re.compile(r"— (\S+) ([A-Za-z0-9+/=]+)\n")


@dataclass(frozen=True)
class Note:
    """A note: its text, ending in a newline, and (name, key id, signature) of every line."""

    text: str
    signatures: tuple[tuple[str, bytes, bytes], ...] = ()

    def encode(self) -> bytes:
        """The bytes of the note file."""
        lines = (
            f"— {name} {base64.b64encode(number + signature).decode()}\n"
            for name, number, signature in self.signatures
        )
        return f"{self.text}\n{''.join(lines)}".encode()

    def signed_by(self, trusted: Iterable[Path], path: Path) -> list[Path]:
        """Those of some public keys that signed it; ``path`` is where it lies.

        Lines of keys that nobody asked about are ignored, as signed notes want it.

        Raises:
            SealError: none did, or a line that bears a trusted key's id does not verify.
            UsageError: the package ``cryptography`` is missing.
        """
        signers = [key for key in trusted if _signed(self, key, path)]
        if not signers:
            raise SealError(str(path), "no signature by a trusted key")
        return signers


def read(path: Path) -> Note:
    """The note in a file, its form checked; no signature is verified yet.

    Raises:
        SealError: it cannot be read or is no signed note.
    """
    found = _FORM.fullmatch(read_regular(path, _MAX_NOTE).decode(errors="replace"))
    if found is None:
        raise SealError(str(path), "not a signed note, or cut short")
    text, lines = found.groups()
    signatures = tuple(
        (line[1], *_signature(line[2], f"{path} signature {i}"))
        for i, line in enumerate(_LINE.finditer(lines))
    )
    return Note(text, signatures)


def sign(path: Path, text: str, keys: Sequence[Path]) -> Note:
    """Write a signed note, or add signatures to the one of that text that is there.

    Raises:
        SealError: a key is unreadable, or ``path`` is another note.
        UsageError: the package ``cryptography`` is missing.
        OSError: the note cannot be written.
    """
    there = read(path) if path.exists() else Note(text)
    if there.text != text:
        raise SealError(str(path), "signs something else; move it away to sign anew")
    signatures = there.signatures
    for private in map(_private_key, keys):
        number = _key_id(private.public_key().public_bytes_raw())
        made = (_NAME, number, private.sign(text.encode()))
        if made not in signatures:  # Ed25519 is deterministic: the same key signs the same
            signatures = (*signatures, made)
    note = Note(text, signatures)
    write_bytes(path, note.encode())
    return note


def raw_signatures(data: bytes, keys: Iterable[Path]) -> list[bytes]:
    """Ed25519 signatures of bytes that are no note, one by each private key.

    Raises:
        SealError: a key is unreadable.
        UsageError: the package ``cryptography`` is missing.
    """
    return [_private_key(key).sign(data) for key in keys]


# y coordinates of the eight points of small order and their other encodings, sign bit cleared.
_P = 2**255 - 19
_SMALL_ORDER = frozenset(
    y.to_bytes(32, "little")
    for y in (
        *(0, 1, _P - 1, _P, _P + 1),
        0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826,
        0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7,
    )
)


def require_keys(keys: Iterable[Path]) -> None:
    """Private keys that are to sign something later must be readable now.

    Raises:
        SealError: one is not.
        UsageError: the package ``cryptography`` is missing.
    """
    for key in keys:
        _private_key(key)


def new_key(path: Path) -> Path:
    """Make a key pair: ``path`` (PEM, mode 0600) and, returned, ``path.pub``.

    Raises:
        SealError: one of the files is there already.
        UsageError: the package ``cryptography`` is missing.
        OSError: the folder cannot be written.
    """
    ed25519, serialization = _cryptography()
    public = path.with_name(f"{path.name}.pub")
    for name in (path, public):
        if name.exists():
            raise SealError(str(name), "exists; a key is never overwritten")
    key = ed25519.Ed25519PrivateKey.generate()
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    shown = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    for name, data, mode in ((path, secret, 0o600), (public, shown, 0o644)):
        with os.fdopen(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
    return public


def _signed(note: Note, key: Path, place: Path) -> bool:
    """Whether the note bears this key's signature; a wrong one under its id is an error."""
    public = _public_key(key)
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415

    number = _key_id(public.public_bytes_raw())
    mine = [signature for name, i, signature in note.signatures if (name, i) == (_NAME, number)]
    for signature in mine:
        try:
            public.verify(signature, note.text.encode())
        except InvalidSignature as e:
            raise SealError(str(place), f"the signature by {key} does not verify") from e
    return bool(mine)


def _signature(encoded: str, place: str) -> tuple[bytes, bytes]:
    """Key id and signature of a line."""
    try:
        data = base64.b64decode(encoded, validate=True)
    except binascii.Error as e:
        raise SealError(place, "not base64") from e
    if len(data) != 68 or base64.b64encode(data).decode() != encoded:
        raise SealError(place, f"{len(data)} bytes; expected a key id of 4 and a signature of 64")
    return data[:4], data[4:]


def _key_id(public: bytes) -> bytes:
    return hashlib.sha256(_NAME.encode() + b"\n\x01" + public).digest()[:4]


def _private_key(path: Path) -> "Ed25519PrivateKey":
    ed25519, serialization = _cryptography()
    data = _key_bytes(path)
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError) as e:
        raise SealError(str(path), f"no unencrypted PEM private key: {e}") from e
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise SealError(str(path), "not an Ed25519 key")
    return key


def _public_key(path: Path) -> "Ed25519PublicKey":
    ed25519, serialization = _cryptography()
    data = _key_bytes(path)
    if b"PRIVATE KEY" in data:
        raise SealError(str(path), "a private key; give the public one")
    try:
        key = serialization.load_pem_public_key(data)
    except ValueError as e:
        raise SealError(str(path), f"no PEM public key: {e}") from e
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise SealError(str(path), "not an Ed25519 key")
    raw = key.public_bytes_raw()
    if raw[:31] + bytes([raw[31] & 0x7F]) in _SMALL_ORDER:
        raise SealError(str(path), "a key of small order: anyone can sign for it")
    return key


def _key_bytes(path: Path) -> bytes:
    return read_regular(path, _MAX_KEY)


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
        from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415
    except ImportError as e:
        raise UsageError(
            f"signatures need the package cryptography: {how_to_install('sign')}"
        ) from e
    return ed25519, serialization
