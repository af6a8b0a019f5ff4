"""What one accelerator can do, with the source of every figure; one table for the whole project.

Rates are dense (no structured sparsity), per chip, as the makers state them. Bandwidths are bytes
a second, one direction; makers state NVLink and ICI both ways together, and half of that stands
here. A figure that no source gives is None, and nothing is computed from it. Of this machine: how
many processors there are.
"""

import os
from dataclasses import dataclass

TERA, GIGA = 10**12, 10**9


@dataclass(frozen=True)
class Cuda:
    """What XLA needs to know of an NVIDIA GPU to compile for it without one."""

    capability: tuple[int, int]
    cores: int  # streaming multiprocessors
    lanes: int  # float32 units of each
    shared: int  # bytes of shared memory of each, and the most that one block may ask for
    shared_block: int
    cache: int  # bytes of L2
    clock: float  # GHz

    source = "NVIDIA CUDA C++ Programming Guide, compute capabilities; tuning guides of each"


AMPERE = Cuda((8, 0), 108, 64, 164 << 10, 163 << 10, 40 << 20, 1.41)
HOPPER = Cuda((9, 0), 132, 128, 228 << 10, 227 << 10, 50 << 20, 1.98)
BLACKWELL = Cuda((10, 0), 148, 128, 228 << 10, 227 << 10, 126 << 20, 1.97)


@dataclass(frozen=True, kw_only=True)
class Device:
    """One kind of accelerator."""

    name: str
    kinds: tuple[str, ...]  # how JAX calls it (jax.Device.device_kind)
    peak_bf16: float | None  # FLOP/s of matrix units, float32 accumulation
    peak_int8: float | None  # operations/s
    memory: int | None  # bytes
    bandwidth: float | None  # of the memory
    link: float | None  # to neighbours in the node or slice: NVLink, ICI
    network: float | None  # between nodes, each device's share where the cluster is §3's
    price: float | None  # dollars per hour; --price replaces it
    source: str
    cuda: Cuda | None = None

    def utilisation(self, tokens_per_second: float, flops: int, devices: int) -> float | None:
        """Share of the peak that ``flops`` per token amount to (MFU); None without a peak."""
        if self.peak_bf16 is None:
            return None
        return tokens_per_second * flops / (self.peak_bf16 * devices)


_A100 = "NVIDIA A100 Tensor Core GPU datasheet (June 2021)"
_H100 = "NVIDIA H100 Tensor Core GPU datasheet; figures without sparsity"
_INFINIBAND = 100 * GIGA / 8  # §3 of the sizing specification: 100 Gb/s across nodes

DEVICES = {
    device.name: device
    for device in (
        Device(
            name="a100-40gb",
            kinds=("NVIDIA A100-SXM4-40GB",),
            peak_bf16=312 * TERA,
            peak_int8=624 * TERA,
            memory=40 * GIGA,
            bandwidth=1_555 * GIGA,
            link=300 * GIGA,
            network=_INFINIBAND,
            price=2.50,
            source=f"{_A100}; price: §6 of the sizing specification",
            cuda=AMPERE,
        ),
        Device(
            name="a100-80gb",
            kinds=("NVIDIA A100-SXM4-80GB",),
            peak_bf16=312 * TERA,
            peak_int8=624 * TERA,
            memory=80 * GIGA,
            bandwidth=2_039 * GIGA,
            link=300 * GIGA,
            network=_INFINIBAND,
            price=None,
            source=_A100,
            cuda=AMPERE,
        ),
        Device(
            name="h100",
            kinds=("NVIDIA H100 80GB HBM3",),
            peak_bf16=989 * TERA,
            peak_int8=1_979 * TERA,
            memory=80 * GIGA,
            bandwidth=3_350 * GIGA,
            link=450 * GIGA,
            network=_INFINIBAND,
            price=None,
            source=_H100,
            cuda=HOPPER,
        ),
        Device(
            name="h200",
            kinds=("NVIDIA H200",),
            peak_bf16=989 * TERA,
            peak_int8=1_979 * TERA,
            memory=141 * GIGA,
            bandwidth=4_800 * GIGA,
            link=450 * GIGA,
            network=_INFINIBAND,
            price=None,
            source="NVIDIA H200 Tensor Core GPU datasheet; figures without sparsity",
            cuda=HOPPER,
        ),
        Device(
            name="b200",
            kinds=("NVIDIA B200",),
            peak_bf16=2_250 * TERA,
            peak_int8=4_500 * TERA,
            memory=180 * GIGA,
            bandwidth=8_000 * GIGA,
            link=900 * GIGA,
            network=_INFINIBAND,
            price=None,
            source="NVIDIA DGX B200 datasheet, an eighth of the system; without sparsity",
            cuda=BLACKWELL,
        ),
        Device(
            name="v5e",
            kinds=("TPU v5 lite", "TPU v5e"),
            peak_bf16=197 * TERA,
            peak_int8=393 * TERA,
            memory=16 * GIGA,
            bandwidth=819 * GIGA,
            link=200 * GIGA,
            network=None,
            price=None,
            source="Google Cloud documentation, TPU v5e (docs.cloud.google.com/tpu/docs/v5e)",
        ),
        Device(
            name="v5p",
            kinds=("TPU v5", "TPU v5p"),
            peak_bf16=459 * TERA,
            peak_int8=None,
            memory=95 * GIGA,
            bandwidth=2_765 * GIGA,
            link=600 * GIGA,
            network=50 * GIGA / 8,
            price=None,
            source="Google Cloud documentation, TPU v5p (docs.cloud.google.com/tpu/docs/v5p)",
        ),
        Device(
            name="v6e",
            kinds=("TPU v6 lite", "TPU v6e"),
            peak_bf16=918 * TERA,
            peak_int8=1_836 * TERA,
            memory=32 * GIGA,
            bandwidth=1_638 * GIGA,
            link=400 * GIGA,
            network=None,
            price=None,
            source="Google Cloud documentation, TPU v6e (docs.cloud.google.com/tpu/docs/v6e)",
        ),
        Device(
            name="cpu",
            kinds=("cpu",),
            peak_bf16=None,
            peak_int8=None,
            memory=None,
            bandwidth=None,
            link=None,
            network=None,
            price=None,
            source="whatever machine this is: nothing is assumed of it",
        ),
    )
}


def processors() -> int:
    """Processors this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def of_kind(device_kind: str) -> Device | None:
    """The device that JAX calls so, or None if the table does not know it."""
    return next((d for d in DEVICES.values() if device_kind in d.kinds), None)
