"""Let an operator drop or keep an axis itself, in place of the Squeeze or Unsqueeze after it

* Squeeze(ReduceX(x, axes, keepdims=1), axes) = ReduceX(x, axes, keepdims=0), and the other way round with Unsqueeze; so
  for ArgMax and ArgMin.
* Squeeze(Gather(x, [i], axis), axis) = Gather(x, i, axis); Unsqueeze(Gather(x, i, axis), axis) = Gather(x, [i], axis).
* Squeeze(Slice(x, i, i + 1, axis), axis) = Gather(x, i, axis).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt import graphs
from graphopt.passbase import Result
from graphopt.passes.structural._informed import Facts, Informed, sites, sizes

_AXES_ARE_INPUT = {"ReduceSum": 13}
_REDUCE_AXES_ARE_INPUT = 18
_BOUNDS_ARE_INPUTS = 10
_REDUCERS = frozenset(
    {
        "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
        "ReduceSum", "ReduceSumSquare",
    }
)  # fmt: skip
_ARGS = frozenset({"ArgMax", "ArgMin"})


@dataclass(frozen=True)
class AbsorbAxes(Informed):
    """Let operators drop or keep an axis themselves."""

    def apply(self, model: ir.Model, facts: Facts) -> Result:
        """Absorb in place; the report counts the Squeezes and Unsqueezes that went."""
        taken, opset, absorbed = facts.names, model.opset_imports.get("", 1), 0
        for graph, node in sites(facts, "Reshape", "Flatten", "Squeeze", "Unsqueeze"):
            value = node.inputs[0]
            before = value.producer() if value is not None else None
            if value is None or before is None or before.graph is not graph or graphs.sole_use(value) is not node:
                continue
            if graphs.has_parameters(before) or before.domain != "":
                continue
            change = _Change(graph, before, node, facts, taken, opset)
            absorbed += change.reduction() or change.gather() or change.slice()
        return Result(model, bool(absorbed), {"absorbed": absorbed})


class _Change:
    """An operator, and what reshapes its result."""

    def __init__(
        self, graph: ir.Graph, before: ir.Node, node: ir.Node, facts: Facts, taken: Counter[str], opset: int
    ) -> None:
        self._graph, self._before, self._node, self._taken, self._opset = graph, before, node, taken, opset
        self._source = sizes(facts, before.inputs[0]) if before.inputs else None
        self._inner, self._result = sizes(facts, before.outputs[0]), sizes(facts, node.outputs[0])

    def reduction(self) -> bool:
        """Change keepdims of a reduction."""
        before = self._before
        if before.op_type not in _REDUCERS | _ARGS or self._source is None:
            return False
        axes = self._reduced(len(self._source))
        if axes is None:
            return False
        keep = before.attributes.get_int("keepdims", 1) == 0
        reduced = [1 if axis in axes else size for axis, size in enumerate(self._source) if keep or axis not in axes]
        if not self._is(reduced):
            return False
        attributes = {name: found.value for name, found in before.attributes.items()} | {"keepdims": int(keep)}
        graphs.become(self._node, before.op_type, list(before.inputs), **attributes)
        return True

    def gather(self) -> bool:
        """Make the index of a Gather a scalar, or a vector of one."""
        before = self._before
        index = graphs.array(before.inputs[1]) if before.op_type == "Gather" and len(before.inputs) == 2 else None
        if index is None or index.size != 1 or index.ndim > 1 or self._source is None:
            return False
        axis = before.attributes.get_int("axis", 0) % len(self._source)
        made = [] if index.ndim else [1]
        if not self._is([*self._source[:axis], *made, *self._source[axis + 1 :]]):
            return False
        return self._gather(index.reshape(made), axis)

    def slice(self) -> bool:
        """Take the one element that a Slice cuts out with a Gather."""
        before = self._before
        if before.op_type != "Slice" or self._opset < _BOUNDS_ARE_INPUTS or self._source is None or self._inner is None:
            return False
        starts, axes = graphs.array(before.inputs[1]), self._slice_axes()
        if starts is None or axes is None or len(axes) != 1 or starts.size != 1:
            return False
        axis, start = axes[0] % len(self._source), int(starts.ravel()[0])
        size = self._source[axis]
        if self._inner[axis] != 1 or not isinstance(size, int) or not -size <= start < size:
            return False
        if not self._is([*self._source[:axis], *self._source[axis + 1 :]]):
            return False
        return self._gather(np.asarray(start, np.int64), axis)

    def _slice_axes(self) -> list[int] | None:
        inputs = self._before.inputs
        if len(inputs) > 4 and inputs[4] is not None:
            steps = graphs.array(inputs[4])
            if steps is None or np.any(steps != 1):
                return None
        if len(inputs) < 4 or inputs[3] is None:
            return [0]
        axes = graphs.array(inputs[3])
        return None if axes is None else [int(axis) for axis in axes.ravel()]

    def _gather(self, index: np.ndarray, axis: int) -> bool:
        value = graphs.initializer(self._graph, index, f"{self._node.outputs[0].name}_index", self._taken)
        graphs.become(self._node, "Gather", [self._before.inputs[0], value], axis=axis)
        return True

    def _is(self, shape: Sequence[object]) -> bool:
        """Tell whether a shape is certainly that of the result."""
        return self._result is not None and None not in shape and list(shape) == list(self._result)

    def _reduced(self, rank: int) -> set[int] | None:
        """Return the axes of a reduction."""
        before = self._before
        if before.op_type in _ARGS:
            return {before.attributes.get_int("axis", 0) % rank}
        if self._opset >= _AXES_ARE_INPUT.get(before.op_type, _REDUCE_AXES_ARE_INPUT):
            given = before.inputs[1] if len(before.inputs) > 1 else None
            axes = graphs.array(given)
            if given is not None and axes is None:
                return None
            found = [] if axes is None else [int(axis) for axis in axes.ravel()]
            if not found and before.attributes.get_int("noop_with_empty_axes", 0) != 0:
                return None
        else:
            attribute = before.attributes.get("axes")
            found = [] if attribute is None else list(attribute.as_ints())
        return {axis % rank for axis in found} or set(range(rank))
