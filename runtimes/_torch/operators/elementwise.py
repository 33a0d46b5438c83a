"""Arithmetic, element by element."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphopt.runtimes._torch.table import operator

UNSIGNED = frozenset((torch.uint16, torch.uint32, torch.uint64))
"""Types that torch stores and hardly computes with: int64 stands in for them."""

_Decorator = Callable[[Callable[..., Tensor]], Callable[..., Tensor]]

_SIGN = -(2**63)


def signed(x: Tensor) -> Tensor:
    """Return unsigned integers as int64, those of 64 bits with the same bits; any other tensor as it is."""
    return x.to(torch.int64) if x.dtype in UNSIGNED else x


def ordered(x: Tensor) -> Tensor:
    """Return unsigned integers as int64 in the same order; any other tensor as it is."""
    return x.view(torch.int64) ^ _SIGN if x.dtype == torch.uint64 else signed(x)


def restored(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the integers of a type that `ordered` made these of."""
    return (x ^ _SIGN).view(dtype) if dtype == torch.uint64 else x.to(dtype)


def _by_way_of(there: Callable[[Tensor], Tensor], back: Callable[[Tensor, torch.dtype], Tensor]) -> _Decorator:
    def decorate(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @functools.wraps(function)
        def compute(*operands: Any, **options: Any) -> Tensor:
            kind = operands[0].dtype
            if kind not in UNSIGNED:
                return function(*operands, **options)
            result = function(*(there(x) if isinstance(x, Tensor) else x for x in operands), **options)
            return back(result, kind) if result.dtype == torch.int64 else result

        return compute

    return decorate


widened = _by_way_of(signed, Tensor.to)
"""Let a function that adds and multiplies take unsigned integers."""

ranked = _by_way_of(ordered, restored)
"""Let a function that compares take unsigned integers."""

_LEAST = float(np.finfo(np.float32).min)


def _by_numpy(function: np.ufunc, a: Tensor, b: Tensor) -> Tensor:
    """Compute with integers of a type that torch does not divide."""
    return torch.from_numpy(np.asarray(function(a.cpu().numpy(), b.cpu().numpy()))).to(a.device)


def _number(x: Tensor) -> Tensor | float:
    """Return a single number as such, which is faster, unless it is to be differentiated or on an accelerator."""
    if x.numel() != 1 or x.requires_grad or x.device.type != "cpu" or torch.compiler.is_compiling():
        return x
    number: float = x.item()
    return number


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
def div(a: Tensor, b: Tensor) -> Tensor:
    """A / B; whole numbers are cut off towards zero."""
    if a.dtype.is_floating_point or a.dtype.is_complex:
        return a / b
    if a.dtype in UNSIGNED:
        return _by_numpy(np.floor_divide, a, b)
    return torch.div(a, b, rounding_mode="trunc")


@operator("Pow")
def power(x: Tensor, y: Tensor) -> Tensor:
    """X to the power of Y, of the type of X."""
    if x.dtype.is_floating_point:
        exponent = _number(y) if y.ndim <= x.ndim else y
        return torch.pow(x, exponent.to(x.dtype) if isinstance(exponent, Tensor) else exponent)
    if y.dtype.is_floating_point:
        return torch.pow(x.to(torch.float64), y.to(torch.float64)).to(x.dtype)
    return torch.pow(x, signed(y)).to(x.dtype)


@operator("Mod", 10)
def mod(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    """Remainder with the sign of the divisor, or of the dividend with `fmod`."""
    if a.dtype in UNSIGNED:
        return _by_numpy(np.remainder, a, b)
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


@operator("Neg")
def neg(x: Tensor) -> Tensor:
    """-X."""
    return -x


@operator("Abs")
def absolute(x: Tensor) -> Tensor:
    """|X|."""
    return x if x.dtype in UNSIGNED else x.abs()


@operator("Sign")
def sign(x: Tensor) -> Tensor:
    """-1, 0 or 1."""
    return (x != 0).to(x.dtype) if x.dtype in UNSIGNED else torch.sign(x)


@operator("Reciprocal")
def reciprocal(x: Tensor) -> Tensor:
    """1 / X."""
    return torch.reciprocal(x)


@operator("Round", 11)
def round_(x: Tensor) -> Tensor:
    """The nearest whole number, ties to even."""
    return torch.round(x)


@operator("Sum")
@widened
def total(*inputs: Tensor) -> Tensor:
    """The sum of all inputs."""
    return functools.reduce(torch.add, inputs)


@operator("Mean")
def mean(*inputs: Tensor) -> Tensor:
    """The mean of all inputs."""
    return functools.reduce(torch.add, inputs) / len(inputs)


@operator("Max")
@ranked
def maximum(*inputs: Tensor) -> Tensor:
    """The largest of all inputs."""
    return functools.reduce(torch.maximum, inputs)


@operator("Min")
@ranked
def minimum(*inputs: Tensor) -> Tensor:
    """The smallest of all inputs."""
    return functools.reduce(torch.minimum, inputs)


@operator("Clip", 11)
@ranked
def clip(x: Tensor, min: Tensor | None = None, max: Tensor | None = None) -> Tensor:
    """X within bounds; where the lower one is above the upper one, the upper one."""
    if min is None and max is None:
        return x
    low, high = (None if bound is None else _number(bound) for bound in (min, max))
    if isinstance(low, Tensor) or isinstance(high, Tensor):  # torch takes numbers or tensors, not one of each
        low, high = (None if bound is None else bound.reshape(()) for bound in (min, max))
    return torch.clamp(x, low, high)


@operator("Clip")
def clip_6(x: Tensor, *, min: float = _LEAST, max: float = -_LEAST) -> Tensor:
    """X within bounds that are attributes."""
    least, most = torch.finfo(x.dtype).min, torch.finfo(x.dtype).max
    return x.clamp(min if min > least else -torch.inf, max if max < most else torch.inf)


@operator("Where", 9)
def where(condition: Tensor, x: Any, y: Any) -> Any:
    """X where the condition holds, else Y."""
    if isinstance(x, np.ndarray):
        return np.where(condition.cpu().numpy(), x, y)
    return torch.where(condition, x, y)


@operator("StringConcat", 20)
def string_concat(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Texts joined in pairs."""
    return np.asarray(x + y, dtype=object)


@operator("Erf", 9)
def erf(x: Tensor) -> Tensor:
    """The error function; of whole numbers cut off."""
    return torch.erf(x) if x.dtype.is_floating_point else torch.erf(x).to(x.dtype)


def _enter(name: str, function: Callable[[Tensor], Tensor]) -> None:
    operator(name)(lambda x: function(x))


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
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Log": torch.log,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}.items():
    _enter(_name, _function)
