"""What XLA makes of our programs for a target: memory, collectives, kernels.

The very programs that training runs (:mod:`s7jax.train.step`) are lowered from shapes alone, on
one data group's devices, and compiled; so are those of :mod:`s7jax.sizing.uses`. Nothing is
executed. Runs as a process of its own, since platforms and device counts are fixed when JAX
starts: ``python -m s7jax.sizing.compiled < request.json``.
"""

import importlib
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

from s7jax import extras
from s7jax.config import Config
from s7jax.devices import Device
from s7jax.errors import InputError, UsageError
from s7jax.mesh import MeshShape
from s7jax.sizing.schedule import Job

# What a sealed model does: its name → rows and tokens of a call; None: the whole context
SEALED: dict[str, tuple[int, int | None]] = {
    "prefill": (1, None),
    "decode 1": (1, 1),
    "decode 64": (64, 1),
}
USES = ("router", "evaluate", "calibrate", *SEALED)

_EXTRAS = {"tpu": "tpu", "cuda": "gpu"}
_MODULES = {"tpu": "libtpu", "cuda": "jax_cuda12_plugin"}
_COLLECTIVE = re.compile(
    r"= (?P<type>\([^)]*\)|\S+) (?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|"
    r"collective-permute)(?:-start)?\("
)
_ARRAY = re.compile(r"([a-z]+\d+)\[([\d,]*)\]")
_WIDTH = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s8": 1, "u8": 1, "pred": 1}


@dataclass(frozen=True)
class Compiled:
    """Bytes per device of one microbatch's gradient, and what crosses devices in it."""

    weights: int  # what is trained
    frozen: int
    optimizer: int  # its moments
    gradients: int
    batch: int
    temporaries: int  # activations and whatever XLA needs besides
    collectives: dict[str, int]  # kind → bytes per microbatch, a scan's body counted once
    flash: int  # calls of an attention kernel

    @property
    def peak(self) -> int:
        """Of the step: states, one sum of gradients, one more gradient, temporaries."""
        held = self.weights + self.frozen + self.optimizer + 2 * self.gradients
        return held + self.batch + self.temporaries


@dataclass(frozen=True)
class Platform:
    """What XLA is to compile for; it needs not be there."""

    name: str = "cpu"  # or tpu, cuda
    topology: str = ""  # of TPUs, such as ``v5e:2x4``
    target: str = ""  # of NVIDIA GPUs, :func:`cuda_target`


CPU = Platform()


def compile_job(job: Job, platform: Platform = CPU) -> Compiled:
    """Compile a job's gradient program, in a process of its own.

    Raises:
        UsageError: what the platform needs is not installed.
        InputError: the compiler refused; its last words are in the message.
    """
    shape = MeshShape(data=1, model=job.shape.model)
    found = _ask(job.phase.config, {"phase": job.phase.name}, shape, platform)
    return Compiled(**found)


def compile_use(config: Config, use: str, shape: MeshShape, platform: Platform = CPU) -> list[Any]:
    """Compile every program of one of :data:`USES`, in a process of its own.

    Returns:
        :class:`s7jax.sizing.uses.Executable` of each, as JSON types.

    Raises:
        UsageError: what the platform needs is not installed.
        InputError: the compiler refused; its last words are in the message.
    """
    data = 1 if use in SEALED else shape.data
    found = _ask(config, {"use": use}, MeshShape(data=data, model=shape.model), platform)
    return list(found)


def _ask(config: Config, what: dict[str, str], shape: MeshShape, platform: Platform) -> Any:
    request = {
        "config": config.to_json(),
        **what,
        "data": shape.data,
        "model": shape.model,
        "platform": platform.name,
        "topology": platform.topology,
        "target": platform.target,
    }
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    if platform.name == "tpu":
        environment |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    if platform.name == "cuda":
        flags = f"{environment.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0"
        environment |= {"JAX_PLATFORMS": "cpu,cuda", "XLA_FLAGS": flags}
        environment |= {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "s7jax.sizing.compiled"],
        input=json.dumps(request),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 3:
        extra = extras.how_to_install(_EXTRAS[platform.name])
        raise UsageError(f"compiling for {platform.name} needs {_MODULES[platform.name]}: {extra}")
    if done.returncode:
        words = done.stderr.strip().splitlines() or ["no message"]
        raise InputError(f"compiling for {platform.name} failed: {words[-1]}")
    return json.loads(done.stdout)


def cuda_target(device: Device) -> str:
    """A GPU in the text form that XLA reads (its ``GpuTargetConfigProto``)."""
    gpu = device.cuda
    assert gpu is not None
    info = {
        "threads_per_block_limit": 1_024,
        "threads_per_warp": 32,
        "threads_per_core_limit": 2_048,
        "shared_memory_per_block": 48 << 10,
        "shared_memory_per_block_optin": gpu.shared_block,
        "shared_memory_per_core": gpu.shared,
        "core_count": gpu.cores,
        "fpus_per_core": gpu.lanes,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 2**16 - 1,
        "block_dim_limit_z": 2**16 - 1,
        "memory_bandwidth": int(device.bandwidth or 0),
        "l2_cache_size": gpu.cache,
        "clock_rate_ghz": gpu.clock,
        "device_memory_size": device.memory,
        "registers_per_core_limit": 1 << 16,
        "registers_per_block_limit": 1 << 16,
    }
    lines = [f"  {name}: {value}" for name, value in info.items()]
    major, minor = gpu.capability
    lines.append(f"  cuda_compute_capability {{ major: {major} minor: {minor} }}")
    described = f'device_description_str: "{device.kinds[0]}"'
    libraries = "dnn_version_info { major: 9 minor: 8 } runtime_version { major: 12 minor: 9 }"
    body = "\n".join(lines)
    return f'gpu_device_info {{\n{body}\n}}\nplatform_name: "CUDA"\n{libraries}\n{described}\n'


def _main() -> None:
    request = json.loads(sys.stdin.read())
    try:
        found = _uses(request) if "use" in request else asdict(_gradient(request))
    except ModuleNotFoundError as e:
        print(e, file=sys.stderr)
        sys.exit(3)
    print(json.dumps(found))


def _uses(request: dict[str, Any]) -> list[dict[str, Any]]:
    from s7jax.sizing import uses  # noqa: PLC0415 in this process alone, after the platform is set

    mesh, found = _mesh(request), []
    config = Config.from_json(request["config"])
    for name, low in uses.programs(config, request["use"], mesh):
        made: Any = low.compile()
        text = made.as_text()
        one = uses.executable(request["use"], name, made, _collectives(text), _attention(text))
        found.append(one.to_json())
    return found


def _gradient(request: dict[str, Any]) -> Compiled:
    import jax  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415
    from jax.sharding import NamedSharding  # noqa: PLC0415
    from jax.sharding import PartitionSpec as P  # noqa: PLC0415

    from s7jax.mesh import DATA  # noqa: PLC0415
    from s7jax.model import parameters  # noqa: PLC0415
    from s7jax.train import step  # noqa: PLC0415
    from s7jax.train.optimizer import optimizer  # noqa: PLC0415
    from s7jax.train.phase import TRUNK, phase_of  # noqa: PLC0415

    config, mesh = Config.from_json(request["config"]), _mesh(request)
    table = parameters.table(config.model)

    phase = phase_of(config, request["phase"])
    shared = parameters.abstract({name: table[name] for name in TRUNK}, mesh)
    trunk = phase.expert is None
    params = shared if trunk else parameters.abstract(table[phase.name], mesh)
    frozen = {} if trunk else shared
    recipe = phase.recipe
    tokens = jax.ShapeDtypeStruct(
        (recipe.microbatch, config.model.context + 1),
        np.int32,
        sharding=NamedSharding(mesh, P(DATA, None)),
    )
    loss = step.loss_of(phase)
    with jax.set_mesh(mesh):
        program: Any = step.gradient_program(config.model, loss, config.compute)
        made = program.lower(params, frozen, tokens).compile()
        moments = jax.eval_shape(optimizer(recipe).init, params)
    memory, text = made.memory_analysis(), made.as_text()
    held = _local(params)
    return Compiled(
        weights=held,
        frozen=_local(frozen),
        optimizer=_local(moments),
        gradients=held,
        batch=_local(tokens),
        temporaries=int(memory.temp_size_in_bytes),
        collectives=_collectives(text),
        flash=_attention(text),
    )


def _attention(text: str) -> int:
    """Calls of a fused attention kernel."""
    return len(re.findall(r"custom-call.*(?:fmha|flash|splash)", text))


def _mesh(request: dict[str, Any]) -> Any:
    import jax  # noqa: PLC0415
    from jax.experimental import topologies  # noqa: PLC0415

    from s7jax import mesh as meshes  # noqa: PLC0415

    platform, count = request["platform"], request["data"] * request["model"]
    jax.config.update("jax_num_cpu_devices", count)
    if platform == "cpu":
        devices = jax.devices()[:count]
    else:
        importlib.import_module(_MODULES[platform])  # says early and plainly that it is missing
        options: dict[str, Any] = {"topology_name": request["topology"]}
        if platform == "cuda":
            options = {"topology": f"1x1x{count}", "target_config": request["target"]}
        devices = topologies.get_topology_desc(platform=platform, **options).devices[:count]
    shape = meshes.MeshShape(data=request["data"], model=request["model"])
    return meshes.of(shape, devices)


def _local(tree: Any) -> int:
    """Bytes of a tree of shapes on one device."""
    import jax  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415

    return sum(
        # Adam's count of its steps has no sharding.
        int(np.prod(leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape))
        * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _collectives(text: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for match in _COLLECTIVE.finditer(text):
        size = 0
        for dtype, shape in _ARRAY.findall(match["type"]):
            numbers = [int(n) for n in shape.split(",") if n]
            count = 1
            for n in numbers:
                count *= n
            size += count * _WIDTH.get(dtype, 4)
        found[match["kind"]] = found.get(match["kind"], 0) + size
    return found


if __name__ == "__main__":
    _main()
