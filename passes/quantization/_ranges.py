"""Activation ranges: facts that calibrate leaves on values."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import onnx_ir as ir

from graphopt.passbase import FACT_PREFIX

KEY = FACT_PREFIX + "range"
"""Metadata key of a value's range: JSON text `[lo, hi]`, the smallest and the largest element seen."""

Range = tuple[float, float]


def write(value: ir.Value, lo: np.float32, hi: np.float32) -> None:
    """Leave a range on a value, in the fewest digits that give the same float32 back."""
    value.metadata_props[KEY] = f"[{lo!s}, {hi!s}]"


def read(model: ir.Model, observer: str = "min-max") -> dict[str, Range]:
    """Return the ranges that the main graph's values carry, by value name."""
    del observer
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
