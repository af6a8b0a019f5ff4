"""Signed notes: who released a seal, which release it is, and every way to forge that."""

import base64
import os
import subprocess

import pytest
from test_pack_verify import pack_args

from s7jax import s7l
from s7jax.s7l import note as notes
from s7jax.s7l import signature


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    for name in ("alice", "bob", "eve"):
        notes.new_key(folder / name)
    return folder


@pytest.fixture
def release(pristine):
    seal = s7l.open(pristine / "moe.s7l")
    return signature.Release(seal.root, seal.length, 3)


@pytest.fixture
def note(tmp_path, release, keys):
    signature.sign(tmp_path / "moe.s7l.sig", release, [keys / "alice"])
    return tmp_path / "moe.s7l.sig"


def verify(note, release, *trusted, **options):
    return signature.verify(note, release.root, release.length, trusted, **options)


def test_signed_and_verified(note, release, keys):
    found, signers = verify(note, release, keys / "bob.pub", keys / "alice.pub", min_version=3)
    assert (found, signers) == (release, [keys / "alice.pub"])
    assert note.read_text().startswith(f"s7l release\nroot {release.root.hex()}\nlength ")


def test_another_signer_is_added_and_the_same_one_is_not(note, release, keys):
    first = note.read_text()
    signature.sign(note, release, [keys / "alice"])
    assert note.read_text() == first
    signature.sign(note, release, [keys / "bob"])
    assert note.read_text().startswith(first)
    both = [keys / "alice.pub", keys / "bob.pub"]
    assert verify(note, release, *both)[1] == both
    assert verify(note, release, keys / "bob.pub")[1] == both[1:]


def test_a_note_of_another_release_is_not_replaced(note, release, keys):
    before = note.read_bytes()
    other = signature.Release(release.root, release.length, 4)
    with pytest.raises(s7l.SealError, match="move it away"):
        signature.sign(note, other, [keys / "alice"])
    assert note.read_bytes() == before


def line(text):
    return lambda data: data + f"— s7l {text}\n".encode()


def garbage_by(keys, name):
    number = notes._key_id(notes._public_key(keys / name).public_bytes_raw())
    return line(base64.b64encode(number + bytes(64)).decode())


FORGED = {
    "124 unknown key": ("no signature by a trusted key", lambda d, k: d, "eve.pub"),
    "126 truncated": ("cut short", lambda d, k: d[:-10], "alice.pub"),
    "126 truncated line": ("signature 0", lambda d, k: d[:-9] + b"\n", "alice.pub"),
    "126 no signatures": ("cut short", lambda d, k: d[: d.index(b"\n\n") + 2], "alice.pub"),
    "127 good and garbage of a trusted key": (
        "does not verify",
        lambda d, k: garbage_by(k, "alice.pub")(d),
        "alice.pub",
    ),
    "127 good and garbage no base64": ("signature 1", lambda d, k: line("A===")(d), "alice.pub"),
    "127 good and garbage too short": ("signature 1", lambda d, k: line("AAAA")(d), "alice.pub"),
    "127 good and garbage text": ("cut short", lambda d, k: d + b"trust me\n", "alice.pub"),
    "128 version raised": (
        "does not verify",
        lambda d, k: d.replace(b"version 3", b"version 9"),
        "alice.pub",
    ),
    "root changed": (
        "does not verify",
        lambda d, k: d.replace(d[17:19], b"00" if d[17:19] != b"00" else b"11", 1),
        "alice.pub",
    ),
    "leading zero": (
        "not a signed note",
        lambda d, k: d.replace(b"sion 3", b"sion 03"),
        "alice.pub",
    ),
    "CRLF": ("not a signed note", lambda d, k: d.replace(b"\n", b"\r\n"), "alice.pub"),
    "huge version": (
        "at most",
        lambda d, k: d.replace(b"version 3", b"version 9999999999"),
        "alice.pub",
    ),
    "too long": ("more than 65,536 bytes", lambda d, k: d + b"x" * 70_000, "alice.pub"),
    "not UTF-8": ("not a signed note", lambda d, k: d + b"\xff\n", "alice.pub"),
    "empty": ("not a signed note", lambda d, k: b"", "alice.pub"),
}


@pytest.mark.parametrize(("message", "change", "trusted"), FORGED.values(), ids=FORGED)
def test_forged_notes_are_refused(note, release, keys, message, change, trusted):
    note.write_bytes(change(note.read_bytes(), keys))
    with pytest.raises(s7l.SealError, match=message):
        verify(note, release, keys / trusted)


def test_a_stranger_beside_a_trusted_signer_is_ignored(note, release, keys):
    signature.sign(note, release, [keys / "eve"])
    assert verify(note, release, keys / "alice.pub")[1] == [keys / "alice.pub"]


def test_125_a_valid_note_of_another_file(note, release, keys):
    for root, length in ((bytes(32), release.length), (release.root, release.length + 1)):
        with pytest.raises(s7l.SealError, match="the file has"):
            signature.verify(note, root, length, [keys / "alice.pub"])


def test_128_rollback(note, release, keys):
    with pytest.raises(s7l.SealError, match="at least 4"):
        verify(note, release, keys / "alice.pub", min_version=4)


@pytest.mark.parametrize("kind", ["private", "rsa", "text", "missing", "folder"])
def test_what_is_no_key(note, release, keys, tmp_path, kind):
    key = tmp_path / "key"
    if kind == "private":
        key = keys / "alice"
    elif kind == "rsa":
        command = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout"]
        made = subprocess.run(command, capture_output=True, check=True).stdout
        public = subprocess.run(
            ["openssl", "ec", "-pubout"], input=made, capture_output=True, check=True
        )
        key.write_bytes(public.stdout)
    elif kind == "text":
        key.write_text("hello")
    elif kind == "folder":
        key.mkdir()
    with pytest.raises(s7l.SealError, match="key"):
        verify(note, release, key)
    if kind != "private":
        with pytest.raises(s7l.SealError, match="key"):
            signature.sign(tmp_path / "new.sig", release, [key])
        assert not (tmp_path / "new.sig").exists()


def test_openssl_makes_keys_and_verifies_signatures(tmp_path, release):
    def openssl(*args):
        subprocess.run(["openssl", *args], cwd=tmp_path, check=True, capture_output=True)

    openssl("genpkey", "-algorithm", "ed25519", "-out", "key.pem")
    openssl("pkey", "-in", "key.pem", "-pubout", "-out", "key.pub")
    note = signature.sign(tmp_path / "n.sig", release, [tmp_path / "key.pem"])
    assert verify(tmp_path / "n.sig", release, tmp_path / "key.pub")[0] == release
    (tmp_path / "text").write_text(release.text())
    (tmp_path / "raw").write_bytes(note.signatures[0][2])
    openssl(
        *("pkeyutl", "-verify", "-pubin", "-inkey", "key.pub", "-rawin"),
        *("-in", "text", "-sigfile", "raw"),
    )


def test_keys_are_private_and_never_overwritten(tmp_path):
    public = notes.new_key(tmp_path / "k")
    assert (tmp_path / "k").stat().st_mode & 0o777 == 0o600
    with pytest.raises(s7l.SealError, match="never overwritten"):
        notes.new_key(tmp_path / "k")
    (tmp_path / "k").unlink()
    with pytest.raises(s7l.SealError, match="never overwritten"):
        notes.new_key(tmp_path / "k")
    assert public.exists()


def test_without_cryptography_the_extra_is_named(monkeypatch, note, release, keys):
    monkeypatch.setitem(__import__("sys").modules, "cryptography.hazmat.primitives", None)
    with pytest.raises(ValueError, match=r"pip install .*cryptography"):
        verify(note, release, keys / "alice.pub")


def test_the_tools(tool, model, keys):
    made = tool("pack", "--new-key", model / "own.pem")
    assert made.returncode == 0, made.stderr
    done = tool(
        *("pack", *pack_args(model), "--sign", keys / "alice", model / "own.pem", "--release", 7),
    )
    assert done.returncode == 0, done.stderr
    assert "release 7, 2 signatures" in done.stdout
    sealed = model / "moe.s7l"
    for secret in (keys / "alice", keys / "alice.pub"):
        assert secret.read_bytes().splitlines()[1] not in sealed.read_bytes()

    def check(*args):
        return tool("verify", *args)

    good = check(sealed, "--trust", model / "own.pem.pub", "--min-version", 7, "--json")
    assert good.returncode == 0, good.stdout
    assert '"version": 7' in good.stdout
    assert check(sealed, "--trust", keys / "eve.pub", keys / "alice.pub").returncode == 0
    for args, message in [
        (("--trust", keys / "eve.pub"), "no signature by a trusted key"),
        (("--trust", keys / "alice.pub", "--min-version", 8), "at least 8"),
        (("--trust", keys / "alice"), "give the public one"),
        (("--trust", keys / "alice.pub", "--signature", model / "none"), "No such file"),
        (("--root", "00" * 32), "expected 0000"),
    ]:
        bad = check(sealed, *args)
        assert (bad.returncode, message in bad.stderr) == (1, True), bad.stderr
        assert "Traceback" not in bad.stderr
    for args in (("--min-version", 1), ("--root", "xyz")):
        assert check(sealed, *args).returncode == 2

    s7l.extract(s7l.open(sealed), "expert1", model / "expert1.s7b")
    note = signature.note_path(sealed)
    one = check(model / "expert1.s7b", "--trust", keys / "alice.pub", "--signature", note)
    assert one.returncode == 0, one.stderr
    assert "chunks of expert1 and its proof" in one.stdout


P_25519, ORDER = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493  # RFC 8032, 5.1
CURVE_D = -121665 * pow(121666, -1, P_25519) % P_25519


def added(p, q):
    """The sum of two points of edwards25519, by the formula of RFC 8032, 5.1.4."""
    (a, b), (c, d) = p, q
    product = CURVE_D * a * b * c * d
    x = (a * d + b * c) * pow(1 + product, -1, P_25519)
    y = (b * d + a * c) * pow(1 - product, -1, P_25519)
    return x % P_25519, y % P_25519


def times(n, p):
    found = (0, 1)
    for bit in bin(n)[2:]:
        found = added(found, found)
        found = added(found, p) if bit == "1" else found
    return found


def points():
    """Points of the curve: y = 2, 3, … where there is an x."""
    for y in range(2, 1000):
        xx = (y * y - 1) * pow(CURVE_D * y * y + 1, -1, P_25519) % P_25519
        x = pow(xx, (P_25519 + 3) // 8, P_25519)
        for root in (x, x * pow(2, (P_25519 - 1) // 4, P_25519) % P_25519):
            if root * root % P_25519 == xx:
                yield root, y
                break


def test_keys_of_small_order_are_refused(note, release, tmp_path):
    """The eight points whose eightfold is nothing, and every way to write them down."""
    torsion = next(t for p in points() if times(4, t := times(ORDER, p)) != (0, 1))
    small = {times(n, torsion) for n in range(8)}
    assert len(small) == 8
    spelt = {y + more for _, y in small for more in (0, P_25519) if y + more < 2**255}
    for y in spelt:
        for sign in (0, 1 << 255):
            der = bytes.fromhex("302a300506032b6570032100") + (y | sign).to_bytes(32, "little")
            text = base64.b64encode(der).decode()
            key = tmp_path / "small.pub"
            key.write_text(f"-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n")
            with pytest.raises(s7l.SealError, match="small order"):
                verify(note, release, key)


@pytest.mark.parametrize("what", ["note", "key", "private key"])
def test_a_fifo_is_refused_and_waited_for_by_nobody(note, release, keys, tmp_path, what):
    os.mkfifo(fifo := tmp_path / "fifo")
    attempts = {
        "note": lambda: verify(fifo, release, keys / "alice.pub"),
        "key": lambda: verify(note, release, fifo),
        "private key": lambda: signature.sign(tmp_path / "new.sig", release, [fifo]),
    }
    with pytest.raises(s7l.SealError, match="not a regular file"):
        attempts[what]()
