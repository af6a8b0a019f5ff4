"""Presets and validation: what a model is, how it is trained, as frozen data.

A preset is data, never code: everything the program builds is derived from these classes.
Section numbers (§) refer to the S7-LLM-MOE-140M sizing specification.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Self

from s7jax.errors import UsageError

DOMAINS = ("code", "math", "reason", "general")
"""Domain of expert 0, 1, 2, 3 (§2)."""

MIXTURE = (7, 5, 4, 4)
"""Sequences per domain in every 20 of Phase 1: 35/25/20/20 per cent (§3)."""


@dataclass(frozen=True, kw_only=True)
class StackConfig:
    """A stack of pre-norm transformer layers."""

    layers: int
    hidden: int
    heads: int
    ffn: int  # width between fc1 and fc2

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "heads", "ffn"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.hidden % (2 * self.heads):
            raise UsageError(
                f"hidden {self.hidden} over {self.heads} heads: expected an even head width "
                "(rotary embedding turns pairs of channels)"
            )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The architecture: embedding, shared trunk, one expert per domain, router (§2, §8)."""

    vocab: int  # tokens; divisible by 32 (§8 alignment)
    context: int  # tokens a sequence holds
    trunk: StackConfig
    expert: StackConfig
    domains: tuple[str, ...] = DOMAINS
    routing_window: int = 64  # positions whose router logits are summed to choose the expert

    def __post_init__(self) -> None:
        if self.vocab % 32:
            raise UsageError(f"vocab {self.vocab} is not divisible by 32 (§8 alignment)")
        if self.context < 2:
            raise UsageError(f"context {self.context}: expected at least 2 tokens")
        if self.routing_window < 1:
            raise UsageError(f"routing_window {self.routing_window}: expected at least 1")


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """How one phase is trained. Lengths are in tokens, batches in sequences."""

    tokens: tuple[int, ...]  # training tokens; one entry for the trunk, one per expert
    batch: int  # sequences a step
    microbatch: int  # sequences of one gradient program, on one data-parallel group
    peak_lr: float
    warmup: int  # steps of linear warmup; capped at a tenth of a short run
    checkpoint: int  # tokens between checkpoints
    final_lr: float = 0.1  # cosine end, as a fraction of peak_lr
    weight_decay: float = 0.1  # on matrices only
    clip: float = 1.0  # global gradient norm
    betas: tuple[float, float] = (0.9, 0.95)
    spike: float = 1.0  # nats above the running mean of the loss at which a step is skipped
    skip_steps: tuple[int, ...] = ()  # steps to skip beside those, to replay a run that did

    def __post_init__(self) -> None:
        if self.batch < 1 or self.microbatch < 1 or self.batch % self.microbatch:
            raise UsageError(
                f"batch {self.batch} is not a whole number of microbatches of {self.microbatch}"
            )
        if min(self.tokens) < 1:
            raise UsageError(f"tokens {min(self.tokens)}: expected at least 1")

    @property
    def microbatches(self) -> int:
        """Gradient programs a step: the leaves of the reduction tree."""
        return self.batch // self.microbatch

    def steps(self, context: int, index: int = 0) -> int:
        """Optimizer steps that see at least ``tokens[index]`` tokens."""
        return -(-self.tokens[index] // (self.batch * context))


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How training computes the model: the same function, with other rounding and memory."""

    precision: str = "fp32"  # of forward and backward, "fp32" or "bf16"; masters, sums: float32
    loss_chunk: int = 0  # positions of a sequence whose logits exist at once; 0: all of them
    remat: bool = False  # the backward pass recomputes what lies between a layer's projections

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "bf16"):
            raise UsageError(f"precision {self.precision!r}: expected 'fp32' or 'bf16'")
        if self.loss_chunk < 0:
            raise UsageError(f"loss_chunk {self.loss_chunk}: expected at least 0")


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run: everything, beside the data, that decides the trained bytes."""

    preset: str
    model: ModelConfig
    trunk: RecipeConfig
    experts: RecipeConfig
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    seed: int = 0
    router_sequences: int = 256  # labelled training sequences per domain for the ridge router
    eval_sequences: int = 64  # held-out sequences per domain in every report
    calibration_sequences: int = 4_096  # held-out sequences per domain for quantisation (§5)
    mixture: tuple[int, ...] = field(default=MIXTURE)  # sequences per domain and cycle
    reduction: str = "tree"  # how gradients are summed over groups: "tree" or "psum"

    def __post_init__(self) -> None:
        n = len(self.model.domains)
        if len(self.mixture) != n or min(self.mixture) < 1:
            raise UsageError(f"mixture {self.mixture}: expected {n} counts of at least 1")
        if self.reduction not in ("tree", "psum"):
            raise UsageError(f"reduction {self.reduction!r}: expected 'tree' or 'psum'")
        if len(self.experts.tokens) != n:
            raise UsageError(f"experts.tokens has {len(self.experts.tokens)} entries, not {n}")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, in field order."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> Self:
        """Inverse of :meth:`to_json`.

        Raises:
            UsageError: a field is missing or unknown.
        """
        try:
            fields: dict[str, Any] = {k: _tuples(v) for k, v in tree.items()}
            model = fields.pop("model")
            stacks: Any = {name: StackConfig(**model.pop(name)) for name in ("trunk", "expert")}
            recipes: Any = {name: RecipeConfig(**fields.pop(name)) for name in ("trunk", "experts")}
            compute = ComputeConfig(**fields.pop("compute"))
            return cls(model=ModelConfig(**model, **stacks), compute=compute, **recipes, **fields)
        except (KeyError, TypeError, AttributeError) as e:
            raise UsageError(f"configuration does not fit this version of s7jax: {e}") from e

    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def _tuples(tree: Any) -> Any:
    """JSON arrays as tuples, objects as fresh dictionaries."""
    if isinstance(tree, dict):
        return {k: _tuples(v) for k, v in tree.items()}
    return tuple(map(_tuples, tree)) if isinstance(tree, list) else tree


S7_140M = Config(
    preset="s7-140m",
    model=ModelConfig(
        vocab=24_576,
        context=2_048,
        trunk=StackConfig(layers=6, hidden=768, heads=12, ffn=1_024),
        expert=StackConfig(layers=8, hidden=512, heads=8, ffn=2_048),
    ),
    # §3 and §4: 512 and 256 sequences a step, 50 B and 20/15/12/12 B tokens, warmup 2,000,
    # a checkpoint every 5 B tokens.
    trunk=RecipeConfig(
        tokens=(50_000_000_000,),
        batch=512,
        microbatch=16,
        peak_lr=6e-4,
        warmup=2_000,
        checkpoint=5_000_000_000,
    ),
    experts=RecipeConfig(
        tokens=(20_000_000_000, 15_000_000_000, 12_000_000_000, 12_000_000_000),
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

# A laptop or one small GPU: ≈ 9.6 M parameters.
S7_MINI = Config(
    preset="s7-mini",
    model=ModelConfig(
        vocab=8_192,
        context=512,
        trunk=StackConfig(layers=4, hidden=256, heads=4, ffn=384),
        expert=StackConfig(layers=3, hidden=192, heads=6, ffn=768),
    ),
    trunk=RecipeConfig(
        tokens=(100_000_000,),
        batch=40,
        microbatch=5,
        peak_lr=2e-3,
        warmup=200,
        checkpoint=5_000_000,
    ),
    experts=RecipeConfig(
        tokens=(25_000_000,) * 4,
        batch=40,
        microbatch=5,
        peak_lr=2e-3,
        warmup=200,
        checkpoint=5_000_000,
    ),
    compute=ComputeConfig(loss_chunk=128, remat=True),
    eval_sequences=128,
    calibration_sequences=256,
)

# The demo and the tests: ≈ 1 M parameters, minutes on two CPU cores.
S7_NANO = Config(
    preset="s7-nano",
    model=ModelConfig(
        vocab=2_048,
        context=256,
        trunk=StackConfig(layers=3, hidden=128, heads=2, ffn=192),
        expert=StackConfig(layers=2, hidden=64, heads=2, ffn=256),
    ),
    trunk=RecipeConfig(
        tokens=(2_000_000,),
        batch=40,
        microbatch=5,
        peak_lr=1e-2,
        warmup=50,
        checkpoint=250_000,
    ),
    experts=RecipeConfig(
        tokens=(600_000,) * 4,
        batch=40,
        microbatch=5,
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

    Values are JSON. A single value for a field of several entries fills them all.

    Raises:
        UsageError: no such field, or a value that does not fit it.
    """
    tree = config.to_json()
    for assignment in assignments:
        path, _, text = assignment.partition("=")
        *parents, name = path.split(".")
        node = tree
        for parent in parents:
            node = node.get(parent, {}) if isinstance(node, dict) else {}
        if not isinstance(node, dict) or name not in node or isinstance(node[name], dict):
            raise UsageError(f"--set {assignment}: no field {path!r} in the configuration")
        try:
            value = json.loads(text)
        except ValueError:
            raise UsageError(f"--set {assignment}: {text!r} is not a JSON value") from None
        if isinstance(node[name], list) and not isinstance(value, list):
            value = [value] * (len(node[name]) or 1)
        if not _same_type(node[name], value):
            raise UsageError(f"--set {assignment}: expected a value like {node[name]!r}")
        node[name] = value
    return Config.from_json(tree)


def _same_type(old: Any, new: Any) -> bool:
    if isinstance(old, list):
        like = old[0] if old else 0  # the one list that may be empty holds steps
        return isinstance(new, list) and all(_same_type(like, item) for item in new)
    if isinstance(old, float):
        return isinstance(new, int | float) and not isinstance(new, bool)
    return type(old) is type(new)


def preset(name: str) -> Config:
    """The preset of that name.

    Raises:
        UsageError: no such preset.
    """
    if name not in PRESETS:
        raise UsageError(f"unknown preset {name!r}; expected one of {', '.join(PRESETS)}")
    return PRESETS[name]
