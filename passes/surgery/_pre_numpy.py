"""What add-preprocessing means, in numpy and double precision, apart from any operator.

Interpolation is separable: a matrix for each axis holds the weights of all old pixels in every new one. Old and new
images cover the same area, so new pixel i lies at (i + 0.5) / scale - 0.5 (ONNX: half_pixel). The kernels are the
triangle, and Keys' cubic convolution (IEEE Transactions on Acoustics, Speech, and Signal Processing 29(6), 1981);
with antialias they are stretched over as many old pixels as one new one covers, and cut off at the border, as in
Pillow. Without, pixels beyond the border repeat the last one.
"""

from __future__ import annotations

import numpy as np

from graphopt.passes.surgery._pre_steps import Resizing, Steps


def preprocess(images: np.ndarray, steps: Steps) -> np.ndarray:
    """Return what the model takes for these images."""
    values = images.astype(np.float64)
    if steps.perm:
        values = values.transpose(steps.perm)
    if steps.reverse:
        assert steps.channel_axis is not None
        values = np.flip(values, steps.channel_axis)
    if steps.resizing:
        values = resize(values, steps.resizing, steps.spatial)
        if not steps.taken.is_floating_point():
            values = np.clip(np.rint(values), steps.taken.min, steps.taken.max)
    return np.asarray((values - steps.mean) * steps.factor).astype(steps.taken.numpy())


def resize(values: np.ndarray, how: Resizing, axes: tuple[int, int]) -> np.ndarray:
    """Bring two axes to size."""
    new = list(how.size)
    if how.fit != "stretch":
        old = np.array([values.shape[axis] for axis in axes], np.float32)
        ratio = (max if how.fit == "crop" else min)(np.array(how.size, np.float32) / old)
        new = [max(int(side), 1) for side in np.floor(old * ratio + np.float32(0.5))]
    for axis, size in zip(axes, new, strict=True):
        matrix = weights(values.shape[axis], size, how)
        values = np.moveaxis(np.tensordot(matrix, values, (1, axis)), 0, axis)
    for axis, wanted in zip(axes, how.size, strict=True):
        values = _frame(values, axis, wanted)
    return values


def weights(old: int, new: int, how: Resizing) -> np.ndarray:
    """Return how much of each old pixel is in each new one, [new, old]."""
    half, scale = np.float32(0.5), np.float32(new) / np.float32(old)
    matrix = np.zeros((new, old))
    if how.mode == "nearest":  # in single precision, as runtimes count: a double would round elsewhere
        nearest = np.floor((np.arange(new, dtype=np.float32) + half) / scale - half + half)
        matrix[np.arange(new), np.clip(nearest, 0, old - 1).astype(int)] = 1
        return matrix
    stretch = max(old / new, 1.0) if how.antialias else 1.0
    reach = int(np.ceil(2 * stretch)) + 1
    for row, place in zip(matrix, (np.arange(new) + 0.5) * old / new - 0.5, strict=True):
        pixels = np.arange(int(np.floor(place)) - reach, int(np.floor(place)) + reach + 1)
        kernel = _kernel(np.abs(pixels - place) / stretch, how)
        if how.antialias:
            kernel[(pixels < 0) | (pixels >= old)] = 0
        np.add.at(row, np.clip(pixels, 0, old - 1), kernel / kernel.sum())
    return matrix


def _kernel(distance: np.ndarray, how: Resizing) -> np.ndarray:
    if how.mode == "linear":
        return np.asarray(np.maximum(1 - distance, 0.0))
    a, t = how.cubic_coefficient, distance
    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
    far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))


def _frame(values: np.ndarray, axis: int, wanted: int) -> np.ndarray:
    """Cut an axis off, or pad it with zeros, on both sides."""
    size = values.shape[axis]
    if size > wanted:
        start = (size - wanted) // 2
        return np.take(values, np.arange(start, start + wanted), axis)
    pads = [(0, 0)] * values.ndim
    pads[axis] = ((wanted - size) // 2, (wanted - size) - (wanted - size) // 2)
    return np.pad(values, pads)
