"""Write integers on scales of run time: matrix products, tables and LSTM."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import onnx_ir as ir

from graphopt import graphs
from graphopt.passes.quantization._graphs import attribute, constant, input_of

_AXES_AS_INPUT = 18
"""Since when ReduceMax takes its axes as an input."""
_TINY = np.float32(1e-12)


class Asked(Protocol):
    """What to write (see `quantize_dynamic.QuantizeDynamic`)."""

    @property
    def per_channel(self) -> bool: ...
    @property
    def weights(self) -> str: ...
    @property
    def reduce_range(self) -> bool: ...

    def by_row(self, node: ir.Node) -> bool:
        """Tell whether what a node reads gets a scale for every row."""


class Writer:
    """Rewrites nodes of one model."""

    def __init__(self, model: ir.Model, asked: Asked) -> None:
        self._model, self._asked = model, asked
        self._taken = graphs.names(model)
        self._quantized: dict[tuple[ir.Graph, ir.Value, bool], list[ir.Value]] = {}
        self._weights: dict[tuple[ir.Value, bool, float], tuple[ir.Value, ir.Value, ir.Value | None]] = {}
        self._tables: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}

    def write(self, node: ir.Node) -> None:
        """Replace a node by integers."""
        {"Gather": self._look_up, "LSTM": self._recurrence}.get(node.op_type, self._product)(node)

    def _product(self, node: ir.Node) -> None:
        activation, old = node.inputs[0], node.inputs[1]
        assert activation is not None
        assert old is not None
        transposed = bool(attribute(node, "transB", 0))
        matrix, scale, zero = self._weight(old, transposed=transposed, alpha=float(attribute(node, "alpha", 1.0)))
        integers, step, offset = self._activation(node, activation)
        product = self._add(node, "MatMulInteger", [integers, matrix, offset, zero])
        floats = self._add(node, "Cast", [product], to=ir.DataType.FLOAT)
        if self._asked.by_row(node):
            made = self._add(node, "Mul", [self._add(node, "Mul", [floats, scale]), step])
        else:
            made = self._add(node, "Mul", [floats, self._add(node, "Mul", [step, scale])])
        bias = input_of(node, 2) if node.op_type == "Gemm" else None
        if bias is not None:
            beta = float(attribute(node, "beta", 1.0))
            if beta != 1:
                bias = self._add(node, "Mul", [bias, self._constant(node, np.array(beta, np.float32), "beta")])
            made = self._add(node, "Add", [made, bias])
        self._replace(node, made)
        self._discard(old)

    def _look_up(self, node: ir.Node) -> None:
        """Let a Gather take rows of integers, which become floats after it."""
        old, index = node.inputs
        assert old is not None
        assert index is not None
        table, scale = self._table(old)
        integers = self._add(node, "Gather", [table, index])
        if self._asked.per_channel:
            floats = self._add(node, "Cast", [integers], to=ir.DataType.FLOAT)
            made = self._add(node, "Mul", [floats, self._add(node, "Gather", [scale, index])])
        else:
            made = self._add(node, "DequantizeLinear", [integers, scale])
        self._replace(node, made)
        self._discard(old)

    def _recurrence(self, node: ir.Node) -> None:
        """Make DynamicQuantizeLSTM of an LSTM."""
        inputs = [*node.inputs, *[None] * (8 - len(node.inputs))]
        old = inputs[1:3]
        assert old[0] is not None
        assert old[1] is not None
        parameters: list[ir.Value | None] = []
        for index, value in enumerate(old, 1):
            assert value is not None
            inputs[index], scale, zero = self._gates(value)
            parameters += [scale, zero]
        if "hidden_size" not in node.attributes:
            node.attributes.add(ir.AttrInt64("hidden_size", _array(old[1]).shape[2]))
        node.attributes.pop("layout", None)
        node.op_type, node.domain = "DynamicQuantizeLSTM", "com.microsoft"
        self._model.opset_imports.setdefault("com.microsoft", 1)
        node.resize_inputs(12)
        for index, value in enumerate([*inputs, *parameters]):
            node.replace_input_with(index, value)
        for value in old:
            if value is not None:
                self._discard(value)

    def _replace(self, node: ir.Node, made: ir.Value) -> None:
        output = node.outputs[0]
        made.type, made.shape = output.type, output.shape
        if graphs.redirect(output, made, self._taken) is not None:
            graphs.compute_by_identity(output, made)
        graphs.discard(output)

    def _discard(self, old: ir.Value) -> None:
        """Remove a constant that nothing reads any more, also from the inputs, where it was a default."""
        if not graphs.is_needed(old) and old in self._model.graph.inputs:
            self._model.graph.inputs.remove(old)
        graphs.discard(old)

    def _activation(self, node: ir.Node, value: ir.Value) -> list[ir.Value]:
        """Return integers, step and zero point of an activation, quantized once for all that read it in this graph."""
        assert isinstance(node.graph, ir.Graph)
        rows = self._asked.by_row(node)
        key = (node.graph, value, rows)
        if key not in self._quantized:
            self._quantized[key] = self._by_row(node, value) if rows else self._whole(node, value)
        return self._quantized[key]

    def _whole(self, node: ir.Node, value: ir.Value) -> list[ir.Value]:
        made = ir.node("DynamicQuantizeLinear", [value], num_outputs=3)
        self._insert(node, made, value)
        return list(made.outputs)

    def _by_row(self, node: ir.Node, value: ir.Value) -> list[ir.Value]:
        size = self._add(node, "Abs", [value])
        if self._model.opset_imports.get("", 0) < _AXES_AS_INPUT:
            largest = self._add(node, "ReduceMax", [size], axes=[-1], keepdims=1)
        else:
            largest = self._add(node, "ReduceMax", [size, self._constant(node, np.array([-1]), "last")], keepdims=1)
        largest = self._add(node, "Max", [largest, self._constant(node, np.array(_TINY), "tiny")])
        shares = self._add(node, "Div", [value, largest])
        step = self._constant(node, np.array(1 / 127, np.float32), "step")
        zero = self._constant(node, np.array(128, np.uint8), "middle")
        integers = self._add(node, "QuantizeLinear", [shares, step, zero])
        return [integers, self._add(node, "Mul", [largest, step]), zero]

    def _weight(self, old: ir.Value, *, transposed: bool, alpha: float) -> tuple[ir.Value, ir.Value, ir.Value | None]:
        """Return integers, scales and zero points of a matrix, stored once for all that read it."""
        key = (old, transposed, alpha)
        if key not in self._weights:
            array = _array(old)
            weight = (array.T if transposed else array).astype(np.float64) * alpha
            integers, scales, zeros = self._rounded(weight, 0 if self._asked.per_channel else None)
            self._weights[key] = (
                self._stored(old, integers, "q"),
                self._stored(old, scales, "s"),
                self._stored(old, zeros, "z") if zeros.any() else None,
            )
        return self._weights[key]

    def _gates(self, old: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Return weights of gates [directions, inputs, gates] as integers, with scales and zero points of each direction."""
        weight = _array(old).transpose(0, 2, 1).astype(np.float64)
        integers, scales, zeros = self._rounded(weight, 1 if self._asked.per_channel else (1, 2))
        stored = (self._stored(old, array, kind) for array, kind in ((integers, "q"), (scales, "s"), (zeros, "z")))
        matrix, scale, zero = stored
        return matrix, scale, zero

    def _rounded(self, weight: np.ndarray, axis: int | tuple[int, ...] | None) -> tuple[np.ndarray, ...]:
        """Return integers, scales and zero points; weights along the axes, or all of them, share a scale."""
        largest = 63 if self._asked.reduce_range else 127
        scales = np.maximum(np.abs(weight).max(axis=axis, keepdims=True, initial=0) / largest, float(_TINY))
        zero, type_ = (128, np.uint8) if self._asked.weights == "uint8" else (0, np.int8)
        integers = np.clip(np.rint(weight / scales.astype(np.float32)), -largest, largest) + zero
        scales = scales.astype(np.float32).squeeze(axis=axis)
        return integers.astype(type_), scales, np.full(scales.shape, zero, type_)

    def _table(self, old: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Return integers and scales of a table, [rows, 1] or one for all."""
        if old not in self._tables:
            array = _array(old)
            axis = 1 if self._asked.per_channel else None
            scales = np.maximum(np.abs(array).max(axis=axis, keepdims=axis is not None, initial=0) / 127, _TINY)
            scales = np.asarray(scales, np.float32)
            integers = np.clip(np.rint(array / scales), -127, 127).astype(np.int8)
            self._tables[old] = self._stored(old, integers, "q"), self._stored(old, scales, "s")
        return self._tables[old]

    def _stored(self, old: ir.Value, array: np.ndarray, kind: str) -> ir.Value:
        """Return an initializer in the graph of the constant that it stands for."""
        node = old.producer()
        home = old.graph if node is None else node.graph
        assert isinstance(home, ir.Graph)
        return graphs.initializer(home, np.ascontiguousarray(array), f"{old.name}_{kind}", self._taken)

    def _constant(self, node: ir.Node, array: np.ndarray, name: str) -> ir.Value:
        assert isinstance(node.graph, ir.Graph)
        return graphs.initializer(node.graph, array, name, self._taken)

    def _add(self, node: ir.Node, op: str, inputs: list[ir.Value | None], **attributes: object) -> ir.Value:
        while inputs[-1] is None:
            inputs = inputs[:-1]
        made = ir.node(op, inputs, attributes)
        self._insert(node, made, node.outputs[0])
        return made.outputs[0]

    def _insert(self, node: ir.Node, made: ir.Node, like: ir.Value) -> None:
        """Put a new node in front of another and name it and its outputs after a value."""
        assert isinstance(node.graph, ir.Graph)
        node.graph.insert_before(node, made)
        for value in made.outputs:
            value.name = graphs.fresh(f"{like.name}_{made.op_type.lower()}", self._taken)
        made.name = made.outputs[0].name


def _array(value: ir.Value) -> np.ndarray:
    array = constant(value)
    assert array is not None
    return array
