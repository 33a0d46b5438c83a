"""QuantizeLinear and DequantizeLinear: per axis since opset 13, in blocks since 21."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.passes.precision._opset.site import Refusal, Site
from graphopt.passes.precision._opset.table import down

_BOTH = ("QuantizeLinear", "DequantizeLinear")


@down(13, *_BOTH)
def _whole_tensors(site: Site) -> None:
    dims = site.facts.dims(site.given(1))
    if dims is None:
        raise Refusal("the rank of its scale is unknown; run infer-shapes first")
    if dims not in ((), (1,)):
        raise Refusal("it is quantized per axis, which opset 12 does not know")
    site.node.attributes.pop("axis", None)


@down(21, *_BOTH)
def _without_blocks(site: Site) -> None:
    if site.get("block_size", 0):
        raise Refusal("it is quantized in blocks, which opset 20 does not know")
    wanted = site.get("output_dtype", 0)
    if wanted and site.node.op_type == "QuantizeLinear" and site.input(2) is None:
        dims = site.facts.dims(site.given(1))
        if dims is None or not all(isinstance(size, int) for size in dims):
            raise Refusal("the shape of its scale is unknown; run infer-shapes first")
        shape = [size for size in dims if isinstance(size, int)]
        site.put(2, np.zeros(shape, ir.DataType(wanted).numpy()), "zero_point")
    site.node.attributes.pop("output_dtype", None)


@down(23, "DequantizeLinear")
def _type_of_scale(site: Site) -> None:
    wanted = site.get("output_dtype", 0)
    if wanted and wanted != site.dtype(site.given(1)):
        raise Refusal("it makes another type than its scale's (output_dtype), which opset 22 does not")
    site.node.attributes.pop("output_dtype", None)
