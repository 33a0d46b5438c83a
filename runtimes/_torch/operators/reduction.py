"""Sums and other reductions over axes, orders and running totals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from graphopt.runtimes._torch.operators.elementwise import widened
from graphopt.runtimes._torch.table import Host, operator

_Reduction = Callable[[Tensor, list[int], bool], Tensor]
"""(data, axes that are never empty, whether they stay as ones) -> reduced data."""


def _sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.sum(axes, keepdim=keep).to(x.dtype)


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep).to(x.dtype)
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
        return -np.inf if least else np.inf
    return torch.iinfo(dtype).min if least else torch.iinfo(dtype).max


_REDUCTIONS: dict[str, tuple[_Reduction, int]] = {
    "ReduceSum": (_sum, 13),
    "ReduceMean": (_mean, 18),
    "ReduceMax": (_extreme(torch.amax, True), 18),
    "ReduceMin": (_extreme(torch.amin, False), 18),
    "ReduceProd": (_product, 18),
    "ReduceL1": (lambda x, axes, keep: _sum(x.abs(), axes, keep), 18),
    "ReduceL2": (_norm2, 18),
    "ReduceSumSquare": (lambda x, axes, keep: _sum(x * x, axes, keep), 18),
    "ReduceLogSum": (lambda x, axes, keep: _log(_sum(x, axes, keep)), 18),
    "ReduceLogSumExp": (_log_sum_exp, 18),
}
"""What is reduced how, and the opset since which axes are an input."""


def _enter(name: str, reduction: _Reduction, since: int) -> None:
    reduction = widened(reduction)

    @operator(name, since)
    def with_input(
        data: Tensor, axes: Host | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Tensor:
        """Reduce over axes; over all if none are named, unless told to do nothing then."""
        if (axes is None or not len(axes)) and noop_with_empty_axes:
            return _pointwise(name, data)
        return _over(data, None if axes is None else axes.tolist(), keepdims)

    @operator(name)
    def with_attribute(data: Tensor, *, axes: tuple[int, ...] | None = None, keepdims: int = 1) -> Tensor:
        """Reduce over axes, or all of them."""
        return _over(data, axes, keepdims)

    def _over(data: Tensor, axes: list[int] | tuple[int, ...] | None, keep: int) -> Tensor:
        chosen = [a % data.ndim for a in axes] if axes else list(range(data.ndim))
        return reduction(data, chosen, bool(keep)) if data.ndim else reduction(data.reshape(1), [0], False)


def _pointwise(name: str, x: Tensor) -> Tensor:
    """Return what a reduction over no axes makes of every element."""
    if name in ("ReduceL1", "ReduceL2"):
        return x.abs()
    if name == "ReduceSumSquare":
        return x * x
    return _log(x) if name == "ReduceLogSum" else x


for _name, (_reduction, _since) in _REDUCTIONS.items():
    _enter(_name, _reduction, _since)


def _best(x: Tensor, axis: int, keepdims: int, last: int, function: Callable[..., Tensor]) -> Tensor:
    if last:
        return x.shape[axis] - 1 - function(x.flip(axis), dim=axis, keepdim=bool(keepdims))
    return function(x, dim=axis, keepdim=bool(keepdims))


@operator("ArgMax")
@widened
def arg_max(data: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """Where the largest element of an axis is."""
    return _best(data, axis, keepdims, select_last_index, torch.argmax)


@operator("ArgMin")
@widened
def arg_min(data: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """Where the smallest element of an axis is."""
    return _best(data, axis, keepdims, select_last_index, torch.argmin)


def _running(
    function: Callable[..., Tensor], start: float, x: Tensor, axis: int, exclusive: int, reverse: int
) -> Tensor:
    x = x.flip(axis) if reverse else x
    made = function(x, axis).to(x.dtype)
    if exclusive:
        first = torch.full_like(made.narrow(axis, 0, 1), start)
        made = torch.cat([first, made.narrow(axis, 0, x.shape[axis] - 1)], axis)
    return made.flip(axis) if reverse else made


@operator("CumSum", 11)
def cum_sum(x: Tensor, axis: Host, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """Running sum along an axis."""
    return _running(torch.cumsum, 0, x, int(axis.reshape(-1)[0]), exclusive, reverse)


@operator("CumProd", 26)
def cum_prod(x: Tensor, axis: Host, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """Running product along an axis."""
    return _running(torch.cumprod, 1, x, int(axis.reshape(-1)[0]), exclusive, reverse)


@operator("TopK", 11)
def top_k(x: Tensor, k: Host, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Tensor, Tensor]:
    """The largest or smallest elements of an axis and where they are; of equals, the first ones."""
    del sorted  # sorted is one of the orders that are allowed without it
    wide = x.to(torch.int64) if x.dtype in (torch.uint16, torch.uint32, torch.uint64) else x
    order = torch.argsort(wide.detach(), dim=axis, descending=bool(largest), stable=True)
    chosen = order.narrow(axis, 0, int(k.reshape(-1)[0]))
    return torch.gather(wide, axis, chosen).to(x.dtype), chosen


@operator("TopK", 10)
def top_k_10(x: Tensor, k: Host, *, axis: int = -1) -> tuple[Tensor, Tensor]:
    """The largest elements of an axis and where they are."""
    return top_k(x, k, axis=axis)


@operator("TopK")
def top_k_1(x: Tensor, *, k: int, axis: int = -1) -> tuple[Tensor, Tensor]:
    """The largest elements of an axis and where they are."""
    return top_k(x, np.array([k]), axis=axis)
