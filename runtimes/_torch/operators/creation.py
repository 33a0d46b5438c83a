"""Operators that make tensors out of nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from graphopt.runtimes._torch.table import Host, operator
from graphopt.runtimes._torch.values import TYPES, from_numpy


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
    filling = torch.zeros(1) if value is None else value
    return filling.reshape(()).expand(input.tolist()).contiguous()


@operator("Range", 11)
def range_(start: Host, limit: Host, delta: Host) -> Tensor:
    """Numbers from a start in steps, before a limit."""
    first, last, step = (x.reshape(())[()] for x in (start, limit, delta))
    count = max(int(np.ceil((last - first) / step)), 0)
    made: Tensor = from_numpy(np.asarray(first + np.arange(count).astype(start.dtype) * step, dtype=start.dtype))
    return made


@operator("EyeLike", 9)
def eye_like(input: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    """Ones on a diagonal."""
    ones = torch.ones(input.shape, device=input.device)
    return (torch.triu(ones, k) - torch.triu(ones, k + 1)).to(TYPES[ir.DataType(dtype)] if dtype else input.dtype)
