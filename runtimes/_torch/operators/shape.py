"""Operators that change the shape of a tensor, or tell it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphopt.runtimes._torch.operators._moving import moving
from graphopt.runtimes._torch.table import Host, operator


@operator("Reshape", 5)
@moving
def reshape(data: Tensor, shape: Host, *, allowzero: int = 0) -> Tensor:
    """The same elements in another shape; 0 keeps a size, -1 takes what is left."""
    sizes = shape.tolist()
    return data.reshape(sizes if allowzero else [data.shape[i] if size == 0 else size for i, size in enumerate(sizes)])


@operator("Transpose")
@moving
def transpose(data: Tensor, *, perm: tuple[int, ...] | None = None) -> Tensor:
    """Axes in another order, by default reversed."""
    return data.permute(tuple(range(data.ndim))[::-1] if perm is None else perm)


@operator("Flatten")
@moving
def flatten(input: Tensor, *, axis: int = 1) -> Tensor:
    """Two axes: those before `axis` joined, and the others."""
    axis = axis + input.ndim if axis < 0 else axis
    return input.reshape(math.prod(input.shape[:axis]), math.prod(input.shape[axis:]))


@operator("Squeeze", 13)
@moving
def squeeze(data: Tensor, axes: Host | None = None) -> Tensor:
    """Without axes of size one, all or some of them."""
    return _squeezed(data, None if axes is None else axes.reshape(-1).tolist())


@operator("Squeeze")
@moving
def squeeze_1(data: Tensor, *, axes: tuple[int, ...] | None = None) -> Tensor:
    """Without axes of size one, all or some of them."""
    return _squeezed(data, axes)


def _squeezed(data: Tensor, axes: Sequence[int] | None) -> Tensor:
    left = {a for a, s in enumerate(data.shape) if s == 1} if axes is None else {a % data.ndim for a in axes}
    return data.reshape([size for axis, size in enumerate(data.shape) if axis not in left])


@operator("Unsqueeze", 13)
@moving
def unsqueeze(data: Tensor, axes: Host) -> Tensor:
    """With new axes of size one."""
    return _unsqueezed(data, axes.reshape(-1).tolist())


@operator("Unsqueeze")
@moving
def unsqueeze_1(data: Tensor, *, axes: tuple[int, ...]) -> Tensor:
    """With new axes of size one."""
    return _unsqueezed(data, axes)


def _unsqueezed(data: Tensor, axes: Sequence[int]) -> Tensor:
    rank = data.ndim + len(axes)
    new, old = {a % rank for a in axes}, iter(data.shape)
    return data.reshape([1 if axis in new else next(old) for axis in range(rank)])


@operator("Expand", 8)
@moving
def expand(input: Tensor, shape: Host) -> Tensor:
    """Broadcast to a shape; where that is smaller, the input's own."""
    return input.expand(np.broadcast_shapes(tuple(input.shape), tuple(shape.tolist())))


@operator("Tile", 6)
@moving
def tile(input: Tensor, repeats: Host) -> Tensor:
    """Copies side by side."""
    return input.repeat(repeats.tolist())


@operator("Shape")
def shape(data: Any, *, start: int = 0, end: int | None = None) -> Tensor:
    """The sizes of all axes, or of some in a row."""
    return torch.tensor(list(data.shape)[start:end], dtype=torch.int64)


@operator("Size")
def size(data: Any) -> Tensor:
    """How many elements there are."""
    return torch.tensor(math.prod(data.shape), dtype=torch.int64)


@operator("Identity")
def identity(input: Any) -> Any:
    """The input."""
    return input


@operator("DepthToSpace")
@moving
def depth_to_space(input: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Channels moved into blocks of pixels."""
    n, c, h, w = input.shape
    b, depth = blocksize, c // blocksize**2
    if mode == "DCR":
        split = input.reshape(n, b, b, depth, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        split = input.reshape(n, depth, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return split.reshape(n, depth, h * b, w * b)


@operator("SpaceToDepth")
@moving
def space_to_depth(input: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Blocks of pixels moved into channels."""
    n, c, h, w = input.shape
    b = blocksize
    split = input.reshape(n, c, h // b, b, w // b, b)
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    return split.permute(*order).reshape(n, c * b * b, h // b, w // b)
