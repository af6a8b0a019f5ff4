"""Dense controls of a run: are its experts worth what they cost?

A control is a trunk alone, trained on the run's own mixture for longer, with the schedule
stretched: for as many operations as all phases of the run took together, for as many tokens, for
as many seconds, or, made deeper until it has as many parameters as trunk and one expert, for as
many operations again.
Each is a run of Phase 1 alone in a folder inside the run, and stops, resumes and reports as every
run does. All models are then scored on the same held-out sequences.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from s7jax import architecture
from s7jax.architecture import Architecture, counts
from s7jax.config import Config
from s7jax.errors import InputError
from s7jax.model.flops import flops_per_token
from s7jax.runs.pipeline import final_params, train_trunk
from s7jax.storage import write_json
from s7jax.terminal.processes import say
from s7jax.train.evaluate import (
    held_out_rows,
    mean_interval,
    nats_by_document,
    nats_per_bit,
    paired_interval,
    trunk_nats,
)
from s7jax.train.folder import CONTROLS, RunFolder, start
from s7jax.train.phase import ROUTERS, Phase, phases
from s7jax.train.run import Run, load_trunk
from s7jax.train.watch import journal

CHOICES = ("routed", "oracle", "random", "nearest_centroid")  # of an expert, for every position

Nats = dict[str, dict[str, np.ndarray]]  # float64 [N] by domain and model, of each document


def controlled(config: Config, equal: str, seconds: Mapping[str, float] | None = None) -> Config:
    """The configuration of a dense control, equal to the run in one of :data:`CONTROLS`.

    Matrix products of training count (:mod:`s7jax.model.flops`), not the router's fit. The one of
    equal parameters has equal operations too, and layers of the trunk's own shape: as many more as
    come nearest to an expert's parameters.

    Args:
        config: of the run.
        equal: in what.
        seconds: that the steps of each phase took (:func:`spent`), for the one of equal time.

    Raises:
        UsageError: it would have more layers than a trunk can have.
    """
    model = config.model
    if equal == "parameters":
        one = sum(p.size for p in architecture.layer(model.trunk) if p.trained)
        more = max(1, round(counts(model)["expert0"] / one))
        deeper = dataclasses.replace(model.trunk, layers=model.trunk.layers + more)
        model = dataclasses.replace(model, trunk=deeper)
    if equal == "tokens":
        tokens = sum(phase.tokens for phase in phases(config))
    elif equal == "time":
        assert seconds is not None
        tokens = int(config.trunk.tokens * sum(seconds.values()) / seconds["trunk"])
    else:
        spent = sum(phase.tokens * _operations(config.model, phase) for phase in phases(config))
        tokens = spent // _operations(model, Phase(config))
    trunk = dataclasses.replace(config.trunk, tokens=tokens)
    return dataclasses.replace(config, model=model, trunk=trunk)


def spent(run: Run) -> dict[str, float]:
    """Seconds that the steps of each phase took, one phase after the other, as the run wrote them.

    Steps that were lost and done again, compiling, saving and measuring do not count.

    Raises:
        InputError: they are not all there.
    """
    lines, seconds = journal.read(run.folder.metrics), {}
    for phase in phases(run.config):
        its = [line for line in lines if line["phase"] == phase.name]
        seconds[phase.name] = float(journal.spent(its)["step"])
    if missing := [name for name, value in seconds.items() if not value]:
        raise InputError(
            f"{run.folder.metrics} does not say how long {', '.join(missing)} took, which a "
            "control of equal time needs; name the others with --equal"
        )
    return seconds


def controls(run: Run, equal: Sequence[str] = CONTROLS) -> dict[str, Any]:
    """Train the dense controls where they are not yet, and score everything; see :func:`compare`.

    Also written to ``controls.json``.

    Raises:
        InputError: the run is not finished, or something of it is damaged.
        UsageError: a control is there that was made for another configuration of the run.
    """
    _require_finished(run.folder, run.config)
    dense = [_control(run, name) for name in equal]
    for control in dense:
        tokens, layers = control.config.trunk.tokens, control.config.model.trunk.layers
        say(f"{control.folder.path}: a trunk of {layers} layers, {tokens:,} tokens")
        train_trunk(control)
    rows = [_row("trunk", run, [Phase(run.config)])]
    nats = nats_by_document(run, final_params(run))
    for e, phase in enumerate(phases(run.config)[1:]):
        rows.append(_row(f"expert{e}", run, [Phase(run.config), phase]))
    rows += [_row(name, run, phases(run.config)) for name in CHOICES]
    for e, found in enumerate(nats.values()):
        experts = [found[f"expert{i}"] for i in range(len(nats))]
        found |= {"routed": found.pop(ROUTERS[0]), "oracle": experts[e]}
        found["random"] = np.mean(experts, axis=0)
    for name, control in zip(equal, dense, strict=True):
        rows.append(_row(f"dense_{name}", control, [Phase(control.config)]))
        for domain, values in trunk_nats(control, load_trunk(control)).items():
            nats[domain][f"dense_{name}"] = values
    report = {"config_sha256": run.config.digest(), **compare(run, rows, nats)}
    write_json(run.folder.controls_file, report)
    return report


def compare(run: Run, rows: list[dict[str, Any]], nats: Nats) -> dict[str, Any]:
    """The models beside each other, as JSON types.

    Args:
        run: the finished run.
        rows: each model's ``model``, ``tokens``, ``operations`` and ``parameters``.
        nats: its loss of every held-out document.

    Returns:
        ``domains``; ``sequences`` and ``documents`` of each; ``models``: the rows, each with
        ``bits_per_byte`` by domain, their ``mean``, and ``routed``, by domain and in ``mean``: how
        the routed model's bits per byte differ from this one's, with the interval of that
        (:func:`s7jax.train.evaluate.paired_interval`), the domains drawn from one by one.
    """
    domains = run.config.model.domains
    text = held_out_rows(run, domains)
    for row in rows:
        mine = {domain: nats[domain][row["model"]] for domain in domains}
        bits = {d: float(mine[d].sum() / nats_per_bit(run, text[d])) for d in domains}
        pairs = {domain: (mine[domain], nats[domain]["routed"]) for domain in domains}
        row |= {"bits_per_byte": bits, "mean": float(np.mean([*bits.values()]))}
        row["routed"] = {domain: paired_interval(*pair) for domain, pair in pairs.items()}
        row["routed"]["mean"] = mean_interval([*pairs.values()])
    return {
        "domains": list(domains),
        "sequences": {domain: len(text[domain]) for domain in domains},
        "documents": {domain: len(nats[domain]["routed"]) for domain in domains},
        "models": rows,
    }


def _control(run: Run, equal: str) -> Run:
    """The run of a control, opened where the run keeps it, on the run's data and meshes."""
    seconds = spent(run) if equal == "time" else None
    config, data = controlled(run.config, equal, seconds), str(run.prepared.path.absolute())
    folder = start(run.folder.control(equal), config, None, data)
    return dataclasses.replace(run, folder=folder, config=config)


def _require_finished(folder: RunFolder, config: Config) -> None:
    for name in (*(phase.name for phase in phases(config)), "router"):
        if not folder.final(name).is_dir():
            raise InputError(
                f"{folder.final(name)} is not there: experts are compared when the run is "
                f"trained; `s7jax pipeline --run {folder.path}` goes on with it"
            )


def _operations(model: Architecture, phase: Phase) -> int:
    return flops_per_token(model, phase.expert is None, causal=False)


def _row(name: str, run: Run, trained: list[Phase]) -> dict[str, Any]:
    """A model, what was spent on it, and with how many parameters it reads a token."""
    sizes = counts(run.config.model)
    active = sizes["embedding"] + sizes["trunk"]
    if any(phase.expert is not None for phase in trained):
        active += sizes["expert0"]
    spent = [phase.steps * phase.tokens_per_step for phase in trained]
    costs = [_operations(run.config.model, phase) for phase in trained]
    return {
        "model": name,
        "tokens": sum(spent),
        "operations": sum(n * cost for n, cost in zip(spent, costs, strict=True)),
        "parameters": active,
    }
