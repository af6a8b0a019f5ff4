"""The whole chain on one run: trunk → experts → router → evaluation → INT8 → seal → verify.

Each phase skips what is already done and valid, so a stopped pipeline goes on where it was.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from s7jax import mesh as meshes
from s7jax import s7l
from s7jax.runs.comparison import compare
from s7jax.errors import InputError
from s7jax.quantize.export import export
from s7jax.model.language_model import Params
from s7jax.runtime.sealing import seal_with_answers
from s7jax.storage import write_json
from s7jax.train import loop, phase, router
from s7jax.train.checkpoint import read_record
from s7jax.train.evaluate import evaluate
from s7jax.train.phase import Experiment


def experts(
    x: Experiment, domains: list[str] | None = None, resume_from: int | None = None
) -> None:
    """Phase 2 of the named domains' experts, or of all, as many at once as there are pools."""
    wanted = [i for i, d in enumerate(x.config.model.domains) if domains is None or d in domains]
    loop.train_experts(x, wanted, resume_from)


def train_trunk(x: Experiment, resume_from: int | None = None) -> None:
    """Phase 1, on the devices of all pools together."""
    whole = meshes.joined(x.pools)
    shape = meshes.MeshShape(data=whole.shape[meshes.DATA], model=whole.shape[meshes.MODEL])
    meshes.check(shape, x.config.model, x.config.trunk)
    loop.train_trunk(dataclasses.replace(x, pools=(whole,)), resume_from)


def fit_router(x: Experiment) -> None:
    """The router on the frozen trunk."""
    trunk = phase.load_trunk(x)
    router.fit(x, trunk)


def quality(x: Experiment) -> dict[str, Any]:
    """The held-out report of the finished model, from ``evaluation.json`` if still valid."""
    inputs = _digests(x)
    if x.run.evaluation.exists():
        saved = json.loads(x.run.evaluation.read_text())
        if saved.get("inputs") == inputs:
            print(f"evaluation: already done, {x.run.evaluation}")
            return dict(saved["quality"])
    report = evaluate(x, _params(x))
    write_json(x.run.evaluation, {"inputs": inputs, "quality": report})
    return report


def sealed_quality(x: Experiment, sealed: Path) -> dict[str, Any]:
    """The sealed model beside the run's float one; also written to ``sealed.json``.

    Raises:
        InputError: no such seal, or not of this run's architecture and tokenizer.
    """
    report = compare(x, _params(x), s7l.open(sealed))
    write_json(x.run.comparison, report)
    return report


def quantize(x: Experiment, report: dict[str, Any]) -> None:
    """INT8 weights of the finished model, with its held-out report as provenance."""
    if _weights_valid(x):
        print(f"quantize: already done, {x.run.weights}")
        return
    names = [f"expert{e}" for e in range(len(x.config.model.domains))]
    count = export(
        x.final_folder("trunk"),
        [x.final_folder(name) for name in names],
        x.final_folder("router"),
        x.prepared.path,
        x.run.weights,
        report,
    )
    print(f"quantize: {count} integer tensors in {x.run.weights}")


def run(x: Experiment) -> dict[str, Any]:
    """Run the chain to the verified seal; returns the report, also written to the run folder."""
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began = time.monotonic()
        result = work()
        seconds[name] = time.monotonic() - began
        return result

    timed("trunk", lambda: train_trunk(x))
    timed("experts", lambda: experts(x))
    timed("router", lambda: fit_router(x))
    report = {"quality": timed("evaluate", lambda: quality(x))}
    timed("quantize", lambda: quantize(x, report["quality"]))
    paths = x.run.weights, x.run.vocab, x.run.sealed
    sealed = timed("seal", lambda: seal_with_answers(*paths))
    timed("verify", lambda: s7l.open(x.run.sealed).verify())
    print(f"sealed: {x.run.sealed}, {'' if sealed.created else 'already there, '}verified")
    report |= {"artifacts": _artifacts(x, sealed.root.hex()), "seconds": seconds}
    write_json(x.run.report, report)
    return report


def _params(x: Experiment) -> Params:
    """Every final parameter of the run, and the routers."""
    params = phase.load_trunk(x) | router.load_routers(x)
    for e in range(len(x.config.model.domains)):
        params[f"expert{e}"] = phase.load_expert(x, e)
    return params


def _weights_valid(x: Experiment) -> bool:
    """Whether the weights folder was made from these very checkpoints and is undamaged."""
    try:
        weights = s7l.read_weights(x.run.weights)
        weights.verify()
    except InputError:
        return False
    sealed_from = {
        name: entry["params_sha256"] for name, entry in weights.provenance["checkpoints"].items()
    }
    return sealed_from | {"data": x.prepared.digest, "config": x.config.digest()} == _digests(x)


def _artifacts(x: Experiment, root: str) -> list[list[Any]]:
    """Name, size in bytes and SHA-256 (of a seal: its root) of everything the run made."""
    rows: list[list[Any]] = []
    for name, sha256 in _digests(x).items():
        folder = x.final_folder(name)
        size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        rows.append([name, size if folder.is_dir() else "", sha256])
    rows.append([str(x.run.sealed), x.run.sealed.stat().st_size, root])
    return rows


def _digests(x: Experiment) -> dict[str, str]:
    """What the finished model consists of: parameters per checkpoint, and the data."""
    names = ["trunk", *(f"expert{e}" for e in range(len(x.config.model.domains))), "router"]
    records = {name: read_record(x.final_folder(name)) for name in names}
    digests = {name: str(record["params_sha256"]) for name, record in records.items()}
    return digests | {"data": x.prepared.digest, "config": x.config.digest()}
