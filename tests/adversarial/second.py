"""The second verifier, imported from its single file."""

import importlib.util
from pathlib import Path

FILE = Path(__file__).parents[2] / "tools/s7l_verify.py"
_spec = importlib.util.spec_from_file_location("s7l_verify", FILE)
second = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(second)


def both(path):
    """What the library and the second verifier say of a file: a root, or their error."""
    from s7jax import s7l

    try:
        seal = s7l.open(path)
        seal.verify()
        one = seal.root
    except s7l.SealError as e:
        one = e
    try:
        other = second.verify(str(path))
    except (second.Refused, OSError, ValueError) as e:
        other = e
    return one, other


def agree(path):
    """The root both accept, or None if both refuse; anything else fails."""
    one, other = both(path)
    assert isinstance(one, bytes) == isinstance(other, bytes), (one, other)
    if not isinstance(one, bytes):
        return None
    assert one == other
    return one
