"""Softmax, sigmoid, argmax and top-k of one output: the operators, and what they mean in numpy."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir

from graphopt import inference
from graphopt.passes.surgery import _ports

Kind = Literal["softmax", "sigmoid", "argmax", "top-k"]

NAMES: Mapping[str, tuple[str, ...]] = {
    "softmax": ("probabilities",),
    "sigmoid": ("probabilities",),
    "argmax": ("classes",),
    "top-k": ("scores", "classes"),
}
"""What the outputs are called by default."""


@dataclasses.dataclass(frozen=True)
class Scores:
    """A function of scores along one axis.

    Attributes:
        kind: the function.
        axis: counted from the front.
        k: how many of the best, for top-k.
        dims: shape of the scores.
        dtype: their type.
    """

    kind: Kind
    axis: int
    k: int
    dims: tuple[inference.Dim, ...]
    dtype: ir.DataType

    def build(self, values: Sequence[ir.Value], to: _ports.Recorder) -> list[ir.Value]:
        """Record the operators; return the outputs with types and shapes."""
        before, after = self.dims[: self.axis], self.dims[self.axis + 1 :]
        if self.kind == "softmax":
            return [_typed(to.add("Softmax", values, "softmax", {"axis": self.axis}), self.dtype, self.dims)]
        if self.kind == "sigmoid":
            return [_typed(to.add("Sigmoid", values, "sigmoid"), self.dtype, self.dims)]
        if self.kind == "argmax":
            best = to.add("ArgMax", values, "argmax", {"axis": self.axis, "keepdims": 0})
            return [_typed(best, ir.DataType.INT64, (*before, *after))]
        best, places = to.op_multi_out(
            "TopK", [*values, to.constant([self.k], "k")], {"axis": self.axis}, num_outputs=2, name=to.fresh("top")
        )
        best.name, places.name = to.fresh("best"), to.fresh("places")
        dims = (*before, self.k, *after)
        return [_typed(best, self.dtype, dims), _typed(places, ir.DataType.INT64, dims)]

    def reference(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the outputs for an array of scores."""
        (scores,) = arrays
        wide = scores.astype(np.float64)
        if self.kind == "softmax":
            powers = np.exp(wide - wide.max(self.axis, keepdims=True, initial=-np.inf))
            return [(powers / powers.sum(self.axis, keepdims=True)).astype(scores.dtype)]
        if self.kind == "sigmoid":
            return [np.exp(-np.logaddexp(0.0, -wide)).astype(scores.dtype)]
        if self.kind == "argmax":
            return [scores.argmax(self.axis)]
        best = np.argsort(-wide, axis=self.axis, kind="stable").take(np.arange(self.k), self.axis)
        return [np.take_along_axis(scores, best, self.axis), best]


def _typed(value: ir.Value, dtype: ir.DataType, dims: Sequence[inference.Dim]) -> ir.Value:
    value.type, value.shape = ir.TensorType(dtype), ir.Shape(dims)
    return value
