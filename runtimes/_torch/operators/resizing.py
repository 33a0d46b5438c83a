"""Resize and Upsample: torch where it computes the same, else each axis by indices or a matrix of its own."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from graphopt.runtimes._torch.operators._moving import moving
from graphopt.runtimes._torch.table import Host, operator
from graphopt.runtimes._torch.values import limits

_LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}
"""torch's names of linear interpolation, by the rank of the tensor."""


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
    kind = coordinate_transformation_mode
    chosen = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in axes]
    factors, wanted = _targets(x, chosen, scales, sizes, keep_aspect_ratio_policy)
    crop = kind == "tf_crop_and_resize"
    changed = {
        axis: (wanted[i], factors[i])
        for i, axis in enumerate(chosen)
        if crop or wanted[i] != x.shape[axis] or factors[i] != 1
    }
    plain = not antialias and not exclude_outside and x.dtype.is_floating_point
    if plain and _is_torchs(x.shape, changed, mode, kind, nearest_mode, cubic_coeff_a):
        return _by_torch(x, changed, mode, kind == "align_corners")
    dtype, outside = x.dtype, np.zeros(())
    x = x if mode == "nearest" or dtype.is_floating_point else x.to(torch.float64)
    for axis, (size, factor) in changed.items():
        ends = (0.0, 1.0)
        if crop and roi is not None and len(roi):
            place = chosen.index(axis)
            ends = float(roi[place]), float(roi[place + len(chosen)])
        places = _places(x.shape[axis], size, factor, kind, *ends)
        if crop:
            shape = [1] * x.ndim
            shape[axis] = -1
            outside = np.logical_or(outside, ((places < 0) | (places > x.shape[axis] - 1)).reshape(shape))
        if mode == "nearest":
            x = _taken(x, axis, _nearest(places, nearest_mode, factor).clip(0, x.shape[axis] - 1))
        else:
            shrink = min(factor, 1.0) if antialias else 1.0
            cubic = cubic_coeff_a if mode == "cubic" else None
            x = _applied(x, axis, _matrix(x.shape[axis], places.tobytes(), shrink, cubic, bool(exclude_outside)))
    if outside.any():
        x = torch.where(torch.from_numpy(outside).to(x.device), extrapolation_value, x)
    return x if dtype == x.dtype else x.clamp(*limits(dtype)).to(dtype)  # whole numbers are cut off


@operator("Resize", 10)
def resize_10(x: Tensor, scales: Host, *, mode: str = "nearest") -> Tensor:
    """Interpolate by factors, from the first pixel on."""
    return resize(x, None, scales, mode=mode, coordinate_transformation_mode="asymmetric", nearest_mode="simple")


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
        if scales is None:
            raise ValueError("Resize needs scales or sizes")
        factors = scales.tolist()
        return factors, [math.floor(x.shape[a] * f) for a, f in zip(axes, factors, strict=True)]
    wanted = sizes.tolist()
    factors = [w / x.shape[a] for a, w in zip(axes, wanted, strict=True)]
    if policy != "stretch":
        factor = min(factors) if policy == "not_larger" else max(factors)
        factors = [factor] * len(axes)
        wanted = [math.floor(x.shape[a] * factor + 0.5) for a in axes]
    return factors, wanted


def _is_torchs(
    shape: Sequence[int], changed: dict[int, tuple[int, float]], mode: str, kind: str, nearest: str, cubic: float
) -> bool:
    """Tell whether torch's own interpolation computes the same."""
    if not changed or not 3 <= len(shape) <= 5 or min(changed) < 2:
        return False
    if any(abs(factor * shape[axis] - size) > 1e-6 * size for axis, (size, factor) in changed.items()):
        return False  # the size is rounded, and torch would compute with its own factor
    if mode == "nearest":
        known = kind == "asymmetric" and nearest in ("floor", "simple")
        known = known or (kind == "half_pixel" and nearest.startswith("round"))
        return known and all(_is_exact(shape[axis], size) for axis, (size, _) in changed.items())
    if kind not in ("half_pixel", "align_corners") and not (
        kind == "pytorch_half_pixel" and min(size for size, _ in changed.values()) > 1
    ):
        return False
    return mode == "linear" or (len(shape) == 4 and abs(cubic + 0.75) < 1e-6)


@functools.lru_cache(256)
def _is_exact(length: int, size: int) -> bool:
    """Tell whether torch, which computes indices in float32, repeats each element equally often."""
    places = np.arange(size, dtype=np.float32) * np.float32(length / size)
    return size % length == 0 and bool((places.astype(np.int64) == np.arange(size) // (size // length)).all())


def _by_torch(x: Tensor, changed: dict[int, tuple[int, float]], mode: str, corners: bool) -> Tensor:
    size = [changed[axis][0] if axis in changed else x.shape[axis] for axis in range(2, x.ndim)]
    if mode == "nearest":
        return functional.interpolate(x, size, mode="nearest")
    return functional.interpolate(
        x, size, mode=_LINEAR[x.ndim] if mode == "linear" else "bicubic", align_corners=corners
    )


@moving
def _taken(x: Tensor, axis: int, indices: np.ndarray) -> Tensor:
    return x.index_select(axis, torch.from_numpy(indices).to(x.device))


def _applied(x: Tensor, axis: int, matrix: np.ndarray) -> Tensor:
    weights = torch.from_numpy(matrix).to(x.device, x.dtype)
    return torch.matmul(x.movedim(axis, -1), weights.T).movedim(-1, axis)


@functools.lru_cache(256)
def _places(length: int, size: int, scale: float, kind: str, first: float, last: float) -> np.ndarray:
    """Return where in the input each output place lies, in float32 as ONNX Runtime: ties are many."""
    out, factor, half = np.arange(size, dtype=np.float32), np.float32(scale), np.float32(0.5)
    whole = factor * np.float32(length)
    if kind == "asymmetric":
        return out / factor
    if kind == "align_corners":
        return out * np.float32(length - 1) / (whole - 1) if whole != 1 else out * 0
    if kind == "pytorch_half_pixel" and size == 1:
        return out
    if kind == "half_pixel_symmetric":
        return half * length * (1 - np.float32(size) / whole) + (out + half) / factor - half
    if kind == "tf_crop_and_resize":
        start, span = np.float32(first), np.float32(last) - np.float32(first)
        if size == 1:
            return out + half * (start + np.float32(last)) * np.float32(length - 1)
        return start * np.float32(length - 1) + out * span * np.float32(length - 1) / np.float32(size - 1)
    if kind == "tf_half_pixel_for_nn":
        return (out + half) / factor
    return (out + half) / factor - half


def _nearest(places: np.ndarray, mode: str, factor: float) -> np.ndarray:
    """Return the nearest input place; before opset 11 ("simple"), the next one where there are fewer places."""
    if mode == "simple":
        mode = "floor" if factor >= 1 else "ceil"
    if mode == "floor":
        found = np.floor(places)
    elif mode == "ceil":
        found = np.ceil(places)
    else:
        found = np.ceil(places - 0.5) if mode == "round_prefer_floor" else np.floor(places + 0.5)
    return np.asarray(found, np.int64)


@functools.lru_cache(64)
def _matrix(length: int, places: bytes, shrink: float, cubic: float | None, exclude: bool) -> np.ndarray:
    """Return the weights of input places for every output place, [size, length].

    Args:
        length: number of input places.
        places: where in the input each output place lies, float32.
        shrink: below 1, windows are so much wider.
        cubic: the kernel's parameter; None for linear interpolation.
        exclude: whether places outside of the input do not count, instead of the nearest inside.
    """
    where = np.frombuffer(places, np.float32).astype(np.float64)[:, None]
    reach = (1 if cubic is None else 2) / shrink
    taps = np.floor(where - reach) + 1 + np.arange(math.ceil(2 * reach) + 1)
    distances = np.abs(where - taps) * shrink
    weights = np.maximum(1 - distances, 0) if cubic is None else _cubic(distances, cubic)
    if exclude:
        weights = np.where((taps >= 0) & (taps < length), weights, 0)
    if exclude or shrink < 1:
        weights = weights / weights.sum(1, keepdims=True)
    matrix = np.zeros((len(where), length))
    np.add.at(matrix, (np.arange(len(where))[:, None], taps.clip(0, length - 1).astype(np.int64)), weights)
    return matrix


def _cubic(distances: np.ndarray, a: float) -> np.ndarray:
    """The kernel of Keys, "Cubic Convolution Interpolation for Digital Image Processing" (1981)."""
    near = (a + 2) * distances**3 - (a + 3) * distances**2 + 1
    far = a * distances**3 - 5 * a * distances**2 + 8 * a * distances - 4 * a
    return np.where(distances <= 1, near, np.where(distances < 2, far, 0))
