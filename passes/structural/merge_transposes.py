"""Remove Transposes that cancel each other, through operators that work in any layout

For an operator f that treats all elements alike, f(Transpose(x)) = Transpose(f(x)); operators with axes compute the same
along renamed axes, and constants can be stored transposed. So a Transpose can move through elementwise operators,
Concat, Split, Slice, Gather, Pad, reductions, Softmax, Squeeze, Reshape (where no block of axes is torn apart), MatMul
(axes of the batch), quantization and others, until it meets its inverse, merges with another Transpose, is absorbed by
a Gemm or a Shape, or comes to move only axes of size 1. Whether it pays is a minimum cut of the operators between two
layouts (see `_transpose_region`): nothing moves unless the number of Transposes falls.

A Transpose that is left, but only moves axes of size 1, becomes a Reshape, which does not copy and can merge with others.

Sums of floating-point numbers along renamed axes may be rounded differently. ONNX Runtime's transpose optimizer
pushes Transposes one by one, by estimated costs; onnxscript and onnx-optimizer merge only neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt import graphs, scopes
from graphopt.passbase import Result
from graphopt.passes.structural._informed import Facts, Informed
from graphopt.passes.structural._transpose_layout import Perm, inverse, keeps_order, permuted, target
from graphopt.passes.structural._transpose_region import Region, World


@dataclass(frozen=True)
class MergeTransposes(Informed):
    """Remove Transposes that cancel each other."""

    def apply(self, model: ir.Model, facts: Facts) -> Result:
        """Improve region after region in place, until there are no fewer Transposes to be had."""
        if not _count(model):
            return Result(model, False, {})
        before = _count(model)
        improved = reshaped = 0
        for root in scopes.roots(model):
            opset = root.opset_imports.get("", 0)
            bodies = {function.graph for function in model.functions.values()}
            for graph in (root, *root.subgraphs()):
                world = World(graph, opset, root in bodies, facts)
                while True:
                    while regions := _round(world):
                        improved += regions
                    views = sum(_reshape(node, world) for node in list(graph) if graphs.is_op(node, "Transpose"))
                    reshaped += views
                    if not views:
                        break
        report = {"regions": improved, "removed": before - _count(model) - reshaped, "reshaped": reshaped}
        return Result(model, bool(improved or reshaped), {key: count for key, count in report.items() if count})


def _count(model: ir.Model) -> int:
    return sum(graphs.is_op(node, "Transpose") for graph in graphs.every(model) for node in graph)


def _round(world: World) -> int:
    """Improve the region around every Transpose, on either side; return how many regions were improved."""
    improved = 0
    seen: set[tuple[ir.Value, Perm]] = set()
    for node in [node for node in world.graph if graphs.is_op(node, "Transpose")]:
        for side in (0, 1):
            perm = _permutation(node, world) if node.graph is world.graph else None
            source = node.inputs[0]
            if perm is None or source is None:
                continue
            value, layout = (node.outputs[0], perm) if side == 0 else (source, inverse(perm))
            if (value, layout) in seen:
                continue
            region = Region(world, value, layout)
            seen.update(region.perms.items())
            improved += region.improve()
    return improved


def _permutation(node: ir.Node, world: World) -> Perm | None:
    found = node.attributes.get("perm")
    if found is not None:
        return None if found.is_ref() else tuple(found.as_ints())
    dims = world.dims(node.inputs[0]) if node.inputs[0] is not None else None
    return None if dims is None else tuple(range(len(dims)))[::-1]


def _reshape(node: ir.Node, world: World) -> bool:
    """Turn a Transpose that only moves axes of size 1 into a Reshape."""
    perm, source = _permutation(node, world), node.inputs[0]
    dims = None if source is None else world.dims(source)
    after = None if perm is None else permuted(dims, perm)
    if world.opset < 5 or perm is None or after is None or after == dims or not keeps_order(perm, after):
        return False
    sizes = target(after, dims)
    if sizes is None:
        return False
    value = node.outputs[0]
    told = world.constant(ir.tensor(np.array(sizes, np.int64)), f"{value.name}_shape", node)
    node.op_type = "Reshape"
    node.attributes.clear()
    node.resize_inputs(2)
    node.replace_input_with(1, told)
    return True
