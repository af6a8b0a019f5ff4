"""The gate: what every compute entry asks for and checks before anything else.

A session hands out one gate when it enters BODY. It is bound to that session, and with it to the
session's own tokens and to the one compute fold it opened, and is worth nothing once the session
has left BODY. Which gate belongs to which session is kept here, outside of both: a gate that no
session handed out is refused whatever it claims to be.

What this holds against: mistakes, and code that uses the package as it is written. What nothing
in one process can hold against: code that rewrites this module or its memory.
"""

from typing import TYPE_CHECKING, Any, NoReturn
from weakref import WeakKeyDictionary, ref

from s7jax.errors import InputError
from s7jax.runtime.cm1 import Phase

if TYPE_CHECKING:
    from s7jax.runtime.session import Session


class GateError(InputError):
    """Compute was asked for without a valid gate."""


class Gate:
    """The right of one session to compute while it is in BODY; it holds nothing itself."""

    __slots__ = ("__weakref__",)

    def __reduce__(self) -> NoReturn:
        raise GateError("a gate cannot be copied or stored")

    def __copy__(self) -> NoReturn:
        self.__reduce__()

    def __deepcopy__(self, memo: Any) -> NoReturn:
        self.__reduce__()


# Weak at both ends: a session holds its gate, so one held here would never be freed.
_SESSIONS: WeakKeyDictionary[Gate, "ref[Session]"] = WeakKeyDictionary()


def issue(session: "Session") -> Gate:
    """The gate of a session that is in BODY and has none.

    Raises:
        GateError: it is not, or has one.
    """
    if session.phase is not Phase.BODY or session.gate is not None:
        raise GateError(f"a session in {session.phase} gets no further gate")
    gate = Gate()
    _SESSIONS[gate] = ref(session)
    return gate


def check(gate: Any, compute: object) -> "Session":
    """The session of a valid gate.

    Raises:
        GateError: no gate, something else than a gate, a forged one, one of another model, or
            one whose session is not in BODY.
    """
    if type(gate) is not Gate:
        raise GateError(f"compute needs the gate of an open session, not {type(gate).__name__}")
    session = _SESSIONS.get(gate, lambda: None)()
    if session is None or session.gate is not gate:
        raise GateError("the gate is forged: no session handed it out")
    if session.compute is not compute:
        raise GateError("the gate belongs to another model")
    if session.phase is not Phase.BODY:
        raise GateError(f"the gate is spent: its session is {session.phase}, not BODY")
    return session
