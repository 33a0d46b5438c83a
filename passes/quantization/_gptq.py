"""Choose the integers of a weight so that its layer computes what it should, not so that each number is near.

With x what a layer reads and y what it should compute, the squared error of integers q on a scale s is a quadratic
function of w = s q, known from second moments alone: w' E[xx'] w - 2 E[yx']' w + E[yy']. GPTQ (Frantar et al. 2022,
arXiv:2210.17323) rounds one number after the other, each time moving those that are left to where they make up best for
the error so far. Here y is what the float model computes while x is what the quantized one has come to, so that errors
of earlier layers are made up for as well (as in Nagel et al. 2020, arXiv:2004.10568, section 3.4).

Arrays have a leading axis of groups, as of a grouped convolution: weights are [groups, channels, inputs].
"""

from __future__ import annotations

import dataclasses

import numpy as np

_BLOCK = 128
"""Columns after which errors reach the columns further on, which makes a matrix product of many outer ones."""


@dataclasses.dataclass(frozen=True)
class Levels:
    """The integers that a weight may take: `low` to `high`, zero being zero; numbers, or [groups, channels, 1]."""

    low: np.ndarray | int
    high: np.ndarray | int

    def nearest(self, steps: np.ndarray) -> np.ndarray:
        """Return the nearest of them, float64."""
        result: np.ndarray = np.clip(np.rint(steps), self.low, self.high)
        return result


@dataclasses.dataclass(frozen=True)
class Objective:
    """The expected squared error of every output channel as a function of its weights.

    Attributes:
        xx: [groups, inputs, inputs], second moments of what the layer reads.
        yx: [groups, channels, inputs], of what it should compute with what it reads.
        yy: [groups, channels], second moment of what it should compute.
    """

    xx: np.ndarray
    yx: np.ndarray
    yy: np.ndarray

    def error(self, weight: np.ndarray) -> np.ndarray:
        """Return the error of weights [groups, channels, inputs], by channel: [groups, channels]."""
        result: np.ndarray = ((weight @ self.xx - 2 * self.yx) * weight).sum(-1) + self.yy
        return result

    def towards(self, weight: np.ndarray, damping: float) -> Objective:
        """Add the distance from `weight`, times `damping` times the mean second moment of the inputs.

        It decides where the data does not, and makes `xx` positive definite.
        """
        size = self.xx.shape[-1]
        mean = np.trace(self.xx, axis1=-2, axis2=-1)[:, None, None] / size
        amount = damping * np.where(mean > 0, mean, 1.0)
        yy = self.yy + (amount * weight * weight).sum(-1)
        return Objective(self.xx + amount * np.eye(size), self.yx + amount * weight, yy)

    def best(self) -> np.ndarray:
        """Return the real weights of the least error; `xx` must be positive definite."""
        result: np.ndarray = np.linalg.solve(self.xx, self.yx.swapaxes(-1, -2)).swapaxes(-1, -2)
        return result

    def around(self, weight: np.ndarray) -> Objective:
        """Return the error of computing what `weight` computes of the same inputs."""
        yx = weight @ self.xx
        return Objective(self.xx, yx, (yx * weight).sum(-1))


def gptq(objective: Objective, scale: np.ndarray, levels: Levels) -> np.ndarray:
    """Return integers [groups, channels, inputs], float64.

    Args:
        objective: with `xx` positive definite (see `Objective.towards`).
        scale: [groups, channels], or [groups, channels, inputs].
        levels: what the integers may be.
    """
    order = np.argsort(-np.diagonal(objective.xx, axis1=-2, axis2=-1), axis=-1, kind="stable")
    rows = np.take_along_axis(objective.xx, order[:, :, None], 1)
    inverse = np.linalg.inv(np.take_along_axis(rows, order[:, None, :], 2))
    factor = np.linalg.cholesky((inverse + inverse.swapaxes(-1, -2)) / 2).swapaxes(-1, -2)
    left = np.take_along_axis(objective.best(), order[:, None, :], 2)
    wide = scale if scale.ndim == left.ndim else scale[..., None]
    steps, low, high = (_ordered(x, left.shape, order) for x in (wide, levels.low, levels.high))
    integers = np.empty_like(left)
    size = left.shape[-1]
    for start in range(0, size, _BLOCK):
        end = min(start + _BLOCK, size)
        errors = np.empty_like(left[:, :, start:end])
        for i in range(start, end):
            column = slice(i, i + 1)
            step = steps[..., column]
            integers[..., column] = Levels(low[..., column], high[..., column]).nearest(left[..., column] / step)
            off = (left[..., column] - integers[..., column] * step) / factor[:, None, column, i]
            left[..., i:end] -= off * factor[:, column, i:end]
            errors[..., i - start : i - start + 1] = off
        left[:, :, end:] -= errors @ factor[:, start:end, end:]
    back = np.argsort(order, axis=-1)
    return np.take_along_axis(integers, back[:, None, :], 2)


def _ordered(parameter: np.ndarray | int, shape: tuple[int, ...], order: np.ndarray) -> np.ndarray:
    """Return a parameter in the shape of a weight [groups, channels, inputs], its inputs in another order."""
    wide = np.broadcast_to(parameter, shape)
    return wide if wide.strides[-1] == 0 else np.take_along_axis(wide, order[:, None, :], 2)


def refit(objective: Objective, integers: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return the scale [groups, channels] of the least error for these integers; as it was where that is not positive."""
    along = (integers * objective.yx).sum(-1)
    across = ((integers @ objective.xx) * integers).sum(-1)
    sound = (along > 0) & (across > 0)
    result: np.ndarray = np.where(sound, along / np.where(sound, across, 1.0), scale)
    return result


def search(
    objective: Objective, weight: np.ndarray, scale: np.ndarray, levels: Levels, factors: np.ndarray
) -> np.ndarray:
    """Return, for every channel, the scale of which the nearest integers err least: [groups, channels].

    Args:
        objective: the error.
        weight: what to round, [groups, channels, inputs].
        scale: [groups, channels].
        levels: what the integers may be.
        factors: by which the scale is multiplied, each in turn.
    """
    best, least = scale, objective.error(levels.nearest(weight / scale[..., None]) * scale[..., None])
    for factor in factors:
        tried = scale * factor
        error = objective.error(levels.nearest(weight / tried[..., None]) * tried[..., None])
        best, least = np.where(error < least, tried, best), np.minimum(error, least)
    return best
