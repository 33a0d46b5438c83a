"""Moving elements of types that torch stores and does not compute with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])

_STANDINS = {
    torch.uint16: torch.int16,
    torch.uint32: torch.int32,
    torch.uint64: torch.int64,
    torch.int4: torch.int8,
    torch.uint4: torch.uint8,
    torch.int2: torch.int8,
    torch.uint2: torch.uint8,
    torch.float4_e2m1fn_x2: torch.uint8,
    torch.float8_e4m3fn: torch.uint8,
    torch.float8_e4m3fnuz: torch.uint8,
    torch.float8_e5m2: torch.uint8,
    torch.float8_e5m2fnuz: torch.uint8,
    torch.float8_e8m0fnu: torch.uint8,
}
"""For types that torch hardly knows, integers of as many bits, which can be moved in their place."""


def moving(function: F) -> F:
    """Let a function that only moves elements take any type: its first operand and others of the same type.

    Of text it moves the positions.
    """

    @functools.wraps(function)
    def compute(*operands: Any, **options: Any) -> Any:
        if not isinstance(operands[0], Tensor):
            return _moved_text(function, operands, options)
        dtype = operands[0].dtype
        standin = _STANDINS.get(dtype)
        if standin is None:
            return function(*operands, **options)
        viewed = (x.view(standin) if isinstance(x, Tensor) and x.dtype == dtype else x for x in operands)
        return _each(lambda x: x.view(dtype), function(*viewed, **options))

    return cast(F, compute)


def _moved_text(function: Callable[..., Any], operands: tuple[Any, ...], options: dict[str, Any]) -> Any:
    given, texts, count = [], [], 0
    for x in operands:
        if isinstance(x, np.ndarray) and x.dtype == object:
            texts.append(x.reshape(-1))
            given.append(torch.arange(count, count + x.size).reshape(x.shape))
            count += x.size
        else:
            given.append(x)
    flat = np.concatenate(texts)
    return _each(lambda x: flat[x.numpy().reshape(-1)].reshape(x.shape), function(*given, **options))


def _each(function: Callable[[Tensor], Any], result: Any) -> Any:
    return tuple(map(function, result)) if isinstance(result, tuple) else function(result)
