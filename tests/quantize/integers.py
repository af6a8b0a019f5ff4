"""Smoothed and rounded tensors as the specification reads them: quantised, but not yet sealed."""

from types import SimpleNamespace

import numpy as np

from s7jax.integer.specification import Specification
from s7jax.quantize.calibrate import calibrate
from s7jax.quantize.export import integer_tensors


class Unsealed:
    """What :class:`Specification` needs of a sealed file."""

    def __init__(self, cfg, tensors):
        self.manifest = SimpleNamespace(dimensions=cfg)
        self._tensors = {name: (array, attributes) for name, array, attributes in tensors}

    def tensor(self, name):
        return self._tensors[name][0]

    def exponent(self, name):
        return self._tensors[name][1].get("exponent")


def quantised_outputs(cfg, params, rows):
    """Calibrated on ``rows`` and then run on integers alone: logits [N, 1 + E, T, V] as floats."""
    ranges = calibrate(cfg, params, {"rows": rows})
    model = Specification(Unsealed(cfg, integer_tensors(params, ranges)))
    result = []
    for row in rows[:, :-1]:
        h = model.trunk(row)
        refined = [model.expert(e, h) for e in range(len(cfg.domains))]
        result.append([model.head(x) for x in (h, *refined)])
    return np.array(result) / 2**16
