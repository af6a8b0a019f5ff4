"""The model's dimensions as they stand in a sealed file, checked against the format's limits."""

import dataclasses
from typing import Any, Final

from s7jax.architecture import Architecture, Stack, TensorSpec
from s7jax.errors import UsageError
from s7jax.fields import NAME as DOMAIN
from s7jax.fields import Range, plain
from s7jax.s7l.schema import SealError, integer, mapping, sequence, text

NAME: Final = r"[a-z0-9_]{1,64}(\.[a-z0-9_]{1,64}){0,15}"
"""Form of a tensor name; its first segment is the component."""

_LIMITS: dict[type, dict[str, Range]] = {
    cls: {f.name: f.metadata["range"] for f in dataclasses.fields(cls) if "range" in f.metadata}
    for cls in (Architecture, Stack)
}


def parse_architecture(tree: Any, place: str) -> Architecture:
    """From a decoded map.

    Raises:
        SealError: a key, type or value that does not fit; it is named.
    """
    mapping(tree, tuple(f.name for f in dataclasses.fields(Architecture)), place)
    domains = sequence(tree["domains"], f"{place}.domains", 1, 16)
    for i, domain in enumerate(domains):
        text(domain, DOMAIN, f"{place}.domains[{i}]")
        if domain in domains[:i]:
            raise SealError(f"{place}.domains[{i}]", f"{domain!r} is there twice")
    return _made(
        Architecture,
        place,
        **_numbers(Architecture, tree, place),
        trunk=_stack(tree["trunk"], f"{place}.trunk"),
        expert=_stack(tree["expert"], f"{place}.expert"),
        domains=tuple(domains),
    )


def architecture_tree(dimensions: Architecture) -> dict[str, Any]:
    """Inverse of :func:`parse_architecture`."""
    found: dict[str, Any] = plain(dimensions)
    return found


def tensor_entry(tensor: TensorSpec) -> dict[str, Any]:
    """The keys of a tensor's table entry that the dimensions determine."""
    found = {"name": tensor.name, "shape": list(tensor.shape), "dtype": tensor.dtype}
    return found if tensor.is_fixed_point else {**found, "axis": tensor.axis, "scale": tensor.scale}


def _stack(tree: Any, place: str) -> Stack:
    mapping(tree, tuple(_LIMITS[Stack]), place)
    return _made(Stack, place, **_numbers(Stack, tree, place))


def _numbers(cls: type, tree: Any, place: str) -> dict[str, int]:
    return {
        key: integer(tree[key], int(limit.low), int(limit.high), f"{place}.{key}")
        for key, limit in _LIMITS[cls].items()
    }


def _made(cls: Any, place: str, **fields: Any) -> Any:
    try:
        return cls(**fields)
    except UsageError as e:
        field, _, problem = str(e).partition(" ")
        raise SealError(f"{place}.{field}", problem) from None
