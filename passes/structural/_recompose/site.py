"""What the patterns share: how to look at a graph around one operator, and how to put an operator in a pattern's place."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import graphs, inference
from graphopt.inference import Dim
from graphopt.passes.structural._informed import Facts, dtype, sizes

SINCE = {
    "Attention": 23, "Celu": 12, "Elu": 6, "Gelu": 20, "GroupNormalization": 21, "HardSigmoid": 6, "HardSwish": 14,
    "InstanceNormalization": 6, "LayerNormalization": 17, "LeakyRelu": 6, "LogSoftmax": 1, "Mish": 18, "PRelu": 9,
    "RMSNormalization": 23, "ReduceL1": 1, "ReduceL2": 1, "ReduceLogSum": 1, "ReduceLogSumExp": 1, "ReduceMean": 1,
    "ReduceSumSquare": 1, "Relu": 6, "Selu": 6, "Sigmoid": 6, "Softmax": 1, "Softplus": 1, "Softsign": 1, "Swish": 24,
}  # fmt: skip
"""First opset that has an operator, in the form that is written here."""
SLOWER = frozenset(
    {
        "GroupNormalization", "PRelu", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare",
        "Softplus", "Swish",
    }
)  # fmt: skip
"""What ONNX Runtime 1.31 computes more slowly on a CPU than the operators it replaces, by up to 8 times."""
_ANY_FLOAT = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE})
_NO_DOUBLE = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16})
_TYPES = {
    # ONNX Runtime has no kernel of double for these.
    **dict.fromkeys(("Elu", "Gelu", "HardSigmoid", "HardSwish", "InstanceNormalization", "LeakyRelu"), _NO_DOUBLE),
    **dict.fromkeys(("Mish", "PRelu", "Selu", "Softplus", "Softsign"), _NO_DOUBLE),
    # By their specification these work in single precision inside.
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _NO_DOUBLE),
    "Attention": _NO_DOUBLE,
    "Celu": frozenset({ir.DataType.FLOAT}),
}
_AXES_ARE_INPUT = {"ReduceSum": 13}
REDUCE_AXES_ARE_INPUT = 18
_TOLERANCE = 2e-5
"""Relative, for constants such as the square root of 2; exporters write as few as six digits."""

Nodes = frozenset[ir.Node]
Polynomial = tuple[float, ...]
"""Coefficients of 1, x, x^2, ..., without trailing zeros."""


class Site:
    """A model in which patterns are being replaced.

    Attributes:
        facts: what is proven about its values.
        opset: the version of standard ONNX.
        slower: also make the operators in `SLOWER`.
        made: how many operators of each kind were made.
        registered: initializers were added.
        skipped: `(node, reason)` of patterns that were found and left alone.
    """

    def __init__(self, model: ir.Model, facts: Facts, *, slower: bool) -> None:
        self.facts, self.slower = facts, slower
        self.opset = model.opset_imports.get("", 1)
        self.made: Counter[str] = Counter()
        self.registered = False
        self.skipped: dict[str, str] = {}

    # What is known

    def dims(self, value: ir.Value | None) -> tuple[Dim, ...] | None:
        """Return the proven sizes of a value."""
        return sizes(self.facts, value)

    def scalar(self, value: ir.Value | None) -> float | None:
        """Return the one number that a constant holds."""
        array = graphs.array(value, 1)
        return float(array.item()) if array is not None and array.size == 1 and array.dtype.kind in "fiu" else None

    def near(self, value: ir.Value, numbers: Sequence[float], wanted: Sequence[float]) -> bool:
        """Tell whether numbers are these, up to how exactly the type of a value can hold them."""
        type_ = dtype(self.facts, value)
        rtol = 2e-3 if type_ == ir.DataType.FLOAT16 else _TOLERANCE
        return len(numbers) == len(wanted) and all(
            math.isclose(a, b, rel_tol=rtol, abs_tol=0.1 * rtol) for a, b in zip(numbers, wanted, strict=True)
        )

    def axes(self, node: ir.Node) -> tuple[int, ...] | None:
        """Return the axes that a reduction or GlobalAveragePool takes, counted from the front and sorted; None if unknown."""
        rank = len(self.dims(node.inputs[0]) or ())
        if not rank:
            return None
        if node.op_type == "GlobalAveragePool":
            return tuple(range(2, rank))
        if self.opset >= _AXES_ARE_INPUT.get(node.op_type, REDUCE_AXES_ARE_INPUT):
            given = node.inputs[1] if len(node.inputs) > 1 else None
            array = graphs.array(given)
            if given is not None and array is None:
                return None
            found = [] if array is None else [int(axis) for axis in array.ravel()]
            if not found and node.attributes.get_int("noop_with_empty_axes", 0) == 1:
                return None
        else:
            attribute = node.attributes.get("axes")
            found = [] if attribute is None else list(attribute.as_ints())
        return tuple(sorted({axis % rank for axis in found} or range(rank)))

    def count(self, reduction: ir.Node) -> int | None:
        """Return how many elements a reduction puts together; None if that varies."""
        dims, axes = self.dims(reduction.inputs[0]), self.axes(reduction)
        return None if dims is None or axes is None else product([dims[axis] for axis in axes])

    # Walking up

    def maker(self, value: ir.Value | None, *op_types: str) -> ir.Node | None:
        """Return the standard operator that computes a value, if it is one of these and all its attributes are known."""
        node = value.producer() if value is not None else None
        return node if graphs.is_op(node, *op_types) and node is not None and not graphs.has_parameters(node) else None

    def keeps_dims(self, value: ir.Value | None, *op_types: str) -> ir.Node | None:
        """Return the reduction that computes a value, if it keeps the axes it reduces."""
        node = self.maker(value, *op_types)
        return node if node is not None and node.attributes.get_int("keepdims", 1) == 1 else None

    def operands(self, node: ir.Node) -> Iterator[tuple[ir.Value, ir.Value]]:
        """Yield the operands of a binary operator, in both orders."""
        if len(node.inputs) == 2 and node.inputs[0] is not None and node.inputs[1] is not None:
            yield node.inputs[0], node.inputs[1]
            yield node.inputs[1], node.inputs[0]

    def number_and_other(self, node: ir.Node) -> tuple[float, ir.Value] | None:
        """Return the constant number and the other operand of a binary operator, in whatever order."""
        for value, other in self.operands(node):
            number = self.scalar(value)
            if number is not None:
                return number, other
        return None

    def bases(self, value: ir.Value) -> list[ir.Value]:
        """Return a value, and what it is made of by adding, subtracting and multiplying numbers; nearest first."""
        found = [value]
        for _ in range(4):
            node = self.maker(found[-1], "Add", "Sub", "Mul", "Div", "Neg")
            if node is None:
                break
            if node.op_type == "Neg":
                other = node.inputs[0]
            else:
                pair = self.number_and_other(node)
                other = None if pair is None or (node.op_type == "Div" and pair[1] is node.inputs[1]) else pair[1]
            if other is None:
                break
            found.append(other)
        return found

    def polynomial(self, value: ir.Value, x: ir.Value, depth: int = 8) -> tuple[Polynomial, Nodes] | None:
        """Return a value as a polynomial in x of at most the third degree, and the nodes that compute it."""
        if value is x:
            return (0.0, 1.0), frozenset()
        number = self.scalar(value)
        if number is not None:
            return (number,), frozenset()
        node = self.maker(value, "Add", "Sub", "Mul", "Div", "Neg", "Pow", "Reciprocal") if depth else None
        if node is None:
            return None
        parts = [self.polynomial(part, x, depth - 1) if part is not None else None for part in node.inputs]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        result = _combined(node.op_type, [coefficients for coefficients, _ in known])
        return None if result is None else (result, frozenset({node}).union(*(nodes for _, nodes in known)))

    def square(self, value: ir.Value | None) -> tuple[ir.Value, ir.Node] | None:
        """Return x where a value is x^2, and the node that computes it."""
        node = self.maker(value, "Mul", "Pow")
        if node is None or len(node.inputs) != 2 or node.inputs[0] is None:
            return None
        squares = node.inputs[0] is node.inputs[1] if node.op_type == "Mul" else self.scalar(node.inputs[1]) == 2
        return (node.inputs[0], node) if squares else None

    # Changing

    def replace(
        self,
        top: ir.Node,
        inner: Collection[ir.Node],
        op_type: str,
        inputs: Sequence[ir.Value | None],
        **attributes: Any,
    ) -> bool:
        """Let one operator compute what a pattern computes, and remove the pattern; say whether that can be.

        Args:
            top: the last operator of the pattern, whose output stays.
            inner: the others, whose outputs must be used nowhere else.
            op_type: the operator, of which the first input is as large as the output, or is what it reduces.
            inputs: its inputs.
            attributes: its attributes.
        """
        x = inputs[0]
        assert x is not None
        if not self.allows(top, inner, op_type, x):
            return False
        graphs.become(top, op_type, inputs, **attributes)
        self._count_made(op_type, top)
        return True

    def multiply(
        self, top: ir.Node, inner: Collection[ir.Node], factor: ir.Value, op_type: str, x: ir.Value, **attributes: Any
    ) -> bool:
        """Compute factor * op_type(x) in place of a pattern of more operators; say whether that can be."""
        if not self.allows(top, inner, op_type, x):
            return False
        result = self.insert(top, op_type, x, self.facts.get(x), **attributes)
        graphs.become(top, "Mul", [factor, result])
        self._count_made(op_type, top)
        return True

    def insert(
        self, before: ir.Node, op_type: str, x: ir.Value, known: inference.Known | None, **attributes: Any
    ) -> ir.Value:
        """Insert an operator of one input before another, and return its output, of which `known` is known."""
        node = ir.node(op_type, [x], attributes)
        assert before.graph is not None
        before.graph.insert_before(before, node)
        result = node.outputs[0]
        result.name = graphs.fresh(f"{before.outputs[0].name}_{op_type.lower()}", self.facts.names)
        if known is not None:
            self.facts[result] = known
            result.type, result.shape = known.type, known.shape
        return result

    def constant(self, top: ir.Node, array: np.ndarray, role: str) -> ir.Value:
        """Return a new initializer of the graph of a node, named after what the node computes."""
        assert isinstance(top.graph, ir.Graph)
        self.registered = True
        return graphs.initializer(top.graph, array, f"{top.outputs[0].name}_{role}", self.facts.names)

    def is_closed(self, top: ir.Node, inner: Collection[ir.Node]) -> bool:
        """Tell whether nothing but `inner` and `top` uses what `inner` computes, all in one graph."""
        nodes = {top, *inner}
        return all(
            node.graph is top.graph
            and not any(value.is_graph_output() for value in node.outputs)
            and all(use.node in nodes for value in node.outputs for use in value.uses())
            for node in inner
        )

    def allows(self, top: ir.Node, inner: Collection[ir.Node], op_type: str, x: ir.Value) -> bool:
        """Tell whether an operator may compute what a pattern computes; see `replace`."""
        if not self.is_closed(top, inner) or dtype(self.facts, x) not in _TYPES.get(op_type, _ANY_FLOAT):
            return False
        reason = None
        if self.opset < SINCE[op_type]:
            reason = f"{op_type} needs opset {SINCE[op_type]}, and the model has {self.opset}"
        elif op_type in SLOWER and not self.slower:
            reason = f"{op_type} is slower on a CPU than what computes it here; see slower"
        if reason:
            self.skipped[graphs.label(top)] = reason
        return reason is None and self._fits(top, inner, x)

    def _count_made(self, op_type: str, top: ir.Node) -> None:
        self.made[op_type] += 1
        self.skipped.pop(graphs.label(top), None)

    def _fits(self, top: ir.Node, inner: Collection[ir.Node], x: ir.Value) -> bool:
        """Tell whether no constant number enlarges the rank of a result, as [1] + scalar does."""
        known = self.dims(x)
        for node in (top, *inner):
            for value in node.inputs:
                tensor = graphs.constant(value)
                if tensor is not None and tensor.size == 1 and len(tensor.shape) > len(known or ()):
                    return False
        return True


def product(dims: Sequence[Dim]) -> int | None:
    """Return the product of sizes; None if one of them varies."""
    sizes = [size for size in dims if isinstance(size, int)]
    return math.prod(sizes) if len(sizes) == len(dims) else None


def _combined(op_type: str, parts: list[Polynomial]) -> Polynomial | None:
    """Apply an operator to polynomials; None if the result is none, or of too high a degree."""
    first, second = parts[0], parts[-1]
    if op_type == "Neg":
        result = np.negative(first)
    elif op_type == "Add":
        result = np.polynomial.polynomial.polyadd(first, second)
    elif op_type == "Sub":
        result = np.polynomial.polynomial.polysub(first, second)
    elif op_type == "Mul":
        result = np.polynomial.polynomial.polymul(first, second)
    elif op_type == "Pow" and second in ((2.0,), (3.0,)):
        result = np.polynomial.polynomial.polypow(first, int(second[0]))
    elif op_type == "Div" and len(second) == 1 and second[0]:
        result = np.divide(first, second[0])
    else:
        return None
    coefficients = tuple(float(c) for c in np.polynomial.polynomial.polytrim(result))
    return coefficients if len(coefficients) <= 4 and all(map(math.isfinite, coefficients)) else None
