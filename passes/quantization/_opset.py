"""Raise a model's opset to what integer graphs need.

DequantizeLinear knows scales per channel since opset 13, and operators that move elements accept uint8 there.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from graphopt import io
from graphopt.passbase import PreconditionError

VERSION = 13
_IR_VERSION = 7


def raise_opset(model: ir.Model) -> bool:
    """Convert a model below opset 13 to opset 13; return whether anything changed.

    Raises:
        PreconditionError: ONNX's version converter cannot do it.
    """
    version = model.opset_imports.get("", VERSION)
    if version >= VERSION:
        return False
    fix = f"export the model again, at opset {VERSION} or later"
    if io.total_bytes(model) > io.PROTOBUF_LIMIT:
        raise PreconditionError(f"opset {version} is too old, and the model too large to convert; {fix}")
    from onnx import version_converter

    proto = io.to_proto(model)
    proto.ir_version = max(proto.ir_version, _IR_VERSION)  # which lets initializers be no inputs
    try:
        converted = ir.from_proto(version_converter.convert_version(proto, VERSION))
    except Exception as error:  # the converter raises RuntimeError, ValueError, ConvertError, and more
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PreconditionError(f"opset {version} is too old, and its conversion failed ({reason}); {fix}") from error
    if version < 11:
        _keep_resize(converted.graph)
    common.ShapeInferencePass(check_type=False, strict_mode=False)(converted)
    model.graph = converted.graph
    model.ir_version = converted.ir_version
    return True


def _keep_resize(graph: ir.Graph) -> None:
    """Give Resize the coordinates it had as Upsample, or before opset 11.

    onnx 1.23's converter leaves out the attributes, whose defaults are those of opset 11.
    """
    for node in graph.all_nodes():
        if node.op_type == "Resize" and node.domain == "":
            node.attributes.setdefault(
                "coordinate_transformation_mode",
                ir.Attr("coordinate_transformation_mode", ir.AttributeType.STRING, "asymmetric"),
            )
            node.attributes.setdefault("nearest_mode", ir.Attr("nearest_mode", ir.AttributeType.STRING, "floor"))
