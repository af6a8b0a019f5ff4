"""The walk from a sealed model back to its data: every link with its digest, and how far it holds.

By the sealed file alone configuration, tokenizer and frozen trunk can be compared; data, parameters
and transcripts are digests that it states, and are compared with those of the run's folder where
that is at hand. What the digests are of: ``docs/provenance.md``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from s7jax import s7l
from s7jax.data.prepared import TOKENIZER, Prepared
from s7jax.data.tokenizer import Tokenizer
from s7jax.errors import InputError, UsageError
from s7jax.runs.origin import Made, Origin
from s7jax.runtime import proof
from s7jax.runtime.replay import asked, check_end
from s7jax.terminal.progress import Progress
from s7jax.train.folder import RunFolder

EQUAL, STATED, DIFFERS, NONE = "equal", "stated", "differs", "none"  # verdicts of a link
_MARKS = {EQUAL: "=", STATED: ".", DIFFERS: "!", NONE: " "}
_COLUMNS = ("recipe", "data", "trunk", "parameters", "transcript")


@dataclass(frozen=True)
class Link:
    """One link: the digest that is sealed, and what was found where it could be looked for."""

    name: str
    sha256: str | None  # None: nothing of the kind was sealed
    found: Mapping[str, str]  # by place: the digest there, or why there is none

    @property
    def verdict(self) -> str:
        """Whether everything found is as sealed."""
        if self.sha256 is None:
            return NONE
        if not self.found:
            return STATED
        return EQUAL if set(self.found.values()) == {self.sha256} else DIFFERS

    def to_json(self) -> dict[str, Any]:
        """Name, verdict, digest, and what was found, by place."""
        return {
            "link": self.name,
            "verdict": self.verdict,
            "sha256": self.sha256,
            "found": dict(self.found),
        }


def walk(
    opened: s7l.Seal | s7l.Bundle,
    path: Path,
    run: RunFolder | None = None,
    answer: Path | None = None,
) -> list[Link]:
    """Every link, in order, from the configuration to the proof of an answer.

    Args:
        opened: an open seal, whose tensors are verified here.
        path: its file, for messages.
        run: the folder to look for data, checkpoints and transcripts in.
        answer: a ``.s7p`` that should be of this seal.

    Raises:
        UsageError: a bundle is not a whole model.
        InputError: a tensor is not as sealed, nothing of its training was, or ``run`` is no run of
            these domains.
    """
    if isinstance(opened, s7l.Bundle):
        raise UsageError(f"{path}: a bundle; where a model comes from is sealed with the whole")
    origin = Origin.of(opened, path)
    opened.verify()
    links = list(_sealed(origin))
    if run is not None:
        links = _beside(links, run, _of_run(origin, run))
    root = origin.seal.root.hex()
    links.append(Link("seal", root, {"every byte": root}))
    if answer is not None:
        links.append(Link("proof", root, {str(answer): _tried(partial(_proven, origin, answer))}))
    return links


def broken(links: Sequence[Link]) -> list[str]:
    """Names of the links that are not as sealed."""
    return [link.name for link in links if link.verdict == DIFFERS]


def _sealed(origin: Origin) -> Iterator[Link]:
    """The links up to the seal, as far as the sealed file has both their ends."""
    config, trunk = origin.config, origin.made["trunk"].params
    yield Link("configuration", origin.config_sha256, {"its fields": config.digest()})
    tokenizer = origin.made["trunk"].tokenizer
    others = {f"{name}'s inputs": made.tokenizer for name, made in origin.made.items()}
    yield Link("tokenizer", tokenizer, {"the vocabulary": origin.vocabulary_sha256, **others})
    for name, made in origin.made.items():
        yield Link(f"{name} recipe", made.recipe, {"its fields": config.phase_digest(name)})
        yield Link(f"{name} data", made.data, {})
        if made.trunk is not None:
            yield Link(f"{name} trunk", made.trunk, {"the trunk's parameters": trunk})
        yield Link(f"{name} parameters", made.params, {})
        if name != "router":  # fitted in one go, there are no steps to tell of
            yield Link(f"{name} transcript", made.transcript, {})


def _beside(links: Sequence[Link], run: RunFolder, again: Iterator[tuple[str, str]]) -> list[Link]:
    """The links with what a run's folder has for them."""
    here = {}
    with Progress("compare", sum(" trunk" not in one.name for one in links), "links") as progress:
        for name, value in again:
            here[name] = value
            progress.advance(1)
    return [
        Link(one.name, one.sha256, {**one.found, str(run.path): here[one.name]})
        if one.name in here
        else one
        for one in links
    ]


def _of_run(origin: Origin, run: RunFolder) -> Iterator[tuple[str, str]]:
    """The same digests computed from a run's folder, by the names of the links."""
    from s7jax.mesh import single  # noqa: PLC0415 JAX takes seconds, and the seal alone needs none
    from s7jax.model import parameters  # noqa: PLC0415
    from s7jax.train.finished import tables  # noqa: PLC0415

    names, config = origin.config.model.domains, run.config()
    if config.model.domains[: len(names)] != names:
        raise InputError(f"{run.path}: a run of {config.model.domains}; the model has {names}")
    yield "configuration", config.digest()
    prepared = _prepared(origin, run)
    yield "tokenizer", _tried(lambda: Tokenizer.load(run.prepared / TOKENIZER).digest)
    for name, table in tables(origin.config).items():
        made, final = origin.made[name], run.final(name)
        yield f"{name} recipe", config.phase_digest(name)
        text = prepared if isinstance(prepared, str) else prepared.digest_of(origin.domains(name))
        yield f"{name} data", text
        like = parameters.abstract(table, single())
        yield f"{name} parameters", _tried(partial(_restored, final, like, made.params))
        if name != "router":
            yield f"{name} transcript", _tried(partial(_told, run.transcript(name), made))


def _restored(final: Path, like: Any, sealed: str) -> str:
    """The digest of a final checkpoint's parameters; of its bytes, if its record says the sealed.

    Nothing is restored of another: its tensors may have other shapes.
    """
    from s7jax.model import parameters  # noqa: PLC0415 as above
    from s7jax.train import checkpoint  # noqa: PLC0415

    recorded = str(checkpoint.read_record(final).get("params_sha256"))
    if recorded != sealed:
        return recorded
    return parameters.digest(checkpoint.restore_final(final, like))


def _prepared(origin: Origin, run: RunFolder) -> Prepared | str:
    """The run's data, every file hashed; or what is wrong with them."""
    try:
        prepared, names = Prepared.load(run.prepared), origin.config.model.domains
        if prepared.domains[: len(names)] != names:
            raise InputError(f"{prepared.path}: of {prepared.domains}; the model has {names}")
        prepared.verify()
    except (InputError, OSError) as e:
        return str(e)
    return prepared


def _told(path: Path, made: Made) -> str:
    """The root of a transcript that tells of these inputs and parameters."""
    from s7jax.train import transcript  # noqa: PLC0415 as above

    told = transcript.read(path)
    inputs = told.head["inputs"]
    wanted = {"config_sha256": made.recipe, "data_sha256": made.data, "trunk_sha256": made.trunk}
    for key, value in wanted.items():
        if inputs.get(key) != value:
            raise InputError(f"{path}: is of another {key} than the seal's {value}")
    if told.end is None or told.end.hex() != made.params:
        raise InputError(f"{path}: does not end with the sealed parameters {made.params}")
    return told.root.hex()


def _proven(origin: Origin, path: Path) -> str:
    """The root a proof is of, if it can be this seal's; no step is computed again."""
    answer = proof.load(path)
    check_end(answer, asked(answer, origin.seal)[1], origin.seal)
    return str(answer.head["root"].hex())


def _tried(read: Callable[[], str]) -> str:
    """What is found, or why it is not."""
    try:
        return read()
    except (InputError, UsageError, OSError) as e:
        return str(e)


def shown(links: Sequence[Link], run: RunFolder | None) -> list[str]:
    """The walk on a screen of 80 columns, digests shortened; what differs whole, below."""
    by_name = {link.name: link for link in links}
    lines = [_line(by_name["configuration"]), _line(by_name["tokenizer"])]
    lines += ["", f"{'':<12}{''.join(f'{column:<13}' for column in _COLUMNS)}".rstrip()]
    for name in [link.name.split()[0] for link in links if link.name.endswith(" recipe")]:
        cells = [_cell(by_name.get(f"{name} {column}")) for column in _COLUMNS]
        lines.append(f"{name:<12}{''.join(f'{cell:<13}' for cell in cells)}".rstrip())
    lines += ["", _line(by_name["seal"])]
    lines.append(_line(by_name["proof"]) if "proof" in by_name else "proof          none was given")
    lines += ["", "= compared, equal   . stated by the seal alone   ! not as sealed"]
    if run is None:
        lines.append("data, parameters, transcripts: --run RUN compares them with its folder")
    lines.append("that training gives these parameters, and they this seal: s7jax audit")
    for link in (link for link in links if link.verdict == DIFFERS):
        lines.append(f"\n{link.name}: sealed {link.sha256}")
        lines += [f"  {place}: {found}" for place, found in link.found.items()]
    return lines


def _line(link: Link) -> str:
    where = ", ".join(list(link.found)[:2])
    return f"{link.name:<15}{(link.sha256 or '')[:16]} {_MARKS[link.verdict]} {where[:45]}"


def _cell(link: Link | None) -> str:
    if link is None or link.sha256 is None:
        return "-"
    return f"{link.sha256[:8]} {_MARKS[link.verdict]}"
