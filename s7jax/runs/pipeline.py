"""The whole chain on one run: trunk → experts → router → evaluation → INT8 → seal → proof.

Each phase skips what is already done and valid, so a stopped pipeline resumes where it was.
"""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from s7jax import extras, runtime, s7l
from s7jax import mesh as meshes
from s7jax.errors import InputError, UsageError
from s7jax.model.language_model import Params
from s7jax.quantize.export import export
from s7jax.report.write import write
from s7jax.runs.comparison import compare, require_same
from s7jax.runs.proving import prove
from s7jax.runtime.sealing import seal_with_answers
from s7jax.storage import write_json
from s7jax.train import loop, router
from s7jax.train.checkpoint import read_record
from s7jax.train.evaluate import evaluate
from s7jax.train.folder import remembered
from s7jax.train.phase import Phase
from s7jax.train.run import Run, load_expert, load_trunk

COMPARED = 16  # held-out sequences of each domain, where nobody asked for more


def train_trunk(run: Run, resume_from: int | None = None) -> None:
    """Phase 1, on the devices of all pools together."""
    joined = _joined(run.to_train())
    sizes = joined.mesh.shape
    shape = meshes.MeshShape(data=sizes[meshes.DATA], model=sizes[meshes.MODEL])
    meshes.check(shape, run.config.model, run.config.trunk)
    loop.train(joined, Phase(run.config), {}, resume_from)


def _joined(run: Run) -> Run:
    """The same on the devices of all pools together."""
    return dataclasses.replace(run, pools=(meshes.joined(run.pools),))


def train_experts(
    run: Run, domains: list[str] | None = None, resume_from: int | None = None
) -> None:
    """Phase 2 of the named domains' experts, or of all, as many at once as there are pools."""
    wanted = [run.config.domain(name).name for name in domains or run.config.model.domains]
    indices = [i for i, d in enumerate(run.config.model.domains) if d in wanted]
    loop.train_experts(run.to_train(), indices, resume_from)


def fit_router(run: Run) -> None:
    """The router on the frozen trunk, on the devices of all pools together."""
    joined = _joined(run)
    router.fit(joined, load_trunk(joined))


def quality(run: Run) -> dict[str, Any]:
    """The held-out report of the finished model, from ``evaluation.json`` if still valid.

    Measured on the devices of all pools together.
    """
    inputs = _digests(run)
    saved = remembered(run.folder.evaluation)
    if saved.get("inputs") == inputs:
        print(f"evaluation: already done, {run.folder.evaluation}")
        return dict(saved["quality"])
    joined = _joined(run)
    report = evaluate(joined, final_params(joined))
    write_json(run.folder.evaluation, {"inputs": inputs, "quality": report})
    return report


def sealed_quality(run: Run, sealed: Path, sequences: int | None = None) -> dict[str, Any]:
    """The sealed model beside the run's float one; also written to ``sealed.json``.

    Args:
        run: the run.
        sealed: the sealed file.
        sequences: held-out sequences of each domain, if not as many as are evaluated.

    Raises:
        InputError: no such seal, or not of this run's architecture and tokenizer.
    """
    report = compare(
        run, final_params(run), s7l.open(sealed), sequences or run.config.eval_sequences
    )
    write_json(run.folder.comparison, report)
    return report


def task_quality(run: Run, sealed: Path, folder: Path, *how: Any) -> dict[str, Any]:
    """Float and sealed model on the tasks of a folder; also written to ``tasks.json``.

    ``how`` as of :func:`s7jax.tasks.comparison.compare`.

    Raises:
        UsageError: lm-evaluation-harness is not installed.
        InputError: a seal of another architecture, or the tasks cannot be read.
    """
    try:
        from s7jax.tasks import comparison  # noqa: PLC0415 takes torch with it
    except ModuleNotFoundError as e:
        how_to = extras.how_to_install("eval")
        raise UsageError(f"tasks need lm-evaluation-harness: {how_to} ({e})") from None
    from s7jax.tasks.scorers import FloatScorer, Scorer, SealedScorer  # noqa: PLC0415

    with runtime.open(sealed) as model:
        require_same(run, model.compute)
        scorers: dict[str, Scorer] = {
            "FP32": FloatScorer(
                run.config.model, final_params(run), run.prepared.tokenizer, run.mesh
            ),
            "INT8": SealedScorer(model),
        }
        report = comparison.compare(scorers, folder, *how)
    write_json(run.folder.tasks, report)
    return report


def quantize(run: Run, report: dict[str, Any]) -> None:
    """INT8 weights of the finished model, with its held-out report as provenance.

    Calibrated on the devices of all pools together.
    """
    folder = run.folder
    if _weights_valid(run):
        print(f"quantize: already done, {folder.weights}")
        return
    experts = [folder.final(f"expert{e}") for e in range(len(run.config.domains))]
    trunk, fitted = folder.final("trunk"), folder.final("router")
    mesh = meshes.joined(run.pools)
    count = export(trunk, experts, fitted, run.prepared.path, folder.weights, report, mesh)
    print(f"quantize: {count} integer tensors in {folder.weights}")


def seal(run: Run) -> s7l.Sealed:
    """Seal the run's weights, unless its newest seal is of these very weights.

    A run whose model has changed, since a domain was added, gets one more file, which names the
    one before as its parent.
    """
    folder = run.folder
    wanted = s7l.read_weights(folder.weights).provenance
    before = folder.seals()
    if before:
        newest = s7l.open(before[-1])
        if dict(newest.manifest.provenance) == wanted:
            print(f"sealed: {before[-1]}, already there")
            return s7l.Sealed(newest.root, created=False)
        parent = newest.root
    else:
        parent = None
    return seal_with_answers(folder.weights, folder.vocab, folder.next_seal(), parent=parent)


def run_all(run: Run) -> dict[str, Any]:
    """Run the chain to the sealed, proven model; returns the report, also in the run folder."""
    return finish(run, train(run))


def train(run: Run) -> dict[str, float]:
    """Trunk, experts and router; returns the seconds that each took."""
    seconds: dict[str, float] = {}
    _timed(seconds, "trunk", lambda: train_trunk(run))
    _timed(seconds, "experts", lambda: train_experts(run))
    _timed(seconds, "router", lambda: fit_router(run))
    return seconds


def finish(run: Run, trained: dict[str, float]) -> dict[str, Any]:
    """From the trained run to the sealed, proven model and its report, which is returned.

    Args:
        run: the run.
        trained: the seconds of :func:`train`.
    """
    seconds = dict(trained)
    timed = partial(_timed, seconds)
    report = {"quality": timed("evaluate", lambda: quality(run))}
    timed("quantize", lambda: quantize(run, report["quality"]))
    sealed = timed("seal", lambda: seal(run))
    timed("verify", lambda: s7l.open(run.folder.sealed, root=sealed.root).verify())
    print(f"verified: {run.folder.sealed}, root {sealed.root.hex()}")
    report["sealed"] = timed("compare", lambda: _compared(run, sealed.root))["sealed"]
    report["proof"] = timed("prove", lambda: prove(run))
    report |= {"artifacts": _artifacts(run, sealed.root.hex()), "seconds": seconds}
    report["seconds"] = _spent(run.folder.report, report)
    write_json(run.folder.report, report)
    for path in write(run.folder, run.folder.page):
        print(f"report: {path}")
    return report


def _timed(seconds: dict[str, float], name: str, work: Callable[[], Any]) -> Any:
    """What the work gives; what it took is in ``seconds``."""
    began = time.monotonic()
    result = work()
    seconds[name] = time.monotonic() - began
    return result


def _compared(run: Run, root: bytes) -> dict[str, Any]:
    """What quantisation cost, from ``sealed.json`` if it is of this seal."""
    saved = remembered(run.folder.comparison)
    if saved.get("root") == root.hex():
        print(f"compare: already done, {run.folder.comparison}")
        return saved
    joined = _joined(run)
    return sealed_quality(joined, run.folder.sealed, min(COMPARED, run.config.eval_sequences))


def _spent(saved: Path, report: dict[str, Any]) -> dict[str, float]:
    """Seconds of each part when it was made: what is there already is found there in no time."""
    seconds: dict[str, float] = report["seconds"]
    before = remembered(saved)
    if not {"artifacts", "seconds"} <= before.keys():
        return seconds
    old, new = (
        {Path(row[0]).name: row[2] for row in tree["artifacts"]} for tree in (before, report)
    )
    whole = [name for name in new if name != "config"]
    experts = [name for name in new if name.startswith("expert")]
    made = {"trunk": ["trunk"], "experts": experts, "router": ["router"]}
    same = {part: all(old.get(n) == new[n] for n in made.get(part, whole)) for part in seconds}
    return {
        part: before["seconds"].get(part, value) if same[part] else value
        for part, value in seconds.items()
    }


def final_params(run: Run) -> Params:
    """Every final parameter of the run, and the routers."""
    params = load_trunk(run) | router.load_routers(run)
    for e in range(len(run.config.domains)):
        params[f"expert{e}"] = load_expert(run, e)
    return params


def _weights_valid(run: Run) -> bool:
    """Whether the weights folder was made from these very checkpoints and is undamaged."""
    try:
        weights = s7l.read_weights(run.folder.weights)
        weights.verify()
    except InputError:
        return False
    sealed_from = {
        name: entry["params_sha256"] for name, entry in weights.provenance["checkpoints"].items()
    }
    sealed_from["config"] = weights.provenance["config_sha256"]
    return sealed_from | {"data": run.prepared.digest} == _digests(run)


def _artifacts(run: Run, root: str) -> list[list[Any]]:
    """Name, size in bytes and SHA-256 (of a seal: its root) of everything the run made."""
    rows: list[list[Any]] = []
    for name, sha256 in _digests(run).items():
        folder = run.folder.final(name)
        size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        rows.append([name, size if folder.is_dir() else "", sha256])
    rows.append([str(run.folder.sealed), run.folder.sealed.stat().st_size, root])
    return rows


def _digests(run: Run) -> dict[str, str]:
    """What the finished model consists of: parameters per checkpoint, and the data."""
    names = ["trunk", *(f"expert{e}" for e in range(len(run.config.domains))), "router"]
    records = {name: read_record(run.folder.final(name)) for name in names}
    digests = {name: str(record["params_sha256"]) for name, record in records.items()}
    return digests | {"data": run.prepared.digest, "config": run.config.digest()}
