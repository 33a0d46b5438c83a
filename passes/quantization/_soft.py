"""Put floats in place of the quantized weights of a part of a graph, and say between which integers they lie."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphopt import graphs
from graphopt.passes.quantization import _parts
from graphopt.passes.quantization._moments import from_rows, to_rows
from graphopt.passes.quantization._twins import Twin

if TYPE_CHECKING:
    from graphopt.training.rounding import Rounding

_FARTHEST = 0.99
"""How far from its stored integer a number may start, in steps."""


def soften(part: ir.Model, layers: Sequence[Twin]) -> list[Rounding]:
    """Return how the weights of layers may be rounded; they start at those of the float model, if these are near.

    Args:
        part: a part of the layers' graph as a model of its own, in which their weights and biases become floats.
        layers: those of its layers that are to be rounded anew.
    """
    taken = graphs.names(part)
    producers = {value.name: node for node in part.graph for value in node.outputs}
    return [_softened(part, twin, producers, taken) for twin in layers]


def _softened(part: ir.Model, twin: Twin, producers: Mapping[str | None, ir.Node], taken: Counter[str]) -> Rounding:
    from graphopt.training.rounding import Rounding

    layer, rows, levels = twin.layer, _parts.rows_of(twin.layer), _parts.levels_of(twin.layer)
    name = layer.node.outputs[0].name
    weight = graphs.initializer(part.graph, layer.weight.floats(), f"{name}_w", taken)
    producers[name].replace_input_with(1, weight)
    found, bias = _parts.bias_of(layer), None
    if isinstance(found, _parts.Bias) and found.present:
        values = found.values(rows.scale.size).astype(np.float32)
        bias = graphs.initializer(part.graph, values, f"{name}_b", taken)
        producers[found.node.outputs[0].name].replace_input_with(found.index, bias)
    offset = np.zeros_like(rows.integers)
    if twin.weight is not None:
        ratio = to_rows(layer.node, twin.weight.astype(np.float64)) / rows.scale[..., None]
        offset = np.clip(ratio - rows.integers, -_FARTHEST, _FARTHEST)
    low, high = (np.broadcast_to(level, rows.integers.shape) for level in (levels.low, levels.high))
    return Rounding(
        weight=weight.name or "",
        bias=None if bias is None else bias.name,
        down=rows.integers - (offset < 0),
        share=offset + (offset < 0),
        low=low,
        high=high,
        scale=rows.scale,
        is_free=layer.weight.scale.size == rows.scale.size,
        layout=functools.partial(_laid_out, layer.node, layer.weight.integers.shape),
    )


def _laid_out(node: ir.Node, shape: Sequence[int], rows: np.ndarray) -> np.ndarray:
    return from_rows(node, rows, shape)
