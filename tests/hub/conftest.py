"""Finished runs that nothing had to train: random weights with the records of a real run."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest

from s7jax.architecture import Architecture, Stack
from s7jax.config import Config, Domain
from s7jax.data.builtin import math, reason
from s7jax.data.tokenizer import Tokenizer
from s7jax.mesh import single
from s7jax.model import parameters
from s7jax.storage import write_json
from s7jax.train import checkpoint
from s7jax.train.folder import RunFolder, start
from s7jax.train.phase import ROUTERS, TRUNK
from tests.conftest import TINY


def config_of(domains: int, trunk: Stack, expert: Stack, context: int, window: int) -> Config:
    names = tuple(f"domain{e}" for e in range(domains))
    model = Architecture(
        vocab=320, context=context, trunk=trunk, expert=expert, domains=names, routing_window=window
    )
    return dataclasses.replace(
        TINY, model=model, domains=tuple(Domain(name=n, share=1, tokens=1_280) for n in names)
    )


CONFIGS = {
    "three experts": config_of(3, TINY.model.trunk, TINY.model.expert, context=32, window=3),
    "five experts, odd widths": config_of(
        5,
        Stack(layers=3, hidden=72, heads=3, ffn=100),  # heads of 24 and of 20 channels
        Stack(layers=1, hidden=40, heads=2, ffn=36),
        context=160,
        window=5,
    ),
}
QUALITY = {
    "bits_per_byte": {
        name: {"trunk": 2.5, "routed": 2.25, "oracle": 2.125}
        for name in CONFIGS["three experts"].model.domains
    },
    "routers": {"router": {"accuracy": 0.75}},
}


@pytest.fixture(scope="session")
def vocabulary() -> Tokenizer:
    return Tokenizer.train((g.document(1, i) for g in (math, reason) for i in range(150)), 320)


def make_run(folder: Path, config: Config, tokenizer: Tokenizer) -> RunFolder:
    """A run as training leaves it; routers choose every expert somewhere."""
    run = start(RunFolder(folder), config, None, None)
    rng = np.random.default_rng(0)
    params = parameters.host(parameters.initial(config.model, 0, single()))
    params["nearest_centroid"] = params["router"]

    def moved(tree):
        if isinstance(tree, dict):
            return {name: moved(tree[name]) for name in sorted(tree)}
        return tree + rng.normal(0, 0.1, tree.shape).astype(np.float32)

    params = moved(params)
    inputs = {
        "data_sha256": hashlib.sha256(b"data").hexdigest(),
        "tokenizer_sha256": tokenizer.digest,
        "trunk_sha256": None,
    }

    def save(phase: str, tree) -> str:
        decided = {"config_sha256": config.phase_digest(phase), **inputs}
        record = {"phase": phase, "config": config.to_json(), "inputs": decided}
        return checkpoint.save_final(run.final(phase), tree, record)

    inputs["trunk_sha256"] = save("trunk", {name: params[name] for name in TRUNK})
    for e in range(len(config.domains)):
        save(f"expert{e}", params[f"expert{e}"])
    save("router", {name: params[name] for name in ROUTERS})
    run.model.mkdir()
    write_json(run.vocab, tokenizer.to_vocabulary())
    return run


@pytest.fixture(scope="session")
def three(tmp_path_factory, vocabulary) -> RunFolder:
    """A finished and evaluated run of three experts; never change it."""
    folder = tmp_path_factory.mktemp("runs") / "three"
    run = make_run(folder, CONFIGS["three experts"], vocabulary)
    write_json(run.evaluation, {"inputs": {}, "quality": QUALITY})
    return run
