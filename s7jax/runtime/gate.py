"""The gate: what every compute entry asks for and checks before anything else.

A gate is handed out by a session when it enters BODY, is bound to that session and to the one
:class:`s7jax.runtime.compute.Compute` it opened, and is worth nothing once the session has left
BODY. It cannot be made, copied or pickled by anyone else.
"""

from typing import TYPE_CHECKING, Any, NoReturn

from s7jax.errors import InputError
from s7jax.runtime.cm1 import Phase

if TYPE_CHECKING:
    from s7jax.runtime.session import Session

_MADE_HERE = object()


class GateError(InputError):
    """Compute was asked for without a valid gate."""


class Gate:
    """The right of one session to compute while it is in BODY."""

    __slots__ = ("_session",)

    def __init__(self, session: "Session", key: object) -> None:
        if key is not _MADE_HERE:
            raise GateError("a gate is handed out by a session that enters BODY, not made")
        self._session = session

    def __reduce__(self) -> NoReturn:
        raise GateError("a gate cannot be copied or stored")

    def __copy__(self) -> NoReturn:
        self.__reduce__()

    def __deepcopy__(self, memo: Any) -> NoReturn:
        self.__reduce__()


def issue(session: "Session") -> Gate:
    """A gate for a session; the session keeps it and shows it on demand."""
    return Gate(session, _MADE_HERE)


def check(gate: Any, compute: object) -> None:
    """Let a call through, or not.

    Raises:
        GateError: no gate, something else than a gate, a forged one, one of another model, or
            one whose session is not in BODY.
    """
    if type(gate) is not Gate:
        raise GateError(f"compute needs the gate of an open session, not {type(gate).__name__}")
    session = getattr(gate, "_session", None)
    if session is None or session.gate is not gate:
        raise GateError("the gate is forged: no session handed it out")
    if session.compute is not compute:
        raise GateError("the gate belongs to another model")
    if session.phase is not Phase.BODY:
        raise GateError(f"the gate is spent: its session is {session.phase}, not BODY")
