"""Operators that read and write elements by their indices."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphopt.runtimes._torch.table import Host, operator
from graphopt.runtimes._torch.values import from_numpy, to_numpy

_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _positive(indices: Tensor, size: int) -> Tensor:
    """Return indices counted from the beginning, as torch wants them."""
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + size, indices)


@operator("Gather")
def gather(data: Any, indices: Tensor, *, axis: int = 0) -> Any:
    """Slices of an axis, by index."""
    if isinstance(data, np.ndarray):
        return np.take(data, indices.numpy(), axis)
    axis %= data.ndim
    if indices.ndim == 0:
        return (
            data.select(axis, int(indices))
            if indices.device.type == "cpu"
            else data.index_select(axis, _positive(indices.reshape(1), data.shape[axis])).squeeze(axis)
        )
    flat = data.index_select(axis, _positive(indices.reshape(-1), data.shape[axis]))
    return flat.reshape(*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])


@operator("GatherElements", 11)
def gather_elements(data: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """Elements along an axis, each by an index of its own."""
    return torch.gather(data, axis, _positive(indices, data.shape[axis]))


@operator("GatherND", 11)
def gather_nd(data: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """Slices by tuples of indices."""
    depth = indices.shape[-1]
    batch = data.shape[:batch_dims]
    count = int(np.prod(batch, dtype=np.int64))
    flat = data.reshape(count, *data.shape[batch_dims:])
    rows = indices.reshape(count, -1, depth)
    which = torch.arange(count, device=data.device)[:, None].expand(count, rows.shape[1])
    taken = flat[(which, *(_positive(rows[..., i], flat.shape[i + 1]) for i in range(depth)))]
    return taken.reshape(*batch, *indices.shape[batch_dims:-1], *data.shape[batch_dims + depth :])


@operator("ScatterElements", 11)
def scatter_elements(
    data: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none"
) -> Tensor:
    """A copy with some elements of an axis replaced, or changed by a reduction."""
    places = _positive(indices, data.shape[axis])
    if reduction == "none":
        return data.scatter(axis, places, updates)
    return data.scatter_reduce(axis, places, updates, _REDUCTIONS[reduction])


@operator("Scatter", 9)
def scatter(data: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0) -> Tensor:
    """A copy with some elements of an axis replaced."""
    return scatter_elements(data, indices, updates, axis=axis)


@operator("ScatterND", 11)
def scatter_nd(data: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    """A copy with some slices replaced, or changed by a reduction."""
    depth = indices.shape[-1]
    sizes = data.shape[:depth]
    flat = data.reshape(int(np.prod(sizes, dtype=np.int64)), -1)
    place = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=data.device)
    for axis, size in enumerate(sizes):
        place = place * size + _positive(indices[..., axis], size)
    index = place.reshape(-1, 1).expand(-1, flat.shape[1])
    new = updates.reshape(index.shape)
    if reduction == "none":
        made = flat.scatter(0, index, new)
    else:
        made = flat.scatter_reduce(0, index, new, _REDUCTIONS[reduction])
    return made.reshape(data.shape)


@operator("TensorScatter", 24)
def tensor_scatter(
    past_cache: Tensor, update: Tensor, write_indices: Tensor | None = None, *, axis: int = -2, mode: str = "linear"
) -> Tensor:
    """A cache with new entries from a place on, of each sample its own; circular ones begin anew at the end."""
    axis %= past_cache.ndim
    batch, length = update.shape[0], update.shape[axis]
    first = update.new_zeros(batch, dtype=torch.int64) if write_indices is None else write_indices.to(torch.int64)
    places = first[:, None] + torch.arange(length, device=update.device)
    places = places % past_cache.shape[axis] if mode == "circular" else places
    shape = [1] * update.ndim
    shape[0], shape[axis] = batch, length
    return past_cache.scatter(axis, places.reshape(shape).expand(update.shape), update)


@operator("OneHot", 9)
def one_hot(indices: Tensor, depth: Host, values: Tensor, *, axis: int = -1) -> Tensor:
    """The second value where an index stands on a new axis, the first elsewhere."""
    size = int(depth.reshape(-1)[0])
    axis = axis % (indices.ndim + 1)
    whole = indices.to(torch.int64)
    within = (whole >= -size) & (whole < size)
    places = torch.where(whole < 0, whole + size, whole).unsqueeze(axis)
    shape = [1] * (indices.ndim + 1)
    shape[axis] = size
    hit = (places == torch.arange(size, device=indices.device).reshape(shape)) & within.unsqueeze(axis)
    return torch.where(hit, values[1], values[0])


@operator("NonZero", 9)
def non_zero(x: Tensor) -> Tensor:
    """The indices of all elements that are not zero, [rank, count]."""
    return torch.nonzero(x).T


@operator("Compress", 9)
def compress(input: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    """The slices of an axis, or elements, for which the condition holds."""
    chosen = torch.nonzero(condition).reshape(-1)
    return input.reshape(-1)[chosen] if axis is None else input.index_select(axis, chosen)


@operator("Unique", 11)
def unique(x: Any, *, axis: int | None = None, sorted: int = 1) -> tuple[Tensor, ...]:
    """What occurs, where it does first, which of it each element is, and how often it occurs."""
    array = to_numpy(x)
    values, first, inverse, counts = np.unique(array, True, True, True, axis=axis)
    inverse = inverse.reshape(-1)
    if not sorted:
        order = np.argsort(first)
        values = values[order] if axis is None else np.take(values, order, axis)
        first, counts = first[order], counts[order]
        inverse = np.argsort(order)[inverse]
    return (from_numpy(values), *(torch.from_numpy(a.astype(np.int64)) for a in (first, inverse, counts)))


@operator("Trilu", 14)
def trilu(input: Tensor, k: Host | None = None, *, upper: int = 1) -> Tensor:
    """The upper or lower triangle of matrices, the rest zero."""
    diagonal = 0 if k is None else int(k.reshape(-1)[0])
    return torch.triu(input, diagonal) if upper else torch.tril(input, diagonal)


@operator("ReverseSequence", 10)
def reverse_sequence(input: Tensor, sequence_lens: Tensor, *, batch_axis: int = 1, time_axis: int = 0) -> Tensor:
    """The beginning of every sequence turned around."""
    shape = [1] * input.ndim
    shape[time_axis] = input.shape[time_axis]
    time = torch.arange(input.shape[time_axis], device=input.device).reshape(shape)
    shape = [1] * input.ndim
    shape[batch_axis] = input.shape[batch_axis]
    lengths = sequence_lens.to(torch.int64).reshape(shape)
    places = torch.where(time < lengths, lengths - 1 - time, time)
    return torch.gather(input, time_axis, places.expand(input.shape))
