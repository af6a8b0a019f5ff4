"""Random models in memory, as a sealed file would give them: any dimensions, any values."""

from types import SimpleNamespace

import numpy as np

from s7jax.architecture import Architecture, Stack, sealed_tensors


class Model:
    """What the engines ask of a seal: dimensions, tensors, exponents."""

    def __init__(self, cfg, tensors, exponents):
        self.manifest = SimpleNamespace(dimensions=cfg)
        self._tensors, self._exponents = tensors, exponents

    def tensor(self, name):
        return self._tensors[name]

    def exponent(self, name):
        return self._exponents[name]


def random_architecture(rng):
    """Micro dimensions, odd ones too, some wider than a vector or than one run of products."""

    def stack():
        heads = int(rng.integers(1, 5))
        hidden = heads * 2 * int(rng.integers(1, 10))
        wide = rng.random() < 0.05
        return Stack(
            layers=int(rng.integers(1, 4)),
            hidden=hidden,
            heads=heads,
            ffn=int(rng.integers(1_000, 2_400)) if wide else int(rng.integers(1, 100)),
        )

    return Architecture(
        vocab=32 * int(rng.integers(1, 5)),
        context=int(rng.integers(2, 200)),
        trunk=stack(),
        expert=stack(),
        domains=tuple(f"d{i}" for i in range(rng.integers(1, 6))),
        routing_window=int(rng.integers(1, 70)),
    )


def random_model(rng, cfg=None):
    """Values from tame to extreme: weights all ±127, gains at their limits, shifts far off."""
    cfg = cfg or random_architecture(rng)
    tensors, exponents = {}, {}
    wild = rng.random() < 0.4
    for spec in sealed_tensors(cfg):
        leaf = spec.name.rpartition(".")[2]
        if spec.dtype == "int8":
            most = int(rng.choice([1, 20, 127]))
            array = rng.integers(-most, most + 1, spec.shape)
            if wild and rng.random() < 0.3:
                array = np.where(rng.random(spec.shape) < 0.5, -127, 127)
            tensors[spec.name], exponents[spec.name] = array.astype(np.int8), None
            continue
        exponent = int(rng.integers(-20, 12)) if wild else int(rng.integers(-9, 2))
        if leaf == "residual":
            array, exponent = rng.integers(-16, 30 if wild else 21, spec.shape), 31
            array = array if wild else np.maximum(array, 8)
        elif leaf == "scale":
            array = rng.integers(1 << 29, (1 << 31) - 1, spec.shape)
            if wild and rng.random() < 0.2:
                array = rng.integers(0, 1 << 31, spec.shape)
        else:
            array = rng.integers(-(1 << 31) + 1, (1 << 31) - 1, spec.shape)
            exponent = exponent if wild else int(rng.integers(0, 4))
            if wild and rng.random() < 0.2:
                array = np.zeros(spec.shape)
        tensors[spec.name] = np.ascontiguousarray(array, np.int32)
        exponents[spec.name] = exponent
    return Model(cfg, tensors, exponents)
