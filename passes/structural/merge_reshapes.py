"""Merge operators that only change the shape: Reshape, Flatten, Squeeze, Unsqueeze

They leave the elements in their order, so of two in a row only the shape at the end counts. It becomes that of one
Reshape with a constant target where all sizes but one are known or copied, and of one Unsqueeze or Squeeze where both are
one. Element-wise operators between two of them that look at one tensor alone do not mind the shape either: the first one
is taken away in front of them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt import graphs
from graphopt.passbase import FACT_PREFIX, Result
from graphopt.passes.structural._informed import Facts, Informed, sites, sizes
from graphopt.passes.structural._reshaping import RESHAPES, target

_SHAPE_IS_INPUT = 5
_AXES_ARE_INPUT = 13
_ELEMENTWISE = frozenset(
    {
        "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cast", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Elu",
        "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg",
        "Not", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt",
        "Swish", "Tan", "Tanh", "ThresholdedRelu",
    }
)  # fmt: skip
"""Operators that compute every element from the element of their first input at the same place."""
_WITH_SCALAR = frozenset({"Add", "Div", "Max", "Min", "Mul", "Pow", "Sub"})


@dataclass(frozen=True)
class MergeReshapes(Informed):
    """Let one reshaping operator do the work of several."""

    def apply(self, model: ir.Model, facts: Facts) -> Result:
        """Merge in place, from the inputs on; the report counts the operators that went."""
        opset = model.opset_imports.get("", 1)
        if opset < _SHAPE_IS_INPUT:
            return Result(model, False, {"merged": 0})
        taken, merged = facts.names, 0
        for graph, node in sites(facts, *RESHAPES):
            while node.graph is graph and _merge(graph, node, facts, taken, opset):
                merged += 1
        return Result(model, bool(merged), {"merged": merged})


def _merge(graph: ir.Graph, node: ir.Node, facts: Facts, taken: Counter[str], opset: int) -> bool:
    """Take away the reshaping operator before `node`; say whether there was one that can go."""
    chain: list[ir.Node] = []
    value = node.inputs[0]
    while (producer := _alone(value, graph)) is not None and _ignores_shape(producer):
        chain.append(producer)
        value = producer.inputs[_main_input(producer)]
    before = _alone(value, graph)
    if before is None or not graphs.is_op(before, *RESHAPES) or before.inputs[0] is None:
        return False
    source = before.inputs[0]
    if len(sizes(facts, source) or ()) < max(map(_rank_of_constants, chain), default=0):
        return False  # broadcasting would add axes
    if not _rewrite(graph, node, before, source, facts, taken, opset):
        return False
    if chain:
        _lift(chain, source, node)
    else:
        node.replace_input_with(0, source)
    graphs.discard(before.outputs[0])
    return True


def _alone(value: ir.Value | None, graph: ir.Graph) -> ir.Node | None:
    """Return what computes a value in this graph for a single user."""
    producer = value.producer() if value is not None else None
    if producer is None or producer.graph is not graph or graphs.sole_use(value) is None:
        return None
    return producer


def _ignores_shape(node: ir.Node) -> bool:
    if node.domain != "" or graphs.has_parameters(node) or len(node.outputs) != 1:
        return False
    if node.op_type in _ELEMENTWISE:
        return True
    return node.op_type in _WITH_SCALAR and len(node.inputs) == 2 and any(map(_is_single, node.inputs))


def _is_single(value: ir.Value | None) -> bool:
    """Tell whether a value is a constant of one element."""
    tensor = graphs.constant(value)
    return tensor is not None and tensor.size == 1


def _rank_of_constants(node: ir.Node) -> int:
    tensors = map(graphs.constant, node.inputs) if node.op_type in _WITH_SCALAR else ()
    return max((len(tensor.shape) for tensor in tensors if tensor is not None), default=0)


def _main_input(node: ir.Node) -> int:
    return 1 if node.op_type in _WITH_SCALAR and _is_single(node.inputs[0]) else 0


def _rewrite(
    graph: ir.Graph, node: ir.Node, before: ir.Node, source: ir.Value, facts: Facts, taken: Counter[str], opset: int
) -> bool:
    """Make `node` right for the shape that `before` takes in; say whether it can be."""
    if node.op_type == before.op_type and node.op_type in ("Squeeze", "Unsqueeze"):
        axes = _joined_axes(node, before, facts)
        if axes is not None:
            _set_axes(graph, node, axes, taken, opset)
            return True
    shape = target(sizes(facts, source), sizes(facts, node.outputs[0]))
    if shape is not None:
        constant = graphs.initializer(graph, np.asarray(shape, np.int64), f"{node.outputs[0].name}_shape", taken)
        graphs.become(node, "Reshape", [node.inputs[0], constant])
        return True
    return node.op_type == "Reshape" and _copies_nothing(node, facts)


def _copies_nothing(node: ir.Node, facts: Facts) -> bool:
    """Tell whether a Reshape means the same whatever the shape of its input is."""
    known = facts.get(node.inputs[1]) if node.inputs[1] is not None else None
    constant = graphs.array(node.inputs[1])
    elements = tuple(constant.tolist()) if constant is not None else known.elements if known else None
    return elements is not None and 0 not in elements and None not in elements


def _joined_axes(node: ir.Node, before: ir.Node, facts: Facts) -> list[int] | None:
    """Return the axes of one operator that does what two Unsqueeze or two Squeeze do."""
    one, two = _axes(before), _axes(node)
    longer = node if node.op_type == "Unsqueeze" else before
    whole = sizes(facts, longer.outputs[0] if node.op_type == "Unsqueeze" else longer.inputs[0])
    if one is None or two is None or whole is None:
        return None
    first, second = (one, two) if node.op_type == "Unsqueeze" else (two, one)
    outer = {axis % len(whole) for axis in second}
    kept = [axis for axis in range(len(whole)) if axis not in outer]
    return sorted([*outer, *(kept[axis % len(kept)] for axis in first)])


def _axes(node: ir.Node) -> list[int] | None:
    if len(node.inputs) > 1:
        found = graphs.array(node.inputs[1])
        return None if found is None else [int(axis) for axis in found.ravel()]
    attribute = graphs.attribute(node, "axes")
    return None if attribute is None else list(attribute.as_ints())


def _set_axes(graph: ir.Graph, node: ir.Node, axes: list[int], taken: Counter[str], opset: int) -> None:
    if opset < _AXES_ARE_INPUT:
        node.attributes.add(ir.AttrInt64s("axes", axes))
        return
    constant = graphs.initializer(graph, np.asarray(axes, np.int64), f"{node.outputs[0].name}_axes", taken)
    graphs.become(node, node.op_type, [node.inputs[0], constant])


def _lift(chain: list[ir.Node], source: ir.Value, node: ir.Node) -> None:
    """Let the element-wise operators before `node`, the last one first, work on `source` in place of its reshaped form."""
    for old in reversed(chain):
        index = _main_input(old)
        inputs = [source if i == index else value for i, value in enumerate(old.inputs)]
        made = ir.Node("", old.op_type, inputs, list(old.attributes.values()), name=old.name)
        result, was = made.outputs[0], old.outputs[0]
        result.name, result.type = was.name, was.type
        facts = {key: fact for key, fact in was.metadata_props.items() if key.startswith(FACT_PREFIX)}
        result.metadata_props.update(facts)
        assert old.graph is not None
        old.graph.insert_before(old, made)
        source = result
    node.replace_input_with(0, source)
    graphs.discard(chain[0].outputs[0])
