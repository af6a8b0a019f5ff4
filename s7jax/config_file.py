"""Configuration files: TOML with any of the fields of a configuration, over a preset."""

import dataclasses
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tomlkit

from s7jax.architecture import Architecture
from s7jax.config import Config
from s7jax.errors import UsageError
from s7jax.fields import plain


def load(path: Path, base: Callable[[str | None], Config]) -> Config:
    """The configuration of a file: its fields over those of the ``preset`` it names.

    A domain that the file lists has the preset's fields where it gives none; the list itself is
    the file's.

    Args:
        path: the file.
        base: the configuration that a preset's name, or none, stands for.

    Raises:
        UsageError: no such file, not TOML, or a field that is unknown, of another type or out of
            range; the file and the field are named.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as e:
        raise UsageError(f"--config {path}: {getattr(e, 'strerror', None) or e}") from None
    try:
        model = tree.get("model", {})
        if isinstance(model, dict) and "domains" in model:
            raise UsageError("model.domains: the domains are those of [[domains]]")
        return Config.from_json(_over(base(tree.get("preset")).to_json(), tree))
    except UsageError as e:
        raise UsageError(f"--config {path}: {e}") from None


def dump(config: Config) -> str:
    """The whole configuration as a file, each field with its range and unit."""
    document = tomlkit.document()
    document.add(tomlkit.comment("A run's configuration, for --config. What is left out is as in"))
    document.add(tomlkit.comment("the preset; `s7jax config` prints it again with your changes."))
    _fill(document, config)
    return tomlkit.dumps(document)


def _over(base: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The fields of ``base`` with those given in place of them."""
    merged = dict(base)
    for key, value in given.items():
        if key == "domains" and isinstance(value, list):
            records = {record["name"]: record for record in base["domains"]}
            merged[key] = [
                _over(records.get(str(r.get("name")), {}), r) if isinstance(r, dict) else r
                for r in value
            ]
        elif isinstance(value, dict) and isinstance(base.get(key), dict):
            merged[key] = _over(base[key], value)
        else:
            merged[key] = value
    return merged


def _fill(table: Any, value: Any) -> None:
    """The fields of a dataclass: plain ones first, as TOML wants them."""
    fields = {f.name: (f, getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Architecture):  # whose domains are those of the records
        del fields["domains"]
    nested = {name: item for name, (_, item) in fields.items() if _is_table(item)}
    for name, (field, item) in fields.items():
        if name not in nested and item is not None:
            table.add(name, plain(item))
            if says := field.metadata.get("range") or field.metadata.get("choices"):
                table[name].comment(" or ".join(says) if isinstance(says, tuple) else str(says))
    for name, item in nested.items():
        if isinstance(item, tuple):
            table.add(name, tomlkit.aot())
            for record in item:
                entry = tomlkit.table()
                _fill(entry, record)
                table[name].append(entry)
        else:
            table.add(name, tomlkit.table())
            _fill(table[name], item)


def _is_table(item: Any) -> bool:
    return dataclasses.is_dataclass(item) or (
        isinstance(item, tuple) and bool(item) and dataclasses.is_dataclass(item[0])
    )
