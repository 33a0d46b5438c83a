"""Types and shapes that follow from the operators and the graph inputs alone, whatever the file declares."""

from __future__ import annotations

import dataclasses

import onnx
import onnx_ir as ir

from graphopt import graphs

_SHOWN = 128
"""Initializers of at most this many elements are shown to inference, which may read shapes out of them."""


_FAILURES = (onnx.shape_inference.InferenceError, RuntimeError, ValueError, TypeError, KeyError)
"""What is raised for unsorted models, missing imports and malformed attributes."""
_LONG = 1 << 16
"""Vectors longer than this are no shapes."""


@dataclasses.dataclass(frozen=True)
class Known:
    """What inference proves about a value.

    Attributes:
        type: its type, or None.
        shape: sizes, or names of dynamic axes of graph inputs, or unknown (nameless) axes; None without rank.
    """

    type: ir.TypeProtocol | None
    shape: ir.Shape | None

    def dims(self) -> tuple[int | str | None, ...] | None:
        """Return the shape as plain values."""
        return dims(self.shape)

    def contradicts(self, declared: ir.Shape | None) -> bool:
        """Tell whether a declared shape cannot be true, or only for one size of a dynamic axis."""
        proven, told = self.dims(), dims(declared)
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
        pairs = zip(self.dims() or (), self.shape, declared, strict=True)
        return ir.Shape([told if plain is None else proven for plain, proven, told in pairs])


def dims(shape: ir.Shape | None) -> tuple[int | str | None, ...] | None:
    """Return a shape as plain values: sizes, names of dynamic axes, None for nameless ones."""
    return None if shape is None else tuple(d if isinstance(d, int) else d.value for d in shape)


def infer(model: ir.Model) -> dict[ir.Value, Known]:
    """Return what is certain about graph inputs and initializers, and what ONNX shape inference proves from it.

    Inference, with data propagation, runs on a copy without weights and without the declarations of inner
    values, which may be stale (a traced batch size). The names that it invents for unknown axes are dropped,
    because they could collide with names in the file. Functions' bodies are generic, hence absent. When
    inference fails as a whole, inputs and initializers are all that is known.
    """
    known = {value: Known(value.type, value.shape) for value in model.graph.inputs}
    for graph in graphs.every(model):
        for value in graph.initializers.values():
            if value.const_value is not None and not value.is_graph_input():
                tensor = value.const_value
                known[value] = Known(ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy()))
    names = {dim for value in model.graph.inputs for dim in dims(value.shape) or () if isinstance(dim, str)}
    try:
        proto = ir.to_proto(_without_weights_and_declarations(model))
        inferred = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
        if not _has_long_vector(inferred):
            inferred = ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))
    except _FAILURES:
        return known
    for node, twin in zip(model.graph.all_nodes(), inferred.graph.all_nodes(), strict=True):
        for value, found in zip(node.outputs, twin.outputs, strict=False):  # omitted trailing outputs are not written
            untyped = found.dtype in (None, ir.DataType.UNDEFINED)
            known[value] = Known(None if untyped else found.type, _proven(found.shape, names))
    return known


def _without_weights_and_declarations(model: ir.Model) -> ir.Model:
    blank = model.clone()
    for graph in blank.graphs():
        for value in list(graph.initializers.values()):
            if value.is_graph_input():
                del graph.initializers[value.name or ""]  # inference would take a default for a constant
            elif value.const_value is not None:
                value.const_value = _outline(value.const_value)
                value.type = value.shape = None  # the tensor has its own
        for node in graph:
            tensor = graphs.attribute(node, "value") if graphs.is_op(node, "Constant") else None
            if tensor is not None and tensor.type == ir.AttributeType.TENSOR:
                node.attributes.add(ir.AttrTensor("value", _outline(tensor.as_tensor())))
            for value in node.outputs:
                value.type = value.shape = None
        if graph is not blank.graph:
            for value in graph.inputs:
                value.shape = None
    return blank


def _outline(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Return a small tensor as it is, and in place of a large one a reference to data that nobody will follow."""
    if tensor.size <= _SHOWN:
        return tensor
    return ir.ExternalTensor("", 0, 0, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name or "")


def _has_long_vector(model: ir.Model) -> bool:
    """Tell whether data propagation would be dear: it makes a record of every element of every vector."""
    values = [*model.graph.inputs, *(value for node in model.graph.all_nodes() for value in node.outputs)]
    shapes = (dims(value.shape) for value in values)
    return any(len(shape) == 1 and isinstance(shape[0], int) and shape[0] > _LONG for shape in shapes if shape)


def _proven(shape: ir.Shape | None, names: set[str]) -> ir.Shape | None:
    if shape is None:
        return None
    return ir.Shape([d if isinstance(d, int) or d.value in names else None for d in shape])
