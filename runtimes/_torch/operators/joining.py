"""Operators that join, cut and pad tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from graphopt.runtimes._torch.operators._moving import moving
from graphopt.runtimes._torch.table import Host, operator

_MODES = ("constant", "reflect", "edge", "wrap")

_KERNELS = {"reflect": "reflect", "edge": "replicate"}
"""Modes for which torch has fast functions, and what they are called there."""


@operator("Concat", 4)
@moving
def concat(*inputs: Tensor, axis: int) -> Tensor:
    """Tensors one after the other along an axis."""
    return torch.cat(inputs, axis)


@moving
def cut(input: Tensor, axis: int, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """Return pieces of these sizes."""
    pieces: tuple[Tensor, ...] = torch.split(input, list(sizes), axis)
    return pieces


def shares(length: int, parts: int) -> list[int]:
    """Return sizes as equal as can be, of which the last may be smaller."""
    each = -(-length // parts)
    return [min(each, max(length - i * each, 0)) for i in range(parts)]


@operator("Split", 13)
def split(
    input: Any, split: Host | None = None, *, axis: int = 0, num_outputs: int | None = None, outputs_: int
) -> tuple[Any, ...]:
    """Pieces of given sizes, or as many as there are outputs."""
    sizes = shares(input.shape[axis], num_outputs or outputs_) if split is None else split.tolist()
    return cut(input, axis, sizes)


@operator("Split", 2)
def split_2(input: Any, *, axis: int = 0, split: tuple[int, ...] | None = None, outputs_: int) -> tuple[Any, ...]:
    """Pieces of given sizes, or as many as there are outputs."""
    return cut(input, axis, split or shares(input.shape[axis], outputs_))


@operator("Slice", 10)
@moving
def slice_(data: Tensor, starts: Host, ends: Host, axes: Host | None = None, steps: Host | None = None) -> Tensor:
    """Every so many elements between bounds, of some axes."""
    chosen = range(len(starts)) if axes is None else axes.tolist()
    strides = [1] * len(starts) if steps is None else steps.tolist()
    return _sliced(data, starts.tolist(), ends.tolist(), chosen, strides)


@operator("Slice")
@moving
def slice_1(
    data: Tensor, *, starts: tuple[int, ...], ends: tuple[int, ...], axes: tuple[int, ...] | None = None
) -> Tensor:
    """The elements between bounds, of some axes."""
    return _sliced(data, starts, ends, range(len(starts)) if axes is None else axes, [1] * len(starts))


def _sliced(
    data: Tensor, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int], steps: Sequence[int]
) -> Tensor:
    index = [slice(None)] * data.ndim
    turned = []
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis %= data.ndim
        size = data.shape[axis]
        if step > 0:
            index[axis] = slice(*slice(start, end, step).indices(size))
            continue
        chosen = range(size)[slice(max(start, -size), None if end < -size else end, step)]
        index[axis] = slice(chosen[-1], chosen[0] + 1, -step) if chosen else slice(0)
        turned.append(axis)
    part = data[tuple(index)]
    return part.flip(turned) if turned else part


@operator("Pad", 11)
def pad(
    data: Any,
    pads: Host,
    constant_value: Any = None,
    axes: Host | None = None,
    *,
    mode: str = "constant",
) -> Any:
    """With elements added at both ends of axes, or taken away: a constant, or the tensor's own."""
    return padded(data, pads.tolist(), mode, constant_value, None if axes is None else axes.tolist())


@operator("Pad", 2)
def pad_2(data: Tensor, *, pads: tuple[int, ...], mode: str = "constant", value: float = 0.0) -> Any:
    """With elements added at both ends of axes, or taken away."""
    return padded(data, pads, mode, value)


def padded(data: Any, pads: Sequence[int], mode: str, value: Any = None, axes: Sequence[int] | None = None) -> Any:
    """Pad as the operator does: `pads` are all beginnings, then all ends; `value` is a number, or a tensor of one."""
    if mode not in _MODES:
        raise ValueError(f"mode '{mode}' of Pad is not one of {', '.join(_MODES)}")
    ends = [(0, 0)] * data.ndim
    chosen = range(data.ndim) if axes is None else axes
    for axis, before, after in zip(chosen, pads[: len(chosen)], pads[len(chosen) :], strict=True):
        ends[axis] = int(before), int(after)
    if mode != "constant":
        return _continued(data, ends, mode)
    if value is None:
        value = np.array([""], dtype=object) if isinstance(data, np.ndarray) else 0
    return _surrounded(data, value, ends)


@moving
def _surrounded(data: Tensor, value: Any, ends: Sequence[tuple[int, int]]) -> Tensor:
    """Return a tensor within a constant."""
    flat = [number for pair in reversed(ends) for number in pair]
    if not isinstance(value, Tensor):
        return torch.constant_pad_nd(data, flat, value)
    if value.device.type == "cpu" and not value.requires_grad:
        return torch.constant_pad_nd(data, flat, value.item())
    inside = torch.constant_pad_nd(torch.ones_like(data, dtype=torch.bool), flat, False)
    return torch.where(inside, torch.constant_pad_nd(data, flat), value.reshape(()).to(data.dtype))


@moving
def _continued(data: Tensor, ends: Sequence[tuple[int, int]], mode: str) -> Tensor:
    """Return a tensor that goes on beyond its ends with elements of its own."""
    if _has_kernel(data, ends, mode):
        return functional.pad(data, [number for pair in ends[:1:-1] for number in pair], _KERNELS[mode])
    for axis, (before, after) in enumerate(ends):
        if before or after:
            data = data.index_select(axis, _places(data.shape[axis], before, after, mode).to(data.device))
    return data


def _has_kernel(data: Tensor, ends: Sequence[tuple[int, int]], mode: str) -> bool:
    """Return whether torch pads this way in one go: the axes of space of a batch, by less than their sizes."""
    return (
        mode in _KERNELS
        and data.dtype.is_floating_point
        and 3 <= data.ndim <= 5
        and data.numel() > 0
        and not any(ends[0] + ends[1])
        and all(0 <= number < size for pair, size in zip(ends, data.shape, strict=True) for number in pair)
    )


def _places(size: int, before: int, after: int, mode: str) -> Tensor:
    """Return which element of an axis stands at each place of the padded one."""
    places = torch.arange(-before, size + after)
    if mode == "edge":
        return places.clamp(0, size - 1)
    if mode == "wrap":
        return places % size
    period = max(2 * (size - 1), 1)
    places = places % period
    return torch.minimum(places, period - places) if size > 1 else places


@operator("CenterCropPad", 18)
def center_crop_pad(input_data: Any, shape: Host, *, axes: tuple[int, ...] | None = None) -> Any:
    """The middle of the tensor, or the tensor in the middle of zeros."""
    chosen = range(input_data.ndim) if axes is None else [a % input_data.ndim for a in axes]
    pads = [0] * (2 * input_data.ndim)
    for axis, size in zip(chosen, shape.tolist(), strict=True):
        missing = size - input_data.shape[axis]
        before = missing // 2 if missing > 0 else -(-missing // 2)
        pads[axis], pads[axis + input_data.ndim] = before, missing - before
    return padded(input_data, pads, "constant")
