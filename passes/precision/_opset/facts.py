"""Types and shapes of values while a model changes: what inference proves, what is declared, what new nodes make."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from graphopt import graphs, inference

_FAILURES = (
    RuntimeError,
    ValueError,
    KeyError,
    onnx.checker.ValidationError,
    onnx.defs.SchemaError,
    onnx.shape_inference.InferenceError,
)
"""What ONNX raises for a node whose inputs it knows too little of."""


class Facts:
    """What is known about the values of a model, and of the nodes that join it."""

    def __init__(self, model: ir.Model, to: int) -> None:
        """Learn about a model that is on its way to version `to` of the operator set."""
        self._to = to
        self._known = inference.infer(model)
        self._new: set[ir.Node] = set()

    def joined(self, node: ir.Node) -> None:
        """Note a node that joined the model; what it makes is inferred when somebody asks."""
        self._new.add(node)

    def replaced(self, old: ir.Value, new: ir.Value) -> None:
        """Note that `new` holds what `old` held."""
        if old in self._known:
            self._known[new] = self._known[old]

    def type(self, value: ir.Value) -> ir.TypeProtocol | None:
        """Return the type of a value; None if unknown."""
        known = self._of(value)
        return (known and known.type) or value.type

    def dtype(self, value: ir.Value) -> ir.DataType | None:
        """Return the element type of a tensor; None if unknown."""
        found = self.type(value)
        return found.dtype if isinstance(found, ir.TensorType) and found.dtype != ir.DataType.UNDEFINED else None

    def dims(self, value: ir.Value) -> tuple[int | str | None, ...] | None:
        """Return the sizes that are certain; None without rank. Declarations of inner values may be stale: only
        their rank counts.
        """
        known = self._of(value)
        if known is not None and known.shape is not None:
            return known.dims()
        return None if value.shape is None else (None,) * len(value.shape)

    def rank(self, value: ir.Value) -> int | None:
        """Return the number of axes of a tensor; None if unknown."""
        dims = self.dims(value)
        return None if dims is None else len(dims)

    def _of(self, value: ir.Value) -> inference.Known | None:
        tensor = graphs.constant(value)
        if tensor is not None:
            return inference.Known(ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy()))
        node = value.producer()
        if value not in self._known and node is not None and node in self._new:
            self._infer(node)
        return self._known.get(value)

    def _infer(self, node: ir.Node) -> None:
        """Let ONNX infer what one node makes from what is known about its inputs."""
        proto, inputs, data = onnx.NodeProto(op_type=node.op_type), {}, {}
        for index, value in enumerate(node.inputs):
            proto.input.append("" if value is None else f"i{index}")
            if value is None:
                continue
            inputs[f"i{index}"] = type_proto(self.type(value), self.dims(value))
            array = graphs.array(value, limit=128)
            if array is not None:
                data[f"i{index}"] = onnx.numpy_helper.from_array(array)
        proto.output.extend(f"o{index}" for index in range(len(node.outputs)))
        unknown = inference.Known(None, None)
        self._known.update(dict.fromkeys(node.outputs, unknown))
        if any(
            a.is_ref() or a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()
        ):
            return
        proto.attribute.extend(ir.to_proto(found) for found in node.attributes.values())
        try:
            schema = onnx.defs.get_schema(node.op_type, node.version or self._to, "")
            made = onnx.shape_inference.infer_node_outputs(schema, proto, inputs, data)
        except _FAILURES:
            return
        for index, value in enumerate(node.outputs):
            if f"o{index}" in made:
                found = ir.serde.deserialize_type_proto_for_type(made[f"o{index}"])
                shape = ir.serde.deserialize_type_proto_for_shape(made[f"o{index}"])
                self._known[value] = inference.Known(found, shape)


def type_proto(type_: ir.TypeProtocol | None, dims: tuple[int | str | None, ...] | None) -> onnx.TypeProto:
    """Return a type, with the shape of a tensor, as ONNX stores it; an empty one if it is not known."""
    if type_ is None:
        return onnx.TypeProto()
    value = ir.Value(name="value", type=type_, shape=None if dims is None else ir.Shape(dims))
    proto: onnx.TypeProto = ir.to_proto(value).type
    return proto
