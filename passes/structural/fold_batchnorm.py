"""Fold BatchNormalization into the convolution or matrix product before it

In inference, with s = scale / sqrt(variance + epsilon) per channel,

    BatchNormalization(y) = s * y + (bias - s * mean)

For y = L(x; W) + b with L linear in W, that is L(x; s * W) + (s * (b - mean) + bias), where s multiplies W along
the axis that makes the output's channels:

* Conv: axis 0. ConvTranspose: axis 1, where group g of the input channels makes the channels of group g.
* Gemm, y = alpha * A' B' + beta * C: the columns of B'. The new C is s * (beta * C - mean) + bias, and beta is 1.
* MatMul with constant right operand: its last axis if the product is a matrix, since BatchNormalization's channels
  are axis 1; for products of rank 4 and more, the operand's batch axis that lines up with axis 1. The constant
  becomes an Add, or goes into the Add that is already there.

Everything is computed in double precision and rounded once to the type of the weights. Weights that other nodes
use too are copied rather than changed. Unlike onnxscript's rule this covers MatMul, weights in use elsewhere, a
bias that is left out by an empty name, and weights in Constant nodes.

Specification: ONNX operators BatchNormalization, Conv, ConvTranspose, Gemm, MatMul. Algebra: Jacob et al.,
"Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018, 3.2.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt import graphs, inference
from graphopt.passbase import FACT_PREFIX, Result
from graphopt.passes.structural._informed import Facts, Informed, sizes

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16})
_FIRST_OPSET = 7
"""Below it, BatchNormalization and Gemm have other attributes, and ONNX Runtime does not run them."""
_LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_PARAMETERS = ("scale", "bias", "mean", "variance")


@dataclass(frozen=True)
class FoldBatchnorm(Informed):
    """Fold BatchNormalization into Conv, ConvTranspose, Gemm or MatMul."""

    def apply(self, model: ir.Model, facts: Facts) -> Result:
        """Fold in place; the report counts the normalizations that went."""
        taken, folded, skipped = facts.names, 0, []
        bodies = {function.graph for function in model.functions.values()}
        for graph in graphs.every(model):
            for node in [node for node in graph if graphs.is_op(node, "BatchNormalization")]:
                try:
                    if graph in bodies:
                        raise _Refused("it is inside a function, which cannot hold initializers")
                    plan = _plan(node, model.opset_imports.get("", 0), facts)
                except _Refused as reason:
                    skipped.append((graphs.label(node), str(reason)))
                else:
                    _carry_out(plan, graph, node, taken)
                    folded += 1
        return Result(model, bool(folded), {"rewritten": folded}, skipped)


class _Refused(Exception):
    """This BatchNormalization must stay; the message says why."""


@dataclass(frozen=True)
class _Plan:
    """What to change.

    Attributes:
        last: the node whose output becomes the normalized one, but for `addend`.
        changes: (node, index of an input, its new constant).
        addend: what remains to be added.
    """

    last: ir.Node
    changes: tuple[tuple[ir.Node, int, np.ndarray], ...]
    addend: np.ndarray | None = None


def _plan(node: ir.Node, opset: int, facts: Facts) -> _Plan:
    scale, shift, mean = _affine(node, opset)
    last = _only_source(node.inputs[0], node)
    addition, linear = (last, _added(last)) if graphs.is_op(last, "Add") else (None, last)
    if not graphs.is_op(linear, *_LINEAR) or len(linear.inputs) < 2:
        raise _Refused(f"it follows {linear.op_type}, not {', '.join(_LINEAR)}")
    if graphs.has_parameters(linear):
        raise _Refused(f"the caller of its function sets attributes of {linear.op_type} before it")
    weights = _weights(linear)
    dtype = weights.dtype
    rank = _rank(node, facts) if linear.op_type == "MatMul" else 2 if linear.op_type == "Gemm" else weights.ndim
    channels = (-1,) + (1,) * (rank - 2)
    changes = [(linear, 1, _rounded(_double(weights) * _spread(scale, linear, weights.shape, rank), dtype))]
    own = _own_constant(linear)
    if addition is not None:
        index = 1 if graphs.constant(addition.inputs[1]) is not None else 0
        addend = _double(_array(addition.inputs[index], "addend"))
        folded = scale.reshape(channels) * (addend - mean.reshape(channels)) + shift.reshape(channels)
        if addend.ndim > rank or folded.size > max(addend.size, scale.size):
            raise _Refused("it follows an Add of a constant that is not one number per channel")
        changes.append((addition, index, _rounded(folded, dtype)))
        if own is not None:
            changes.append((linear, 2, _rounded(scale * own, dtype)))
        return _Plan(addition, tuple(changes))
    if linear.op_type == "MatMul":
        addend = (shift - scale * mean).reshape(channels)
        return _Plan(linear, tuple(changes), _rounded(addend, dtype))
    if linear.op_type == "Gemm" and own is not None:
        own = own * linear.attributes.get_float("beta", 1.0)
    changes.append((linear, 2, _rounded(scale * ((0 if own is None else own) - mean) + shift, dtype)))
    return _Plan(linear, tuple(changes))


def _carry_out(plan: _Plan, graph: ir.Graph, node: ir.Node, taken: Counter[str]) -> None:
    """Change the constants of the nodes before a normalization, and let them compute what it did."""
    for change in plan.changes:
        graphs.set_constant(graph, *change, taken)
    if plan.last.op_type == "Gemm":
        plan.last.attributes.pop("beta", None)  # it is part of the new C
    old, result = node.outputs[0], plan.last.outputs[0]
    for key in [key for key in result.metadata_props if key.startswith(FACT_PREFIX)]:
        del result.metadata_props[key]  # facts about the numbers before normalization
    if plan.addend is not None:
        graphs.become(node, "Add", [result, graphs.initializer(graph, plan.addend, f"{result.name}_bias", taken)])
        return
    result.name, result.type, result.shape = old.name, old.type, old.shape
    result.metadata_props.update({key: fact for key, fact in old.metadata_props.items() if key.startswith(FACT_PREFIX)})
    old.replace_all_uses_with(result, replace_graph_outputs=True)
    parameters = [value for value in node.inputs[1:] if value is not None]
    graph.remove(node, safe=True)
    for value in parameters:
        graphs.discard(value)


def _affine(node: ir.Node, opset: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what the node computes per channel as (scale, shift, mean): scale * (x - mean) + shift."""
    if opset < _FIRST_OPSET:
        raise _Refused(f"opset {opset} is below {_FIRST_OPSET}")
    if graphs.has_parameters(node):
        raise _Refused("the caller of its function sets some of its attributes")
    if node.attributes.get_int("training_mode", 0) or any(value.name for value in node.outputs[1:]):
        raise _Refused("it runs in training mode")
    if not node.attributes.get_int("spatial", 1):
        raise _Refused("it has statistics per element (spatial=0), not per channel")
    if len(node.inputs) != 1 + len(_PARAMETERS):
        raise _Refused("it lacks inputs")
    gamma, beta, mean, variance = (_double(_array(node.inputs[i], name)) for i, name in enumerate(_PARAMETERS, 1))
    if any(parameter.shape != (gamma.size,) for parameter in (gamma, beta, mean, variance)):
        raise _Refused("its parameters are not one number per channel")
    with np.errstate(all="ignore"):  # what is not finite is refused once it is part of a constant
        scale = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    return scale, beta, mean


def _only_source(value: ir.Value | None, user: ir.Node) -> ir.Node:
    """Return the node that computes a value for `user` alone."""
    source = value.producer() if value is not None else None
    if value is None or source is None or source.graph is not user.graph:
        raise _Refused("nothing in its graph computes its input")
    if value.is_graph_output():
        raise _Refused(f"'{value.name}' before it is a graph output")
    others = [node for node in value.consumers() if node is not user]
    if others:
        raise _Refused(f"{graphs.label(others[0])} uses '{value.name}' before it")
    return source


def _added(addition: ir.Node) -> ir.Node:
    """Return the node to whose output an Add adds a constant."""
    terms = [value for value in addition.inputs if graphs.constant(value) is None]
    if len(terms) != 1:
        raise _Refused("it follows an Add of two values that vary")
    return _only_source(terms[0], addition)


def _weights(linear: ir.Node) -> np.ndarray:
    weights = _array(linear.inputs[1], "weight", f" of {linear.op_type} before it")
    if ir.DataType.from_numpy(weights.dtype) not in _FLOATS:
        raise _Refused(f"the weight of {linear.op_type} before it is {weights.dtype}")
    return weights


def _own_constant(linear: ir.Node) -> np.ndarray | None:
    """Return the bias of a convolution or the C of a Gemm."""
    if len(linear.inputs) < 3 or linear.inputs[2] is None:
        return None
    return _double(_array(linear.inputs[2], "bias", f" of {linear.op_type} before it"))


def _spread(scale: np.ndarray, linear: ir.Node, shape: tuple[int, ...], rank: int) -> np.ndarray:
    """Return the scale in a shape that multiplies the weights channel by channel."""
    if linear.op_type == "ConvTranspose":
        groups = linear.attributes.get_int("group", 1)
        if shape[1] * groups != scale.size or shape[0] % groups:
            raise _Refused(f"ConvTranspose before it has {shape[1] * groups} channels, not {scale.size}")
        per_input = np.repeat(scale.reshape(groups, -1), shape[0] // groups, axis=0)
        return per_input.reshape(*shape[:2], *(1,) * (len(shape) - 2))
    if linear.op_type == "Conv":
        axis = 0
    elif linear.op_type == "Gemm":
        axis = 0 if linear.attributes.get_int("transB", 0) else 1
    else:
        axis = len(shape) - (rank - 1)
        if len(shape) < 2 or rank == 3 or axis < 0:
            raise _Refused(f"the channels of the rank {rank} MatMul before it do not lie in its constant operand")
    if shape[axis] != scale.size:
        raise _Refused(f"{linear.op_type} before it has {shape[axis]} channels, not {scale.size}")
    return scale.reshape([-1 if i == axis else 1 for i in range(len(shape))])


def _rank(node: ir.Node, facts: Facts) -> int:
    value = node.inputs[0]
    assert value is not None
    dims = sizes(facts, value) or inference.dims(value.shape)
    if dims is None:
        raise _Refused("the rank of MatMul before it is unknown, so its channel axis is too; run infer-shapes first")
    return len(dims)


def _array(value: ir.Value | None, name: str, whose: str = "") -> np.ndarray:
    tensor = graphs.constant(value)
    if tensor is None:
        overridable = value is not None and value.is_initializer()
        raise _Refused(
            f"callers may override the {name}{whose}" if overridable else f"the {name}{whose} is not constant"
        )
    return tensor.numpy()


def _double(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64)


def _rounded(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):
        rounded = array.astype(dtype)
    if not np.isfinite(rounded).all():
        raise _Refused(f"a folded constant is too large for {dtype} or not a number")
    return rounded
