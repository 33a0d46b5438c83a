"""Operators that change the shape of a tensor, or tell it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphopt.runtimes._torch.table import Host, operator


@operator("Reshape", 5)
def reshape(data: Any, shape: Host, *, allowzero: int = 0) -> Any:
    """The same elements in another shape; 0 keeps a size, -1 takes what is left."""
    sizes = [data.shape[i] if size == 0 and not allowzero else size for i, size in enumerate(map(int, shape.tolist()))]
    return data.reshape(sizes)


@operator("Transpose")
def transpose(data: Any, *, perm: tuple[int, ...] | None = None) -> Any:
    """Axes in another order, by default reversed."""
    order = range(data.ndim)[::-1] if perm is None else perm
    return data.transpose(tuple(order)) if isinstance(data, np.ndarray) else data.permute(*order)


@operator("Flatten")
def flatten(input: Tensor, *, axis: int = 1) -> Tensor:
    """Two axes: those before `axis` joined, and the others."""
    rows = int(np.prod(input.shape[: axis % input.ndim if axis < 0 else axis], dtype=np.int64))
    return input.reshape(rows, input.numel() // rows if rows else int(np.prod(input.shape[axis:], dtype=np.int64)))


@operator("Squeeze", 13)
def squeeze(data: Any, axes: Host | None = None) -> Any:
    """Without axes of size one, all or some of them."""
    chosen = None if axes is None else axes.reshape(-1).tolist()
    return _squeezed(data, chosen)


@operator("Squeeze")
def squeeze_1(data: Any, *, axes: tuple[int, ...] | None = None) -> Any:
    """Without axes of size one, all or some of them."""
    return _squeezed(data, axes)


def _squeezed(data: Any, axes: Any) -> Any:
    left = {a % data.ndim for a in axes} if axes is not None else {a for a, s in enumerate(data.shape) if s == 1}
    return data.reshape([size for axis, size in enumerate(data.shape) if axis not in left])


@operator("Unsqueeze", 13)
def unsqueeze(data: Any, axes: Host) -> Any:
    """With new axes of size one."""
    return _unsqueezed(data, axes.reshape(-1).tolist())


@operator("Unsqueeze")
def unsqueeze_1(data: Any, *, axes: tuple[int, ...]) -> Any:
    """With new axes of size one."""
    return _unsqueezed(data, axes)


def _unsqueezed(data: Any, axes: Any) -> Any:
    rank = data.ndim + len(axes)
    new, old = {a % rank for a in axes}, iter(data.shape)
    return data.reshape([1 if axis in new else next(old) for axis in range(rank)])


@operator("Expand", 8)
def expand(input: Tensor, shape: Host) -> Tensor:
    """Broadcast to a shape; where that is smaller, the input's own."""
    return input.expand(np.broadcast_shapes(tuple(input.shape), tuple(shape.tolist())))


@operator("Tile", 6)
def tile(input: Tensor, repeats: Host) -> Tensor:
    """Copies side by side."""
    return input.repeat(*repeats.tolist()) if len(repeats) else input


@operator("Shape")
def shape(data: Any, *, start: int = 0, end: int | None = None) -> Tensor:
    """The sizes of all axes, or of some in a row."""
    return torch.tensor(list(data.shape)[start:end], dtype=torch.int64)


@operator("Size")
def size(data: Any) -> Tensor:
    """How many elements there are."""
    return torch.tensor(int(np.prod(data.shape, dtype=np.int64)), dtype=torch.int64)


@operator("Identity")
def identity(input: Any) -> Any:
    """The input."""
    return input


@operator("DepthToSpace")
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
def space_to_depth(input: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Blocks of pixels moved into channels."""
    n, c, h, w = input.shape
    b = blocksize
    split = input.reshape(n, c, h // b, b, w // b, b)
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    return split.permute(*order).reshape(n, c * b * b, h // b, w // b)
