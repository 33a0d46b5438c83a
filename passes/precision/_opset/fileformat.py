"""The version of the file format that goes with an operator set, and what a model needs of it."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from graphopt import io

_TYPES = {
    ir.DataType.BFLOAT16: 4,
    ir.DataType.FLOAT8E4M3FN: 9,
    ir.DataType.FLOAT8E4M3FNUZ: 9,
    ir.DataType.FLOAT8E5M2: 9,
    ir.DataType.FLOAT8E5M2FNUZ: 9,
    ir.DataType.INT4: 10,
    ir.DataType.UINT4: 10,
    ir.DataType.FLOAT4E2M1: 11,
    ir.DataType.FLOAT8E8M0: 12,
    ir.DataType.INT2: 13,
    ir.DataType.UINT2: 13,
}
"""Element types by the format version that introduced them (onnx.proto, `Version`)."""


_UNLISTED = 4
"""Since this version an initializer that is listed as an input is a default, and one that is not a constant."""


def unlist_constants(model: ir.Model) -> int:
    """Take the initializers of a file of version 3 or below off the list of its inputs; return how many there were."""
    if (model.ir_version or 0) >= _UNLISTED:
        return 0
    inputs = model.graph.inputs
    constants = [value for value in inputs if value.name in model.graph.initializers]
    for value in constants:
        inputs.remove(value)
    return len(constants)


def ir_version(model: ir.Model, opset: int) -> int:
    """Return the format version that ONNX released with an operator set, or the lowest above it that a model needs."""
    released: dict[int, int] = {row[2]: row[1] for row in onnx.helper.VERSION_TABLE}
    return max([released[opset], *_needs(model)])


def _needs(model: ir.Model) -> list[int]:
    needs = [_TYPES.get(tensor.dtype, 0) for tensor in io.tensors(model)]
    inputs = {value.name for value in model.graph.inputs}
    if any(name not in inputs for name in model.graph.initializers) or any(
        part.initializers for part in model.graph.subgraphs()
    ):
        needs.append(_UNLISTED)
    values = [*model.graph.inputs, *(value for node in io.nodes(model) for value in node.outputs)]
    needs += [_TYPES.get(value.dtype, 0) for value in values if value.dtype is not None]
    if any(isinstance(value.type, ir.OptionalType) for value in values):
        needs.append(8)
    for function in model.functions.values():
        needs.append(10 if function.overload else 8)
        if any(default.value is not None for default in function.attributes.values()):
            needs.append(9)
    return needs
