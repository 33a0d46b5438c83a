"""Multiply matrices in integers whose activations get their scales at run time

Weights are int8, one scale for each output channel; every activation is quantized when it is there, on the range that it
has then, so no calibration is needed (ONNX operators DynamicQuantizeLinear and MatMulInteger). Standard operators are
written; `fuse`, and ONNX Runtime when a session loads, make DynamicQuantizeMatMul and MatMulIntegerToFloat of them.

Every row of an activation (each token of a text) may get a scale of its own, which outliers of other rows do not spoil,
at the price of a few operators more: for the nodes that `rows` names. Rows that Gather takes out of a large table
(embeddings) are int8 in the file, one scale each, and become floats once taken, which costs next to nothing.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Literal

import numpy as np
import onnx_ir as ir

from graphopt import graphs, scopes, spec
from graphopt.errors import UsageError, did_you_mean
from graphopt.passbase import LOSSY, Pass, Result, param
from graphopt.passes.quantization._dynamic import Writer
from graphopt.passes.quantization._graphs import attribute, constant, infer_types, is_float

_OPSET = 11
"""Since when there is DynamicQuantizeLinear."""
_TABLE = 1 << 16
"""Numbers that a table must have for integers to save much."""
_UNTYPED = "not float32, or of unknown type"
_SLOWER = "ONNX Runtime's convolution of integers on scales of run time is slower than that of floats"
_ABSENT = "ONNX Runtime has no operator for it in integers on scales of run time"
_UNSUITED = {"Conv": _SLOWER, "ConvTranspose": _ABSENT, "GRU": _ABSENT, "RNN": _ABSENT}
_OPTIONAL = {"LSTM": "only ONNX Runtime knows an LSTM of integers; name LSTM in ops to have it"}


@dataclasses.dataclass(frozen=True)
class QuantizeDynamic(Pass):
    """Quantize MatMul and Gemm by constant matrices, and tables of Gather.

    Convolutions stay in float: ConvInteger of ONNX Runtime's CPU provider is many times slower than a float convolution.
    So do products of two activations. LSTM becomes DynamicQuantizeLSTM of com.microsoft if `ops` names it; there is no
    standard way to write one whose state is quantized at every step.

    Raises:
        PreconditionError: the opset is too old and cannot be raised.
        UsageError: `exclude` or `rows` names a node that does not exist.
    """

    contract = LOSSY

    per_channel: bool = param(True, "give every output channel of a weight, every row of a table a scale of its own")
    weights: Literal["int8", "uint8"] = param("int8", "what weights are kept in")
    reduce_range: bool = param(False, "7 bits of weights, which cannot saturate on processors without VNNI")
    rows: tuple[str, ...] = param((), "names of nodes whose activations get a scale for every row; all for all of them")
    exclude: tuple[str, ...] = param((), "names of nodes that stay in float")
    ops: tuple[str, ...] = param(("MatMul", "Gemm", "Gather"), "operators to quantize: these, LSTM")

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
        writer = Writer(model, self)
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
        """Yield nodes with weights, and why they stay in float, or None."""
        for graph in scopes.main_and_bodies(model):
            yield from ((node, self._obstacle(node)) for node in graph if _has_weights(node))
        for function, node in scopes.function_nodes(model):
            if _has_weights(node):
                yield node, f"it is part of function {function}; inline functions"

    def _obstacle(self, node: ir.Node) -> str | None:
        if node.op_type in _UNSUITED:
            return _UNSUITED[node.op_type]
        if node.name in self.exclude:
            return "excluded"
        if node.op_type not in self.ops:
            return _OPTIONAL.get(node.op_type, f"{node.op_type} is not among the operators to quantize")
        return {"Gather": self._table_obstacle, "LSTM": _gates_obstacle}.get(node.op_type, _product_obstacle)(node)

    def _table_obstacle(self, node: ir.Node) -> str | None:
        table = node.inputs[0]
        assert table is not None
        assert table.const_value is not None
        if table.const_value.size < _TABLE:
            return f"a table of fewer than {_TABLE:,} numbers is not worth it"
        if table.is_graph_output() or not all(
            _looks_up(user) and user.name not in self.exclude for user in table.consumers()
        ):
            return "its table is used in float, too"
        return None if np.isfinite(table.const_value.numpy()).all() else "its table is not finite"


def _has_weights(node: ir.Node) -> bool:
    return graphs.is_op(node, *_UNSUITED, "MatMul", "Gemm", "LSTM") or _looks_up(node)


def _looks_up(node: ir.Node) -> bool:
    """Tell whether a node looks up rows of a table: a constant matrix of float32."""
    table = node.inputs[0] if graphs.is_op(node, "Gather") else None
    if table is None or table.const_value is None or attribute(node, "axis", 0) != 0:
        return False
    return table.const_value.dtype == ir.DataType.FLOAT and len(table.const_value.shape) == 2


def _product_obstacle(node: ir.Node) -> str | None:
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


def _gates_obstacle(node: ir.Node) -> str | None:
    weights = [constant(value) for value in node.inputs[1:3]]
    if any(weight is None for weight in weights):
        return "its weights are computed, not constant"
    if not is_float(node.inputs[0]) or any(weight is not None and weight.dtype != np.float32 for weight in weights):
        return _UNTYPED
    if attribute(node, "layout", 0):
        return "DynamicQuantizeLSTM wants time on the first axis"
    finite = all(weight is not None and np.isfinite(weight).all() for weight in weights)
    return None if finite else "its weights are not finite"
