"""Operators that join, cut and pad tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from graphopt.runtimes._torch.table import Host, operator

_MODES = ("constant", "reflect", "edge", "wrap")


@operator("Concat", 4)
def concat(*inputs: Any, axis: int) -> Any:
    """Tensors one after the other along an axis."""
    return np.concatenate(inputs, axis) if isinstance(inputs[0], np.ndarray) else torch.cat(inputs, axis)


def cut(input: Any, axis: int, sizes: Sequence[int]) -> tuple[Any, ...]:
    """Return pieces of these sizes."""
    if isinstance(input, np.ndarray):
        return tuple(np.split(input, np.cumsum(sizes)[:-1], axis))
    return torch.split(input, list(sizes), axis)


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
def slice_(data: Any, starts: Host, ends: Host, axes: Host | None = None, steps: Host | None = None) -> Any:
    """Every so many elements between bounds, of some axes."""
    chosen = range(len(starts)) if axes is None else axes.tolist()
    strides = [1] * len(starts) if steps is None else steps.tolist()
    return _sliced(data, starts.tolist(), ends.tolist(), chosen, strides)


@operator("Slice")
def slice_1(data: Any, *, starts: tuple[int, ...], ends: tuple[int, ...], axes: tuple[int, ...] | None = None) -> Any:
    """The elements between bounds, of some axes."""
    return _sliced(data, starts, ends, range(len(starts)) if axes is None else axes, [1] * len(starts))


def _sliced(data: Any, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int], steps: Sequence[int]) -> Any:
    index: list[Any] = [slice(None)] * data.ndim
    turned = []
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis %= data.ndim
        first, last, step = slice(start, None if step < 0 and end < -data.shape[axis] else end, step).indices(
            data.shape[axis]
        )
        if step < 0:  # torch wants positive steps: take the same elements, then turn them around
            chosen = range(first, last, step)
            first, last, step = (chosen[-1], chosen[0] + 1, -step) if len(chosen) else (0, 0, 1)
            turned.append(axis)
        index[axis] = slice(first, last, step)
    part = data[tuple(index)]
    if not turned:
        return part
    return np.flip(part, turned) if isinstance(part, np.ndarray) else part.flip(turned)


@operator("Pad", 11)
def pad(
    data: Tensor,
    pads: Host,
    constant_value: Tensor | None = None,
    axes: Host | None = None,
    *,
    mode: str = "constant",
) -> Tensor:
    """With elements added at both ends of axes, or taken away: a constant, or the tensor's own."""
    value = 0.0 if constant_value is None else constant_value.reshape(()).item()
    return padded(data, pads.tolist(), mode, value, None if axes is None else axes.tolist())


@operator("Pad", 2)
def pad_2(data: Tensor, *, pads: tuple[int, ...], mode: str = "constant", value: float = 0.0) -> Tensor:
    """With elements added at both ends of axes, or taken away."""
    return padded(data, pads, mode, value)


def padded(
    data: Tensor, pads: Sequence[int], mode: str, value: float = 0.0, axes: Sequence[int] | None = None
) -> Tensor:
    """Pad as the operator does: `pads` are all beginnings, then all ends."""
    chosen = range(data.ndim) if axes is None else [a % data.ndim for a in axes]
    ends = {a: (int(pads[i]), int(pads[i + len(chosen)])) for i, a in enumerate(chosen)}
    if mode == "constant" and data.dtype != torch.bool:
        moved = [end for axis in range(data.ndim)[::-1] for end in ends.get(axis, (0, 0))]
        return functional.pad(data, moved, value=value)
    if mode == "constant":
        return padded(data.to(torch.uint8), pads, mode, value, axes).to(torch.bool)
    for axis, (before, after) in ends.items():
        if before or after:
            data = data.index_select(axis, _places(data.shape[axis], before, after, mode).to(data.device))
    return data


def _places(size: int, before: int, after: int, mode: str) -> Tensor:
    """Return which element of an axis stands at each place of the padded one."""
    places = np.arange(-before, size + after)
    if mode == "edge":
        places = places.clip(0, size - 1)
    elif mode == "wrap":
        places = places % size
    elif mode == "reflect":
        period = max(2 * (size - 1), 1)
        places = places % period
        places = np.minimum(places, period - places) if size > 1 else places * 0
    else:
        raise ValueError(f"mode '{mode}' of Pad is not one of {', '.join(_MODES)}")
    return torch.from_numpy(places)


@operator("CenterCropPad", 18)
def center_crop_pad(input_data: Tensor, shape: Host, *, axes: tuple[int, ...] | None = None) -> Tensor:
    """The middle of the tensor, or the tensor in the middle of zeros."""
    chosen = range(input_data.ndim) if axes is None else [a % input_data.ndim for a in axes]
    pads = [0] * (2 * input_data.ndim)
    for axis, size in zip(chosen, shape.tolist(), strict=True):
        missing = size - input_data.shape[axis]
        before = missing // 2 if missing > 0 else -(-missing // 2)
        pads[axis], pads[axis + input_data.ndim] = before, missing - before
    return padded(input_data, pads, "constant")
