"""Multiply matrices in integers whose activations get their scales at run time

Weights are int8, one scale for each output channel; every activation is quantized when it is there, on the range that it
has then, so no calibration is needed (ONNX operators DynamicQuantizeLinear and MatMulInteger). Standard operators are
written; `fuse`, and ONNX Runtime when a session loads, make DynamicQuantizeMatMul and MatMulIntegerToFloat of them.

Every row of an activation (each token of a text) may get a scale of its own, which outliers of other rows do not spoil,
at the price of a few operators more: for the nodes that `rows` names.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Literal

import numpy as np
import onnx_ir as ir

from graphopt import graphs, spec
from graphopt.errors import UsageError, did_you_mean
from graphopt.passbase import LOSSY, Pass, Result, param
from graphopt.passes.quantization._graphs import attribute, constant, infer_types, input_of, is_float

_OPSET = 11
"""Since when there is DynamicQuantizeLinear."""
_AXES_AS_INPUT = 18
"""Since when ReduceMax takes its axes as an input."""
_UNTYPED = "not float32, or of unknown type"
_TINY = np.float32(1e-12)


@dataclasses.dataclass(frozen=True)
class QuantizeDynamic(Pass):
    """Quantize MatMul and Gemm by constant matrices.

    Convolutions stay in float: ConvInteger of ONNX Runtime's CPU provider is many times slower than a float convolution.
    So do products of two activations.

    Raises:
        PreconditionError: the opset is too old and cannot be raised.
        UsageError: `exclude` or `rows` names a node that does not exist.
    """

    contract = LOSSY

    per_channel: bool = param(True, "give every output channel of a weight a scale of its own")
    weights: Literal["int8", "uint8"] = param("int8", "what weights are kept in")
    reduce_range: bool = param(False, "7 bits of weights, which cannot saturate on processors without VNNI")
    rows: tuple[str, ...] = param((), "names of nodes whose activations get a scale for every row; all for all of them")
    exclude: tuple[str, ...] = param((), "names of nodes that stay in float")
    ops: tuple[str, ...] = param(("MatMul", "Gemm"), "operators to quantize")

    def call(self, model: ir.Model) -> Result:
        self._check_names(model)
        sites = list(self._sites(model))
        if any(reason == _UNTYPED for _, reason in sites):
            infer_types(model)
            sites = list(self._sites(model))
        if any(reason is None for _, reason in sites) and model.opset_imports.get("", _OPSET) < _OPSET:
            spec.build("convert-opset", {"to": _OPSET})(model)
            infer_types(model)
            sites = list(self._sites(model))
        writer = _Writer(model, self)
        counts = Counter(node.op_type for node, reason in sites if reason is None)
        for node, reason in sites:
            if reason is None:
                writer.write(node)
        skipped = [(graphs.label(node), reason) for node, reason in sites if reason is not None]
        return Result(model, bool(counts), {"quantized": dict(sorted(counts.items()))}, skipped)

    def _check_names(self, model: ir.Model) -> None:
        names = {node.name for node in model.graph.all_nodes() if node.name}
        for field in ("exclude", "rows"):
            for name in getattr(self, field):
                if name not in names and (field, name) != ("rows", "all"):
                    raise UsageError(
                        f"quantize-dynamic: {field}: no node is called '{name}'{did_you_mean(name, names)}"
                    )

    def by_row(self, node: ir.Node) -> bool:
        """Tell whether what a node reads gets a scale for every row."""
        return "all" in self.rows or node.name in self.rows

    def _sites(self, model: ir.Model) -> Iterator[tuple[ir.Node, str | None]]:
        """Yield convolutions and matrix products, and why they stay in float, or None."""
        inside = {graph for function in model.functions.values() for graph in (function.graph, *function.subgraphs())}
        for graph in (model.graph, *model.graph.subgraphs()):
            for node in graph:
                if node.domain != "" or node.op_type not in ("Conv", "ConvTranspose", "MatMul", "Gemm"):
                    continue
                home = "it is part of a function; inline functions" if graph in inside else None
                yield node, home or self._obstacle(node)

    def _obstacle(self, node: ir.Node) -> str | None:
        if node.op_type.startswith("Conv"):
            return "ONNX Runtime's convolution of integers on scales of run time is slower than that of floats"
        if node.name in self.exclude:
            return "excluded"
        if node.op_type not in self.ops:
            return f"{node.op_type} is not among the operators to quantize"
        weight = constant(node.inputs[1])
        if weight is None:
            return "it multiplies two activations"
        if not is_float(node.inputs[0]) or weight.dtype != np.float32:
            return _UNTYPED
        if weight.ndim != 2 or constant(node.inputs[0]) is not None:
            return "it does not multiply an activation by one constant matrix"
        if not np.isfinite(weight).all():
            return "its weights are not finite"
        return "ONNX has no integer product that transposes activations" if attribute(node, "transA", 0) else None


class _Writer:
    """Rewrites matrix products of one model."""

    def __init__(self, model: ir.Model, asked: QuantizeDynamic) -> None:
        self._model, self._asked = model, asked
        self._taken = graphs.names(model)
        self._quantized: dict[tuple[ir.Graph, ir.Value, bool], list[ir.Value]] = {}
        self._weights: dict[tuple[ir.Graph, ir.Value, bool, float], tuple[ir.Value, ir.Value, ir.Value | None]] = {}

    def write(self, node: ir.Node) -> None:
        """Replace a matrix product."""
        activation, old = node.inputs[0], node.inputs[1]
        assert activation is not None
        assert old is not None
        transposed = bool(attribute(node, "transB", 0))
        matrix, scale, zero = self._weight(node, old, transposed=transposed, alpha=float(attribute(node, "alpha", 1.0)))
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
        output = node.outputs[0]
        made.type, made.shape = output.type, output.shape
        if graphs.redirect(output, made, self._taken) is not None:
            graphs.compute_by_identity(output, made)
        graphs.discard(output)
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

    def _weight(
        self, node: ir.Node, old: ir.Value, *, transposed: bool, alpha: float
    ) -> tuple[ir.Value, ir.Value, ir.Value | None]:
        """Return integers, scales and zero points of a weight, stored once for all that read it in this graph."""
        assert isinstance(node.graph, ir.Graph)
        key = (node.graph, old, transposed, alpha)
        if key not in self._weights:
            array = constant(old)
            assert array is not None
            weight = (array.T if transposed else array).astype(np.float64) * alpha
            largest = 63 if self._asked.reduce_range else 127
            peaks = np.abs(weight).max(axis=0 if self._asked.per_channel else None)
            scales = np.maximum(peaks / largest, float(_TINY)).astype(np.float32)
            unsigned = self._asked.weights == "uint8"
            integers = np.clip(np.rint(weight / scales), -largest, largest) + 128 * unsigned
            type_ = np.uint8 if unsigned else np.int8
            zeros = self._constant(node, np.full(scales.shape, 128, np.uint8), f"{old.name}_z") if unsigned else None
            self._weights[key] = (
                self._constant(node, integers.astype(type_), f"{old.name}_q"),
                self._constant(node, scales, f"{old.name}_s"),
                zeros,
            )
        return self._weights[key]

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
