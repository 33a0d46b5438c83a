"""Cast, CastLike and BitCast, and conversions of narrow floats that other families share."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from graphopt.runtimes._torch.table import operator
from graphopt.runtimes._torch.values import NAMES, TYPES, from_numpy, limits, plain, tagged, to_numpy

NARROW_FLOATS = frozenset(dtype for dtype in NAMES if dtype.is_floating_point and dtype.itemsize == 1)

_OVERFLOW_E4M3FN = 464
"""What lies above is nearer to the number that would come after the largest."""

_E8M0_BIAS = 127

_NARROW_INTEGERS = (torch.int4, torch.uint4, torch.int2, torch.uint2)


def to_float(x: Tensor) -> Tensor:
    """Return narrow floats as float32, and any other tensor as it is."""
    if x.dtype not in NARROW_FLOATS:
        return x
    if x.dtype == torch.float4_e2m1fn_x2:
        return from_numpy(to_numpy(x).astype(np.float32)).to(x.device)
    return x.to(torch.float32) * 1  # which turns NaN that signals into NaN that does not


def to_float8(x: Tensor, dtype: torch.dtype, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """Round to the nearest narrow float, without a gradient.

    Args:
        x: floats or whole numbers.
        dtype: the narrow type.
        saturate: whether what is too large becomes the largest number, and not infinite or NaN; float4 has neither.
        round_mode: how E8M0, which has powers of two only, rounds.
    """
    x = x.detach().to(torch.float32)
    if dtype == torch.float8_e8m0fnu:
        return _to_exponent(x, saturate, round_mode)
    if dtype == torch.float4_e2m1fn_x2:
        return from_numpy(to_numpy(x).astype(NAMES[dtype].numpy())).to(x.device)
    most = torch.finfo(dtype).max
    if saturate:
        x = x.clamp(-most, most)
    elif dtype == torch.float8_e4m3fn:  # in which torch saturates
        x = x.masked_fill(x.abs() > _OVERFLOW_E4M3FN, torch.nan)
    return x.to(dtype)


def _to_exponent(x: Tensor, saturate: int, round_mode: str) -> Tensor:
    """Return the exponents of numbers as E8M0: a power of two up, down, or the nearest (ties up)."""
    share, exponent = torch.frexp(x.to(torch.float64).abs())  # x = share 2^exponent, and share from 0.5 on
    if round_mode == "up":
        up = share > 0.5
    elif round_mode == "down":
        up = torch.zeros_like(share, dtype=torch.bool)
    else:
        up = share >= 0.75
    power = exponent - 1 + up
    power = power.masked_fill(x == 0, -_E8M0_BIAS - 1).masked_fill(x.isinf(), _E8M0_BIAS + 1)
    code = power.clamp(-_E8M0_BIAS, _E8M0_BIAS)
    lost = x.isnan() if saturate else x.isnan() | (code != power)
    return (code + _E8M0_BIAS).masked_fill(lost, 255).to(torch.uint8).view(torch.float8_e8m0fnu)


def converted(x: Any, dtype: torch.dtype | None, saturate: int = 1, round_mode: str = "up") -> Any:
    """Return numbers or text in another type; None stands for text.

    Raises:
        ValueError: text that is no number.
    """
    if dtype is None:
        return x if isinstance(x, np.ndarray) else _text(x)
    if isinstance(x, np.ndarray):
        x = _parsed(x, dtype)
    if dtype == x.dtype:
        return x
    x = to_float(plain(x))
    if dtype in _NARROW_INTEGERS:
        return _wrapped(x, dtype)
    if dtype in NARROW_FLOATS:
        return to_float8(x, dtype, saturate, round_mode)
    return x != 0 if dtype == torch.bool else x.to(dtype)


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
    """Return the numbers that text says; whole ones, which float64 does not hold all, as such."""
    if dtype.is_floating_point:
        return torch.from_numpy(np.array([float(text) for text in x.flat]).reshape(x.shape))
    return torch.from_numpy(np.array([_whole(text) for text in x.flat], np.int64).reshape(x.shape))


def _whole(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = int(float(text))
    return number - 2**64 if number >= 2**63 else number


def _target(to: int) -> torch.dtype | None:
    """Return the type that a number stands for, None for text.

    Raises:
        ValueError: torch has no such type.
    """
    named = ir.DataType(to)
    if named not in TYPES and named != ir.DataType.STRING:
        raise ValueError(f"torch has no type {named.name}")
    return TYPES.get(named)


@operator("Cast", 6)
def cast(input: Any, *, to: int, saturate: int = 1, round_mode: str = "up") -> Any:
    """The same numbers in another type."""
    return converted(input, _target(to), saturate, round_mode)


@operator("CastLike", 15)
def cast_like(input: Any, target_type: Any, *, saturate: int = 1, round_mode: str = "up") -> Any:
    """The same numbers in the type of another tensor."""
    return converted(input, None if isinstance(target_type, np.ndarray) else target_type.dtype, saturate, round_mode)


@operator("BitCast", 26)
def bit_cast(input: Tensor, *, to: int) -> Tensor:
    """The same bits as another type of the same width."""
    dtype, bits = TYPES[ir.DataType(to)], NAMES[input.dtype].bitwidth
    if bits >= 8:
        return input.view(dtype)
    code = plain(input).view(torch.uint8) & (1 << bits) - 1
    return _wrapped(code, dtype) if dtype in _NARROW_INTEGERS else code.view(dtype)
