"""Where the scalars of training also go: TensorBoard, W&B, MLflow, behind one interface.

``metrics.jsonl`` is what a run goes by; a tracker only shows it. Each phase is a run of its own
there, since phases may be trained at once and by several processes. What a phase is logged to is
kept in the run's folder, so that it goes on there after a stop.
"""

import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from s7jax.errors import UsageError
from s7jax.extras import how_to_install
from s7jax.storage import write_json

Row = tuple[int, Mapping[str, float]]  # a step and its scalars by name

PROJECT = "s7jax"  # of W&B, and the experiment of MLflow, unless the environment names another
BATCH = 1_000  # metrics that MLflow takes at once
PARAMETERS = 100  # and parameters


class Tracker(Protocol):
    """What shows training. Any method may raise anything: whoever calls it expects that."""

    def write(self, rows: Sequence[Row]) -> None:
        """Scalars at steps, in ascending order."""

    def close(self, finished: bool) -> None:
        """The phase has ended (``finished``), or it was stopped before."""


@dataclass(frozen=True)
class Subject:
    """What is tracked: one phase of a run, from a step on.

    Attributes:
        run, phase: their names.
        first: step that training goes on from.
        config: the configuration, as plain JSON.
        inputs: what decides the values (:func:`s7jax.train.run.inputs_record`).
        events: folder of the TensorBoard events.
        folder: where other trackers keep what they need.
    """

    run: str
    phase: str
    first: int
    config: dict[str, Any]
    inputs: dict[str, Any]
    events: Path
    folder: Path


class Place:
    """The run of a tracker that a phase is logged to, and how far: a file in the run's folder.

    A phase that was made from other inputs, or is logged elsewhere, is another run there.

    Attributes:
        id: of the tracker's run; None before there is one.
    """

    def __init__(self, subject: Subject, tracker: str, where: str) -> None:
        self._path = subject.folder / f"{tracker}-{subject.phase}.json"
        self._about = {"inputs": subject.inputs, "where": where}
        self.id: str | None = None
        self._last = -1
        if self._path.exists():
            kept = json.loads(self._path.read_text(encoding="utf-8"))
            if kept["about"] == self._about:
                self.id, self._last = kept["id"], kept["last"]

    def new(self, rows: Sequence[Row]) -> list[Row]:
        """Those that were not written yet; from now on they were.

        Noted before they are written: a process killed in between loses them there, which is
        better than having them twice.
        """
        found = [row for row in rows if row[0] > self._last]
        if found:
            self.keep(self.id, found[-1][0])
        return found

    def keep(self, run: str | None, last: int = -1) -> None:
        """Have it in the file: the tracker's run, and the last step that is written there."""
        self.id, self._last = run, max(last, self._last)
        self._path.parent.mkdir(exist_ok=True)
        write_json(self._path, {"about": self._about, "id": run, "last": self._last})


class TensorBoard:
    """Events in the run's folder; what an earlier attempt wrote of later steps is hidden."""

    def __init__(self, subject: Subject) -> None:
        self._events = _summary_writer()(str(subject.events), purge_step=subject.first)

    def write(self, rows: Sequence[Row]) -> None:
        for step, scalars in rows:
            for name, value in scalars.items():
                self._events.add_scalar(name, value, step)

    def close(self, finished: bool) -> None:
        self._events.close()


def _summary_writer() -> Any:
    """tensorboardX's writer. On import it also imports PyTorch, if that is there: three seconds."""
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]  # to import it is an ImportError
    try:
        from tensorboardX import SummaryWriter  # noqa: PLC0415 slow to import
    finally:
        if hidden:
            del sys.modules["torch"]
    return SummaryWriter


class WandB:
    """A run of Weights & Biases, in the group of its s7jax run.

    ``WANDB_PROJECT``, ``WANDB_ENTITY``, ``WANDB_MODE`` and the others are W&B's own.
    """

    def __init__(self, subject: Subject) -> None:
        import wandb  # noqa: PLC0415 an extra

        project = os.environ.get("WANDB_PROJECT", PROJECT)
        self._place = Place(subject, "wandb", project)
        if self._place.id is None:
            self._place.keep(secrets.token_hex(8))
        self._run = wandb.init(
            project=project,
            id=self._place.id,
            resume="allow",
            name=f"{subject.run}/{subject.phase}",
            group=subject.run,
            job_type=subject.phase,
            config=subject.config,
            dir=str(subject.folder),
            reinit="create_new",  # experts that are trained at once are several runs
            settings=wandb.Settings(console="off", silent=True),
        )

    def write(self, rows: Sequence[Row]) -> None:
        for step, scalars in self._place.new(rows):
            self._run.log(dict(scalars), step=step)

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class MLflow:
    """A run of an MLflow tracking server or store, whichever ``MLFLOW_TRACKING_URI`` names."""

    def __init__(self, subject: Subject) -> None:
        from mlflow import MlflowClient  # noqa: PLC0415 an extra

        self._client = MlflowClient()
        self._place = Place(subject, "mlflow", self._client.tracking_uri)
        if self._place.id is None:
            self._place.keep(self._new_run(subject))
        self._client.update_run(self._place.id, status="RUNNING")

    def _new_run(self, subject: Subject) -> str:
        from mlflow.entities import Param  # noqa: PLC0415

        tags = {"s7jax.run": subject.run, "s7jax.phase": subject.phase}
        name = f"{subject.run}/{subject.phase}"
        run: str = self._client.create_run(self._experiment(), run_name=name, tags=tags).info.run_id
        parameters = [Param(name, value) for name, value in flat(subject.config).items()]
        for i in range(0, len(parameters), PARAMETERS):
            self._client.log_batch(run, params=parameters[i : i + PARAMETERS])
        return run

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException  # noqa: PLC0415

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        try:
            found = self._client.get_experiment_by_name(name)
            return str(found.experiment_id if found else self._client.create_experiment(name))
        except MlflowException:  # another phase has made it meanwhile
            if found := self._client.get_experiment_by_name(name):
                return str(found.experiment_id)
            raise

    def write(self, rows: Sequence[Row]) -> None:
        from mlflow.entities import Metric  # noqa: PLC0415

        now = int(time.time() * 1000)
        metrics = [
            Metric(name, value, now, step)
            for step, scalars in self._place.new(rows)
            for name, value in scalars.items()
        ]
        for i in range(0, len(metrics), BATCH):
            self._client.log_batch(self._place.id, metrics=metrics[i : i + BATCH])

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self._place.id, "FINISHED" if finished else "KILLED")


TRACKERS: dict[str, Callable[[Subject], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}
OPTIONAL = ("wandb", "mlflow")  # packages, and extras, of their tracker's name


def require(names: Sequence[str]) -> None:
    """Refuse trackers that cannot work here, before anything is trained.

    Raises:
        UsageError: a package is missing, or W&B knows nobody to log as.
    """
    for name in names:
        if name not in TRACKERS:
            raise UsageError(f"--log-to {name}: expected {', '.join(TRACKERS)}")
        if name in OPTIONAL:
            try:
                metadata.version(name)
            except metadata.PackageNotFoundError:
                how = how_to_install(name)
                raise UsageError(f"--log-to {name} needs a package: {how}") from None
    if "wandb" in names and not _wandb_ready():
        raise UsageError(
            "--log-to wandb: W&B has no key: run `wandb login`, or set WANDB_MODE=offline and "
            "`wandb sync` the run later"
        )


def _wandb_ready() -> bool:
    """Whether W&B needs no network, or has credentials; it is never left to ask for them."""
    import wandb  # noqa: PLC0415 an extra

    offline = wandb.setup().settings.mode in ("offline", "dryrun", "disabled")
    return offline or bool(wandb.login(prompt=False, verify=False))


def flat(tree: Any, at: str = "") -> dict[str, str]:
    """The leaves of a JSON tree by their dotted names, as text."""
    if isinstance(tree, list) and any(isinstance(value, dict | list) for value in tree):
        tree = dict(enumerate(tree))
    if not isinstance(tree, dict):
        return {at: tree if isinstance(tree, str) else json.dumps(tree)}
    found: dict[str, str] = {}
    for name, value in tree.items():
        found |= flat(value, f"{at}.{name}" if at else str(name))
    return found
