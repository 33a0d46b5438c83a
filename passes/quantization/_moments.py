"""Second moments of what layers read and of what they should compute, gathered batch by batch.

A convolution is a product of its weights with patches of its input; a sample of positions is enough for the moments.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.passes.quantization._gptq import Objective
from graphopt.passes.quantization._graphs import attribute


class Moments:
    """Sums over rows: a row is what one output position reads, and what it should compute.

    They are kept for two halves of the data apart, so that what is fitted to one can be judged by the other.

    Attributes:
        finite: whether all numbers were; those of a batch with others do not count.
    """

    def __init__(self) -> None:
        self.finite = True
        self._counts = np.zeros(2)
        self._shift: tuple[np.ndarray, np.ndarray] | None = None

    def add(self, x: np.ndarray, y: np.ndarray, half: int) -> None:
        """Add rows.

        Args:
            x: [groups, rows, inputs].
            y: [groups, rows, channels].
            half: 0 or 1.
        """
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            self.finite = False
            return
        if self._shift is None:  # numbers near zero lose the fewest digits
            self._shift = x.mean(1, keepdims=True), y.mean(1, keepdims=True)
            groups, _, inputs = x.shape
            channels = y.shape[-1]
            self._x, self._y = np.zeros((2, groups, inputs)), np.zeros((2, groups, channels))
            self._xx, self._yx = np.zeros((2, groups, inputs, inputs)), np.zeros((2, groups, channels, inputs))
            self._yy = np.zeros((2, groups, channels))
        x, y = x - self._shift[0], y - self._shift[1]
        self._counts[half] += x.shape[1]
        self._x[half] += x.sum(1, dtype=np.float64)
        self._y[half] += y.sum(1, dtype=np.float64)
        self._xx[half] += x.swapaxes(-1, -2) @ x
        self._yx[half] += y.swapaxes(-1, -2) @ x
        self._yy[half] += np.square(y, dtype=np.float64).sum(1)

    @property
    def halved(self) -> bool:
        """Whether both halves have rows."""
        return bool(np.all(self._counts))

    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the means of inputs, [groups, inputs], and targets, [groups, channels]."""
        assert self._shift is not None
        x, y = (part.sum(0) / self._counts.sum() for part in (self._x, self._y))
        return self._shift[0][:, 0] + x, self._shift[1][:, 0] + y

    def objective(self, halves: Sequence[int] = (0, 1), *, centred: bool) -> Objective:
        """Return the error as a function of the weights.

        Args:
            halves: of which rows.
            centred: whether a bias makes up for the means, so that only what varies counts.
        """
        assert self._shift is not None
        which = list(halves)
        sums = (self._x, self._y, self._xx, self._yx, self._yy)
        x, y, xx, yx, yy = (part[which].sum(0) / self._counts[which].sum() for part in sums)
        objective = _moved(Objective(xx, yx, yy), x, y, -1)
        if centred:
            return objective
        return _moved(objective, x + self._shift[0][:, 0], y + self._shift[1][:, 0], 1)


def _moved(moments: Objective, x: np.ndarray, y: np.ndarray, sign: int) -> Objective:
    """Take the products of means out of second moments, or put them in."""
    return Objective(
        moments.xx + sign * x[:, :, None] * x[:, None, :],
        moments.yx + sign * y[:, :, None] * x[:, None, :],
        moments.yy + sign * y * y,
    )


def unreadable(node: ir.Node, weight: np.ndarray) -> str | None:
    """Return why the rows of an operator cannot be told, or None."""
    if node.op_type == "ConvTranspose":
        return "transposed convolutions are not rounded"
    if node.op_type == "Gemm" and (attribute(node, "transA", 0) or attribute(node, "alpha", 1.0) != 1.0):
        return "transA or alpha is set"
    if node.op_type == "MatMul" and weight.ndim != 2:
        return "its weight is no matrix"
    return None


def to_rows(node: ir.Node, weight: np.ndarray) -> np.ndarray:
    """Return a weight as [groups, channels, inputs]."""
    if node.op_type == "Conv":
        groups = int(attribute(node, "group", 1))
        return weight.reshape(groups, weight.shape[0] // groups, -1)
    return (weight if attribute(node, "transB", 0) else weight.T)[None]


def from_rows(node: ir.Node, rows: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Return what `to_rows` takes, in its layout."""
    if node.op_type == "Conv":
        return rows.reshape(shape)
    matrix: np.ndarray = rows[0] if attribute(node, "transB", 0) else rows[0].T
    return matrix


def by_position(node: ir.Node, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what an operator reads and computes with rows on the first axis: samples of a convolution, else positions."""
    if node.op_type == "Conv":
        return x, y
    return x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])


def sampled(
    node: ir.Node, kernel: Sequence[int], x: np.ndarray, y: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of inputs, [groups, rows, inputs], and of targets, [groups, rows, channels].

    Args:
        node: the operator.
        kernel: the shape of its weight.
        x: what it reads, as `by_position` returns it.
        y: what it should compute.
        count: how many rows to take at most, at random.
        rng: draws them.
    """
    if node.op_type != "Conv":
        chosen = _chosen(len(x), count, rng)
        return x[chosen][None], y[chosen][None]
    groups = int(attribute(node, "group", 1))
    spatial = y.shape[2:]
    chosen = _chosen(int(np.prod(spatial)), max(1, count // len(y)), rng)
    places = np.unravel_index(chosen, spatial)
    patches = _patches(node, kernel[2:], x, places, spatial)  # [samples, inputs, places, *kernel]
    samples, channels, taken = patches.shape[:3]
    split = patches.reshape(samples, groups, channels // groups, taken, -1)
    rows = split.transpose(1, 0, 3, 2, 4).reshape(groups, samples * taken, -1)
    wanted = y.reshape(samples, groups, -1, int(np.prod(spatial)))[..., chosen]
    return rows, wanted.transpose(1, 0, 3, 2).reshape(groups, samples * taken, -1)


def _chosen(total: int, count: int, rng: np.random.Generator) -> np.ndarray:
    return np.arange(total) if total <= count else np.sort(rng.choice(total, count, replace=False))


def _patches(
    node: ir.Node, kernel: Sequence[int], x: np.ndarray, places: Sequence[np.ndarray], spatial: Sequence[int]
) -> np.ndarray:
    rank = len(kernel)
    strides, dilations = (list(attribute(node, name, [1] * rank)) for name in ("strides", "dilations"))
    extents = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    pads = _pads(node, x.shape[2:], spatial, strides, extents)
    x = np.pad(x, [(0, 0), (0, 0), *pads])
    index = []
    for axis in range(rank):
        offsets = np.arange(kernel[axis]) * dilations[axis]
        shape = [1] * (rank + 1)
        shape[axis + 1] = -1
        first = np.asarray(places[axis]).reshape([-1, *itertools.repeat(1, rank)]) * strides[axis]
        index.append(first + offsets.reshape(shape))
    result: np.ndarray = x[(slice(None), slice(None), *index)]
    return result


def _pads(
    node: ir.Node, before: Sequence[int], after: Sequence[int], strides: Sequence[int], extents: Sequence[int]
) -> list[tuple[int, int]]:
    """Return how much is padded at both ends of every spatial axis."""
    rank = len(extents)
    mode = attribute(node, "auto_pad", "NOTSET")
    if mode == "NOTSET":
        pads = list(attribute(node, "pads", [0] * 2 * rank))
        return [(int(pads[axis]), int(pads[axis + rank])) for axis in range(rank)]
    if mode == "VALID":
        return [(0, 0)] * rank
    found = []
    for axis in range(rank):
        total = max(0, (after[axis] - 1) * strides[axis] + extents[axis] - before[axis])
        small, large = total // 2, total - total // 2
        found.append((small, large) if mode == "SAME_UPPER" else (large, small))
    return found
