"""Fields that know their range and unit: one check for every setting, wherever it comes from.

A configuration is made of frozen dataclasses whose fields are declared with :func:`number`,
:func:`choice` or :func:`identifier`. Constructing one checks it; :func:`build` makes one from plain
JSON types and names the field with its whole path. A field with a default may be missing, and
:func:`decisive` leaves it out while it has that default: adding such a field changes no digest.
"""

import dataclasses
import difflib
import re
import sys
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from s7jax.errors import UsageError, show

NAME = r"[a-z0-9_]{1,64}"
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, in ``unit``; ``low`` itself is out if ``above``."""

    low: float
    high: float
    unit: str = ""
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return (self.low < value if self.above else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        low = f"above {self.low:,}" if self.above else f"from {self.low:,}"
        return f"{low} to {self.high:,}{f' ({self.unit})' if self.unit else ''}"


def number(
    low: float,
    high: float,
    unit: str = "",
    *,
    above: bool = False,
    default: Any = dataclasses.MISSING,
) -> Any:
    """A number, or a tuple of numbers, each within a range."""
    return dataclasses.field(default=default, metadata={"range": Range(low, high, unit, above)})


def choice(*options: str, default: str) -> Any:
    """One of several words."""
    return dataclasses.field(default=default, metadata={"choices": options})


def identifier(*, default: Any = dataclasses.MISSING) -> Any:
    """A lower-case name, or None where the type allows it."""
    return dataclasses.field(default=default, metadata={"pattern": NAME})


class Checked:
    """A dataclass whose fields are checked when it is made."""

    def __post_init__(self) -> None:
        cls: Any = type(self)
        hints = get_type_hints(cls)
        for f in dataclasses.fields(cls):
            if problem := _problem(f, hints[f.name], getattr(self, f.name)):
                raise UsageError(f"{f.name} {problem}")


def build(cls: type[T], tree: Any, path: str = "") -> T:
    """An instance of a dataclass from plain JSON types; inverse of :func:`plain`.

    Raises:
        UsageError: a field is missing, unknown, of another type or out of range; it is named
            with its path, such as ``trunk.peak_lr``.
    """
    made: Any = cls
    if not isinstance(tree, dict):
        raise UsageError(f"{path or 'configuration'} is {tree!r}; expected an object")
    known = {f.name: f for f in dataclasses.fields(made)}
    hints, values = get_type_hints(cls), {}
    for key, value in tree.items():
        where = f"{path}.{key}" if path else str(key)
        if key not in known:
            raise UsageError(f"no field {where!r} in the configuration{nearest(key, known)}")
        values[key] = _built(hints[key], value, where)
        if problem := _problem(known[key], hints[key], values[key]):
            raise UsageError(f"{where} {problem}")
    for key, f in known.items():
        if key not in values and f.default is f.default_factory is dataclasses.MISSING:
            raise UsageError(f"{f'{path}.{key}' if path else key} is missing in the configuration")
    try:
        return cls(**values)
    except UsageError as e:
        raise UsageError(f"{path}.{e}" if path else str(e)) from None


def plain(value: Any) -> Any:
    """A dataclass as plain JSON types, in field order."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return [plain(item) for item in value] if isinstance(value, tuple) else value


def decisive(value: Any) -> Any:
    """As :func:`plain`, without the fields that have their default: what a digest covers.

    A default therefore never changes; a preset that wants another value states it.
    """
    if dataclasses.is_dataclass(value):
        return {
            f.name: decisive(getattr(value, f.name))
            for f in dataclasses.fields(value)
            if getattr(value, f.name) != _default(f)
        }
    return [decisive(item) for item in value] if isinstance(value, tuple) else value


def nearest(word: str, known: Any) -> str:
    """``; did you mean 'x'?``, or nothing where no known word is near."""
    found = difflib.get_close_matches(str(word), [str(k) for k in known], n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def _default(f: Any) -> Any:
    if f.default_factory is not dataclasses.MISSING:
        return f.default_factory()
    return f.default


def _built(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where)  # type: ignore[arg-type]
    if get_origin(hint) is tuple and isinstance(value, list | tuple):
        item, *rest = get_args(hint)
        hints = [item] * len(value) if rest == [...] else [item, *rest]
        if len(hints) != len(value):
            raise UsageError(f"{where} has {len(value)} entries; expected {len(hints)}")
        pairs = enumerate(zip(hints, value, strict=True))
        return tuple(_built(h, v, f"{where}[{i}]") for i, (h, v) in pairs)
    if hint is float and type(value) is int and abs(value) <= sys.float_info.max:
        return float(value)
    return value


def _problem(f: Any, hint: Any, value: Any) -> str | None:
    """What is wrong with a field's value, or None."""
    if isinstance(hint, UnionType):
        if value is None and NoneType in get_args(hint):
            return None
        (hint,) = (h for h in get_args(hint) if h is not NoneType)
    if get_origin(hint) is tuple:
        if not isinstance(value, tuple):
            return f"is {value!r}; expected a list"
        item, *rest = get_args(hint)
        if rest != [...] and len(value) != 1 + len(rest):
            return f"has {len(value)} entries; expected {1 + len(rest)}"
        return next((p for v in value if (p := _problem(f, item, v))), None)
    return _type_problem(hint, value) or _value_problem(f, value)


def _type_problem(hint: Any, value: Any) -> str | None:
    if hint is float:
        right = type(value) in (int, float) and abs(value) <= sys.float_info.max
    else:
        right = type(value) is hint
    expected = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}
    shown = show(value) if type(value) is int else repr(value)  # of any number of digits
    return None if right else f"is {shown}; expected {expected.get(hint, 'an object')}"


def _value_problem(f: Any, value: Any) -> str | None:
    limits, options = f.metadata.get("range"), f.metadata.get("choices")
    if limits is not None and value not in limits:
        return f"is {value!r}; expected {limits}"
    if options is not None and value not in options:
        return f"is {value!r}; expected {' or '.join(map(repr, options))}"
    pattern = f.metadata.get("pattern")
    if pattern is not None and not re.fullmatch(pattern, value):
        return f"is {value!r}; expected lower-case letters, digits and underscores"
    return None
