"""Provenance in the forms of others: an in-toto statement (SLSA v1), and a CycloneDX ML-BOM.

Both are functions of the sealed file alone, to the byte: no clock, no random number, no file name.
They say what the seal says, and claim no more: ``docs/provenance.md`` defines their terms.
"""

import base64
import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from s7jax import s7l
from s7jax.digests import file_digest
from s7jax.errors import InputError
from s7jax.runs import lineage
from s7jax.runs.origin import Origin
from s7jax.s7l import note

STATEMENT, PREDICATE = "https://in-toto.io/Statement/v1", "https://slsa.dev/provenance/v1"
PAYLOAD = "application/vnd.in-toto+json"
BUILD, BUILDER = "urn:x-s7jax:pipeline:1", "urn:x-s7jax:builder:not-stated"
PACKAGES = ("flax", "jax", "jaxlib", "optax")  # of a sealed environment; the rest is the machine


def origin_of(path: Path, root: bytes | None = None) -> Origin:
    """The origin of a sealed file that is whole and whose own links hold.

    Raises:
        InputError: naming the tensor, or the links, for which that is not so.
    """
    seal = s7l.open(path, root=root)
    if broken := lineage.broken(lineage.walk(seal, path)):
        raise InputError(
            f"{path}: its provenance contradicts itself: {', '.join(broken)}; "
            "`s7jax verify --provenance` shows how"
        )
    return Origin.of(seal, path)


def statement(origin: Origin, path: Path) -> dict[str, Any]:
    """An in-toto Statement v1 with a SLSA v1 provenance predicate, of the seal at ``path``."""
    made, root = origin.made, origin.seal.root.hex()
    materials = [
        _resource(f"data of {', '.join(domains)}", sha256) for sha256, domains in _data(origin)
    ]
    materials.append(_resource("tokenizer", made["trunk"].tokenizer))
    materials.append(_resource("frozen trunk", made["trunk"].params))
    materials += [{"name": name, "uri": _purl(name, v)} for name, v in _packages(origin)]
    if parent := origin.seal.manifest.parent:
        materials.append({"name": "parent", "digest": {"s7lRoot": parent.hex()}})
    products = [_resource(f"{name} parameters", one.params) for name, one in made.items()]
    products += [
        {"name": f"{name} transcript", "digest": {"s7tRoot": one.transcript}}
        for name, one in made.items()
        if one.transcript
    ]
    definition = {
        "buildType": BUILD,
        "externalParameters": {"config": origin.tree["config"]},
        "internalParameters": {"environment": _machines(origin)},
        "resolvedDependencies": materials,
    }
    return {
        "_type": STATEMENT,
        "subject": [
            {"name": _name(origin), "digest": {"sha256": file_digest(path), "s7lRoot": root}}
        ],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": definition,
            "runDetails": {"builder": {"id": BUILDER}, "byproducts": products},
        },
    }


def bill_of_materials(origin: Origin, path: Path) -> dict[str, Any]:
    """A CycloneDX 1.6 bill of materials, with a model card, of the seal at ``path``."""
    manifest, root = origin.seal.manifest, origin.seal.root.hex()
    model = _component("machine-learning-model", "seal", _name(origin), file_digest(path))
    model["modelCard"] = _card(origin)
    parent = {"s7l:parent": manifest.parent.hex()} if manifest.parent else {}
    model["properties"] = _properties({"s7l:root": root, **parent})
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'urn:x-s7jax:seal:{root}')}",
        "version": 1,
        "metadata": {"component": model},
        "components": list(_components(origin)),
        "dependencies": list(_dependencies(origin)),
    }


def _components(origin: Origin) -> Iterator[dict[str, Any]]:
    """What the model is made of: data, configuration, tokenizer, float parameters, packages."""
    for sha256, domains in _data(origin):
        name = ", ".join(domains)
        one = _component("data", _ref(sha256), f"text of {name}", sha256)
        yield {**one, "data": [{"type": "dataset", "name": name}]}
    text = json.dumps(origin.tree["config"], sort_keys=True)
    contents = {"attachment": {"contentType": "application/json", "content": text}}
    one = _component("data", "configuration", "configuration", origin.config_sha256)
    yield {**one, "data": [{"type": "configuration", "contents": contents}]}
    one = _component("data", "tokenizer", "tokenizer", origin.made["trunk"].tokenizer)
    yield {**one, "data": [{"type": "definition", "name": "vocabulary and merges"}]}
    for name, made in origin.made.items():
        told = {"s7t:root": made.transcript} if made.transcript else {}
        machine = {f"s7jax:{key}": value for key, value in _machine(made.environment).items()}
        one = _component("machine-learning-model", f"parameters:{name}", name, made.params)
        yield {**one, "properties": _properties({**told, **machine})}
    for name, version in _packages(origin):
        purl = _purl(name, version)
        one = {"type": "library", "name": name, "version": version}
        yield {**one, "bom-ref": purl, "purl": purl}


def _dependencies(origin: Origin) -> Iterator[dict[str, Any]]:
    """What each component was made from."""
    made = origin.made
    yield _needs("seal", "configuration", "tokenizer", *(f"parameters:{name}" for name in made))
    for name, one in made.items():
        trunk = ["parameters:trunk"] if one.trunk else []
        used = [_purl(*package) for package in _packages_of(one.environment)]
        inputs = ("configuration", "tokenizer", _ref(one.data), *trunk, *used)
        yield _needs(f"parameters:{name}", *inputs)
    leaves = [_ref(sha256) for sha256, _ in _data(origin)]
    leaves += [_purl(*package) for package in _packages(origin)]
    for leaf in ("configuration", "tokenizer", *leaves):
        yield _needs(leaf)


def encoded(tree: Any) -> bytes:
    """The one form in which an export is written: sorted keys, ASCII."""
    return (json.dumps(tree, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def envelope(payload: bytes, keys: Sequence[Path]) -> dict[str, Any]:
    """A statement in a DSSE envelope, signed with Ed25519 private keys in PEM.

    Raises:
        SealError: a key is unreadable.
        UsageError: the package ``cryptography`` is missing.
    """
    # DSSE's pre-authentication encoding: type and payload, each with its length before it.
    signed = b"DSSEv1 %d %s %d %s" % (len(PAYLOAD), PAYLOAD.encode(), len(payload), payload)
    made = note.raw_signatures(signed, keys)
    return {
        "payloadType": PAYLOAD,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"sig": base64.b64encode(one).decode()} for one in made],
    }


def _card(origin: Origin) -> dict[str, Any]:
    """What the seal says of the model, in the terms of a model card."""
    model = origin.config.model
    tokens = [{"format": "token ids"}]
    parameters = {
        "approach": {"type": "self-supervised"},
        "task": "text-generation",
        "architectureFamily": "transformer",
        "modelArchitecture": f"trunk and {len(model.domains)} experts, int8",
        "datasets": [{"ref": _ref(sha256)} for sha256, _ in _data(origin)],
        "inputs": tokens,
        "outputs": tokens,
    }
    metrics = list(_metrics(origin.tree.get("quality")))
    analysis = {"quantitativeAnalysis": {"performanceMetrics": metrics}} if metrics else {}
    return {"modelParameters": parameters, **analysis}


def _metrics(quality: Any) -> Iterator[dict[str, str]]:
    """The sealed bits per byte of the float model, if they were measured."""
    table = quality.get("bits_per_byte") if isinstance(quality, dict) else None
    for domain, row in table.items() if isinstance(table, dict) else ():
        if isinstance(row, dict) and type(row.get("routed")) is float:
            kind = "bits per byte, held out, before quantisation"
            yield {"type": kind, "slice": f"{domain}, routed", "value": repr(row["routed"])}


def _data(origin: Origin) -> list[tuple[str, tuple[str, ...]]]:
    """Every digest of data once, with the domains it is of."""
    return list({one.data: origin.domains(name) for name, one in origin.made.items()}.items())


def _packages(origin: Origin) -> list[tuple[str, str]]:
    found = (_packages_of(one.environment) for one in origin.made.values())
    return sorted({pair for pairs in found for pair in pairs})


def _packages_of(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and versions; what is no version is left out."""
    known = ((name, environment.get(name)) for name in PACKAGES)
    return [(n, v) for n, v in known if isinstance(v, str) and re.fullmatch(r"[\w.+!-]{1,64}", v)]


def _machine(environment: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in environment.items() if name not in PACKAGES}


def _machines(origin: Origin) -> dict[str, Any]:
    found = {name: _machine(one.environment) for name, one in origin.made.items()}
    return {name: machine for name, machine in found.items() if machine}


def _name(origin: Origin) -> str:
    return f"{origin.config.preset}.s7l"


def _purl(name: str, version: str) -> str:
    return f"pkg:pypi/{name}@{quote(version, safe='')}"


def _resource(name: str, sha256: str) -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": sha256}}


def _component(kind: str, ref: str, name: str, sha256: str) -> dict[str, Any]:
    hashes = [{"alg": "SHA-256", "content": sha256}]
    return {"type": kind, "bom-ref": ref, "name": name, "hashes": hashes}


def _properties(values: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"name": name, "value": str(value)} for name, value in values.items()]


def _ref(sha256: str) -> str:
    return f"data:{sha256[:16]}"


def _needs(ref: str, *others: str) -> dict[str, Any]:
    return {"ref": ref, "dependsOn": list(others)}
