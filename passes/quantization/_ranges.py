"""Activation ranges: facts that calibrate leaves on values, and the integer grids that follow from them."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import onnx_ir as ir

from graphopt.passbase import FACT_PREFIX

KEY = FACT_PREFIX + "range"
"""Metadata key of a value's range: JSON text `[lo, hi]`, the smallest and the largest element seen."""

Range = tuple[float, float]

_SMALLEST_SCALE = 1e-12


@dataclasses.dataclass(frozen=True)
class Grid:
    """The real numbers that uint8 integers stand for: `(q - zero_point) * scale`, q in 0..255.

    Attributes:
        scale: step between two neighbours, positive.
        zero_point: the integer that stands for 0.
    """

    scale: float
    zero_point: int

    def quantize(self, array: np.ndarray) -> np.ndarray:
        """Return the nearest integers (ties to even), saturated, as uint8 of the same shape."""
        steps = np.rint(array.astype(np.float64) / self.scale) + self.zero_point
        saturated: np.ndarray = np.clip(steps, 0, 255).astype(np.uint8)
        return saturated

    def times(self, factor: float) -> Grid:
        """Return the grid on which the same integers stand for numbers `factor` times as large."""
        return Grid(float(np.float32(self.scale * factor)), self.zero_point)


def grid(lo: float, hi: float) -> Grid:
    """Return the asymmetric uint8 grid that covers `[lo, hi]` and holds zero exactly.

    Zero must be exact because padding and Relu produce it (Jacob et al. 2018, arXiv:1712.05877, section 2.1).
    """
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    scale = float(np.float32(max((hi - lo) / 255, _SMALLEST_SCALE)))
    return Grid(scale, int(np.clip(np.rint(-lo / scale), 0, 255)))


def write(value: ir.Value, lo: np.float32, hi: np.float32) -> None:
    """Leave a range on a value, in the fewest digits that give the same float32 back."""
    value.metadata_props[KEY] = f"[{lo!s}, {hi!s}]"


def read(model: ir.Model) -> dict[str, Range]:
    """Return the ranges that the main graph's values carry, by value name."""
    found = {}
    for value in _values(model.graph):
        text = value.metadata_props.get(KEY)
        if text is not None and value.name:
            lo, hi = json.loads(text)
            found[value.name] = (float(lo), float(hi))
    return found


def erase(model: ir.Model) -> None:
    """Remove the ranges."""
    for value in _values(model.graph):
        value.metadata_props.pop(KEY, None)


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *(value for node in graph for value in node.outputs)]
