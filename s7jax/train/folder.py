"""The run folder: where everything one run makes is kept, and what decided it.

```text
runs/NAME/
  config.json          preset, model, recipes, seed, data sources (what decided the bytes)
  data/                tokenised shards, manifest, tokenizer (or elsewhere: --prepared)
  metrics.jsonl        one line per training step
  transcript/          trunk.s7t expert0.s7t …: what every step was fed and gave, chained
  tensorboard/         the same as TensorBoard events, one folder per phase
  trackers/            which run of W&B or MLflow each phase is; what W&B has not sent
  profile/             traces made with --profile
  checkpoints/         trunk/ expert0/ … (resumable), trunk_final/ expert0_final/ router_final/
  model/               weights/ vocab.json moe.s7l sample.s7p
  evaluation.json      quality on held-out text
  sealed.json          the sealed model beside the float one
  tasks.json           both on benchmark tasks (s7jax evaluate --tasks)
  controls/            dense models of equal flops/ tokens/ time/ parameters/, each a run of Phase 1
  controls.json        the model beside them (s7jax controls)
  samples.json         what the sealed model answers, and every rule with its evidence
  report.json          the final tables
  report.html, .md     the report: curves, tables, samples, digests
```
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s7jax import sample
from s7jax.config import Config, Domain
from s7jax.errors import InputError, UsageError
from s7jax.storage import write_json

ROOT = Path("runs")
CONTROLS = ("flops", "tokens", "time", "parameters")  # in which a dense control is equal


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    path: Path

    @property
    def config_file(self) -> Path:
        """What the run was started with."""
        return self.path / "config.json"

    @property
    def data(self) -> Path:
        """Where a run prepares data of its own."""
        return self.path / "data"

    @property
    def metrics(self) -> Path:
        """JSON lines, one per training step."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """The same as TensorBoard events, one folder per phase."""
        return self.path / "tensorboard"

    def transcript(self, phase: str) -> Path:
        """What every step of a phase was fed and gave (:mod:`s7jax.train.transcript`)."""
        return self.path / "transcript" / f"{phase}.s7t"

    @property
    def trackers(self) -> Path:
        """Which run of another tracker each phase is, with ``--log-to``."""
        return self.path / "trackers"

    @property
    def profile(self) -> Path:
        """Traces made with ``--profile``."""
        return self.path / "profile"

    @property
    def checkpoints(self) -> Path:
        """Orbax checkpoints."""
        return self.path / "checkpoints"

    def final(self, name: str) -> Path:
        """A phase's final checkpoint, or the router's."""
        return self.checkpoints / f"{name}_final"

    @property
    def model(self) -> Path:
        """What Phase 3 makes."""
        return self.path / "model"

    @property
    def weights(self) -> Path:
        """Quantised tensors and their manifest."""
        return self.model / "weights"

    @property
    def vocab(self) -> Path:
        """The vocabulary as it is sealed."""
        return self.model / "vocab.json"

    @property
    def sealed(self) -> Path:
        """The sealed model; of several, made as domains were added, the newest."""
        return self.seals()[-1] if self.seals() else self.model / "moe.s7l"

    def seals(self) -> list[Path]:
        """Sealed models as they were made: ``moe.s7l``, ``moe-2.s7l`` and so on."""
        found = {1: self.model / "moe.s7l"}
        for path in self.model.glob("moe-*.s7l"):
            if path.stem[4:].isdecimal():
                found[int(path.stem[4:])] = path
        return [path for _, path in sorted(found.items()) if path.exists()]

    def next_seal(self) -> Path:
        """Where the next sealed model goes: none is ever overwritten."""
        count = len(self.seals())
        return self.model / (f"moe-{count + 1}.s7l" if count else "moe.s7l")

    @property
    def evaluation(self) -> Path:
        """Quality on held-out text, as JSON."""
        return self.path / "evaluation.json"

    @property
    def tasks(self) -> Path:
        """What float and sealed model know of benchmark tasks."""
        return self.path / "tasks.json"

    @property
    def comparison(self) -> Path:
        """The sealed model's quality beside the float one's, as JSON."""
        return self.path / "sealed.json"

    @property
    def controls(self) -> Path:
        """Dense models of equal cost (:mod:`s7jax.runs.controls`)."""
        return self.path / "controls"

    def control(self, equal: str) -> "RunFolder":
        """The run of one of them, by what is equal: one of :data:`CONTROLS`."""
        return RunFolder(self.controls / equal)

    @property
    def controls_file(self) -> Path:
        """The model beside them, as JSON."""
        return self.path / "controls.json"

    @property
    def samples(self) -> Path:
        """Answers of the sealed model, one of them proven, and every rule, as JSON."""
        return self.path / "samples.json"

    @property
    def proof(self) -> Path:
        """The proof of the first of them."""
        return self.model / "sample.s7p"

    @property
    def report(self) -> Path:
        """The final tables, as JSON."""
        return self.path / "report.json"

    @property
    def page(self) -> Path:
        """The report for people, one self-contained page."""
        return self.path / "report.html"

    @property
    def summary(self) -> Path:
        """The same in Markdown."""
        return self.path / "report.md"

    def read(self) -> dict[str, Any]:
        """The content of ``config.json``: ``config``, ``data``, ``prepared``.

        Raises:
            InputError: missing or broken.
        """
        try:
            found = json.loads(self.config_file.read_text())
        except FileNotFoundError:
            raise InputError(f"{self.path}: not a run (no config.json)") from None
        except (ValueError, RecursionError, OSError) as e:
            raise InputError(f"{self.config_file}: {e}") from None
        types = {"config": dict, "data": dict | None, "prepared": str | None}
        if not isinstance(found, dict) or not all(
            key in found and isinstance(found[key], kind) for key, kind in types.items()
        ):
            raise InputError(f"{self.config_file}: not the configuration of a run")
        return found

    def config(self) -> Config:
        """The run's configuration."""
        return Config.from_json(self.read()["config"])

    @property
    def prepared(self) -> Path:
        """Folder of the tokenised shards."""
        elsewhere = self.read()["prepared"]
        return Path(elsewhere) if elsewhere else self.data


def remembered(path: Path) -> dict[str, Any]:
    """What a part of a run left in a JSON file for the next time; nothing if that is damaged.

    Such a part is then done anew.
    """
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def start(
    run: RunFolder, config: Config, data: dict[str, list[Any]] | None, prepared: str | None
) -> RunFolder:
    """Open a run folder for this configuration, making it if need be.

    Raises:
        UsageError: the folder holds a run of another configuration; the first difference is
            named.
    """
    wanted = {"config": config.to_json(), "data": data, "prepared": prepared}
    if run.config_file.exists():
        found, moved = run.read(), False
        if prepared and found["prepared"] and not Path(found["prepared"]).exists():
            found["prepared"] = prepared  # moved; that it is the same is checked by its digest
            moved = found == wanted
        if difference := _difference(found, wanted):
            raise UsageError(
                f"{run.path} holds a run with another configuration: {difference}. "
                "Choose another --run NAME, or remove the folder"
            )
        if moved:
            write_json(run.config_file, found)
        return run
    run.path.mkdir(parents=True, exist_ok=True)
    write_json(run.config_file, wanted)
    return run


def add_domain(run: RunFolder, domain: Domain, sources: list[Any]) -> None:
    """Give a run one more domain; nothing that is finished changes.

    Raises:
        UsageError: the run has another domain of that name, or was made from shared shards.
    """
    settings = run.read()
    config = Config.from_json(settings["config"]).with_domain(domain)
    if settings["prepared"]:
        raise UsageError(
            f"{run.path} reads {settings['prepared']}, which holds no domain {domain.name!r}: a "
            "domain is added to a run that prepares its own data"
        )
    data = {**(settings["data"] or {}), **({domain.name: sources} if sources else {})}
    write_json(run.config_file, {**settings, "config": config.to_json(), "data": data or None})


def named(name: str) -> RunFolder:
    """The run called ``name`` under ``runs/``; a name with a slash is a folder as it stands.

    Raises:
        UsageError: no name.
    """
    if name in ("", ".", ".."):
        raise UsageError(f"--run {name!r}: expected the name of a run, or a folder with a slash")
    return RunFolder(Path(name) if "/" in name else ROOT / name)


def runs() -> list[RunFolder]:
    """The runs under ``runs/``, in the order they were started."""
    found = sorted(ROOT.glob("*/config.json"), key=lambda p: (p.stat().st_mtime_ns, str(p)))
    return [RunFolder(file.parent) for file in found]


def newest(needs: Callable[[RunFolder], Path]) -> RunFolder:
    """The run started last of those that have what ``needs`` names, such as a sealed model.

    Raises:
        UsageError: there is none.
    """
    fitting = [run for run in runs() if needs(run).exists()]
    if not fitting:
        lacking = f" that has {needs(RunFolder(Path()))}" if runs() else ""
        raise UsageError(f"no run under {ROOT}/{lacking}: start one with `s7jax pipeline`")
    return fitting[-1]


def newest_seal() -> Path:
    """The sealed model of the newest run that has one; without such a run, the package's own."""
    fitting = [run.sealed for run in runs() if run.sealed.exists()]
    if not fitting:
        told = f"no run under {ROOT}/ has a sealed model: this is the one that comes with s7jax"
        print(told, file=sys.stderr)
    return fitting[-1] if fitting else sample.SEALED


def _difference(found: Any, wanted: Any, at: str = "") -> str | None:
    """The first place where two JSON trees differ."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted(found.keys() | wanted.keys()):
            where = f"{at}.{key}" if at else key
            if d := _difference(found.get(key), wanted.get(key), where):
                return d
        return None
    if found == wanted:
        return None
    return f"{at} is {json.dumps(found)} there, {json.dumps(wanted)} here"
