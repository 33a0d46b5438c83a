"""Arrays and tensors: ONNX element types as torch has them, in both directions.

torch has element types of fewer than eight bits in name only. Here such a tensor holds one number (or float code) per
byte, as `tensor.view(torch.int4)` of an int8 tensor: the type travels with it, and `plain` makes it computable. Text
stays a NumPy array of objects. A sequence is a list, and an absent optional is None.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from graphopt.runtime import ExecutionError

TYPES: dict[ir.DataType, torch.dtype] = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.COMPLEX64: torch.complex64,
    ir.DataType.COMPLEX128: torch.complex128,
    ir.DataType.BOOL: torch.bool,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.UINT16: torch.uint16,
    ir.DataType.UINT32: torch.uint32,
    ir.DataType.UINT64: torch.uint64,
    ir.DataType.INT4: torch.int4,
    ir.DataType.UINT4: torch.uint4,
    ir.DataType.INT2: torch.int2,
    ir.DataType.UINT2: torch.uint2,
    ir.DataType.FLOAT4E2M1: torch.float4_e2m1fn_x2,
    ir.DataType.FLOAT8E4M3FN: torch.float8_e4m3fn,
    ir.DataType.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    ir.DataType.FLOAT8E5M2: torch.float8_e5m2,
    ir.DataType.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
    ir.DataType.FLOAT8E8M0: torch.float8_e8m0fnu,
}
"""Element types that the runtime knows; text apart."""

NAMES = {dtype: type_ for type_, dtype in TYPES.items()}

_HOLDERS = {torch.int4: torch.int8, torch.int2: torch.int8, torch.uint4: torch.uint8, torch.uint2: torch.uint8}
"""Integers of fewer than eight bits, and the type in which a tensor of them is computed with."""

_CODES = {
    torch.bfloat16: ml_dtypes.bfloat16,
    torch.float4_e2m1fn_x2: ml_dtypes.float4_e2m1fn,
    torch.float8_e4m3fn: ml_dtypes.float8_e4m3fn,
    torch.float8_e4m3fnuz: ml_dtypes.float8_e4m3fnuz,
    torch.float8_e5m2: ml_dtypes.float8_e5m2,
    torch.float8_e5m2fnuz: ml_dtypes.float8_e5m2fnuz,
    torch.float8_e8m0fnu: ml_dtypes.float8_e8m0fnu,
}
"""Floats that NumPy lacks, with the type of ml_dtypes that has the same bits."""

_BITS = {1: (np.uint8, torch.uint8), 2: (np.int16, torch.int16)}


def limits(dtype: torch.dtype) -> tuple[int, int]:
    """Return the smallest and largest number of an integer type."""
    bits = NAMES[dtype].bitwidth
    signed = NAMES[dtype].is_signed()
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)


def plain(tensor: Tensor) -> Tensor:
    """Return integers of fewer than eight bits as a tensor that torch computes with, and any other tensor as it is."""
    holder = _HOLDERS.get(tensor.dtype)
    return tensor if holder is None else tensor.view(holder)


def tagged(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return whole numbers as integers of a type; they must lie within its limits."""
    return tensor.to(_HOLDERS.get(dtype, dtype)).view(dtype)


def from_numpy(array: np.ndarray) -> Any:
    """Return a tensor that holds a copy of an array; text stays as it is."""
    if array.dtype.kind in "OUST":
        return array.astype(object)
    array = np.array(array, order="C")  # a copy: what an array lies in may be read-only
    for dtype, code in _CODES.items():
        if array.dtype == code:
            integer, holder = _BITS[array.dtype.itemsize]
            return torch.from_numpy(array.view(integer)).view(holder).view(dtype)
    for dtype, holder in _HOLDERS.items():
        if array.dtype == NAMES[dtype].numpy():
            return torch.from_numpy(array.astype(NAMES[holder].numpy())).view(dtype)
    return torch.from_numpy(array)


def to_numpy(value: Any) -> Any:
    """Return what a value holds as arrays."""
    if isinstance(value, list):
        return [to_numpy(item) for item in value]
    if not isinstance(value, Tensor):
        return value
    tensor = value.detach().cpu().contiguous() if value.dtype not in _HOLDERS else plain(value).cpu().contiguous()
    if value.dtype in _HOLDERS:
        return tensor.numpy().astype(NAMES[value.dtype].numpy())
    if value.dtype in _CODES:
        integer, holder = _BITS[tensor.element_size()]
        return tensor.view(holder).numpy().view(integer).view(_CODES[value.dtype])
    return tensor.numpy()


def constant(value: ir.Value) -> Any:
    """Return what an initializer holds.

    Raises:
        ExecutionError: it has no content, or of an element type that torch has not.
    """
    if value.const_value is None:
        raise ExecutionError(f"torch: initializer '{value.name}' has no content")
    return tensor_of(value.const_value)


def tensor_of(source: ir.TensorProtocol) -> Any:
    """Return a tensor, or an array of text.

    Raises:
        ExecutionError: of an element type that torch has not.
    """
    if source.dtype == ir.DataType.STRING:
        return np.asarray(source.numpy(), dtype=object)
    if source.dtype not in TYPES:
        raise ExecutionError(f"torch: '{source.name}' is {source.dtype.name}, a type that torch has not")
    return from_numpy(source.numpy())
