"""Encode a matrix in blocks: some neighbours along the axis that is summed over share a scale."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from graphopt.passes.quantization._block_bytes import WORD, widen, words
from graphopt.passes.quantization._block_kinds import Kind
from graphopt.passes.quantization._block_scales import choose

_PART = 3 << 18
"""Elements to encode at a time: with fewer, threads that encode other weights would take turns in Python too often."""
_WIDE, _NARROW = 4096, 64
"""Columns to encode at a time, where rows or where columns lie in one piece in memory."""


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A matrix [K, N] in blocks along its first axis.

    Attributes:
        numbers: [K, N], of the type `Kind.memory`; packed for MatMulNBits, uint8 [N, blocks, block * bits / 8].
        scales: [blocks, N].
        zeros: uint8 [blocks, N], or None where 0 stands for zero.
    """

    numbers: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None


def encode(
    weight: np.ndarray, block: int, kind: Kind, scale_type: np.dtype, *, search: bool = False, pack: bool = False
) -> Encoded:
    """Return the numbers and scales that stand for a matrix.

    Args:
        weight: [K, N], float32 or float16, finite; blocks lie along the first axis.
        block: elements that share a scale; the last block may be shorter. To be packed, it must be a multiple of 4.
        kind: how weights are kept.
        scale_type: type of the scales.
        search: look for better scales than those that cover the block.
        pack: return integers as MatMulNBits takes them (see `_block_bytes.words`), those of a column behind each other.
    """
    rows, columns = weight.shape
    count = -(-rows // block)
    if pack:
        numbers = np.empty((columns, count, block * kind.bits // WORD), "<u2")
    else:
        numbers = np.empty((rows, columns), kind.memory)
    scales = np.empty((count, columns), scale_type)
    zeros = None if kind.symmetric else np.empty((count, columns), np.uint8)

    lying = abs(weight.strides[0]) > abs(weight.strides[1])
    step = min(_WIDE if lying else _NARROW, max(_NARROW, _PART // block))
    for left in range(0, columns, step):
        where = slice(left, min(left + step, columns))
        width = where.stop - where.start
        each = max(1, _PART // (block * width))
        memory = np.empty((2, each * block * width), np.float32)
        for first, last, size in _parts(rows, block, each):
            inside = slice(first * block, first * block + (last - first) * size)
            piece, scratch = memory[:, : (last - first) * size * width].reshape(2, last - first, size, width)
            widen(weight[inside, where], piece.reshape(-1, width))
            found, scales[first:last, where], offsets = choose(
                piece, kind, scales.dtype, search=search, scratch=scratch
            )
            if zeros is not None:
                zeros[first:last, where] = offsets
            if pack:
                numbers[where, first:last] = words(found, block, kind).transpose(2, 0, 1)
            else:
                numbers[inside, where] = found.reshape(-1, width)
    return Encoded(numbers.view(np.uint8) if pack else numbers, scales, zeros)


def decode(encoded: Encoded, block: int) -> np.ndarray:
    """Return what numbers that are not packed stand for, float32 [K, N]."""
    rows = len(encoded.numbers)
    centred = encoded.numbers.astype(np.float32)
    if encoded.zeros is not None:
        centred -= np.repeat(encoded.zeros.astype(np.float32), block, axis=0)[:rows]
    result: np.ndarray = centred * np.repeat(encoded.scales.astype(np.float32), block, axis=0)[:rows]
    return result


def _parts(rows: int, block: int, each: int) -> Iterator[tuple[int, int, int]]:
    """Cut rows into parts of `each` blocks: first and last block, rows of a block. A short last block is a part."""
    full, rest = divmod(rows, block)
    for first in range(0, full, each):
        yield first, min(first + each, full), block
    if rest:
        yield full, full + 1, rest
