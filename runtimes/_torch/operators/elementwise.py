"""Arithmetic, element by element."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphopt.runtimes._torch.table import operator

_WIDENED = (torch.uint16, torch.uint32, torch.uint64)
"""Types that torch stores and hardly computes with."""


def widened(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let a function of tensors take unsigned integers that torch does not compute with, by way of int64."""

    @functools.wraps(function)
    def compute(*operands: Any, **options: Any) -> Tensor:
        kinds = [x.dtype for x in operands if isinstance(x, Tensor) and x.dtype in _WIDENED]
        if not kinds:
            return function(*operands, **options)
        wide = (x.to(torch.int64) if isinstance(x, Tensor) and x.dtype in _WIDENED else x for x in operands)
        result = function(*wide, **options)
        return result.to(kinds[0]) if result.dtype == torch.int64 else result

    return compute


@operator("Add")
@widened
def add(a: Tensor, b: Tensor) -> Tensor:
    """A + B."""
    return a + b


@operator("Sub")
@widened
def sub(a: Tensor, b: Tensor) -> Tensor:
    """A - B."""
    return a - b


@operator("Mul")
@widened
def mul(a: Tensor, b: Tensor) -> Tensor:
    """A * B."""
    return a * b


@operator("Div")
@widened
def div(a: Tensor, b: Tensor) -> Tensor:
    """A / B; whole numbers are cut off towards zero."""
    if a.dtype.is_floating_point or a.dtype.is_complex:
        return a / b
    return torch.div(a, b, rounding_mode="trunc")


@operator("Pow")
@widened
def power(x: Tensor, y: Tensor) -> Tensor:
    """X to the power of Y, of the type of X."""
    if x.dtype.is_floating_point:
        return torch.pow(x, y.to(x.dtype))
    return (
        torch.pow(x.to(torch.float64), y.to(torch.float64)).to(x.dtype)
        if y.dtype.is_floating_point
        else torch.pow(x, y).to(x.dtype)
    )


@operator("Mod", 10)
@widened
def mod(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    """Remainder with the sign of the divisor, or of the dividend with `fmod`."""
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


@operator("Neg")
def neg(x: Tensor) -> Tensor:
    """-X."""
    return -x


@operator("Abs")
@widened
def absolute(x: Tensor) -> Tensor:
    """|X|."""
    return x if x.dtype in (*_WIDENED, torch.uint8) else x.abs()


@operator("Sign")
@widened
def sign(x: Tensor) -> Tensor:
    """-1, 0 or 1."""
    return torch.sign(x)


@operator("Reciprocal")
def reciprocal(x: Tensor) -> Tensor:
    """1 / X."""
    return torch.reciprocal(x)


@operator("Round", 11)
def round_(x: Tensor) -> Tensor:
    """The nearest whole number, ties to even."""
    return torch.round(x)


@operator("Sum", 8)
@widened
def total(*inputs: Tensor) -> Tensor:
    """The sum of all inputs."""
    return functools.reduce(torch.add, inputs)


@operator("Mean", 8)
def mean(*inputs: Tensor) -> Tensor:
    """The mean of all inputs."""
    return functools.reduce(torch.add, inputs) / len(inputs)


@operator("Max", 8)
@widened
def maximum(*inputs: Tensor) -> Tensor:
    """The largest of all inputs."""
    return functools.reduce(torch.maximum, inputs)


@operator("Min", 8)
@widened
def minimum(*inputs: Tensor) -> Tensor:
    """The smallest of all inputs."""
    return functools.reduce(torch.minimum, inputs)


@operator("Clip", 11)
@widened
def clip(x: Tensor, min: Tensor | None = None, max: Tensor | None = None) -> Tensor:
    """X within bounds; where the lower one is above the upper one, the upper one."""
    x = x if min is None else torch.maximum(x, min.to(x.dtype))
    return x if max is None else torch.minimum(x, max.to(x.dtype))


@operator("Clip", 6)
def clip_6(x: Tensor, *, min: float = -3.402823e38, max: float = 3.402823e38) -> Tensor:
    """X within bounds that are attributes."""
    return x.clamp(min, max)


@operator("Where", 9)
def where(condition: Tensor, x: Any, y: Any) -> Any:
    """X where the condition holds, else Y."""
    if isinstance(x, np.ndarray):
        return np.where(condition.cpu().numpy(), x, y)
    if x.dtype in _WIDENED:
        return torch.where(condition, x.to(torch.int64), y.to(torch.int64)).to(x.dtype)
    return torch.where(condition, x, y)


@operator("StringConcat", 20)
def string_concat(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Texts joined in pairs."""
    return np.asarray(x + y, dtype=object)


for _name, _function in {
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Log": torch.log,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}.items():

    def _enter(function: Callable[[Tensor], Tensor], name: str) -> None:
        operator(name)(lambda x: function(x))

    _enter(_function, _name)
