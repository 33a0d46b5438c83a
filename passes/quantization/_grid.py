"""Integer types, and the grids of real numbers that their integers stand for."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

_SMALLEST_SCALE = 1e-12


@dataclasses.dataclass(frozen=True)
class Number:
    """A narrow type in which tensors are kept.

    Attributes:
        dtype: the type.
        low, high: smallest and largest number of it that is used.
        zero: what stands for 0 in weights, whose grids are symmetric.
        opset: the first version of ONNX in which QuantizeLinear and Cast know it.
    """

    dtype: ir.DataType
    low: int
    high: int
    zero: int
    opset: int

    @property
    def bits(self) -> int:
        """How many bits one element takes."""
        return int(self.dtype.bitwidth)

    @property
    def is_float(self) -> bool:
        """Whether it has an exponent."""
        return bool(self.dtype.is_floating_point())


NUMBERS = {
    "uint8": Number(ir.DataType.UINT8, 0, 255, 128, 13),
    "int8": Number(ir.DataType.INT8, -128, 127, 0, 13),
    "uint16": Number(ir.DataType.UINT16, 0, 65535, 32768, 21),
    "int16": Number(ir.DataType.INT16, -32768, 32767, 0, 21),
    "int4": Number(ir.DataType.INT4, -8, 7, 0, 21),
    "int2": Number(ir.DataType.INT2, -1, 1, 0, 25),
    "float8": Number(ir.DataType.FLOAT8E4M3FN, -448, 448, 0, 19),
}
"""By the names that people use. int2 keeps ternary and binary weights, which have no use for -2."""


@dataclasses.dataclass(frozen=True)
class Grid:
    """The real numbers that integers stand for: `(q - zero_point) * scale`.

    Attributes:
        scale: step between two neighbours, positive.
        zero_point: the integer that stands for 0.
        number: the type of the integers.
    """

    scale: float
    zero_point: int
    number: Number = NUMBERS["uint8"]

    def quantize(self, array: np.ndarray) -> np.ndarray:
        """Return the nearest integers (ties to even), saturated, of the same shape and of the grid's type."""
        steps = array.astype(np.float64) / self.scale + self.zero_point
        if not self.number.is_float:
            steps = np.rint(array.astype(np.float64) / self.scale) + self.zero_point
        saturated: np.ndarray = np.clip(steps, self.number.low, self.number.high).astype(self.number.dtype.numpy())
        return saturated

    def times(self, factor: float) -> Grid:
        """Return the grid on which the same integers stand for numbers `factor` times as large."""
        return Grid(float(np.float32(self.scale * factor)), self.zero_point, self.number)


def grid(lo: float, hi: float, number: Number = NUMBERS["uint8"], *, symmetric: bool = False) -> Grid:
    """Return the grid that covers `[lo, hi]` and holds zero exactly.

    Zero must be exact because padding and Relu produce it (Jacob et al. 2018, arXiv:1712.05877, section 2.1).

    Args:
        lo, hi: the range.
        number: the type of the integers; floating-point types are always symmetric.
        symmetric: put zero in the middle of the integers.
    """
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    if symmetric or number.is_float:
        scale = float(np.float32(max(max(-lo, hi) / (number.high - number.zero), _SMALLEST_SCALE)))
        return Grid(scale, number.zero, number)
    scale = float(np.float32(max((hi - lo) / (number.high - number.low), _SMALLEST_SCALE)))
    return Grid(scale, int(np.clip(np.rint(-lo / scale) + number.low, number.low, number.high)), number)
