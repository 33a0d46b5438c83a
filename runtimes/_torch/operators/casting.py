"""Cast, CastLike and BitCast, and conversions of narrow floats that other families share."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from graphopt.runtimes._torch.table import operator
from graphopt.runtimes._torch.values import NAMES, TYPES, from_numpy, limits, plain, tagged, to_numpy

_NARROW_INTEGERS = (torch.int4, torch.uint4, torch.int2, torch.uint2)


def to_float(x: Tensor) -> Tensor:
    """Return narrow floats as float32, and any other floats as they are."""
    if not x.dtype.is_floating_point or x.dtype.itemsize > 1:
        return x
    return from_numpy(to_numpy(x).astype(np.float32)).to(x.device)


def to_float8(x: Tensor, dtype: torch.dtype, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """Round to the nearest narrow float; without `saturate`, what is too large becomes infinite or NaN."""
    array = to_numpy(x.to(torch.float32))
    if dtype == torch.float8_e8m0fnu:
        return _to_exponent(array, round_mode).to(x.device)
    narrow = NAMES[dtype].numpy()
    if saturate and dtype != torch.float4_e2m1fn_x2:
        most = float(ml_dtypes.finfo(narrow).max)
        array = np.where(np.isnan(array), array, np.clip(array, -most, most))
    return from_numpy(array.astype(narrow)).to(x.device)


def _to_exponent(array: np.ndarray, round_mode: str) -> Tensor:
    """Return the exponents of numbers as E8M0: a power of two up, down, or the nearest (ties up)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        exact = np.log2(np.abs(array.astype(np.float64)))
        if round_mode == "up":
            exponent = np.ceil(exact)
        elif round_mode == "down":
            exponent = np.floor(exact)
        else:
            low = np.floor(exact)
            exponent = np.where(np.abs(array) >= 1.5 * 2.0**low, low + 1, low)
        code = np.clip(exponent + 127, 0, 254)
    code = np.where(np.isfinite(array), code, np.where(np.isnan(array), 255, 254))
    return torch.from_numpy(code.astype(np.uint8)).view(torch.float8_e8m0fnu)


def converted(x: Any, dtype: torch.dtype | None, saturate: int = 1, round_mode: str = "up") -> Any:
    """Return numbers or text in another type; None stands for text.

    Raises:
        ValueError: text that is no number.
    """
    if dtype is None:
        return x if isinstance(x, np.ndarray) else _text(x)
    if isinstance(x, np.ndarray):
        return _parsed(x, dtype)
    if dtype == x.dtype:
        return x
    x = to_float(x) if x.dtype.is_floating_point else plain(x)
    if dtype in _NARROW_INTEGERS:
        return _wrapped(x, dtype)
    if dtype.is_floating_point and dtype.itemsize == 1:
        return to_float8(x, dtype, saturate, round_mode)
    if dtype == torch.bool:
        return x != 0
    return x.to(dtype)


def _wrapped(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the lowest bits of whole numbers."""
    low, high = limits(dtype)
    return tagged((x.to(torch.int64) - low) % (high - low + 1) + low, dtype)


def _text(x: Tensor) -> np.ndarray:
    array = to_numpy(x)
    texts = [_written(v) for v in array.ravel().tolist()] if array.dtype.kind != "f" else list(map(str, array.ravel()))
    return np.array(texts, dtype=object).reshape(array.shape)


def _written(value: Any) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _parsed(x: np.ndarray, dtype: torch.dtype) -> Tensor:
    numbers = np.array([float(text) for text in x.ravel().tolist()], dtype=np.float64).reshape(x.shape)
    return torch.from_numpy(numbers).to(dtype)


@operator("Cast", 6)
def cast(input: Any, *, to: int, saturate: int = 1, round_mode: str = "up") -> Any:
    """The same numbers in another type."""
    return converted(input, TYPES.get(ir.DataType(to)), saturate, round_mode)


@operator("CastLike", 15)
def cast_like(input: Any, target_type: Any, *, saturate: int = 1, round_mode: str = "up") -> Any:
    """The same numbers in the type of another tensor."""
    return converted(input, None if isinstance(target_type, np.ndarray) else target_type.dtype, saturate, round_mode)


@operator("BitCast", 26)
def bit_cast(input: Tensor, *, to: int) -> Tensor:
    """The same bits as another type of the same width."""
    return input.view(TYPES[ir.DataType(to)])
