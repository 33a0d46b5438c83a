"""Pooling, of one to three dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from graphopt.runtimes._torch.operators.convolution import added, paddings
from graphopt.runtimes._torch.table import Host, operator

_MAX = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_MEAN = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


class _Window:
    """A pooling window and how far the input has to be extended for it."""

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
        """What the last window needs beyond the padding, where it may reach over the end."""
        for i, (size, (before, after)) in enumerate(zip(sizes, self.ends, strict=True)):
            reach = (self.kernel[i] - 1) * self.dilations[i] + 1
            over = (size + before + after - reach) % self.strides[i]
            if ceil_mode and over and auto_pad in ("NOTSET", "VALID", ""):
                count = -(-(size + before + after - reach) // self.strides[i]) + 1
                if (count - 1) * self.strides[i] < size + before:  # a window starts within the input or its padding
                    self.rest[i] = self.strides[i] - over

    @property
    def plain(self) -> bool:
        """Tell whether torch's own padding does."""
        halves = zip(self.ends, self.kernel, strict=True)
        return not any(self.rest) and all(a == b and 2 * a <= k for (a, b), k in halves)

    @property
    def padding(self) -> list[tuple[int, int]]:
        """Both ends, with what the last window needs."""
        return [(before, after + rest) for (before, after), rest in zip(self.ends, self.rest, strict=True)]


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
    window = _Window(x.shape[2:], kernel_shape, auto_pad, pads, strides, dilations, ceil_mode)
    pool, steps, gaps = _MAX[len(kernel_shape)], window.strides, window.dilations
    narrow = x.dtype in (torch.int8, torch.uint8)
    values = x.to(torch.int32) if narrow else x
    if outputs_ == 1 and window.plain and values.dtype.is_floating_point:
        return pool(values, kernel_shape, steps, [a for a, _ in window.ends], gaps)
    whole = values if values.dtype.is_floating_point else values.to(torch.float64)
    whole = added(whole, window.padding, -torch.inf)
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
    return place + images * x[0, 0].numel()


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
    window = _Window(x.shape[2:], kernel_shape, auto_pad, pads, strides, dilations, ceil_mode)
    rank = len(kernel_shape)
    if window.plain and all(d == 1 for d in window.dilations):
        sides = [a for a, _ in window.ends]
        return _MEAN[rank](x, kernel_shape, window.strides, sides, False, bool(count_include_pad) or not any(sides))
    sums = _sums(added(x, window.padding), window)
    counted = torch.ones_like(x[:1, :1])
    if count_include_pad:
        counted = added(counted, window.ends, 1.0)
        counted = added(counted, [(0, rest) for rest in window.rest])
    else:
        counted = added(counted, window.padding)
    return sums / _sums(counted, window)


def _sums(x: Tensor, window: _Window) -> Tensor:
    """Return the sum of each window of a padded input."""
    for axis, (size, stride, gap) in enumerate(zip(window.kernel, window.strides, window.dilations, strict=True), 2):
        count = (x.shape[axis] - (size - 1) * gap - 1) // stride + 1
        parts = [x.narrow(axis, i * gap, (count - 1) * stride + 1) for i in range(size)]
        x = torch.stack([p[(slice(None),) * axis + (slice(None, None, stride),)] for p in parts]).sum(0)
    return x


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
    window = _Window(x.shape[2:], kernel_shape, auto_pad, pads, strides, dilations, ceil_mode)
    return _sums(added(x.abs().pow(p), window.padding), window).pow(1 / p)


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
    flat = x.new_zeros(int(torch.tensor(shape).prod()))
    place = indices.reshape(-1)
    if shape != inner:  # indices count in the smaller tensor
        parts = torch.unravel_index(place, tuple(inner))
        place = torch.zeros_like(place)
        for part, size in zip(parts, shape, strict=True):
            place = place * size + part
    return flat.scatter(0, place, x.reshape(-1)).reshape(shape)
