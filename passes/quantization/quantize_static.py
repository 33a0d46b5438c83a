"""Compute with 8-bit integers, on scales from recorded activation ranges.

Every real number r is kept as an integer q with r = scale * (q - zero point); convolutions and matrix
products then multiply 8-bit integers, add them up in 32 bits, and rescale once (Jacob et al. 2018,
arXiv:1712.05877; Krishnamoorthi 2018, arXiv:1806.08342). The result is a standard ONNX graph in which
QuantizeLinear and DequantizeLinear surround the operators of which ONNX Runtime makes integer kernels.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir.passes import common

from graphopt.errors import UsageError, did_you_mean
from graphopt.passbase import LOSSY, Pass, PreconditionError, Result, param
from graphopt.passes.quantization import _islands, _opset, _plan, _ranges
from graphopt.passes.quantization._graphs import infer_types, is_constant, label
from graphopt.passes.quantization._kernels import ANCHORS
from graphopt.passes.quantization._qdq import Writer


@dataclasses.dataclass(frozen=True)
class QuantizeStatic(Pass):
    """Quantize weights (int8, per output channel) and activations (uint8, per tensor) for ONNX Runtime's CPU provider.

    Wants the ranges that calibrate records, and uses them up. Below opset 13 the model is converted first.
    Nodes of subgraphs and functions stay in float.

    Raises:
        PreconditionError: the model carries no ranges, or its opset is too old to be raised.
        UsageError: `exclude` names a node that does not exist.
    """

    contract = LOSSY

    exclude: tuple[str, ...] = param((), "names of nodes that stay in float")
    ops: tuple[str, ...] = param(ANCHORS, "operators to quantize; others join where they sit between these")

    def requires(self, model: ir.Model) -> None:
        """Refuse a model without ranges, and names of nodes that it does not have."""
        names = {node.name for node in model.graph.all_nodes() if node.name}
        for name in self.exclude:
            if name not in names:
                raise UsageError(f"quantize-static: exclude: no node is called '{name}'{did_you_mean(name, names)}")
        if not _ranges.read(model):
            raise PreconditionError("the model carries no activation ranges; run calibrate{data=FILE.npz} first")

    def call(self, model: ir.Model) -> Result:
        recorded = _ranges.read(model)
        infer_types(model)
        plan = _plan.make(model.graph, recorded, self.exclude, self.ops)
        if plan.units and _opset.raise_opset(model):
            plan = _plan.make(model.graph, recorded, self.exclude, self.ops)
        skipped = [*plan.skipped, *_out_of_reach(model)]
        counts = Counter(unit.node.op_type for unit in plan.units)
        report = {"quantized": dict(sorted(counts.items())), "left_in_float": len(skipped)}
        if not plan.units:
            return Result(model, False, report, skipped)
        parameters = [v for unit in plan.units for node in unit.nodes for v in node.inputs if v and is_constant(v)]
        Writer(model.graph, plan, _names(model)).write()
        for value in parameters:
            if value in model.graph.inputs and not value.uses():
                model.graph.inputs.remove(value)
        common.RemoveUnusedNodesPass()(model)
        _ranges.erase(model)
        return Result(model, True, report, skipped)

    def audit(self, optimized: ir.Model) -> list[tuple[str, str]]:
        """Return a row for every node that ONNX Runtime computes in float between integer nodes."""
        return _islands.find(optimized.graph)


def _out_of_reach(model: ir.Model) -> Iterator[tuple[str, str]]:
    """Yield a row for every convolution or matrix product inside a subgraph or a function."""
    homes = [(graph, "a subgraph") for graph in model.graph.subgraphs()]
    for function in model.functions.values():
        homes += [
            (graph, f"function {function.name}; inline functions") for graph in (function.graph, *function.subgraphs())
        ]
    for graph, home in homes:
        yield from ((label(node), f"it is part of {home}") for node in graph if node.op_type in ANCHORS)


def _names(model: ir.Model) -> set[str]:
    """Return the names of all values and nodes outside functions, whose names are their own affair."""
    names = {node.name for node in model.graph.all_nodes()}
    for graph in model.graphs():
        names.update(value.name for value in (*graph.inputs, *graph.initializers.values()))
        names.update(value.name for node in graph for value in node.outputs)
    return {name for name in names if name}
