"""Presets: what a model is, on which domains and how it is trained, as frozen data.

A preset is data, never code: everything the program builds is derived from these classes. Each
field states its range and unit (:mod:`s7jax.fields`).
Section numbers (§) refer to the S7-LLM-MOE-140M sizing specification.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Self

from s7jax.architecture import Architecture, Stack
from s7jax.digests import json_digest
from s7jax.errors import UsageError
from s7jax.fields import Checked, build, choice, decisive, identifier, nearest, number, plain

MOST = 1 << 62  # tokens, steps: whatever a 64-bit counter holds


@dataclass(frozen=True, kw_only=True)
class Domain(Checked):
    """A domain and its expert: all that is to be said of it.

    A domain with share 0 takes no part in Phase 1 and in learning the vocabulary, so it can be
    added to a finished run: trunk and other experts stay as they are.
    """

    name: str = identifier()
    share: int = number(0, 1 << 16, "sequences per cycle of Phase 1")
    tokens: int = number(1, MOST, "tokens of its expert's Phase 2")
    builtin: str | None = identifier(default=None)  # a corpus that is always there, if any


@dataclass(frozen=True, kw_only=True)
class Recipe(Checked):
    """How one phase is trained."""

    batch: int = number(1, 1 << 24, "sequences per step")
    microbatch: int = number(1, 1 << 24, "sequences of one gradient program of one data group")
    peak_lr: float = number(0, 10, above=True)
    warmup: int = number(0, MOST, "steps; capped at a tenth of a short run")
    checkpoint: int = number(1, MOST, "tokens between checkpoints")
    optimizer: str = choice("adamw", "muon", default="adamw")
    muon_rate: float = number(
        0, 1e3, "times the rate, for muon's matrices", above=True, default=2.0
    )
    final_lr: float = number(0, 1, "of peak_lr, where the cosine ends", default=0.1)
    weight_decay: float = number(0, 1, "on matrices only", default=0.1)
    clip: float = number(0, 1e6, "global gradient norm", above=True, default=1.0)
    betas: tuple[float, float] = number(0, 1 - 1e-9, default=(0.9, 0.95))
    spike: float = number(
        0, 1e6, "nats above the running mean of the loss; skipped", above=True, default=1.0
    )
    skip_steps: tuple[int, ...] = number(0, MOST, "steps, to replay a run that did", default=())

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch % self.microbatch:
            raise UsageError(
                f"batch {self.batch} is not a whole number of microbatches of {self.microbatch}"
            )

    @property
    def microbatches(self) -> int:
        """Gradient programs per step: the leaves of the reduction tree."""
        return self.batch // self.microbatch


@dataclass(frozen=True, kw_only=True)
class TrunkRecipe(Recipe):
    """Phase 1's recipe; how long an expert trains stands with its domain."""

    tokens: int = number(1, MOST, "training tokens")


@dataclass(frozen=True, kw_only=True)
class ComputeConfig(Checked):
    """These fields trade memory and speed. They change low-order bits, so digests cover them."""

    precision: str = choice("fp32", "bf16", default="fp32")  # forward, backward; sums are float32
    loss_chunk: int = number(0, 1 << 24, "positions whose logits exist at once; 0: all", default=0)
    remat: bool = False  # the backward pass recomputes what lies between a layer's projections


@dataclass(frozen=True, kw_only=True)
class Config(Checked):
    """A whole run: everything, beside the data, that decides the trained bytes."""

    preset: str
    model: Architecture
    domains: tuple[Domain, ...]
    trunk: TrunkRecipe
    experts: Recipe
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    seed: int = number(0, (1 << 32) - 1, default=0)
    router_sequences: int = number(1, 1 << 32, "training sequences per domain", default=256)
    eval_sequences: int = number(1, 1 << 32, "held-out sequences per domain", default=64)
    calibration_sequences: int = number(  # §5
        1, 1 << 32, "held-out sequences per domain", default=4_096
    )
    reduction: str = choice("tree", "psum", default="tree")  # of gradients over data groups

    def __post_init__(self) -> None:
        super().__post_init__()
        names = tuple(domain.name for domain in self.domains)
        if names != self.model.domains:
            raise UsageError(f"domains are {names}, the model's are {self.model.domains}")
        if not self.shares:
            raise UsageError("every domain has share 0; expected one that Phase 1 trains on")

    @property
    def shares(self) -> dict[str, int]:
        """Sequences per cycle of the domains that Phase 1 trains on (§3)."""
        return {domain.name: domain.share for domain in self.domains if domain.share}

    def domain(self, label: str) -> Domain:
        """The domain called so.

        Raises:
            UsageError: there is none.
        """
        found = {domain.name: domain for domain in self.domains}
        if label not in found:
            hint = nearest(label, found) or f"; expected one of {', '.join(found)}"
            raise UsageError(f"unknown domain {label!r}{hint}")
        return found[label]

    def with_domain(self, domain: Domain) -> Self:
        """With one more domain, or the same if it has this very one.

        Raises:
            UsageError: there is another one of that name, or it would change Phase 1.
        """
        if domain.name in self.model.domains:
            if self.domain(domain.name) != domain:
                raise UsageError(f"the run has another domain {domain.name!r}")
            return self
        if domain.share:
            raise UsageError(f"domain {domain.name!r}: a domain that is added has share 0")
        model = dataclasses.replace(self.model, domains=(*self.model.domains, domain.name))
        return dataclasses.replace(self, model=model, domains=(*self.domains, domain))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, in field order; the model's domains are those of the records."""
        tree: dict[str, Any] = plain(self)
        del tree["model"]["domains"]
        return tree

    @classmethod
    def from_json(cls, tree: Any) -> Self:
        """Inverse of :meth:`to_json`; fields with a default may be missing.

        Raises:
            UsageError: a field is missing, unknown, of another type or out of range.
        """
        if not isinstance(tree, dict) or not isinstance(tree.get("model"), dict):
            raise UsageError("configuration: expected an object with a field 'model'")
        records = tree.get("domains")
        if not isinstance(records, list) or not all(isinstance(r, dict) for r in records):
            raise UsageError("domains: expected a list of domains, each an object with a name")
        named = [record.get("name") for record in records]
        return build(cls, {**tree, "model": {**tree["model"], "domains": named}})

    def digest(self) -> str:
        """SHA-256 of every field that has not its default, in hexadecimal."""
        return json_digest(decisive(self))

    def phase_digest(self, phase: str) -> str:
        """SHA-256 of what decides the bytes that one phase ends with, beside its data and trunk.

        Phases are ``trunk``, ``expert0`` … and ``router``. What belongs to other experts is not
        covered: a domain that is added changes the router alone.
        """
        model = {key: getattr(self.model, key) for key in ("vocab", "context")}
        tree: dict[str, Any] = {"phase": phase, "seed": self.seed, **model}
        tree |= {"trunk": decisive(self.model.trunk), "compute": decisive(self.compute)}
        if phase == "router":
            tree |= {"sequences": self.router_sequences, "domains": self.model.domains}
        elif phase == "trunk":
            tree |= {"recipe": decisive(self.trunk), "shares": list(self.shares.items())}
        else:
            domain = self.domains[int(phase.removeprefix("expert"))]
            tree |= {"expert": decisive(self.model.expert), "recipe": decisive(self.experts)}
            tree |= {"domain": domain.name, "tokens": domain.tokens}
        if phase != "router" and self.reduction != "tree":
            tree["reduction"] = self.reduction
        return json_digest(tree)


def _domains(*tokens: int) -> tuple[Domain, ...]:
    """The four domains of experts 0 to 3 (§2), mixed 35/25/20/20 per cent in Phase 1 (§3)."""
    shares = {"code": 7, "math": 5, "reason": 4, "general": 4}
    budgets = tokens if len(tokens) > 1 else tokens * len(shares)
    return tuple(
        Domain(name=label, share=share, tokens=budget, builtin=label)
        for (label, share), budget in zip(shares.items(), budgets, strict=True)
    )


_NAMES = ("code", "math", "reason", "general")

S7_140M = Config(
    preset="s7-140m",
    model=Architecture(
        vocab=24_576,
        context=2_048,
        trunk=Stack(layers=6, hidden=768, heads=12, ffn=1_024),
        expert=Stack(layers=8, hidden=512, heads=8, ffn=2_048),
        domains=_NAMES,
    ),
    # §3 and §4: 512 and 256 sequences per step, 50 B and 20/15/12/12 B tokens, warmup 2,000,
    # a checkpoint every 5 B tokens.
    domains=_domains(20_000_000_000, 15_000_000_000, 12_000_000_000, 12_000_000_000),
    trunk=TrunkRecipe(
        tokens=50_000_000_000,
        batch=512,
        microbatch=16,
        peak_lr=6e-4,
        warmup=2_000,
        checkpoint=5_000_000_000,
    ),
    experts=Recipe(
        batch=256,
        microbatch=16,
        peak_lr=6e-4,
        warmup=2_000,
        checkpoint=5_000_000_000,
    ),
    # 16 sequences' logits would be 3.2 GB in float32, one layer's attention scores another 3.2 GB.
    compute=ComputeConfig(loss_chunk=256, remat=True),
    router_sequences=4_096,
    eval_sequences=512,
)

# A laptop or one small GPU: ≈ 11 M parameters.
S7_MINI = Config(
    preset="s7-mini",
    model=Architecture(
        vocab=8_192,
        context=512,
        trunk=Stack(layers=4, hidden=256, heads=4, ffn=384),
        expert=Stack(layers=4, hidden=192, heads=6, ffn=768),
        domains=_NAMES,
    ),
    domains=_domains(25_000_000),
    trunk=TrunkRecipe(
        tokens=100_000_000,
        optimizer="muon",
        batch=40,
        microbatch=5,
        peak_lr=1e-2,
        warmup=200,
        checkpoint=5_000_000,
    ),
    experts=Recipe(
        optimizer="muon",
        batch=40,
        microbatch=5,
        peak_lr=1e-2,
        warmup=200,
        checkpoint=5_000_000,
    ),
    compute=ComputeConfig(loss_chunk=128, remat=True),
    eval_sequences=128,
    calibration_sequences=256,
)

# The demo and the tests: ≈ 2 M parameters, minutes on two CPU cores.
S7_NANO = Config(
    preset="s7-nano",
    model=Architecture(
        vocab=2_048,
        context=256,
        trunk=Stack(layers=3, hidden=128, heads=2, ffn=192),
        expert=Stack(layers=3, hidden=96, heads=2, ffn=384),
        domains=_NAMES,
    ),
    domains=_domains(600_000),
    trunk=TrunkRecipe(
        tokens=2_000_000,
        optimizer="muon",
        batch=24,
        microbatch=3,
        peak_lr=2.2e-2,
        warmup=50,
        checkpoint=250_000,
    ),
    experts=Recipe(
        optimizer="muon",
        batch=24,
        microbatch=3,
        peak_lr=1e-2,
        warmup=20,
        checkpoint=250_000,
    ),
    # Recomputing is also the fastest on CPUs: what is not kept need not be written.
    compute=ComputeConfig(loss_chunk=64, remat=True),
    calibration_sequences=128,
)

PRESETS = {config.preset: config for config in (S7_140M, S7_MINI, S7_NANO)}


def override(config: Config, assignments: list[str]) -> Config:
    """The configuration with fields replaced: ``["trunk.tokens=5000000", "seed=1"]``.

    Values are JSON. Domains go by name, ``*`` for all of them: ``domains.math.tokens=1000000``.

    Raises:
        UsageError: no such field, or a value that does not fit it.
    """
    tree = config.to_json()
    for assignment in assignments:
        path, given, text = assignment.partition("=")
        if not (path and given):
            raise UsageError(f"--set {assignment!r}: expected FIELD=VALUE, such as seed=1")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            raise UsageError(
                f"--set {assignment}: {text!r} is not a JSON value; numbers are written out, such "
                'as 5000000, text as "text"'
            ) from None
        *parents, last = path.split(".")
        for node in _nodes(tree, parents, path):
            if not isinstance(node, dict) or last not in node:
                hint = nearest(last, node) if isinstance(node, dict) else ""
                raise UsageError(
                    f"--set {assignment}: no field {path!r} in the configuration{hint}"
                )
            node[last] = value
    return Config.from_json(tree)


def _nodes(tree: Any, parents: list[str], path: str) -> list[Any]:
    """The objects that a path without its last part reaches."""
    nodes = [tree]
    for parent in parents:
        if all(isinstance(node, list) for node in nodes):
            items = [item for node in nodes for item in node]
            nodes = [item for item in items if parent in ("*", item["name"])]
        else:
            nodes = [node.get(parent) if isinstance(node, dict) else None for node in nodes]
        if not nodes:
            raise UsageError(f"--set {path}: no domain {parent!r} in the configuration")
    return nodes


def preset(label: str) -> Config:
    """The preset of that name.

    Raises:
        UsageError: no such preset.
    """
    if label not in list(PRESETS):  # any value of a file, also what cannot be a key
        raise UsageError(f"unknown preset {label!r}; expected one of {', '.join(PRESETS)}")
    return PRESETS[label]
