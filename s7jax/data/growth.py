"""Growing finished data by more text: what the old must be, and what of it the new has."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from s7jax.data.prepared import KEYS, SPLITS, Prepared
from s7jax.errors import InputError, UsageError
from s7jax.storage import link


def base(path: Path, out: Path, domains: Sequence[str], arguments: Mapping[str, Any]) -> Prepared:
    """The finished data to add to, checked whole.

    Raises:
        UsageError: it is ``out`` itself.
        InputError: it is damaged, or of other domains or arguments, or cannot grow.
    """
    found = Prepared.load(path)
    if path.resolve() == out.resolve():
        raise UsageError(f"--grow {path}: it stays as it is; give another --out")
    if tuple(domains) != found.domains:
        have, want = (", ".join(names) for names in (found.domains, domains))
        raise InputError(f"{path}: its domains are {have}; the preset has {want}")
    for name, value in arguments.items():
        if found.manifest[name] != value:
            was = found.manifest[name]
            raise InputError(f"{path}: its {name.replace('_', '-')} is {was}, not {value}")
    if found.manifest.get("near_duplicates"):
        raise InputError(
            f"{path} was cleaned of near duplicates, which could not be found between old and "
            "new text: prepare all of it anew"
        )
    for domain in found.manifest["domains"]:
        if "keys" not in domain:
            raise InputError(f"{path}: {domain['name']} has no {KEYS}: prepare it anew")
    found.verify()
    return found


def require_same_cleaning(found: Prepared, settings: Mapping[str, Any]) -> None:
    """Refuse to add text that is cleaned in another way.

    Raises:
        InputError: naming the flag that differs.
    """
    for name, flag in (("against", "--against"), ("skip_bad", "--on-bad")):
        if found.manifest.get(name) != settings.get(name):
            raise InputError(f"{found.path} was prepared with another {flag}: give the same one")


def merged_keys(new: bytes, old: bytes) -> bytes:
    """Two tables of keys as one; all are in rank order."""
    table = np.frombuffer(new + old, ">u8").reshape(-1, 2)
    return table[np.argsort(table[:, 0], kind="stable")].tobytes()


def joined(found: Prepared, out: Path, made: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The manifest's domains with what was made for some of them; old files are linked."""
    added = {entry["name"]: entry for entry in made}
    return [_joined(found, out, old, added.get(old["name"])) for old in found.manifest["domains"]]


def _joined(
    found: Prepared, out: Path, old: dict[str, Any], new: dict[str, Any] | None
) -> dict[str, Any]:
    """One domain, and its new documents if it has any."""
    name = old["name"]
    (out / name).mkdir(exist_ok=True)
    for split in SPLITS:
        for shard in found.shards(name, split):
            link(shard, out / name / shard.name)
    if new is None:
        link(found.path / name / KEYS, out / name / KEYS)
        return old
    splits = {
        split: {key: old[split][key] + new[split][key] for key in old[split]} for split in SPLITS
    }
    return {**old, **splits, "sources": [*old["sources"], *new["sources"]], "keys": new["keys"]}
