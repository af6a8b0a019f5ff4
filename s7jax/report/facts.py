"""What a run's folder says of it, as one tree of JSON types; nothing is computed but sums.

Everything is read from what the phases left: configuration, metrics, evaluation, comparison,
controls, samples and the sealed file. What is not there yet is None or empty.
"""

import itertools
import json
import statistics
from pathlib import Path
from typing import Any

from s7jax import s7l
from s7jax.architecture import counts
from s7jax.config import Config
from s7jax.data.prepared import MANIFEST
from s7jax.errors import InputError
from s7jax.train.folder import RunFolder
from s7jax.train.phase import Phase, phases
from s7jax.train.watch import journal

KINDS = ("step", "compile", "evaluate", "save", "stall", "lost")


def gather(run: RunFolder) -> dict[str, Any]:
    """The facts of a run.

    Raises:
        InputError: not a run, or a file of it is damaged.
    """
    config = run.config()
    lines = journal.read(run.metrics) if run.metrics.exists() else []
    evaluation, report = _json(run.evaluation, "quality"), _json(run.report, "seconds")
    facts: dict[str, Any] = {
        "name": run.path.name,
        "preset": config.preset,
        "config": config.to_json(),
        "config_sha256": config.digest(),
        "domains": list(config.model.domains),
        "parameters": sum(counts(config.model).values()),
        "phases": [
            _phase(phase, [line for line in lines if line["phase"] == phase.name])
            for phase in phases(config)
        ],
        "quality": evaluation and evaluation["quality"],
        "sealed": _json(run.comparison, "sealed"),
        "controls": _json(run.controls_file, "models"),
        "proof": _json(run.samples, "samples"),
        "seconds": report["seconds"] if report else {},
        "sizes": _sizes(run),
        "seal": None,
        "chain": [],
    }
    if run.sealed.exists():
        seal = s7l.open(run.sealed)
        facts["seal"] = {
            "file": run.sealed.name,
            "root": seal.root.hex(),
            "bytes": seal.length,
        }
        facts["chain"] = _chain(config, seal, _json(run.prepared / MANIFEST, "domains"))
    return facts


def _json(path: Path, key: str) -> Any:
    """The tree of a file, which has such a key; None if there is no file."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as e:
        raise InputError(f"{path}: {e}") from None
    if not isinstance(tree, dict) or not isinstance(tree.get(key), dict | list):
        raise InputError(f"{path}: not what s7jax writes: no {key!r} in it")
    return tree


def _phase(phase: Phase, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """One phase's curves and events by tokens trained on, its speed and where its time went."""
    label = "trunk" if phase.expert is None else phase.config.domains[phase.expert].name
    speeds = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
    domains = {domain for line in lines for domain in line.get("held_out", {})}
    return {
        "name": phase.name,
        "label": label,
        "steps": phase.steps,
        "tokens": [line["tokens"] for line in lines],
        "loss": [line["loss"] for line in lines],
        "held_out": {
            domain: [
                [line["tokens"], line["held_out"][domain]]
                for line in lines
                if domain in line.get("held_out", {})
            ]
            for domain in sorted(domains)
        },
        # What was saved before a step is written into that step's line.
        "saves": [line["tokens"] for line in lines if line.get("spent", {}).get("save")],
        "stops": [b["tokens"] for a, b in itertools.pairwise(lines) if b["seconds"] < a["seconds"]],
        "skipped": [line["tokens"] for line in lines if line.get("skipped")],
        "tokens_per_second": statistics.median(speeds) if speeds else None,
        "spent": {kind: seconds for kind, seconds in journal.spent(lines).items() if seconds},
    }


def _sizes(run: RunFolder) -> dict[str, int]:
    """Bytes of what a run holds, by kind."""
    finals = list(run.checkpoints.glob("*_final"))
    others = [path for path in run.checkpoints.glob("*") if path not in finals]
    kinds = {
        "prepared data": [run.data],
        "final checkpoints": finals,
        "resumable checkpoints": others,
        "INT8 weights": [run.weights],
        "sealed models": run.seals(),
        "metrics": [run.metrics, run.tensorboard, run.trackers],
        "dense controls": [run.controls],
    }
    sizes = {kind: sum(map(_size, paths)) for kind, paths in kinds.items()}
    return {kind: size for kind, size in sizes.items() if size}


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path] if path.exists() else []
    return sum(file.lstat().st_size for file in files if not file.is_dir())


def _chain(config: Config, seal: s7l.Seal, data: Any) -> list[list[dict[str, str]]]:
    """From the text to the root: rows of things with their digests, each made from those above."""
    provenance = seal.manifest.provenance
    made = provenance["checkpoints"]
    names = {f"expert{e}": f"expert {d.name}" for e, d in enumerate(config.domains)}
    tokenizer = made["trunk"]["inputs"]["tokenizer_sha256"]
    text = [
        {"what": source["name"], "digest": source["sha256"]}
        for entry in (data or {}).get("domains", [])
        for source in entry["sources"]
    ]
    rows = [
        [*text, {"what": "configuration", "digest": provenance["config_sha256"]}],
        [
            {"what": "tokenizer", "digest": tokenizer},
            {"what": "training data", "digest": made["trunk"]["inputs"]["data_sha256"]},
        ],
        [{"what": "trunk", "digest": made["trunk"]["params_sha256"]}],
        [
            {"what": names.get(name, name), "digest": made[name]["params_sha256"]}
            for name in (*names, "router")
            if name in made
        ],
        [
            {
                "what": f"INT8 {names.get(name, name)}",
                "digest": seal.manifest.component_root(name).hex(),
            }
            for name in seal.manifest.components
        ],
        [{"what": "root of the seal", "digest": seal.root.hex()}],
    ]
    return rows
