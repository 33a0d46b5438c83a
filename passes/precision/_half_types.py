"""Write down the types of all values of a model."""

from __future__ import annotations

import onnx_ir as ir

from graphopt import graphs, inference, runtime, tapping
from graphopt.passes.precision import _half_operators as operators
from graphopt.passes.precision._half_plan import carried
from graphopt.runtime import Arrays
from graphopt.target import Target


def settle(model: ir.Model, feeds: Arrays, place: Target) -> None:
    """Declare the type of every value of a model without functions that has none.

    Types are inferred, else taken from what control flow passes on, else as declared; what remains (outputs of
    operators that ONNX does not know) is looked at in a run on `feeds`.

    Raises:
        ExecutionError: that run fails.
    """
    known = {value: found.type for value, found in inference.infer(model).items() if found.type is not None}
    values = [value for graph in graphs.every(model) for value in graphs.definitions(graph)]
    for value in values:
        tensor = graphs.constant(value)
        if tensor is not None:
            known[value] = ir.TensorType(tensor.dtype)
        elif value not in known and value.type is not None:
            known[value] = value.type
    for node in model.graph.all_nodes():
        for group in carried(node, operators.opset(model)):
            type_ = next((known[value] for value in group if value in known), None)
            for value in group:
                if type_ is not None and value not in known:
                    known[value] = type_
    unknown = [value for value in values if value not in known and value.producer() is not None]
    if unknown:
        tapped = tapping.tap(model, unknown)
        read = runtime.open_session(tapped.model, place).run(feeds)
        for value, name in zip(unknown, tapped.names, strict=True):
            if name in read:
                known[value] = ir.TensorType(ir.DataType.from_numpy(read[name].dtype))
    for value, type_ in known.items():
        if value.type is None or value.dtype != getattr(type_, "dtype", None):
            value.type = type_


def floats(model: ir.Model) -> frozenset[ir.Value]:
    """Return the float32 tensors of a model whose types are declared."""
    values = (value for graph in graphs.every(model) for value in graphs.definitions(graph))
    return frozenset(v for v in values if isinstance(v.type, ir.TensorType) and v.dtype == ir.DataType.FLOAT)
