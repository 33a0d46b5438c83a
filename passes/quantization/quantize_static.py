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
from typing import Literal

import onnx_ir as ir
from onnx_ir.passes import common

from graphopt import graphs, scopes, spec
from graphopt.errors import UsageError, did_you_mean
from graphopt.passbase import LOSSY, Pass, PreconditionError, Result, param
from graphopt.passes.quantization import _islands, _plan, _ranges
from graphopt.passes.quantization._graphs import infer_types, is_constant, label
from graphopt.passes.quantization._kernels import ANCHORS
from graphopt.passes.quantization._qdq import Writer
from graphopt.passes.quantization._scheme import Scheme


@dataclasses.dataclass(frozen=True)
class QuantizeStatic(Pass):
    """Quantize weights and activations on the scales that the ranges of calibrate give.

    By default weights are int8, per output channel, and activations uint8, per tensor, which is what ONNX Runtime's CPU
    provider has fast kernels for on every processor. Signed activations it computes half in float, 16-bit ones wholly, and
    of float8 ONNX Runtime 1.31 makes wrong integer operators above `cpu{level=basic}`; these are for other targets. Weights in 4 or 2 bits (int4, ternary, binary) are as fast as int8 there.

    Uses the ranges up. Below the opset that the types need (13; int4 and 16 bits 21, float8 19, ternary and binary 25) the
    model is converted first. Nodes in the bodies of If, Loop and Scan are quantized, those of functions stay in float.

    Raises:
        PreconditionError: the model carries no ranges, or its opset is too old to be raised.
        UsageError: `exclude`, `int4` or `int16` names a node that does not exist.
    """

    contract = LOSSY

    activations: Literal["uint8", "int8", "uint16", "int16", "float8"] = param("uint8", "what activations are kept in")
    weights: Literal["int8", "uint8", "int4", "ternary", "binary", "float8"] = param("int8", "what weights are kept in")
    per_channel: bool = param(True, "give every output channel of a weight a scale of its own")
    symmetric: bool = param(False, "put the zero of activations in the middle, as some other runtimes require")
    observer: str = param("min-max", "which of the recorded ranges to use: min-max, percentile, mse, ...")
    exclude: tuple[str, ...] = param((), "names of nodes that stay in float")
    int4: tuple[str, ...] = param((), "names of nodes whose weights take 4 bits")
    int16: tuple[str, ...] = param((), "names of nodes whose activations take 16 bits")
    ops: tuple[str, ...] = param(ANCHORS, "operators to quantize; others join where they sit between these")

    def __post_init__(self) -> None:
        if (self.weights == "float8") != (self.activations == "float8"):
            raise ValueError("float8 is for weights and activations together")

    def requires(self, model: ir.Model) -> None:
        """Refuse a model without ranges, and names of nodes that it does not have."""
        names = {node.name for node in model.graph.all_nodes() if node.name}
        for field in ("exclude", "int4", "int16"):
            for name in getattr(self, field):
                if name not in names:
                    hint = did_you_mean(name, names)
                    raise UsageError(f"quantize-static: {field}: no node is called '{name}'{hint}")
        if not _ranges.read(model, self.observer):
            if recorded := _ranges.observers(model):
                raise PreconditionError(
                    f"calibrate recorded no ranges by {self.observer}, but by {', '.join(recorded)}; choose observer= of these"
                )
            raise PreconditionError("the model carries no activation ranges; run calibrate{data=FILE.npz} first")

    def call(self, model: ir.Model) -> Result:
        recorded = _ranges.read(model, self.observer)
        infer_types(model)
        scheme = Scheme(self.activations, self.weights, self.per_channel, self.symmetric, self.int4, self.int16)
        plans = self._plans(model, recorded)
        if any(plan.units for _, plan in plans) and model.opset_imports.get("", scheme.opset) < scheme.opset:
            spec.build("convert-opset", {"to": scheme.opset})(model)
            infer_types(model)
            plans = self._plans(model, recorded)
        skipped = [*(row for _, plan in plans for row in plan.skipped), *_out_of_reach(model)]
        counts = Counter(unit.node.op_type for _, plan in plans for unit in plan.units)
        report = {"quantized": dict(sorted(counts.items())), "left_in_float": len(skipped)}
        if not counts:
            return Result(model, False, report, skipped)
        nodes = [node for _, plan in plans for unit in plan.units for node in unit.nodes]
        parameters = [value for node in nodes for value in node.inputs if value and is_constant(value)]
        names = set(graphs.names(model)) | {node.name for node in model.graph.all_nodes() if node.name}
        for graph, plan in plans:
            if plan.units:
                Writer(graph, plan, scheme, names).write()
        for value in parameters:
            if value in model.graph.inputs and not value.uses():
                model.graph.inputs.remove(value)
        common.RemoveUnusedNodesPass()(model)
        _ranges.erase(model)
        return Result(model, True, report, skipped)

    def _plans(self, model: ir.Model, recorded: dict[str, _ranges.Range]) -> list[tuple[ir.Graph, _plan.Plan]]:
        """Return what to quantize in every graph, inner ones before the graphs around them, which they read from."""
        found = scopes.main_and_bodies(model)
        return [(graph, _plan.make(graph, recorded, self.exclude, self.ops)) for graph in reversed(found)]

    def audit(self, optimized: ir.Model) -> list[tuple[str, str]]:
        """Return a row for every node that ONNX Runtime computes in float between integer nodes."""
        return _islands.find(optimized.graph)


def _out_of_reach(model: ir.Model) -> Iterator[tuple[str, str]]:
    """Yield a row for every convolution or matrix product inside a function."""
    for function, node in scopes.function_nodes(model):
        if node.op_type in ANCHORS:
            yield label(node), f"it is part of function {function}; inline functions"
