"""Simplify chains of element-wise operators

With constants c and d, and an inner value that nothing else uses:

* (x + c) + d = x + (c + d), with Sub alike; (x * c) * d = x * (c * d), with Div alike (numbers with a fraction only).
* Relu(Relu(x)), Abs(Abs(x)), Ceil, Floor, Round and Sign of themselves; Neg(Neg(x)), Not(Not(x)).
* Relu and Clip in a row, Min and Max by one number in a row, are one Clip.
* Cast(Cast(x)) = Cast(x) if the first loses nothing. CastLike to a known type is Cast.
* Where with a constant condition of one value is one of its branches.
* Concat(Concat(x, y), z) = Concat(x, y, z); Concat of all parts of a Split, in order, is what was split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt import graphs
from graphopt.passbase import Result
from graphopt.passes.structural._informed import Facts, Informed, dtype, sites, sizes

_BOUNDS_ARE_INPUTS = 11
_DOUBLES_ARE_CLIPPED = 12
"""Opset since which ONNX Runtime has a Clip of doubles."""
_MIN_MAX_BROADCAST = 8
_BINARY = 7
_IDEMPOTENT = ("Abs", "Ceil", "Floor", "Relu", "Round", "Sign")
_INVOLUTIONS = ("Neg", "Not")
_FRACTIONS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16})
_LONG = frozenset({ir.DataType.INT64, ir.DataType.UINT64})
_BOUNDED = ("Clip", "Max", "Min", "Relu")
_SUM, _PRODUCT = ("Add", "Sub"), ("Mul", "Div")


@dataclass(frozen=True)
class FoldArithmetic(Informed):
    """Simplify chains of element-wise operators."""

    def apply(self, model: ir.Model, facts: Facts) -> Result:
        """Simplify in place; the report counts the operators that went, by kind."""
        rules = _Rules(facts, facts.names, model.opset_imports.get("", 1))
        count: Counter[str] = Counter()
        for graph, node in sites(facts, *rules.table):
            count[node.op_type] += rules.table[node.op_type](graph, node)
        return Result(model, bool(+count), dict(+count))


class _Rules:
    """One rule per operator; each says whether it changed something."""

    def __init__(self, facts: Facts, taken: Counter[str], opset: int) -> None:
        self._facts, self._taken, self._opset = facts, taken, opset
        self.table: dict[str, Callable[[ir.Graph, ir.Node], bool]] = {
            **dict.fromkeys(_BOUNDED, self._bounds),
            **dict.fromkeys(_IDEMPOTENT, self._idempotent),  # Relu is both
            **dict.fromkeys(_INVOLUTIONS, self._involution),
            **dict.fromkeys((*_SUM, *_PRODUCT), self._chain),
            "Cast": self._cast,
            "CastLike": self._cast_like,
            "Where": self._where,
            "Concat": self._concat,
        }

    def _before(self, node: ir.Node, index: int, *, alone: bool = True) -> ir.Node | None:
        """Return the standard node that computes an input, in the same graph and, if `alone`, for this node only."""
        value = node.inputs[index] if index < len(node.inputs) else None
        source = value.producer() if value is not None else None
        if source is None or source.graph is not node.graph or source.domain != "" or graphs.has_parameters(source):
            return None
        return source if not alone or graphs.sole_use(value) is node else None

    def _idempotent(self, graph: ir.Graph, node: ir.Node) -> bool:
        before = self._before(node, 0, alone=False)
        if before is not None and before.op_type == node.op_type:
            return self._pass_on(node, before.outputs[0])
        return node.op_type == "Relu" and self._bounds(graph, node)

    def _involution(self, graph: ir.Graph, node: ir.Node) -> bool:
        before = self._before(node, 0, alone=False)
        if before is None or before.op_type != node.op_type or before.inputs[0] is None:
            return False
        return self._pass_on(node, before.inputs[0])

    def _pass_on(self, node: ir.Node, value: ir.Value) -> bool:
        """Let the users of a node use `value`, which is equal."""
        if graphs.redirect(node.outputs[0], value, self._taken):
            return False
        graphs.discard(node.outputs[0])
        return True

    def _chain(self, graph: ir.Graph, node: ir.Node) -> bool:
        if self._opset < _BINARY or len(node.inputs) != 2 or dtype(self._facts, node.outputs[0]) not in _FRACTIONS:
            return False
        kinds = _SUM if node.op_type in _SUM else _PRODUCT
        for side in (0, 1):
            before = self._before(node, side)
            outer = _operand(node, 1 - side)
            if before is None or before.op_type not in kinds or outer is None:
                continue
            for inner_side in (1, 0):
                inner, value = _operand(before, inner_side), before.inputs[1 - inner_side]
                if inner is not None and value is not None and graphs.constant(value) is None:
                    return self._join(graph, node, before, value, (side, inner_side), (inner, outer))
        return False

    def _join(
        self, graph: ir.Graph, node: ir.Node, before: ir.Node, value: ir.Value, sides: tuple[int, int],
        constants: tuple[np.ndarray, np.ndarray],
    ) -> bool:  # fmt: skip
        """Write node(before(value, inner), outer) as one operator with one constant.

        Each is sign * x + c, or c * x^sign, where the sign is -1 for the right operand of Sub or Div.
        """
        side, inner_side = sides
        inner, outer = (constant.astype(np.float64) for constant in constants)
        additive = node.op_type in _SUM
        inverse = ("Sub", "Div")
        inner_sign = -1 if before.op_type in inverse and inner_side == 0 else 1
        outer_sign = -1 if node.op_type in inverse and side == 1 else 1
        inner_is_taken = before.op_type in inverse and inner_side == 1
        outer_is_taken = node.op_type in inverse and side == 0
        with np.errstate(all="ignore"):
            if additive:
                joined = outer_sign * (-inner if inner_is_taken else inner) + (-outer if outer_is_taken else outer)
            else:
                first = 1 / inner if inner_is_taken else inner
                joined = (first if outer_sign == 1 else 1 / first) * (1 / outer if outer_is_taken else outer)
            result = joined.astype(constants[0].dtype)
        if result.size > max(inner.size, outer.size) or not np.isfinite(result).all():
            return False
        limits = np.finfo(result.dtype)
        if additive and max(np.abs(inner).max(initial=0), np.abs(outer).max(initial=0)) * limits.eps >= 1:
            return False  # x + c - c rounds x to whole numbers, which may be what it is for
        if not additive and np.any((np.abs(result) < limits.tiny) & (inner != 0) & (outer != 0)):
            return False  # it underflowed, or lost digits
        sign = inner_sign * outer_sign
        name = f"{node.outputs[0].name}_constant"
        constant = graphs.initializer(graph, result, name, self._taken)
        if sign == 1:
            graphs.become(node, "Add" if additive else "Mul", [value, constant])
        else:
            graphs.become(node, "Sub" if additive else "Div", [constant, value])
        return True

    def _bounds(self, graph: ir.Graph, node: ir.Node) -> bool:
        """Join two operators that limit a value from below or above by one number."""
        type_ = dtype(self._facts, node.outputs[0])
        first = _DOUBLES_ARE_CLIPPED if type_ == ir.DataType.DOUBLE else _BOUNDS_ARE_INPUTS
        if self._opset < first or type_ not in _FRACTIONS:
            return False
        outer = _limits(node)
        before = self._before(node, outer[0]) if outer else None
        inner = _limits(before) if before is not None else None
        if outer is None or before is None or inner is None:
            return False
        low = min(max(inner[1], outer[1]), outer[2])
        high = max(min(inner[2], outer[2]), outer[1])
        value = before.inputs[inner[0]]
        if low > high or value is None:
            return False
        if sizes(self._facts, value) is None or sizes(self._facts, value) != sizes(self._facts, node.outputs[0]):
            return False
        name, kind = node.outputs[0].name, type_.numpy()
        limits = [
            None
            if np.isinf(limit)
            else graphs.initializer(graph, np.asarray(limit, kind), f"{name}_{end}", self._taken)
            for limit, end in ((low, "min"), (high, "max"))
        ]
        while limits and limits[-1] is None:
            limits.pop()
        graphs.become(node, "Clip", [value, *limits])
        return True

    def _cast(self, graph: ir.Graph, node: ir.Node) -> bool:
        before = self._before(node, 0, alone=False)
        if before is None or before.op_type != "Cast" or before.inputs[0] is None:
            return False
        source, middle = dtype(self._facts, before.inputs[0]), dtype(self._facts, before.outputs[0])
        if source is None or middle is None or not _keeps_all(source, middle):
            return False
        node.replace_input_with(0, before.inputs[0])
        graphs.discard(before.outputs[0])
        return True

    def _cast_like(self, graph: ir.Graph, node: ir.Node) -> bool:
        to = dtype(self._facts, node.inputs[1])
        if to is None or node.attributes or node.inputs[0] is None:
            return False
        graphs.become(node, "Cast", [node.inputs[0]], to=int(to))
        return True

    def _where(self, graph: ir.Graph, node: ir.Node) -> bool:
        condition = graphs.array(node.inputs[0])
        one = len(node.inputs) == 3 and node.inputs[1] is node.inputs[2]
        if not one and (condition is None or condition.size == 0 or condition.all() != condition.any()):
            return False
        chosen = node.inputs[1] if one or (condition is not None and condition.all()) else node.inputs[2]
        shape = sizes(self._facts, chosen)
        if chosen is None or shape is None or None in shape or shape != sizes(self._facts, node.outputs[0]):
            return False
        if graphs.constant(chosen) is not None:
            return False
        return self._pass_on(node, chosen)

    def _concat(self, graph: ir.Graph, node: ir.Node) -> bool:
        rank = len(sizes(self._facts, node.outputs[0]) or ())
        axis = graphs.attribute(node, "axis")
        if rank == 0 or axis is None or not node.inputs:
            return False
        return self._whole(node, axis.as_int() % rank, rank) or self._nested(node, axis.as_int() % rank, rank)

    def _whole(self, node: ir.Node, axis: int, rank: int) -> bool:
        """Pass on what was split, where all parts are put together again."""
        split = self._before(node, 0, alone=False)
        if split is None or split.op_type != "Split" or split.attributes.get_int("axis", 0) % rank != axis:
            return False
        if list(node.inputs) != list(split.outputs) or split.inputs[0] is None:
            return False
        return self._pass_on(node, split.inputs[0])

    def _nested(self, node: ir.Node, axis: int, rank: int) -> bool:
        inputs: list[ir.Value | None] = []
        for index, value in enumerate(node.inputs):
            before = self._before(node, index)
            inner = graphs.attribute(before, "axis") if before is not None and before.op_type == "Concat" else None
            if before is not None and inner is not None and inner.as_int() % rank == axis:
                inputs.extend(before.inputs)
            else:
                inputs.append(value)
        if len(inputs) == len(node.inputs):
            return False
        graphs.become(node, "Concat", inputs, axis=axis)
        return True


def _operand(node: ir.Node, index: int) -> np.ndarray | None:
    return graphs.array(node.inputs[index]) if len(node.inputs) == 2 else None


def _keeps_all(source: ir.DataType, middle: ir.DataType) -> bool:
    """Tell whether a type holds every value of another, so that a cast through it is none."""
    if ir.DataType.STRING in (source, middle):
        return False
    if source in _LONG and middle.is_floating_point():
        return False  # NumPy calls it safe, but a double has 53 bits
    try:
        return bool(np.can_cast(source.numpy(), middle.numpy(), "safe"))
    except TypeError:
        return False


def _limits(node: ir.Node) -> tuple[int, float, float] | None:
    """Return which input an operator limits, and between what; None if that is not one known number each."""
    if node.op_type == "Relu":
        return 0, 0.0, np.inf
    if node.op_type == "Clip":
        given = [node.inputs[i] if i < len(node.inputs) else None for i in (1, 2)]
        arrays = [graphs.array(value) for value in given]
        if any(
            value is not None and (array is None or array.size != 1) for value, array in zip(given, arrays, strict=True)
        ):
            return None
        low, high = (float(a.item()) if a is not None else d for a, d in zip(arrays, (-np.inf, np.inf), strict=True))
        return 0, low, high
    if node.op_type in ("Max", "Min") and len(node.inputs) == 2:
        for side in (1, 0):
            array = graphs.array(node.inputs[side])
            if array is not None and array.size == 1:
                limit = float(array.item())
                return (1 - side, limit, np.inf) if node.op_type == "Max" else (1 - side, -np.inf, limit)
    return None
