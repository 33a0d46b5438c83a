"""Types, shapes and small integers that follow from the operators and the graph inputs alone, whatever the file declares.

onnx-shape-inference works out sizes as expressions of the inputs' axes ("2*batch"). Where it does not know an operator, or
might be misled (the body of a Loop may change the shape of what it carries), ONNX's own inference is asked instead.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import re
from collections.abc import Mapping, Set

import onnx
import onnx_ir as ir
import onnx_shape_inference

from graphopt import graphs, io

_SHOWN = 128
"""Initializers of at most this many elements are shown to inference, which may read shapes out of them."""


_FAILURES = (
    onnx.shape_inference.InferenceError,
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    IndexError,
)
"""What is raised for unsorted models, missing imports and malformed attributes."""
_LONG = 1 << 16
"""Vectors longer than this are no shapes."""
_ENDLESS = (2**31 - 1, 2**63 - 1)
"""What means "to the end" in a Slice, and is no size."""
_MEASURING = ("Shape", "Size")
"""Operators that turn sizes into elements, of which ONNX's inference does not tell."""
_LOOPS = ("Loop", "Scan", "SequenceMap")
"""Operators whose bodies onnx-shape-inference takes to run once."""
_GROWING = ("Concat", "ConstantOfShape", "Expand", "Range", "Tile")
"""Operators that onnx-shape-inference writes out element by element."""

_BROADCASTING = (
    "Add", "And", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Expand", "Greater", "GreaterOrEqual",
    "Less", "LessOrEqual", "MatMul", "Max", "Mean", "Min", "Mod", "Mul", "Or", "Pow", "PRelu", "Sub", "Sum", "Where",
    "Xor",
)  # fmt: skip

Dim = int | str | None
"""A size: a number, an expression of axes of graph inputs or of unknown sizes, or nothing known."""


@dataclasses.dataclass(frozen=True)
class Known:
    """What inference proves about a value.

    Attributes:
        type: its type, or None.
        shape: sizes, or names of dynamic axes of graph inputs, or unknown (nameless) axes; None without rank. Fit to
            be written into a file.
        sizes: the same with expressions; two that are the same text are the same number in every run.
        elements: of a vector or scalar of integers, likewise.
    """

    type: ir.TypeProtocol | None
    shape: ir.Shape | None
    sizes: tuple[Dim, ...] | None = None
    elements: tuple[Dim, ...] | None = None

    def dims(self) -> tuple[Dim, ...] | None:
        """Return the shape as plain values, with expressions where they are known."""
        return self.sizes if self.sizes is not None else dims(self.shape)

    def is_complete(self) -> bool:
        """Tell whether type and all sizes are known."""
        return self.type is not None and self.sizes is not None and None not in self.sizes

    def contradicts(self, declared: ir.Shape | None) -> bool:
        """Tell whether a declared shape cannot be true, or only for one size of a dynamic axis."""
        proven, told = dims(self.shape), dims(declared)
        if proven is None or told is None:
            return False
        if len(proven) != len(told):
            return True
        return any(p is not None and isinstance(t, int) and p != t for p, t in zip(proven, told, strict=True))

    def refines(self, declared: ir.Shape | None) -> ir.Shape | None:
        """Return the declared shape with every axis that is proven put in its place."""
        if self.shape is None:
            return declared
        if declared is None or len(declared) != len(self.shape):
            return ir.Shape(self.shape)
        pairs = zip(dims(self.shape) or (), self.shape, declared, strict=True)
        return ir.Shape([told if plain is None else proven for plain, proven, told in pairs])


def dims(shape: ir.Shape | None) -> tuple[Dim, ...] | None:
    """Return a shape as plain values: sizes, names of dynamic axes, None for nameless ones."""
    return None if shape is None else tuple(_number(d if isinstance(d, int) else d.value) for d in shape)


def _number(dim: Dim) -> Dim:
    """Return an expression that is a number as one."""
    return int(dim) if isinstance(dim, str) and dim.removeprefix("-").isdecimal() else dim


def infer(model: ir.Model) -> dict[ir.Value, Known]:
    """Return what is certain about graph inputs and initializers, and what inference proves from it.

    Inference runs on a copy without weights and without the declarations of inner values, which may be stale (a traced
    batch size). Functions' bodies are generic, hence absent. When inference fails as a whole, inputs and initializers
    are all that is known.
    """
    known = {value: Known(value.type, value.shape) for value in model.graph.inputs}
    for graph in graphs.every(model):
        for value in graph.initializers.values():
            if value.const_value is not None and not value.is_graph_input():
                tensor = value.const_value
                known[value] = Known(ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy()))
    names = {dim for value in model.graph.inputs for dim in dims(value.shape) or () if isinstance(dim, str)}
    try:
        blank = _without_weights_and_declarations(model)
    except RuntimeError:  # nodes out of order cannot be copied
        return known
    mistrusted = set(model.graph.subgraphs())
    needs_elements = any(graphs.is_op(node, *_MEASURING) for node in model.graph.all_nodes())
    fixed = all(isinstance(dim, int) for value in model.graph.inputs for dim in dims(value.shape) or (None,))
    plain = _plain(model, blank, names) if fixed or mistrusted or not needs_elements else {}
    if (fixed or not needs_elements) and plain and all(proof.is_complete() for proof in plain.values()):
        return known | plain
    _forget_declarations(blank)
    symbolic = {} if _may_make_long_vectors(blank) else _symbolic(model, blank, names)
    if not plain and not (symbolic and all(proof.is_complete() for proof in symbolic.values())):
        _forget_declarations(blank)
        plain = _plain(model, blank, names)
    for node in model.graph.all_nodes():
        for value in node.outputs:
            first, second = symbolic.get(value), plain.get(value)
            if node.graph in mistrusted and second is not None:
                known[value] = second
            elif first is None or second is None:
                known[value] = first or second or Known(None, None)
            else:
                known[value] = _merged(first, second)
    return known


def _symbolic(model: ir.Model, blank: ir.Model, names: set[str]) -> dict[ir.Value, Known]:
    """Return what onnx-shape-inference proves; it writes its proofs into `blank`."""
    log = logging.getLogger("onnx_shape_inference")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        onnx_shape_inference.infer_symbolic_shapes(
            blank, policy="override", warn_on_missing=False, adopt_declared_symbols=False
        )
    except _FAILURES:
        return {}
    finally:
        log.setLevel(level)
    found = {}
    for node, twin in zip(model.graph.all_nodes(), blank.graph.all_nodes(), strict=True):
        for value, known in zip(node.outputs, twin.outputs, strict=True):
            data = known.metadata_props.get(onnx_shape_inference.SYM_DATA_KEY)
            found[value] = Known(
                known.type if known.dtype is not None else None,
                _proven(known.shape, names),
                dims(known.shape),
                None if data is None else tuple(map(_number, json.loads(data))),
            )
    found = _renamed(found, _rests(model, found))
    found |= _doubtful(model, found)
    return found | _after_loops(model, found)


def _after_loops(model: ir.Model, found: Mapping[ir.Value, Known]) -> dict[ir.Value, Known]:
    """Return types and ranks alone of what depends on a loop, whose body may change the sizes of what it carries."""
    reached: dict[ir.Value, Known] = {}
    for node in model.graph.all_nodes():
        if graphs.is_op(node, *_LOOPS) or any(value in reached for value in node.inputs if value is not None):
            for value in node.outputs:
                known = found.get(value, Known(None, None))
                shape = None if known.sizes is None else ir.Shape([None] * len(known.sizes))
                reached[value] = Known(known.type, shape, dims(shape))
    return reached


def _rests(model: ir.Model, found: Mapping[ir.Value, Known]) -> dict[str, str]:
    """Return sizes that onnx-shape-inference makes up names for, though they are known: x[past:] of `past + new` is `new`.

    Decoders cut the places of new tokens out of those of all tokens.
    """
    equal: dict[str, str] = {}
    for node in model.graph.all_nodes():
        if not graphs.is_op(node, "Slice") or len(node.inputs) < 4 or node.outputs[0] not in found:
            continue
        source, start = (found.get(value) if value is not None else None for value in node.inputs[:2])
        last, axis = (graphs.array(value, 1) for value in node.inputs[2:4])
        step = graphs.array(node.inputs[4], 1) if len(node.inputs) > 4 and node.inputs[4] is not None else None
        sizes, made = source.sizes if source is not None else None, found[node.outputs[0]].sizes
        first = start.elements if start is not None else None
        if sizes is None or made is None or first is None or last is None or axis is None or len(first) != 1:
            continue
        if last.size != 1 or axis.size != 1 or int(last.ravel()[0]) < min(_ENDLESS):
            continue
        if len(node.inputs) > 4 and node.inputs[4] is not None and (step is None or step.ravel().tolist() != [1]):
            continue
        whole, rest = sizes[int(axis.ravel()[0])], made[int(axis.ravel()[0])]
        terms = whole.split(" + ") if isinstance(whole, str) else []
        if first[0] in terms and len(terms) == 2 and all(map(str.isidentifier, terms)) and isinstance(rest, str):
            terms.remove(str(first[0]))
            equal[rest] = terms[0]
    return {rest: size for rest, size in equal.items() if rest.isidentifier()}


def _renamed(found: Mapping[ir.Value, Known], equal: Mapping[str, str]) -> dict[ir.Value, Known]:
    """Return proofs with the names of sizes replaced by those of sizes that are equal to them."""
    if not equal:
        return dict(found)
    word = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in equal))

    def renamed(size: Dim) -> Dim:
        return word.sub(lambda match: equal[match.group()], size) if isinstance(size, str) else size

    return {
        value: dataclasses.replace(
            known,
            sizes=None if known.sizes is None else tuple(map(renamed, known.sizes)),
            elements=None if known.elements is None else tuple(map(renamed, known.elements)),
        )
        for value, known in found.items()
    }


def _doubtful(model: ir.Model, found: Mapping[ir.Value, Known]) -> dict[ir.Value, Known]:
    """Return what is left of proofs that rest on two sizes being equal because an operator broadcasts them.

    onnx-shape-inference takes Add of [K] and [N] to be [K]. It is [N] where K is 1.
    """
    shapes = {value: dims(value.shape) for value in model.graph.inputs} | {v: known.sizes for v, known in found.items()}
    doubts: dict[ir.Value, frozenset[str]] = {}
    for node in model.graph.all_nodes():
        names = frozenset().union(*(doubts.get(value, frozenset()) for value in node.inputs if value is not None))
        names |= _broadcast_names(node, shapes, found)
        if names:
            doubts.update(dict.fromkeys(node.outputs, names))
    return {value: _without(found[value], names) for value, names in doubts.items() if value in found}


def _broadcast_names(
    node: ir.Node, shapes: Mapping[ir.Value, tuple[Dim, ...] | None], found: Mapping[ir.Value, Known]
) -> frozenset[str]:
    """Return the different sizes that a node broadcasts together."""
    if not graphs.is_op(node, *_BROADCASTING):
        return frozenset()
    operands = [shapes.get(value) or () for value in node.inputs if value is not None]
    if node.op_type == "MatMul":
        operands = [shape[:-2] for shape in operands]
    elif node.op_type == "Expand":
        known = found.get(node.inputs[1]) if node.inputs[1] is not None else None
        operands[1] = (known.elements if known else None) or ()
    names: set[str] = set()
    for sizes in itertools.zip_longest(*(reversed(shape) for shape in operands), fillvalue=1):
        different = {size for size in sizes if isinstance(size, str)}
        different -= {size for size in different if _is_bounded(size, different)}
        if len(different) > 1 and all(size == 1 or isinstance(size, str) for size in sizes):
            names |= different
    return frozenset(names)


def _is_bounded(size: str, others: Set[str]) -> bool:
    """Tell whether a size is Min(512, N) beside N: where both are broadcast together, N is at most 512, or the model fails."""
    match = re.fullmatch(r"Min\((\d+), (\w+)\)", size)
    return match is not None and int(match[1]) > 1 and match[2] in others


def _without(known: Known, names: frozenset[str]) -> Known:
    """Return a proof without the sizes in which one of these names occurs."""

    def certain(size: Dim) -> Dim:
        return None if isinstance(size, str) and any(name in size for name in names) else size

    sizes = None if known.sizes is None else tuple(map(certain, known.sizes))
    elements = None if known.elements is None else tuple(map(certain, known.elements))
    shape = None if known.shape is None else ir.Shape(map(certain, dims(known.shape) or ()))
    return Known(known.type, shape, sizes, elements)


def _plain(model: ir.Model, blank: ir.Model, names: set[str]) -> dict[ir.Value, Known]:
    """Return what ONNX's own inference proves, with data propagation; the names that it invents are dropped."""
    try:
        proto = ir.to_proto(blank)
        may_be_dear = _may_make_long_vectors(blank)
        inferred = ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=not may_be_dear))
        if may_be_dear and not _has_long_vector(inferred):
            inferred = ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))
    except _FAILURES:
        return {}
    found = {}
    for node, twin in zip(model.graph.all_nodes(), inferred.graph.all_nodes(), strict=True):
        for value, known in zip(node.outputs, twin.outputs, strict=False):  # omitted trailing outputs are not written
            untyped = known.dtype in (None, ir.DataType.UNDEFINED)
            shape = _proven(known.shape, names)
            found[value] = Known(None if untyped else known.type, shape, dims(shape), _measured(node, twin))
    return found


def _measured(node: ir.Node, twin: ir.Node) -> tuple[Dim, ...] | None:
    """Return what a Shape computes."""
    shape = dims(twin.inputs[0].shape) if graphs.is_op(node, "Shape") and twin.inputs[0] is not None else None
    if shape is None or graphs.has_parameters(node) or any(not isinstance(size, int) for size in shape):
        return None
    return shape[node.attributes.get_int("start", 0) : node.attributes.get_int("end", len(shape))]


def _merged(first: Known, second: Known) -> Known:
    """Join two proofs; where sizes contradict each other, nothing is known."""
    type_ = first.type or second.type
    one, two = first.dims(), second.dims()
    if one is None or two is None or len(one) != len(two):
        return Known(
            type_, second.shape if one is None else first.shape if two is None else None, one if two is None else two
        )
    sizes = [b if isinstance(b, int) or a is None else a for a, b in zip(one, two, strict=True)]
    shape = [
        b if isinstance(b, int) or a is None else a
        for a, b in zip(dims(first.shape) or one, dims(second.shape) or two, strict=True)
    ]
    return Known(type_, ir.Shape(shape), tuple(sizes), first.elements)


def _without_weights_and_declarations(model: ir.Model) -> ir.Model:
    blank = model.clone()
    _forget_declarations(blank)
    for graph in blank.graphs():
        for value in list(graph.initializers.values()):
            if value.is_graph_input():
                del graph.initializers[value.name or ""]  # inference would take a default for a constant
                value.const_value = None
            elif value.const_value is not None:
                value.const_value = _outline(value.const_value)
                value.type = ir.TensorType(value.const_value.dtype)
                value.shape = ir.Shape(value.const_value.shape.numpy())
        for node in graph:
            tensor = graphs.attribute(node, "value") if graphs.is_op(node, "Constant") else None
            if tensor is not None and tensor.type == ir.AttributeType.TENSOR:
                node.attributes.add(ir.AttrTensor("value", _outline(tensor.as_tensor())))
    return blank


def _forget_declarations(model: ir.Model) -> None:
    for graph in model.graphs():
        for node in graph:
            for value in node.outputs:
                value.type = value.shape = value.const_value = None
                value.metadata_props.clear()
        if graph is not model.graph:
            for value in graph.inputs:
                value.shape = None


def _outline(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Return a small tensor as it is, and in place of a large one a reference to data that nobody will follow."""
    if tensor.size <= _SHOWN:
        return tensor
    return ir.ExternalTensor("", 0, 0, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name or "")


def _may_make_long_vectors(model: ir.Model) -> bool:
    """Tell whether onnx-shape-inference, which lists every element of a vector of integers, might list very many."""
    if not any(graphs.is_op(node, *_GROWING) for node in model.graph.all_nodes()):
        return False
    shapes = [dims(value.shape) or () for value in model.graph.inputs]
    shapes += [tuple(tensor.shape.numpy()) for tensor in io.tensors(model)]
    sizes = [shape[0] for shape in shapes if len(shape) == 1 and isinstance(shape[0], int)]
    for tensor in io.tensors(model):
        if tensor.dtype in (ir.DataType.INT64, ir.DataType.INT32) and tensor.size <= _SHOWN:
            sizes += tensor.numpy().ravel().tolist()
    return any(size > _LONG and size not in _ENDLESS for size in sizes)


def _has_long_vector(model: ir.Model) -> bool:
    """Tell whether data propagation would be dear: it makes a record of every element of every vector."""
    values = [*model.graph.inputs, *(value for node in model.graph.all_nodes() for value in node.outputs)]
    shapes = (dims(value.shape) for value in values)
    return any(len(shape) == 1 and isinstance(shape[0], int) and shape[0] > _LONG for shape in shapes if shape)


def _proven(shape: ir.Shape | None, names: set[str]) -> ir.Shape | None:
    if shape is None or all(isinstance(d, int) or d.value in names for d in shape):
        return shape
    return ir.Shape([d if isinstance(d, int) or d.value in names else None for d in shape])
