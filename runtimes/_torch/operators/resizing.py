"""Resize and Upsample: each axis is interpolated by a matrix of its own, or by torch where it computes the same."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from graphopt.runtimes._torch.table import Host, operator


@operator("Resize", 11)
def resize(
    x: Tensor,
    roi: Host | None = None,
    scales: Host | None = None,
    sizes: Host | None = None,
    *,
    antialias: int = 0,
    axes: tuple[int, ...] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    """Interpolate to other sizes of some axes."""
    chosen = list(range(x.ndim)) if axes is None else [a % x.ndim for a in axes]
    factors, wanted = _targets(x, chosen, scales, sizes, keep_aspect_ratio_policy)
    regions = None if roi is None or not len(roi) else roi.reshape(2, -1).T.tolist()
    kind = coordinate_transformation_mode
    if _is_plain(x, chosen, factors, wanted, mode, kind, nearest_mode, antialias):
        return _by_torch(x, [wanted[chosen.index(axis)] for axis in (2, 3)], mode, kind)
    outside = np.zeros(())
    for place, axis in enumerate(chosen):
        crop = kind == "tf_crop_and_resize"
        if wanted[place] == x.shape[axis] and factors[place] == 1 and not crop:
            continue
        region = regions[place] if crop and regions else None
        matrix, out = _matrix(
            x.shape[axis],
            wanted[place],
            factors[place],
            (mode, kind, nearest_mode),
            region and (region[0], region[1]),
            cubic_coeff_a,
            bool(exclude_outside),
            bool(antialias),
        )
        x = _applied(x, axis, matrix)
        if crop:
            shape = [1] * x.ndim
            shape[axis] = -1
            outside = np.logical_or(outside, out.reshape(shape))
    if outside.ndim and outside.any():
        return torch.where(
            torch.from_numpy(outside).to(x.device), torch.as_tensor(extrapolation_value, dtype=x.dtype), x
        )
    return x


@operator("Resize", 10)
def resize_10(x: Tensor, scales: Host, *, mode: str = "nearest") -> Tensor:
    """Interpolate by factors, from the first pixel on."""
    return resize(x, None, scales, mode=mode, coordinate_transformation_mode="asymmetric", nearest_mode="floor")


@operator("Upsample", 9)
def upsample(x: Tensor, scales: Host, *, mode: str = "nearest") -> Tensor:
    """Interpolate by factors, from the first pixel on."""
    return resize_10(x, scales, mode=mode)


@operator("Upsample", 7)
def upsample_7(x: Tensor, *, scales: tuple[float, ...], mode: str = "nearest") -> Tensor:
    """Interpolate by factors, from the first pixel on."""
    return resize_10(x, np.array(scales), mode=mode)


def _targets(
    x: Tensor, axes: Sequence[int], scales: Host | None, sizes: Host | None, policy: str
) -> tuple[list[float], list[int]]:
    """Return the factor and the new size of each axis."""
    if sizes is None or not len(sizes):
        assert scales is not None
        factors = scales.tolist()
        return factors, [math.floor(x.shape[a] * f) for a, f in zip(axes, factors, strict=True)]
    wanted = sizes.tolist()
    factors = [w / x.shape[a] for a, w in zip(axes, wanted, strict=True)]
    if policy != "stretch":
        factor = min(factors) if policy == "not_larger" else max(factors)
        factors = [factor] * len(axes)
        wanted = [math.floor(x.shape[a] * factor + 0.5) for a in axes]
    return factors, wanted


def _is_plain(
    x: Tensor,
    axes: Sequence[int],
    factors: Sequence[float],
    wanted: Sequence[int],
    mode: str,
    kind: str,
    nearest_mode: str,
    antialias: int,
) -> bool:
    """Tell whether torch's own interpolation is the same: images, by whole factors where sizes are rounded."""
    changed = [i for i, axis in enumerate(axes) if wanted[i] != x.shape[axis] or factors[i] != 1]
    if antialias or x.ndim != 4 or not x.dtype.is_floating_point or {axes[i] for i in changed} != {2, 3}:
        return False
    whole = all(factors[i] == int(factors[i]) >= 1 for i in changed)
    if mode == "nearest":
        return whole and (kind, nearest_mode) in (
            ("asymmetric", "floor"),
            ("half_pixel", "round_prefer_floor"),
            ("half_pixel", "round_prefer_ceil"),
        )
    same = all(abs(factors[i] * x.shape[axes[i]] - wanted[i]) < 1e-6 for i in changed)
    if mode == "linear":
        return same and kind in ("half_pixel", "pytorch_half_pixel", "align_corners") and min(wanted) > 1
    return False


def _by_torch(x: Tensor, wanted: Sequence[int], mode: str, kind: str) -> Tensor:
    size = list(wanted)
    if mode == "nearest":
        return functional.interpolate(x, size=size, mode="nearest")
    return functional.interpolate(x, size=size, mode="bilinear", align_corners=kind == "align_corners")


def _applied(x: Tensor, axis: int, matrix: np.ndarray) -> Tensor:
    kind = x.dtype if x.dtype.is_floating_point else torch.float64
    weights = torch.from_numpy(matrix).to(x.device, kind)
    made = torch.matmul(x.movedim(axis, -1).to(kind), weights.T).movedim(-1, axis)
    return made if x.dtype.is_floating_point else made.round().to(x.dtype)


@functools.lru_cache(64)
def _matrix(
    length: int,
    size: int,
    factor: float,
    modes: tuple[str, str, str],
    region: tuple[float, float] | None,
    cubic: float,
    exclude: bool,
    antialias: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights of input places for every output place, [size, length], and which of those lie outside."""
    mode, kind, nearest = modes
    places = _coordinates(length, size, factor, kind, region)
    rows = np.zeros((size, length))
    for row, place in enumerate(places):
        for index, weight in _weights(place, mode, nearest, factor, length, cubic, exclude, antialias):
            rows[row, min(max(index, 0), length - 1)] += weight
    return rows, (places < 0) | (places > length - 1)


def _coordinates(length: int, size: int, factor: float, kind: str, region: tuple[float, float] | None) -> np.ndarray:
    """Return where in the input each output place lies."""
    out = np.arange(size, dtype=np.float64)
    whole = factor * length
    if kind == "asymmetric":
        return out / factor
    if kind == "align_corners":
        return out * (length - 1) / (whole - 1) if whole != 1 else out * 0
    if kind == "pytorch_half_pixel":
        return (out + 0.5) / factor - 0.5 if whole > 1 else out * 0
    if kind == "half_pixel_symmetric":
        adjusted = size / whole
        centre = length / 2
        return centre * (1 - adjusted) + (out + 0.5) / factor - 0.5
    if kind == "tf_crop_and_resize":
        first, last = region or (0.0, 1.0)
        if size == 1:
            return out * 0 + 0.5 * (first + last) * (length - 1)
        return first * (length - 1) + out * (last - first) * (length - 1) / (size - 1)
    if kind == "tf_half_pixel_for_nn":
        return (out + 0.5) / factor
    return (out + 0.5) / factor - 0.5


def _weights(
    place: float, mode: str, nearest: str, factor: float, length: int, cubic: float, exclude: bool, antialias: bool
) -> list[tuple[int, float]]:
    """Return the input places that a place in between is made of, with their weights."""
    if mode == "nearest":
        return [(_nearest(place, nearest), 1.0)]
    shrink = min(factor, 1.0) if antialias else 1.0
    reach = (1 if mode == "linear" else 2) / shrink
    first = math.floor(place - reach) + 1
    found = []
    for index in range(first, math.ceil(place + reach)):
        distance = abs(place - index) * shrink
        found.append((index, _tent(distance) if mode == "linear" else _cubic(distance, cubic)))
    if exclude or antialias:
        found = [(i, w) for i, w in found if (not exclude and mode == "linear") or 0 <= i < length or not exclude]
        found = [(i, w if 0 <= i < length or not exclude else 0.0) for i, w in found]
        total = sum(w for _, w in found)
        found = [(i, w / total) for i, w in found]
    return found


def _tent(distance: float) -> float:
    return max(1 - distance, 0.0)


def _cubic(distance: float, a: float) -> float:
    """The kernel of Keys, "Cubic Convolution Interpolation for Digital Image Processing" (1981)."""
    if distance <= 1:
        return (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    return a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a if distance < 2 else 0.0


def _nearest(place: float, mode: str) -> int:
    if mode == "floor":
        return math.floor(place)
    if mode == "ceil":
        return math.ceil(place)
    return math.ceil(place - 0.5) if mode == "round_prefer_floor" else math.floor(place + 0.5)
