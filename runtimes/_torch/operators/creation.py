"""Operators that make tensors out of nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from graphopt.runtimes._torch.operators._moving import moving
from graphopt.runtimes._torch.table import Host, operator
from graphopt.runtimes._torch.values import TYPES


@operator("Constant", 1)
def constant(
    *,
    value: Any = None,
    value_float: float | None = None,
    value_floats: tuple[float, ...] | None = None,
    value_int: int | None = None,
    value_ints: tuple[int, ...] | None = None,
    value_string: str | None = None,
    value_strings: tuple[str, ...] | None = None,
) -> Any:
    """What an attribute holds."""
    if value is not None:
        return value
    for numbers, dtype in (
        (value_float, torch.float32),
        (value_floats, torch.float32),
        (value_int, torch.int64),
        (value_ints, torch.int64),
    ):
        if numbers is not None:
            return torch.tensor(numbers, dtype=dtype)
    return np.array(value_string if value_strings is None else value_strings, dtype=object)


@operator("ConstantOfShape", 9)
def constant_of_shape(input: Host, *, value: Tensor | None = None) -> Tensor:
    """One number everywhere, by default 0."""
    made: Tensor = _repeated(torch.zeros(1) if value is None else value, input.tolist())
    return made


@moving
def _repeated(value: Tensor, shape: list[int]) -> Tensor:
    return value.reshape(()).expand(shape).contiguous()


@operator("Range", 11)
def range_(start: Tensor, limit: Tensor, delta: Tensor, *, stash_type: int = 1) -> Tensor:
    """Numbers from a start in steps, before a limit."""
    first, last, step = (x.item() for x in (start, limit, delta))
    whole = not start.dtype.is_floating_point
    count = max(-((first - last) // step) if whole else math.ceil((last - first) / step), 0)
    kind = TYPES[ir.DataType(stash_type)] if start.dtype in (torch.float16, torch.bfloat16) else start.dtype
    places = torch.arange(count, device=start.device).to(kind)
    return (start.reshape(()).to(kind) + places * delta.reshape(()).to(kind)).to(start.dtype)


@operator("EyeLike", 9)
def eye_like(input: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    """Ones on a diagonal."""
    ones = torch.ones(input.shape, device=input.device)
    return (torch.triu(ones, k) - torch.triu(ones, k + 1)).to(TYPES[ir.DataType(dtype)] if dtype else input.dtype)
