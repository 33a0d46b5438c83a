"""Comparison, logic and bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphopt.runtimes._torch.operators.casting import to_float
from graphopt.runtimes._torch.operators.elementwise import ranked, widened
from graphopt.runtimes._torch.table import operator


@operator("Equal")
def equal(a: Any, b: Any) -> Tensor:
    """A = B, of text too."""
    if isinstance(a, np.ndarray):
        return torch.from_numpy(np.asarray(a == b, dtype=bool))
    return torch.eq(a, b)


@operator("Greater")
@ranked
def greater(a: Tensor, b: Tensor) -> Tensor:
    """A > B."""
    return a > b


@operator("Less")
@ranked
def less(a: Tensor, b: Tensor) -> Tensor:
    """A < B."""
    return a < b


@operator("GreaterOrEqual", 12)
@ranked
def greater_or_equal(a: Tensor, b: Tensor) -> Tensor:
    """A >= B."""
    return a >= b


@operator("LessOrEqual", 12)
@ranked
def less_or_equal(a: Tensor, b: Tensor) -> Tensor:
    """A <= B."""
    return a <= b


@operator("Not")
def logical_not(x: Tensor) -> Tensor:
    """Not X."""
    return torch.logical_not(x)


@operator("IsNaN", 9)
def is_nan(x: Tensor) -> Tensor:
    """Whether X is no number."""
    return torch.isnan(x)


@operator("IsInf", 10)
def is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    """Whether X is infinite, in either direction or one."""
    x = to_float(x)
    if detect_negative and detect_positive:
        return torch.isinf(x)
    return (torch.isposinf(x) & bool(detect_positive)) | (torch.isneginf(x) & bool(detect_negative))


@operator("BitShift", 11)
def bit_shift(x: Tensor, y: Tensor, *, direction: str) -> Tensor:
    """X with its bits moved by Y places; what leaves the type is lost, and as many places below zero are all of them."""
    wide, places = x.to(torch.int64), y.to(torch.int64)
    all_of_them = (places < 0) | (places > 63)
    places = places.masked_fill(all_of_them, 63)
    if direction == "LEFT":
        return (wide << places).masked_fill(all_of_them, 0).to(x.dtype)
    moved = wide >> places
    if x.dtype == torch.uint64:  # whose highest bit is no sign
        kept = torch.where(places > 0, ~(-1 << (64 - places.clamp(min=1))), -1)
        moved = (moved & kept).masked_fill(all_of_them, 0)
    return moved.to(x.dtype)


@operator("BitwiseNot", 18)
def bitwise_not(x: Tensor) -> Tensor:
    """X with every bit turned."""
    return x.view(_SIGNED[x.dtype]).bitwise_not().view(x.dtype) if x.dtype in _SIGNED else torch.bitwise_not(x)


_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


def _enter(name: str, since: int, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    operator(name, since)(lambda a, b: function(a, b))


_enter("And", 7, torch.logical_and)
_enter("Or", 7, torch.logical_or)
_enter("Xor", 7, torch.logical_xor)
_enter("BitwiseAnd", 18, widened(torch.bitwise_and))
_enter("BitwiseOr", 18, widened(torch.bitwise_or))
_enter("BitwiseXor", 18, widened(torch.bitwise_xor))
