"""A prepared tiny corpus of four easily told domains, and runs on it."""

from pathlib import Path

import numpy as np
import pytest

from s7jax import mesh
from s7jax.config import PRESETS, Config
from s7jax.data.prepare import prepare
from s7jax.data.prepared import Prepared
from s7jax.train.folder import RunFolder, start
from s7jax.train.run import Run

DOMAINS = PRESETS["s7-nano"].model.domains

WORDS = {
    "code": "def return import class for if else self print lambda".split(),
    "math": "1 2 3 4 5 + - = x y".split(),
    "reason": "therefore because all some no if then but implies so".split(),
    "general": "the a river old house walked green morning quiet said".split(),
}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory, tiny: Config) -> Prepared:
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    sources = {}
    for domain in DOMAINS:
        file = folder / domain
        file.mkdir()
        for i in range(120):
            (file / f"{i}.txt").write_text(" ".join(rng.choice(WORDS[domain], 60)))
        sources[domain] = [file]
    return prepare(
        sources,
        tmp_path_factory.mktemp("prepared"),
        domains=tiny.domains,
        vocab=tiny.model.vocab,
        context=tiny.model.context,
        workers=1,
    )


@pytest.fixture(scope="session")
def prepared_nano(tmp_path_factory) -> Path:
    """The built-in corpus as s7-nano reads it."""
    config, folder = PRESETS["s7-nano"], tmp_path_factory.mktemp("nano")
    cfg = config.model
    prepare(None, folder, domains=config.domains, vocab=cfg.vocab, context=cfg.context)
    return folder


@pytest.fixture(scope="session")
def open_run(tiny: Config, prepared: Prepared):
    """Start or take up a run in a folder, on a mesh."""

    def opened(folder, config: Config = tiny, on: str = "1x1") -> Run:
        run = start(RunFolder(folder), config, None, str(prepared.path))
        return Run(run, config, prepared, tuple(mesh.pools(mesh.parse(on))))

    return opened


@pytest.fixture
def new_run(tmp_path, open_run):
    def make(name: str, *args, **kwargs) -> Run:
        return open_run(tmp_path / name, *args, **kwargs)

    return make


@pytest.fixture(scope="session")
def single():
    return mesh.make(mesh.SINGLE)
