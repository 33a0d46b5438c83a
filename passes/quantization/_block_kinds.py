"""What weights in blocks are kept in."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from graphopt.passes.quantization._weights import number


@dataclasses.dataclass(frozen=True)
class Kind:
    """How weights are kept.

    Attributes:
        name: what people call it.
        dtype: the type that keeps it.
        opset: the first version of ONNX in which DequantizeLinear knows the type.
        low, high: smallest and largest number.
        symmetric: whether zero stands for 0, or each block has a zero point.
        uniform: whether the numbers are all integers from `low` to `high`, with scales that `_block_scales` fits.
    """

    name: str
    dtype: ir.DataType
    opset: int
    low: int
    high: int
    symmetric: bool = True
    uniform: bool = True

    @property
    def bits(self) -> int:
        """How many bits one number takes."""
        return int(self.dtype.bitwidth)

    @property
    def memory(self) -> np.dtype:
        """The type of arrays of these numbers; those of less than 8 bits take a byte."""
        if self.dtype.is_floating_point():
            return self.dtype.numpy()
        return np.dtype(np.int8 if self.symmetric else np.uint8)


def _coarse(name: str) -> Kind:
    """Return a kind that has its scales from `_weights`."""
    type_ = number(name)
    return Kind(name, type_.dtype, type_.opset, type_.low, type_.high, uniform=False)


KINDS = {
    "int4": Kind("int4", ir.DataType.INT4, 21, -8, 7),
    "uint4": Kind("uint4", ir.DataType.UINT4, 21, 0, 15, symmetric=False),
    "int8": Kind("int8", ir.DataType.INT8, 13, -128, 127),
    "uint8": Kind("uint8", ir.DataType.UINT8, 13, 0, 255, symmetric=False),
    "ternary": _coarse("ternary"),
    "binary": _coarse("binary"),
    "float8": _coarse("float8"),
}
"""By the names that people use."""
