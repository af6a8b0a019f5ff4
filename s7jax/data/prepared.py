"""Reading prepared data: the manifest, and the files it vouches for."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from s7jax.data.tokenizer import Tokenizer
from s7jax.digests import file_digest, json_digest
from s7jax.errors import InputError

FORMAT = "s7-data"
VERSION = 1
SPLITS = ("train", "held_out")
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
KEYS = "documents.keys"  # of a domain: what identifies its documents


@dataclass(frozen=True)
class Prepared:
    """A folder of tokenised rows. ``manifest`` is its whole description."""

    path: Path
    manifest: Mapping[str, Any]

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Open a prepared folder; checks the manifest and that every shard has its size.

        Raises:
            InputError: no or a damaged manifest, or a shard that is missing or cut off.
        """
        prepared = cls(Path(path), read_manifest(Path(path)))
        for shard, entry in prepared._entries():
            size = shard.stat().st_size if shard.exists() else None
            if size != entry["bytes"]:
                raise InputError(
                    f"{shard}: expected {entry['bytes']} bytes, found {size or 'none'}"
                )
        return prepared

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest without its digest, in hexadecimal."""
        return str(self.manifest["digest"])

    def digest_of(self, domains: Iterable[str]) -> str:
        """SHA-256 of what the rows of some domains are a function of: theirs alone."""
        arguments = {key: self.manifest[key] for key in ("vocab", "context", "seed", "held_out")}
        entries = [self.manifest["domains"][self.domains.index(domain)] for domain in domains]
        return json_digest([arguments, self.manifest["tokenizer"], entries])

    @property
    def context(self) -> int:
        """Tokens a sequence holds; a row holds one more."""
        return int(self.manifest["context"])

    @property
    def vocab(self) -> int:
        """Size of the tokenizer's vocabulary."""
        return int(self.manifest["vocab"])

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains, in expert order."""
        return tuple(entry["name"] for entry in self.manifest["domains"])

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of these rows.

        Raises:
            InputError: the file is not the one the manifest names.
        """
        tokenizer = Tokenizer.load(self.path / TOKENIZER)
        if tokenizer.digest != self.manifest["tokenizer"]:
            raise InputError(f"{self.path / TOKENIZER} is not the tokenizer of {MANIFEST}")
        return tokenizer

    def rows(self, domain: str, split: str) -> int:
        """Number of rows of one split."""
        return int(self._split(domain, split)["rows"])

    def shards(self, domain: str, split: str) -> list[Path]:
        """ArrayRecord files of one split, in row order; records are little-endian tokens."""
        return [
            self.path / domain / shard["name"] for shard in self._split(domain, split)["shards"]
        ]

    def report(self) -> Iterator[str]:
        """One line for each source: what was read of it, and what became of the rest."""
        for domain in self.manifest["domains"]:
            for source in domain["sources"]:
                kinds = [f"{count} {kind}" for kind, count in source.get("formats", {}).items()]
                gone = {**source.get("left_out", {}), **source.get("skipped", {})}
                notes = [f"{count:,} {reason}" for reason, count in gone.items()]
                yield (
                    f"{domain['name']}: {source['name']} ({source['license']}): "
                    f"{', '.join([*kinds, ''])}{source.get('records', 0):,} records, "
                    f"{source.get('train', 0):,} trained on, {source.get('held_out', 0):,} held out"
                    f"{'; left out: ' + ', '.join(notes) if notes else ''}"
                )

    def verify(self) -> None:
        """Hash every shard and load the tokenizer.

        Raises:
            InputError: a file is not the one the manifest names.
        """
        for shard, entry in self._entries():
            if file_digest(shard) != entry["sha256"]:
                raise InputError(f"{shard}: SHA-256 differs from {MANIFEST}; prepare it again")
        _ = self.tokenizer

    def _split(self, domain: str, split: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.manifest["domains"][self.domains.index(domain)][split]
        return found

    def _entries(self) -> Iterator[tuple[Path, Mapping[str, Any]]]:
        for domain in self.domains:
            for split in SPLITS:
                for entry in self._split(domain, split)["shards"]:
                    yield self.path / domain / entry["name"], entry
        for domain in self.manifest["domains"]:
            if keys := domain.get("keys"):
                yield self.path / domain["name"] / keys["name"], keys


def read_manifest(folder: Path) -> dict[str, Any]:
    """The checked manifest of a prepared folder.

    Raises:
        InputError: there is none, or it is damaged or of another version.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError as e:
        raise InputError(f"{folder} holds no {MANIFEST}; run `s7jax prepare --out {folder}`") from e
    except ValueError as e:
        raise InputError(f"{path}: not JSON: {e}") from e
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(f"{path}: not the manifest of prepared data")
    if manifest.get("version") != VERSION:
        raise InputError(f"{path}: version {manifest.get('version')}, expected {VERSION}")
    if manifest.get("digest") != manifest_digest(manifest):
        raise InputError(f"{path}: its digest is wrong, so the file was changed; prepare it again")
    return manifest


def token_dtype(vocab: int) -> np.dtype[Any]:
    """The dtype of tokens in shards: uint16 where ids fit, else uint32, little-endian."""
    return np.dtype("<u2" if vocab <= 1 << 16 else "<u4")


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """The digest a manifest must carry: over everything in it but the digest itself."""
    return json_digest({key: value for key, value in manifest.items() if key != "digest"})
