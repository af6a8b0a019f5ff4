"""Sources: what text each domain is made of, from ``--data`` flags or from one TOML file."""

import dataclasses
import difflib
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from s7jax.data.files import is_url
from s7jax.data.formats import FORMATS
from s7jax.errors import InputError, UsageError

SPELLINGS = {"reasoning": "reason"}  # the specification's mixture table writes it out (§3)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Text of one domain, and how it is read. Only ``path`` must be given."""

    path: tuple[str, ...]  # files, folders, globs or URLs
    name: str = ""  # what the manifest calls it; the last part of the path
    license: str = "unknown"
    format: str | None = None  # where file names do not tell
    keep: Mapping[str, tuple[Any, ...]] = dataclasses.field(
        default_factory=dict
    )  # column → values to keep
    max_documents: int | None = None  # the first so many that are read
    field: str = "text"  # of a record; nested: messages.*.content
    weight: float = 1.0  # below 1 a fixed choice of its documents; 2 has each of them twice

    def to_json(self) -> Any:
        """A plain path where nothing else is said, else the fields that are not as always."""
        fresh = Source(path=self.path)
        tree = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if getattr(self, f.name) != getattr(fresh, f.name)
        }
        path = self.path[0] if len(self.path) == 1 else list(self.path)
        if not tree and isinstance(path, str):
            return path
        keep = {"keep": {k: list(v) for k, v in self.keep.items()}} if self.keep else {}
        return {"path": path, **tree, **keep}


Sources = dict[str, list[Source]]


def source(given: "str | Path | Source | Mapping[str, Any]", where: str = "source") -> Source:
    """A source from a path, or from the fields that a TOML or JSON file has of it.

    Raises:
        UsageError: a field that is unknown, of another type or out of range.
    """
    if isinstance(given, Source):
        return given
    if isinstance(given, str | Path):
        return Source(path=(str(given),))
    known = [f.name for f in fields(Source)]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
            raise UsageError(f"{where}: unknown field {name!r}; {hint}")
    tree = dict(given)
    paths = tree.get("path")
    paths = [paths] if isinstance(paths, str) else paths
    if not isinstance(paths, list) or not paths or not all(isinstance(p, str) and p for p in paths):
        raise UsageError(f"{where}: path is {paths!r}, expected a path, or a list of them")
    keep = tree.get("keep", {})
    if not isinstance(keep, Mapping) or not all(map(_are_values, keep.values())):
        raise UsageError(f'{where}: keep is {keep!r}, expected such as {{license = ["mit"]}}')
    for name in ("name", "license", "field", "format"):
        if name in tree and (not isinstance(tree[name], str) or not tree[name]):
            raise UsageError(f"{where}: {name} is {tree[name]!r}, expected text")
    formats = [f.name for f in FORMATS]
    if tree.get("format", "text") not in formats:
        raise UsageError(
            f"{where}: format is {tree['format']!r}, expected one of {', '.join(formats)}"
        )
    most = tree.get("max_documents")
    if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
        raise UsageError(f"{where}: max_documents is {most!r}, expected a whole number from 1")
    weight = tree.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= 16:
        raise UsageError(f"{where}: weight is {weight!r}, expected a number above 0, at most 16")
    if weight > 1 and weight != int(weight):
        raise UsageError(f"{where}: weight is {weight!r}, above 1 expected a whole number")
    tree |= {"path": tuple(paths), "keep": {k: tuple(v) for k, v in keep.items()}}
    return Source(**tree | {"weight": float(weight)})


def parse_data_flags(
    flags: Iterable[str], domains: Sequence[str], read: Iterable[str] = ()
) -> Sources:
    """``["code=PATH", …]`` as sources by domain, in domain order; a domain may come several times.

    A flag without ``=`` that ends in ``.toml`` is a file of sources. ``read`` is ``--field``:
    ``NAME`` for every source given by a flag, ``DOMAIN=NAME`` for a domain's.

    Raises:
        UsageError: a flag without ``=`` or path, an unknown domain, a source that is none.
        InputError: a TOML file that cannot be read.
    """
    found: Sources = {domain: [] for domain in domains}
    columns = _columns(read, domains)
    for flag in flags:
        name, _, path = flag.partition("=")
        if not path and flag.endswith(".toml"):
            for domain, given in read_toml(Path(flag), domains):
                found[domain].append(given)
            continue
        if not path:
            raise UsageError(
                f"--data {flag!r}: expected DOMAIN=PATH, e.g. code=src/, or a file data.toml"
            )
        domain = _domain(name, domains, f"--data {flag!r}")
        column = columns.get(domain, columns.get("", "text"))
        found[domain].append(Source(path=(path,), field=column))
    return {domain: given for domain, given in found.items() if given}


def read_toml(path: Path, domains: Sequence[str]) -> list[tuple[str, Source]]:
    """The sources of a file of ``[[source]]`` tables, each with its domain.

    Paths are relative to the file.

    Raises:
        InputError: not there, or not TOML.
        UsageError: a table that is no source.
    """
    try:
        tree = tomllib.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"--data {path}: does not exist") from None
    except (ValueError, RecursionError, OSError) as e:
        raise InputError(f"--data {path}: not TOML: {e}") from e
    tables = tree.pop("source", None)
    if tree or not isinstance(tables, list) or not tables:
        other = f", found {', '.join(tree)}" if tree else ""
        raise UsageError(f"--data {path}: expected [[source]] tables alone{other}")
    found = []
    for i, table in enumerate(tables, start=1):
        where = f"--data {path}: source {i}"
        if not isinstance(table, dict) or not isinstance(table.get("domain"), str):
            raise UsageError(f"{where}: domain is missing; expected one of {', '.join(domains)}")
        domain = _domain(table.pop("domain"), domains, where)
        given = source(table, where)
        paths = tuple(
            p if is_url(p) else str(path.parent / Path(p).expanduser()) for p in given.path
        )
        found.append((domain, Source(**{**vars(given), "path": paths})))
    return found


def absolute(given: Source) -> Source:
    """The same source from any working folder."""
    paths = tuple(p if is_url(p) else str(Path(p).expanduser().absolute()) for p in given.path)
    return Source(**{**vars(given), "path": paths})


def require_all(given: Mapping[str, Sequence[Any]], domains: Sequence[str]) -> None:
    """Refuse sources of some domains alone: built-in text is not mixed in unasked.

    Raises:
        UsageError: naming the domains without any.
    """
    if missing := [domain for domain in domains if not given.get(domain)]:
        raise UsageError(
            f"--data has no source for {', '.join(missing)}; add {missing[0]}=PATH "
            "(or leave --data out for the built-in corpus)"
        )


def _are_values(given: Any) -> bool:
    """Whether a column can be kept by these: a list of text, numbers or truth values."""
    plain = isinstance(given, list) and all(isinstance(v, str | int | float) for v in given)
    return plain and bool(given) and all(math.isfinite(v) for v in given if isinstance(v, float))


def _columns(read: Iterable[str], domains: Sequence[str]) -> dict[str, str]:
    """``--field`` by domain; "" is every other one."""
    columns = {}
    for flag in read:
        domain, equals, name = flag.rpartition("=")
        if not name or (equals and not domain):
            raise UsageError(f"--field {flag!r}: expected NAME or DOMAIN=NAME")
        columns[_domain(domain, domains, f"--field {flag!r}") if domain else ""] = name
    return columns


def _domain(name: str, domains: Sequence[str], where: str) -> str:
    known = [*domains, *(s for s, domain in SPELLINGS.items() if domain in domains)]
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
        raise UsageError(f"{where}: unknown domain {name!r}; {hint}")
    return SPELLINGS.get(name, name)
