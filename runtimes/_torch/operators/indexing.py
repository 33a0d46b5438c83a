"""Operators that read and write elements by their indices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphopt.runtimes._torch.operators._moving import moving
from graphopt.runtimes._torch.operators.casting import to_float
from graphopt.runtimes._torch.operators.elementwise import ranked, widened
from graphopt.runtimes._torch.table import Host, operator
from graphopt.runtimes._torch.values import plain, to_numpy

_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}

_OF_BOOLS = {"sum": "amax", "prod": "amin", "amax": "amax", "amin": "amin"}
"""What reductions come to of true and false."""


def _positive(indices: Tensor, size: int) -> Tensor:
    """Return indices counted from the beginning, as torch wants them."""
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + size, indices)


@operator("Gather")
@moving
def gather(data: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """Slices of an axis, by index."""
    axis %= data.ndim
    if indices.ndim == 0 and indices.device.type == "cpu":
        return data.select(axis, int(indices))
    flat = data.index_select(axis, _positive(indices.reshape(-1), data.shape[axis]))
    return flat.reshape(*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])


@operator("GatherElements", 11)
@moving
def gather_elements(data: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """Elements along an axis, each by an index of its own."""
    return torch.gather(data, axis, _positive(indices, data.shape[axis]))


@operator("GatherND", 11)
@moving
def gather_nd(data: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """Slices by tuples of indices."""
    depth = indices.shape[-1]
    end = batch_dims + depth
    batch, sizes, rest = data.shape[:batch_dims], data.shape[batch_dims:end], data.shape[end:]
    within = math.prod(sizes)
    places = _row_major(indices, sizes)
    if batch:
        sample = torch.arange(math.prod(batch), device=data.device)
        places = places + within * sample.reshape(*batch, *[1] * (places.ndim - batch_dims))
    rows = data.reshape(math.prod(batch) * within, *rest)
    return rows.index_select(0, places.reshape(-1)).reshape(*places.shape, *rest)


def _row_major(indices: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return tuples of indices, which lie on the last axis, as positions among elements in row-major order."""
    places = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=indices.device)
    for axis, size in enumerate(sizes):
        places = places * size + _positive(indices[..., axis], size)
    return places


@operator("ScatterElements", 11)
def scatter_elements(data: Any, indices: Tensor, updates: Any, *, axis: int = 0, reduction: str = "none") -> Any:
    """A copy with some elements of an axis replaced, or changed by a reduction."""
    return _scattered(data, updates, axis, _positive(indices, data.shape[axis]), reduction)


@operator("Scatter", 9)
def scatter(data: Any, indices: Tensor, updates: Any, *, axis: int = 0) -> Any:
    """A copy with some elements of an axis replaced."""
    return scatter_elements(data, indices, updates, axis=axis)


@operator("ScatterND", 11)
def scatter_nd(data: Any, indices: Tensor, updates: Any, *, reduction: str = "none") -> Any:
    """A copy with some slices replaced, or changed by a reduction."""
    depth = indices.shape[-1]
    sizes, width = data.shape[:depth], math.prod(data.shape[depth:])
    places = _row_major(indices, sizes).reshape(-1, 1).expand(-1, width)
    rows = data.reshape(math.prod(sizes), width)
    return _scattered(rows, updates.reshape(places.shape), 0, places, reduction).reshape(data.shape)


def _scattered(data: Any, updates: Any, axis: int, places: Tensor, reduction: str) -> Any:
    if reduction == "none":
        return _replaced(data, updates, axis, places)
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction '{reduction}' is not one of none, {', '.join(_REDUCTIONS)}")
    combine = _ranked if reduction in ("max", "min") else _summed
    return combine(data, updates, axis, places, _REDUCTIONS[reduction])


@moving
def _replaced(data: Tensor, updates: Tensor, axis: int, places: Tensor) -> Tensor:
    return data.scatter(axis, places, updates.to(data.dtype))  # autocast lets their types differ


def _reduced(data: Tensor, updates: Tensor, axis: int, places: Tensor, reduction: str) -> Tensor:
    if data.dtype == torch.bool:
        return data.to(torch.uint8).scatter_reduce(axis, places, updates.to(torch.uint8), _OF_BOOLS[reduction]) != 0
    return data.scatter_reduce(axis, places, updates.to(data.dtype), reduction)


_summed, _ranked = widened(_reduced), ranked(_reduced)


@operator("TensorScatter", 24)
@moving
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
    return past_cache.scatter(axis, places.reshape(shape).expand(update.shape), update.to(past_cache.dtype))


@operator("OneHot", 9)
def one_hot(indices: Tensor, depth: Host, values: Any, *, axis: int = -1) -> Any:
    """The second value where an index stands on a new axis, the first elsewhere."""
    size = int(depth.reshape(-1)[0])
    axis = axis % (indices.ndim + 1)
    whole = indices.to(torch.int64)
    within = (whole >= -size) & (whole < size)
    places = torch.where(whole < 0, whole + size, whole).unsqueeze(axis)
    shape = [1] * (indices.ndim + 1)
    shape[axis] = size
    hit = (places == torch.arange(size, device=indices.device).reshape(shape)) & within.unsqueeze(axis)
    if isinstance(values, np.ndarray):
        return np.where(hit.cpu().numpy(), values[1], values[0])
    return torch.where(hit, values[1], values[0])


@operator("NonZero", 9)
def non_zero(x: Tensor) -> Tensor:
    """The indices of all elements that are not zero, [rank, count]."""
    return torch.nonzero(plain(to_float(x)) if x.dtype.itemsize == 1 else x != 0).T


@operator("Compress", 9)
@moving
def compress(input: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    """The slices of an axis, or elements, for which the condition holds."""
    chosen = torch.nonzero(condition).reshape(-1)
    return input.reshape(-1).index_select(0, chosen) if axis is None else input.index_select(axis, chosen)


@operator("Unique", 11)
def unique(x: Any, *, axis: int | None = None, sorted: int = 1) -> tuple[Tensor, ...]:
    """What occurs, where it does first, which of it each element is, and how often it occurs."""
    _, first, inverse, counts = np.unique(to_numpy(x), True, True, True, axis=axis)
    inverse = inverse.reshape(-1)
    if not sorted:
        order = np.argsort(first)
        first, counts = first[order], counts[order]
        inverse = np.argsort(order)[inverse]
    where, *others = (torch.from_numpy(a.astype(np.int64)) for a in (first, inverse, counts))
    here = where if isinstance(x, np.ndarray) else where.to(x.device)
    return (gather(x.reshape(-1), here) if axis is None else gather(x, here, axis=axis), where, *others)


@operator("Trilu", 14)
@moving
def trilu(input: Tensor, k: Host | None = None, *, upper: int = 1) -> Tensor:
    """The upper or lower triangle of matrices, the rest zero."""
    diagonal = 0 if k is None else int(k.reshape(-1)[0])
    return torch.triu(input, diagonal) if upper else torch.tril(input, diagonal)


@operator("ReverseSequence", 10)
@moving
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
