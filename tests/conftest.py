"""Eight virtual CPU devices for every test, the tiny model and the tiny seal they share.

Compiling is nine tenths of what testing costs. So what one test process has compiled the others
load: the workers, and the commands that tests run. A test for which that would prove too little
or that kills its processes asks for the fixture ``own_programs``.
"""

import atexit
import gc
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

if "PYTEST_XDIST_WORKER" not in os.environ:  # a worker has what the process that started it set
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="s7jax-programs-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    # A largest size is what makes JAX lock the folder: no process reads what is half written.
    os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(4 << 30)
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

# A shell's background job ignores SIGINT, and so would the processes that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import jax
import pytest
from hypothesis import settings
from tiny import write_inputs

from s7jax import commands, s7l
from s7jax.architecture import Architecture, Stack
from s7jax.config import ComputeConfig, Config, Domain, Recipe, TrunkRecipe
from s7jax.train import determinism
from tests.budget import Budget
from tests.compiling import hardly_optimised, quick

jax.config.update("jax_num_cpu_devices", 8)
# What is broadcast or converted is said in the code, never guessed.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
determinism.enforce()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--budget", type=float, metavar="SECONDS", help="for the long tests, in all")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--budget") is not None:
        config.pluginmanager.register(Budget(config.getoption("--budget")))


def pytest_collection_finish(session: pytest.Session) -> None:
    """What was imported stays, and tracing makes much that lives long: the garbage collector,
    left to itself, takes a twelfth of the time of all tests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


# Tests are as deterministic as the code; machines are too noisy for deadlines.
settings.register_profile("s7jax", deadline=None, derandomize=True)
settings.load_profile("s7jax")

TINY_RECIPE = {"batch": 8, "microbatch": 1, "peak_lr": 1e-2, "warmup": 2, "checkpoint": 768}
TINY_SHARES = {"code": 7, "math": 5, "reason": 4, "general": 4}

TINY = Config(
    preset="tiny",
    model=Architecture(
        vocab=320,
        context=32,
        trunk=Stack(layers=2, hidden=32, heads=2, ffn=64),
        expert=Stack(layers=2, hidden=16, heads=2, ffn=32),
        domains=tuple(TINY_SHARES),
        routing_window=8,
    ),
    domains=tuple(
        Domain(name=name, share=share, tokens=1_280, builtin=name)
        for name, share in TINY_SHARES.items()
    ),
    trunk=TrunkRecipe(tokens=2_560, optimizer="muon", **TINY_RECIPE),  # and adamw for experts
    experts=Recipe(**TINY_RECIPE),
    compute=ComputeConfig(loss_chunk=8),
    router_sequences=12,
    eval_sequences=6,
)


@pytest.fixture
def own_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The processes of this test compile for themselves alone."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "programs"))


@pytest.fixture
def quick_compiling() -> Iterator[None]:
    """For integers and for what commands compile: no program of this process is dropped."""
    with quick():
        yield


@pytest.fixture(scope="module")
def compiled_alike() -> Iterator[None]:
    """For a file whose floats are compared with one another: all of it is hardly optimised."""
    with hardly_optimised():
        yield


@pytest.fixture
def here(monkeypatch, capsys, tmp_path) -> Callable[..., tuple[int, str, str]]:
    """A command in this process, for what computes little: exit code, both outputs."""
    jax.devices()  # as many as there are: no command decides it any more
    monkeypatch.chdir(tmp_path)

    def run(name: str, *words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            commands.run(name, [*map(str, words)])
        return end.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture
def tool(here) -> Callable[..., subprocess.CompletedProcess[str]]:
    """As :func:`here`, given as a process gives it."""
    return lambda name, *words: subprocess.CompletedProcess([name, *words], *here(name, *words))


@pytest.fixture(scope="session")
def tiny() -> Config:
    return TINY


@pytest.fixture(scope="session")
def pristine(tmp_path_factory) -> Path:
    """A folder with ``weights/``, ``vocab.json`` and ``moe.s7l``; never change it."""
    root = write_inputs(tmp_path_factory.mktemp("model"))
    s7l.seal(root / "weights", root / "vocab.json", root / "moe.s7l")
    return root


@pytest.fixture
def model(tmp_path) -> Path:
    """The same inputs, unsealed, to be changed at will."""
    return write_inputs(tmp_path)
