"""Write a product of matrices and an addition as one Gemm

MatMul(A, B) + C = Gemm(A, B, C) for matrices A [M, K] and B [K, N], and C that broadcasts to [M, N] without enlarging
it. A Gemm without C takes in an addition as well, with the alpha it has. ONNX Runtime does the same when it loads a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt import graphs
from graphopt.inference import Dim
from graphopt.passbase import Result
from graphopt.passes.structural._informed import Facts, Informed, dtype, sites, sizes

_BROADCASTS = 7
"""Opset since which Gemm broadcasts C by itself."""
_TYPES = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16})
"""What ONNX Runtime multiplies with Gemm."""


@dataclass(frozen=True)
class FuseGemm(Informed):
    """Join MatMul and Add into Gemm."""

    def apply(self, model: ir.Model, facts: Facts) -> Result:
        """Join in place; the report counts the additions that went."""
        fused = 0
        if model.opset_imports.get("", 1) >= _BROADCASTS:
            for graph, node in sites(facts, "Add"):
                fused += any(_fuse(graph, node, side, facts) for side in (0, 1))
        return Result(model, bool(fused), {"fused": fused})


def _fuse(graph: ir.Graph, node: ir.Node, side: int, facts: Facts) -> bool:
    """Join an Add with the product that is its input `side`; say whether that can be."""
    product, addend = node.inputs[side], node.inputs[1 - side]
    before = product.producer() if product is not None else None
    if before is None or before.graph is not graph or graphs.sole_use(product) is not node or addend is product:
        return False
    if not graphs.is_op(before, "MatMul", "Gemm") or graphs.has_parameters(before) or len(before.inputs) > 2:
        return False
    if any(len(sizes(facts, value) or ()) != 2 for value in before.inputs) or dtype(facts, product) not in _TYPES:
        return False
    if not _fits(sizes(facts, addend), sizes(facts, product)):
        return False
    factors = {name: found.value for name, found in before.attributes.items()}
    left, right = before.inputs
    graphs.become(node, "Gemm", [left, right, addend], **factors)
    return True


def _fits(addend: Sequence[Dim] | None, product: Sequence[Dim] | None) -> bool:
    """Tell whether a shape broadcasts to that of the product without enlarging it."""
    if addend is None or product is None or len(addend) > len(product):
        return False
    return all(
        a == 1 or (a is not None and a == p) for a, p in zip(addend, product[len(product) - len(addend) :], strict=True)
    )
