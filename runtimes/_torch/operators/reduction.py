"""Sums and other reductions over axes, orders and running totals."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from graphopt.runtimes._torch.operators.elementwise import UNSIGNED, absolute, ordered, ranked, restored, widened
from graphopt.runtimes._torch.table import Host, operator
from graphopt.runtimes._torch.values import limits

_Reduction = Callable[[Tensor, list[int], bool], Tensor]
"""(data, axes that are never empty, whether they stay as ones) -> reduced data."""


def _like(made: Tensor, x: Tensor) -> Tensor:
    """Return whole numbers in the type of what they are made of; floats may have become wider, by autocast."""
    return made if x.dtype.is_floating_point else made.to(x.dtype)


def _sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _like(x.sum(axes, keepdim=keep), x)


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = _like(x.prod(axis, keepdim=keep), x)
    return x


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.dtype.is_floating_point:
        return x.mean(axes, keepdim=keep)
    return x.to(torch.float64).mean(axes, keepdim=keep).to(x.dtype)


def _norm2(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.dtype.is_floating_point:
        return torch.linalg.vector_norm(x, 2, axes, keepdim=keep)
    return x.to(torch.float64).square().sum(axes, keepdim=keep).sqrt().to(x.dtype)


def _log(x: Tensor) -> Tensor:
    return torch.log(x) if x.dtype.is_floating_point else torch.log(x.to(torch.float64)).to(x.dtype)


def _log_sum_exp(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.dtype.is_floating_point:
        return torch.logsumexp(x, axes, keepdim=keep)
    return torch.logsumexp(x.to(torch.float64), axes, keepdim=keep).to(x.dtype)


def _extreme(function: Callable[..., Tensor], least: bool) -> _Reduction:
    def reduce(x: Tensor, axes: list[int], keep: bool) -> Tensor:
        if x.numel():
            return (
                function(x.to(torch.uint8), axes, keepdim=keep).to(torch.bool)
                if x.dtype == torch.bool
                else function(x, axes, keepdim=keep)
            )
        shape = [1 if a in axes else s for a, s in enumerate(x.shape) if keep or a not in axes]
        return x.new_full(shape, _identity(x.dtype, least))

    return reduce


def _identity(dtype: torch.dtype, least: bool) -> float:
    if dtype == torch.bool:
        return 0 if least else 1
    if dtype.is_floating_point:
        return -math.inf if least else math.inf
    low, high = limits(dtype)
    return low if least else high


_REDUCTIONS: dict[str, tuple[_Reduction, int]] = {
    "ReduceSum": (widened(_sum), 13),
    "ReduceMean": (widened(_mean), 18),
    "ReduceMax": (ranked(_extreme(torch.amax, True)), 18),
    "ReduceMin": (ranked(_extreme(torch.amin, False)), 18),
    "ReduceProd": (widened(_product), 18),
    "ReduceL1": (widened(lambda x, axes, keep: _sum(x.abs(), axes, keep)), 18),
    "ReduceL2": (widened(_norm2), 18),
    "ReduceSumSquare": (widened(lambda x, axes, keep: _sum(x * x, axes, keep)), 18),
    "ReduceLogSum": (widened(lambda x, axes, keep: _log(_sum(x, axes, keep))), 18),
    "ReduceLogSumExp": (widened(_log_sum_exp), 18),
}
"""What is reduced how, and the opset since which axes are an input."""

_POINTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "ReduceL1": absolute,
    "ReduceL2": absolute,
    "ReduceSumSquare": widened(torch.square),
    "ReduceLogSum": widened(_log),
}
"""What a reduction over no axes makes of every element, where it is not the element."""


def _enter(name: str, reduction: _Reduction, since: int) -> None:
    pointwise = _POINTWISE.get(name, lambda x: x)

    @operator(name, since)
    def with_input(
        data: Tensor, axes: Host | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Tensor:
        """Reduce over axes; over all if none are named, unless told to do nothing then."""
        if (axes is None or not len(axes)) and noop_with_empty_axes:
            return pointwise(data)
        return _over(data, None if axes is None else axes.tolist(), keepdims)

    @operator(name)
    def with_attribute(data: Tensor, *, axes: tuple[int, ...] | None = None, keepdims: int = 1) -> Tensor:
        """Reduce over axes, or all of them."""
        return _over(data, axes, keepdims)

    def _over(data: Tensor, axes: list[int] | tuple[int, ...] | None, keep: int) -> Tensor:
        if not data.ndim:
            return reduction(data.reshape(1), [0], False)
        return reduction(data, [a % data.ndim for a in axes] if axes else list(range(data.ndim)), bool(keep))


for _name, (_reduction, _since) in _REDUCTIONS.items():
    _enter(_name, _reduction, _since)


def _best(x: Tensor, axis: int, keepdims: int, last: int, function: Callable[..., Tensor]) -> Tensor:
    x = ordered(x)
    if last:
        return x.shape[axis] - 1 - function(x.flip(axis), dim=axis, keepdim=bool(keepdims))
    return function(x, dim=axis, keepdim=bool(keepdims))


@operator("ArgMax")
def arg_max(data: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """Where the largest element of an axis is."""
    return _best(data, axis, keepdims, select_last_index, torch.argmax)


@operator("ArgMin")
def arg_min(data: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """Where the smallest element of an axis is."""
    return _best(data, axis, keepdims, select_last_index, torch.argmin)


@widened
def _running(
    x: Tensor, function: Callable[..., Tensor], start: float, axis: int, exclusive: int, reverse: int
) -> Tensor:
    x = x.flip(axis) if reverse else x
    made = _like(function(x, axis), x)
    if exclusive and made.numel():
        first = torch.full_like(made.narrow(axis, 0, 1), start)
        made = torch.cat([first, made.narrow(axis, 0, x.shape[axis] - 1)], axis)
    return made.flip(axis) if reverse else made


@operator("CumSum", 11)
def cum_sum(x: Tensor, axis: Host, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """Running sum along an axis."""
    return _running(x, torch.cumsum, 0, int(axis.item()), exclusive, reverse)


@operator("CumProd", 26)
def cum_prod(x: Tensor, axis: Host, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """Running product along an axis."""
    return _running(x, torch.cumprod, 1, int(axis.item()), exclusive, reverse)


def _top(x: Tensor, count: int, axis: int, largest: bool) -> tuple[Tensor, Tensor]:
    wide = ordered(x)
    chosen = torch.argsort(wide.detach(), dim=axis, descending=largest, stable=True).narrow(axis, 0, count)
    found = torch.gather(wide, axis, chosen)
    return restored(found, x.dtype) if x.dtype in UNSIGNED else found, chosen


@operator("TopK", 11)
def top_k(x: Tensor, k: Host, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Tensor, Tensor]:
    """The largest or smallest elements of an axis and where they are; of equals, the first ones."""
    del sorted  # sorted is one of the orders that are allowed without it
    return _top(x, int(k.item()), axis, bool(largest))


@operator("TopK", 10)
def top_k_10(x: Tensor, k: Host, *, axis: int = -1) -> tuple[Tensor, Tensor]:
    """The largest elements of an axis and where they are."""
    return _top(x, int(k.item()), axis, True)


@operator("TopK")
def top_k_1(x: Tensor, *, k: int, axis: int = -1) -> tuple[Tensor, Tensor]:
    """The largest elements of an axis and where they are."""
    return _top(x, k, axis, True)
