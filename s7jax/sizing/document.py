"""docs/sizing.md: the specification's sizing, computed and compiled, by one command."""

import dataclasses
from importlib.metadata import version
from typing import Any

from s7jax.config import Config
from s7jax.devices import DEVICES
from s7jax.mesh import SINGLE, MeshShape, parse
from s7jax.sizing import show
from s7jax.sizing.compiled import SEALED, USES, compile_use
from s7jax.sizing.plan import plan, platform_of

# (phase, mesh, target): the plans whose programs are compiled.
COMPILED = (
    ("trunk", "4x2", "a100-40gb"),
    ("trunk", "8x1", "a100-40gb"),
    ("experts", "4x2x2", "a100-40gb"),
    ("trunk", "8x1", "h100"),
    ("trunk", "4x2", "v5e"),
    ("trunk", "8x1", "v5e"),
)

_HEAD = """# Sizing S7-LLM-MOE-140M

Written by `s7jax plan --document docs/sizing.md`; change the planner, not this page.

The specification's figures disagree with each other and with arithmetic. Here every one of them
stands beside what the model's own shapes, the sealed layout and the compiler say, with the ratio
and the reason. Hours are by roofline at a utilisation of {mfu:.0%} (MFU, attention over the whole
square). Steps of this model on one H100 reached {measured:.1%} (`benchmarks/README.md`): until they
are faster, hours and cost are {times:.1f} times what stands here.

"""

MEASURED_MFU = 0.205  # of the step on one H100, as benchmarks/README.md has it

# The rest, on every target at once: mesh by target's kind of training above.
TARGETS = (("a100-40gb", "4x2"), ("h100", "8x1"), ("v5e", "4x2"), ("v6e", "8x1"))

_USES = """
## Everything else as compiled

Router, evaluation and calibration in float32 on the whole mesh, as they run; the sealed model on
one device, a context of {context:,} positions in its cache: a prefill of all of them, and one
token of 1 and of 64 sequences. Per device and program; kernels are what one call launches, the
loop over layers counted once. *Floats* are the floating-point types of any value in the optimised
program: a sealed model must have none.

"""

_COMPILED = """## The step as compiled

The very gradient programs that `experiments/` run, compiled by XLA for devices that were not
there (JAX {jax}). Per device and microbatch of 16 sequences of 2,048 tokens, bfloat16,
rematerialised, logits in chunks of 256. Weights, gradients and moments are float32; the peak
holds two sums of gradients. Collectives are those of one microbatch over the
model axis, those inside the scan over layers counted once; the data axis is summed between
programs.

"""


_MEASURED = """## The whole chain on two cores, measured

`make whole`: every phase and tool at the true size, vocabulary {vocab:,} and context {context:,},
with one step of training and one sequence per domain to route, evaluate and calibrate with. Wall
time is that of a machine with other work; peaks are of resident memory. *Planned* is what the
planner says of that very configuration on this processor: all virtual devices in one process.

"""


def document(config: Config, mfu: float, measured: str = "") -> str:
    """The page as Markdown.

    Args:
        config: a preset.
        mfu: assumed utilisation.
        measured: the table that ``make whole`` wrote, if it ran.

    Raises:
        UsageError: a compiler is not installed.
    """
    bf16 = dataclasses.replace(
        config, compute=dataclasses.replace(config.compute, precision="bf16")
    )
    rows = []
    for phase, mesh, target in COMPILED:
        found = plan(bf16, parse(mesh), phase, DEVICES[target], mfu=mfu, compiled=True)
        for memory in found["memory"]:
            fits = "yes" if memory["fits"] else "no"
            moved = sum(memory["collectives"].values()) / 2**20
            sizes = [
                f"{memory[kind] / 2**30:.2f}"
                for kind in ("weights", "frozen", "optimizer", "temporaries", "peak")
            ]
            cells = [target, mesh, memory["job"], *sizes, fits, f"{moved:.0f}", memory["flash"]]
            rows.append("| " + " | ".join(map(str, cells)) + " |")
    table = (
        "| target | mesh | program | weights, GiB | frozen | optimizer | temporaries | peak "
        "| fits | collectives, MiB | attention kernels |\n" + "|---" * 11 + "|\n"
    )
    uses = _USES.format(context=config.model.context) + _uses(bf16)
    whole = plan(config, parse("4x2"), "all", DEVICES["a100-40gb"], mfu=mfu)
    compiled = _COMPILED.format(jax=version("jax")) + table + "\n".join(rows)
    head = _HEAD.format(mfu=mfu, measured=MEASURED_MFU, times=mfu / MEASURED_MFU)
    shape = {"vocab": config.model.vocab, "context": config.model.context}
    chain = _MEASURED.format(**shape) + measured + "\n" if measured else ""
    tables = show.markdown(whole).split("\n", 1)[1]
    return head + chain + compiled + "\n" + uses + tables


def _uses(config: Config) -> str:
    columns = "target mesh use program weights_and_inputs,_GiB results temporaries peak fits"
    columns += " collectives,_MiB kernels attention_kernels floats"
    head = [column.replace("_", " ") for column in columns.split()]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for target, mesh in TARGETS:
        for use in USES:
            shape = SINGLE if use in SEALED else parse(mesh)
            for found in compile_use(config, use, shape, platform_of(DEVICES[target])):
                lines.append("| " + " | ".join(_use(found, target, shape)) + " |")
    return "\n".join(lines) + "\n\n"


def _use(found: dict[str, Any], target: str, shape: MeshShape) -> list[str]:
    memory = DEVICES[target].memory
    return [
        *(target, str(shape), found["use"], found["program"]),
        *(f"{found[k] / 2**30:.2f}" for k in ("arguments", "outputs", "temporaries", "peak")),
        "yes" if memory is not None and found["peak"] <= memory else "no",
        f"{sum(found['collectives'].values()) / 2**20:.1f}",
        f"{found['kernels']}",
        f"{found['attention']}",
        ", ".join(found["floats"]) or "none",
    ]
