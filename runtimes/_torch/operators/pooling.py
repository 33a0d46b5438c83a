"""Pooling, of one to three dimensions."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from graphopt.runtimes._torch.operators.convolution import added, paddings
from graphopt.runtimes._torch.table import Host, operator

_MAX = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_MEAN = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


class _Window:
    """A pooling window and how far the input has to be extended for it.

    Attributes:
        ends: what to add before and after each axis.
        rest: what the last window needs beyond that, where it may reach over the end.
        padding: both together.
        plain: whether torch's own padding does.
        dense: whether a window has no gaps.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        kernel: Sequence[int],
        auto_pad: str,
        pads: Sequence[int] | None,
        strides: Sequence[int] | None,
        dilations: Sequence[int] | None,
        ceil_mode: int,
    ) -> None:
        rank = len(kernel)
        self.kernel, self.strides, self.dilations = kernel, strides or (1,) * rank, dilations or (1,) * rank
        self.ends = paddings(auto_pad, pads, sizes, kernel, self.strides, self.dilations)
        self.rest = [0] * rank
        for i, (size, (before, after)) in enumerate(zip(sizes, self.ends, strict=True)):
            reach = (self.kernel[i] - 1) * self.dilations[i] + 1
            over = (size + before + after - reach) % self.strides[i]
            if ceil_mode and over and auto_pad in ("NOTSET", "VALID", ""):
                count = -(-(size + before + after - reach) // self.strides[i]) + 1
                if (count - 1) * self.strides[i] < size + before:  # a window starts within the input or its padding
                    self.rest[i] = self.strides[i] - over
        self.padding = [(before, after + rest) for (before, after), rest in zip(self.ends, self.rest, strict=True)]
        halves = zip(self.ends, self.kernel, strict=True)
        self.plain = not any(self.rest) and all(a == b and 2 * a <= k for (a, b), k in halves)
        self.dense = all(d == 1 for d in self.dilations)

    def views(self, x: Tensor) -> Tensor:
        """Return the windows of a padded input, with axes of their own at the end."""
        for axis, (size, stride, gap) in enumerate(zip(self.kernel, self.strides, self.dilations, strict=True), 2):
            x = x.unfold(axis, (size - 1) * gap + 1, stride)[..., ::gap]
        return x


_window = functools.lru_cache(1024)(_Window)
"""Windows are the same in every step of a training."""


def _of_rank(functions: Mapping[int, Callable[..., Any]], kernel: Sequence[int]) -> Callable[..., Any]:
    if len(kernel) not in functions:
        raise ValueError(f"pooling over {len(kernel)} spatial axes is not computed; it can be over 1 to 3")
    return functions[len(kernel)]


@operator("MaxPool")
def max_pool(
    x: Tensor,
    *,
    kernel_shape: tuple[int, ...],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None,
    storage_order: int = 0,
    strides: tuple[int, ...] | None = None,
    outputs_: int,
) -> Tensor | tuple[Tensor, Tensor]:
    """The largest element of each window, and where in the input it is."""
    window = _window(x.shape[2:], kernel_shape, auto_pad, pads, strides, dilations, ceil_mode)
    pool, steps, gaps = _of_rank(_MAX, kernel_shape), window.strides, window.dilations
    values = x if x.dtype.is_floating_point else x.to(torch.float32)  # whole numbers are of eight bits
    if outputs_ == 1 and window.plain:
        return pool(values, kernel_shape, steps, [a for a, _ in window.ends], gaps).to(x.dtype)
    whole = added(values, window.padding, -torch.inf)
    if outputs_ == 1:
        return pool(whole, kernel_shape, steps, 0, gaps).to(x.dtype)
    made, where = pool(whole, kernel_shape, steps, 0, gaps, return_indices=True)
    return made.to(x.dtype), _places(where, x, whole, window, storage_order)


def _places(where: Tensor, x: Tensor, whole: Tensor, window: _Window, storage_order: int) -> Tensor:
    """Turn indices into padded images into indices into the whole input."""
    coordinates = []
    for size in reversed(whole.shape[2:]):
        coordinates.append(where % size)
        where = where // size
    coordinates = [c - before for c, (before, _) in zip(coordinates[::-1], window.ends, strict=True)]
    axes = list(range(len(coordinates)))
    place = torch.zeros_like(where)
    for axis in axes[::-1] if storage_order else axes:
        place = place * x.shape[2 + axis] + coordinates[axis]
    images = torch.arange(x.shape[0] * x.shape[1], device=x.device).reshape(*x.shape[:2], *(1,) * len(axes))
    return place + images * math.prod(x.shape[2:])


@operator("AveragePool")
def average_pool(
    x: Tensor,
    *,
    kernel_shape: tuple[int, ...],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> Tensor:
    """The mean of each window; padding counts if it is told to."""
    window = _window(x.shape[2:], kernel_shape, auto_pad, pads, strides, dilations, ceil_mode)
    if x.ndim == 5 and x.dtype.itemsize == 2 and x.device.type == "cpu":  # torch has no such function
        wide = average_pool(
            x.to(torch.float32),
            kernel_shape=kernel_shape,
            auto_pad=auto_pad,
            ceil_mode=ceil_mode,
            count_include_pad=count_include_pad,
            dilations=dilations,
            pads=pads,
            strides=strides,
        )
        return wide.to(x.dtype)
    if window.plain and window.dense:
        pool, sides = _of_rank(_MEAN, kernel_shape), [a for a, _ in window.ends]
        return pool(x, kernel_shape, window.strides, sides, False, bool(count_include_pad))
    counted = torch.ones_like(x[:1, :1], dtype=torch.float32)
    if count_include_pad:
        counted = added(added(counted, window.ends, 1.0), [(0, rest) for rest in window.rest])
    else:
        counted = added(counted, window.padding)
    return _means(added(x, window.padding), window) / _means(counted, window).to(x.dtype)


def _means(x: Tensor, window: _Window) -> Tensor:
    """Return the mean of each window of a padded input."""
    if window.dense:
        made: Tensor = _of_rank(_MEAN, window.kernel)(x, window.kernel, window.strides)
        return made
    return window.views(x).mean([-1 - i for i in range(len(window.kernel))])


@operator("LpPool")
def lp_pool(
    x: Tensor,
    *,
    kernel_shape: tuple[int, ...],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: tuple[int, ...] | None = None,
    p: int = 2,
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> Tensor:
    """The norm of each window."""
    window = _window(x.shape[2:], kernel_shape, auto_pad, pads, strides, dilations, ceil_mode)
    views = window.views(added(x, window.padding))
    return torch.linalg.vector_norm(views, p, [-1 - i for i in range(len(kernel_shape))])


@operator("GlobalAveragePool")
def global_average_pool(x: Tensor) -> Tensor:
    """The mean of every channel."""
    return x.mean(list(range(2, x.ndim)), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(x: Tensor) -> Tensor:
    """The largest element of every channel."""
    return x.amax(list(range(2, x.ndim)), keepdim=True)


@operator("GlobalLpPool")
def global_lp_pool(x: Tensor, *, p: int = 2) -> Tensor:
    """The norm of every channel."""
    return torch.linalg.vector_norm(x, p, list(range(2, x.ndim)), keepdim=True)


@operator("MaxUnpool", 9)
def max_unpool(
    x: Tensor,
    indices: Tensor,
    output_shape: Host | None = None,
    *,
    kernel_shape: tuple[int, ...],
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> Tensor:
    """Elements put back where a pooling found them, zeros elsewhere."""
    rank = len(kernel_shape)
    steps, whole = strides or (1,) * rank, pads or (0,) * (2 * rank)
    sizes = [(x.shape[2 + i] - 1) * steps[i] + kernel_shape[i] - whole[i] - whole[i + rank] for i in range(rank)]
    inner = [*x.shape[:2], *sizes]
    shape = inner if output_shape is None else output_shape.tolist()
    place = indices.reshape(-1)
    if shape != inner:  # indices count in the smaller tensor
        parts = torch.unravel_index(place, tuple(inner))
        place = torch.zeros_like(place)
        for part, size in zip(parts, shape, strict=True):
            place = place * size + part
    return x.new_zeros(math.prod(shape)).scatter(0, place, x.reshape(-1)).reshape(shape)
