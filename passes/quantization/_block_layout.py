"""Where the blocks of a weight lie, and the matrix [summed over, the rest] as which it is encoded."""

from __future__ import annotations

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a weight is cut into blocks that share a scale.

    Attributes:
        shape: of the weight as it is stored.
        axis: along which blocks lie: one that is summed over.
        block: elements along it that share a scale; 0 for all of them.
        channel: the axis that has one scale for each of its elements, in place of blocks; None for blocks.
        transposed: whether it is stored transposed.
    """

    shape: tuple[int, ...]
    axis: int
    block: int
    channel: int | None
    transposed: bool = False

    @property
    def columns(self) -> int:
        """Columns of the matrix."""
        return self.shape[self.channel] if self.channel is not None else math.prod(self.shape) // self.shape[self.axis]

    @property
    def rows(self) -> int:
        """Rows of the matrix, blocks of which share a scale."""
        return math.prod(self.shape) // self.columns

    @property
    def size(self) -> int:
        """Rows of a block."""
        return min(self.block or self.rows, self.rows)

    @property
    def blocks(self) -> int:
        """Blocks of a column."""
        return -(-self.rows // self.size)

    @property
    def scales(self) -> tuple[int, ...]:
        """The shape of the scales for DequantizeLinear."""
        if self._is_scalar:
            return ()
        return (self.columns,) if self.channel is not None else self._along(self.blocks)

    @property
    def attributes(self) -> dict[str, int]:
        """The attributes of DequantizeLinear."""
        if self.channel is not None:
            return {"axis": self.channel}
        if self._is_scalar:
            return {}
        return {"axis": self.axis, "block_size": self.size}

    @property
    def turned(self) -> Layout:
        """The layout of a matrix if it is stored transposed."""
        channel = None if self.channel is None else 1 - self.channel
        return Layout(self.shape[::-1], 1 - self.axis, self.block, channel, not self.transposed)

    def matrix(self, weight: np.ndarray) -> np.ndarray:
        """Return a weight as [rows, columns]."""
        if self.transposed:
            weight = weight.T
        if self.channel is not None:
            return np.moveaxis(weight, self.channel, -1).reshape(-1, self.columns)
        return np.moveaxis(weight, self.axis, 0).reshape(self.rows, -1)

    def whole(self, matrix: np.ndarray) -> np.ndarray:
        """Return numbers [rows, columns] in the shape of the weight."""
        if self.channel is None:
            return np.moveaxis(matrix.reshape(self.rows, *self._others), 0, self.axis)
        others = [size for axis, size in enumerate(self.shape) if axis != self.channel]
        return np.moveaxis(matrix.reshape(*others, self.columns), -1, self.channel)

    def whole_scales(self, matrix: np.ndarray) -> np.ndarray:
        """Return scales or zero points [blocks, columns] in the shape `scales`."""
        if self.channel is not None or self._is_scalar:
            return matrix.reshape(self.scales)
        return np.moveaxis(matrix.reshape(self.blocks, *self._others), 0, self.axis)

    @property
    def cut(self) -> tuple[int, ...]:
        """The shape of the weight with its axis cut in two, [..., blocks, block, ...], so that scales broadcast."""
        return self._along(self.blocks, self.size)

    @property
    def cut_scales(self) -> tuple[int, ...]:
        """The shape in which scales broadcast to `cut`, or to the weight where a column is one block."""
        if self.channel is not None:
            return tuple(size if axis == self.channel else 1 for axis, size in enumerate(self.shape))
        return self._along(1) if self.blocks == 1 else self._along(self.blocks, 1)

    def cut_up(self, matrix: np.ndarray) -> np.ndarray:
        """Return numbers [rows, columns] in the shape `cut`; a short last block is filled up with zeros."""
        full = self.blocks * self.size
        padded = np.concatenate([matrix, np.zeros((full - len(matrix), self.columns), matrix.dtype)])
        return np.moveaxis(padded.reshape(self.blocks, self.size, *self._others), (0, 1), (self.axis, self.axis + 1))

    @property
    def _is_scalar(self) -> bool:
        """Whether the weight is a vector with one scale, which ONNX Runtime takes for one of many if it is a vector too."""
        return len(self.shape) == self.blocks == 1

    @property
    def _others(self) -> tuple[int, ...]:
        return self._along()

    def _along(self, *sizes: int) -> tuple[int, ...]:
        """Return the shape with these sizes in place of that of the axis."""
        return (*self.shape[: self.axis], *sizes, *self.shape[self.axis + 1 :])
