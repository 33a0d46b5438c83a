"""What the fusions share: a graph with its proven shapes, and how to look at it, add to it and take from it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import graphs, inference

MICROSOFT = "com.microsoft"

Dims = tuple[int | str | None, ...]


class Site:
    """A model while operators in it are being joined.

    Attributes:
        model: the model.
        on_cpu: it will run on a processor.
        fused: how many operators of each kind were made, by name.
        skipped: `(node, reason)` of what was looked at and left alone.
    """

    def __init__(self, model: ir.Model, kernels: frozenset[str], *, on_cpu: bool) -> None:
        self.model = model
        self.on_cpu = on_cpu
        self.fused: Counter[str] = Counter()
        self.skipped: dict[str, str] = {}
        self._kernels = kernels
        self._known = inference.infer(model)
        self.taken = graphs.names(model)
        self._functions = {function.graph for function in model.functions.values()}
        self._made: dict[object, ir.Value] = {}

    def graphs(self) -> list[ir.Graph]:
        """Return the main graph and its control-flow subgraphs; nothing is known of shapes in functions."""
        return [self.model.graph, *(g for g in self.model.graph.subgraphs() if g not in self._functions)]

    def has(self, *operators: str) -> bool:
        """Tell whether the target has kernels for these contrib operators."""
        return all(f"{MICROSOFT}::{name}" in self._kernels for name in operators)

    def opset(self) -> int:
        """Return the version of standard ONNX."""
        return self.model.opset_imports.get("", 0)

    def skip(self, node: ir.Node, reason: str) -> None:
        """Record why a node is left alone."""
        self.skipped[graphs.label(node)] = reason

    # What is known

    def dims(self, value: ir.Value | None) -> Dims | None:
        """Return the proven sizes of a value; the same text means the same number in every run."""
        known = self._known.get(value) if value is not None else None
        return known.dims() if known is not None else None

    def elements(self, value: ir.Value) -> Dims | None:
        """Return the proven elements of a short vector of integers, or of a scalar."""
        constant = graphs.array(value, 16)
        if constant is not None:
            return tuple(constant.ravel().tolist()) if constant.dtype.kind in "iu" else None
        known = self._known.get(value)
        return None if known is None else known.elements

    def dtype(self, value: ir.Value | None) -> ir.DataType | None:
        """Return the proven element type of a tensor."""
        known = self._known.get(value) if value is not None else None
        type_ = known.type if known else None
        return type_.dtype if isinstance(type_, ir.TensorType) else None

    def is_float(self, *values: ir.Value | None) -> bool:
        """Tell whether all are proven to be float32, or all float16: what the fused kernels compute in."""
        types = {self.dtype(value) for value in values}
        return len(types) == 1 and types <= {ir.DataType.FLOAT, ir.DataType.FLOAT16}

    def number(self, value: ir.Value | None, depth: int = 12) -> float | None:
        """Return the one element of a value that is the same in every run, computed here where need be.

        Exporters compute the scale of attention from the shape of a tensor whose other axes vary.
        """
        if value is None or depth == 0:
            return None
        constant = graphs.array(value, 1)
        if constant is not None:
            return float(constant.ravel()[0]) if constant.size == 1 and constant.dtype.kind in "fiu" else None
        elements = self.elements(value)
        if elements is not None:
            return float(elements[0]) if len(elements) == 1 and isinstance(elements[0], int) else None
        node, dtype = value.producer(), self.dtype(value)
        if not graphs.is_op(node, *_SCALAR) or dtype is None or not dtype.is_floating_point():
            return None  # integers round, and are followed by inference
        assert node is not None
        arguments = [self.number(x, depth - 1) for x in node.inputs[: _SCALAR[node.op_type][0]]]
        if any(x is None for x in arguments):
            return None
        try:
            return float(_SCALAR[node.op_type][1](*arguments))
        except (ValueError, ZeroDivisionError, OverflowError):
            return None

    # Walking

    def maker(self, value: ir.Value | None, *op_types: str, alone: bool = True) -> ir.Node | None:
        """Return the standard operator that computes a value, if it is one of these.

        Args:
            value: the value.
            op_types: operators wanted.
            alone: want nothing else to use the value.
        """
        node = value.producer() if value is not None else None
        if not graphs.is_op(node, *op_types) or node is None or graphs.has_parameters(node):
            return None
        assert value is not None
        if alone and self.only_user(value) is None:
            return None
        return node

    def only_user(self, value: ir.Value) -> ir.Node | None:
        """Return the one node that uses a value, once, in its own graph; None if anything else does."""
        uses = value.uses()
        if value.is_graph_output() or len(uses) != 1:
            return None
        node = next(iter(uses)).node
        producer = value.producer()
        return node if producer is not None and node.graph is producer.graph else None

    def either(self, node: ir.Node, *op_types: str, alone: bool = True) -> tuple[ir.Node, ir.Value] | None:
        """Return the maker of one input of a binary operator, if it is one of these, and the other input."""
        if len(node.inputs) != 2:
            return None
        for index in (0, 1):
            made, other = self.maker(node.inputs[index], *op_types, alone=alone), node.inputs[1 - index]
            if made is not None and other is not None:
                return made, other
        return None

    def is_quantized(self, node: ir.Node) -> bool:
        """Tell whether a node takes dequantized values, so that ONNX Runtime makes an integer operator of it."""
        makers = (value.producer() for value in node.inputs if value is not None)
        return any(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)

    # Changing

    def add(
        self,
        anchor: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        like: ir.Value | None = None,
        dims: Dims | None = None,
        *,
        domain: str = "",
        outputs: int = 1,
        dtype: ir.DataType | None = None,
        **attributes: Any,
    ) -> ir.Value:
        """Insert a node before another and return its first output.

        Args:
            anchor: the node before which it goes.
            op_type, domain, inputs, outputs, attributes: the node.
            like: a value of the type of the first output.
            dims: proven sizes of the first output; those of `like` by default.
            dtype: type of the first output, where nothing is like it.
        """
        while inputs and inputs[-1] is None:
            inputs = inputs[:-1]
        node = ir.node(op_type, inputs, attributes, domain=domain, num_outputs=outputs)
        graph = anchor.graph
        assert isinstance(graph, ir.Graph)
        graph.insert_before(anchor, node)
        if domain:
            self.model.opset_imports.setdefault(domain, 1)
        stem = f"{like.name if like is not None else op_type}_{op_type.lower()}"
        node.name = graphs.fresh(stem, self.taken)
        for value in node.outputs:
            value.name = graphs.fresh(stem, self.taken)
        result = node.outputs[0]
        known = self._known.get(like) if like is not None else None
        sizes = dims if dims is not None else self.dims(like)
        type_ = ir.TensorType(dtype) if dtype is not None else known.type if known else None
        shape = None if sizes is None else ir.Shape([d if isinstance(d, int) else None for d in sizes])
        self._known[result] = inference.Known(type_, shape, sizes)
        result.type = type_
        return result

    def describe(self, value: ir.Value, like: ir.Value) -> None:
        """Note that a value is of the type and shape of another."""
        self._known[value] = self._known[like]
        value.type = like.type

    def constant(self, anchor: ir.Node, array: np.ndarray, name: str) -> ir.Value:
        """Return an initializer of the anchor's graph that holds an array; small equal ones are shared."""
        graph = anchor.graph
        assert isinstance(graph, ir.Graph)
        key = (graph, array.dtype.str, array.shape, array.tobytes()) if array.size <= 16 else object()
        if key in self._made and self._made[key].is_initializer():
            return self._made[key]
        value = ir.val(graphs.fresh(name, self.taken), const_value=ir.tensor(array))
        assert value.const_value is not None
        value.const_value.name = value.name
        graph.register_initializer(value)
        self._known[value] = inference.Known(value.type, value.shape)
        self._made[key] = value
        return value

    def integers(self, anchor: ir.Node, values: Sequence[int], name: str) -> ir.Value:
        """Return an initializer that holds a vector of int64."""
        return self.constant(anchor, np.asarray(values, np.int64), name)

    def once(self, anchor: ir.Node, key: tuple[object, ...]) -> ir.Value | None:
        """Return what `remember` was told under this key, if it is still there and the anchor may use it."""
        value = self._made.get((anchor.graph, *key))
        node = value.producer() if value is not None else None
        return value if node is not None and node.graph is anchor.graph else None

    def remember(self, anchor: ir.Node, key: tuple[object, ...], value: ir.Value) -> ir.Value:
        """Let nodes after the anchor find a value under a key."""
        self._made[(anchor.graph, *key)] = value
        return value

    def replace(self, old: ir.Value, new: ir.Value) -> str | None:
        """Use `new` in place of `old` and remove what only `old` needed; say why if that cannot be."""
        reason = graphs.redirect(old, new, self.taken)
        graphs.discard(new if reason else old)
        return reason


def same(one: Dims | None, two: Dims | None) -> bool:
    """Tell whether two proven shapes are equal in every run."""
    return one is not None and one == two and None not in one


_SCALAR: dict[str, tuple[int, Any]] = {
    "Cast": (1, lambda x: x),
    "CastLike": (1, lambda x: x),
    "Div": (2, lambda x, y: x / y),
    "Gather": (1, lambda x: x),
    "Identity": (1, lambda x: x),
    "Mul": (2, lambda x, y: x * y),
    "Pow": (2, lambda x, y: x**y),
    "Reciprocal": (1, lambda x: 1 / x),
    "Reshape": (1, lambda x: x),
    "Sqrt": (1, math.sqrt),
    "Squeeze": (1, lambda x: x),
    "Unsqueeze": (1, lambda x: x),
}
"""Operators through which one number can be followed: how many inputs count, and what they do."""
