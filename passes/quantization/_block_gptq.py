"""Encode a matrix in blocks so that products with it come out right, given what it multiplies (see `_gptq`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.data import Data
from graphopt.passes.quantization._block_bytes import words
from graphopt.passes.quantization._block_kinds import Kind
from graphopt.passes.quantization._blocks import Encoded, encode
from graphopt.passes.quantization._gptq import Levels, Objective, gptq
from graphopt.passes.quantization._twins import read
from graphopt.target import Target

_DAMPING = 0.01
_COLUMNS = 1024
"""Columns to round at a time, which bounds memory."""
_LIMIT = 256 << 20
"""Bytes of products that may lie in memory at once."""


def encode_by_output(
    weight: np.ndarray, block: int, kind: Kind, scale_type: np.dtype, *, moments: np.ndarray, pack: bool
) -> Encoded:
    """Return the numbers and scales that stand for a matrix; scales and zero points are those of a search.

    Args:
        weight: [K, N], finite; blocks lie along the first axis.
        block: elements that share a scale.
        kind: how weights are kept, in integers.
        scale_type: type of the scales.
        moments: mean products [K, K] of what the matrix multiplies.
        pack: return integers as MatMulNBits takes them (see `_blocks.encode`).
    """
    rows, columns = weight.shape
    start = encode(weight, block, kind, scale_type, search=True)
    numbers = np.empty((rows, columns), np.float32)
    for first in range(0, columns, _COLUMNS):
        part = slice(first, min(first + _COLUMNS, columns))
        numbers[:, part] = _rounded(weight[:, part], start, part, block, kind, moments)
    if not pack:
        return Encoded(numbers.astype(kind.memory), start.scales, start.zeros)
    count = -(-rows // block)
    filled = np.zeros((count * block, columns), np.float32)
    filled[:rows] = numbers
    packed = words(filled.reshape(count, block, columns), block, kind).transpose(2, 0, 1)
    return Encoded(np.ascontiguousarray(packed).view(np.uint8), start.scales, start.zeros)


def products(
    model: ir.Model, values: Sequence[ir.Value], data: Data, place: Target, samples: int, batch: int
) -> Iterator[tuple[ir.Value, np.ndarray | None]]:
    """Yield values with their mean products [K, K] over samples and positions, K on the last axis.

    Values are read in groups, over the same data each time, so that their products fit into memory; None in place of
    those that are not finite.

    Args:
        model: the float model.
        values: of its main graph.
        data: the samples.
        place: where it runs.
        samples: how many samples to use at most.
        batch: samples per run.

    Raises:
        UserError: the model does not run on this data.
    """
    waiting = list(values)
    while waiting:
        sums: dict[ir.Value, np.ndarray] = {}
        counts: dict[ir.Value, int] = {}
        group = waiting
        for _, (read_,) in read([(model, group)], data, place, samples, batch):
            for value in group:
                rows = read_[value].reshape(-1, read_[value].shape[-1]).astype(np.float64)
                if value not in sums:
                    held = sum(array.nbytes for array in sums.values())
                    if sums and held + rows.shape[1] ** 2 * rows.itemsize > _LIMIT:
                        group = list(sums)
                        break
                    sums[value], counts[value] = np.zeros((rows.shape[1],) * 2), 0
                sums[value] += rows.T @ rows
                counts[value] += len(rows)
        for value, total in sums.items():
            yield value, total / counts[value] if np.isfinite(total).all() else None
        waiting = [value for value in waiting if value not in sums]


def _rounded(
    weight: np.ndarray, start: Encoded, part: slice, block: int, kind: Kind, moments: np.ndarray
) -> np.ndarray:
    """Return the numbers of some columns, [K, columns]; those of the search for columns where these are better."""
    rows = len(weight)
    scales = np.repeat(start.scales[:, part].astype(np.float64), block, axis=0)[:rows].T[None]
    zeros = np.zeros(()) if start.zeros is None else np.repeat(start.zeros[:, part], block, axis=0)[:rows].T[None]
    zeros = zeros.astype(np.float64)
    wanted = weight.T.astype(np.float64)[None]
    yx = wanted @ moments
    objective = Objective(moments[None], yx, (yx * wanted).sum(-1)).towards(wanted, _DAMPING)
    steps = np.where(scales == 0, 1.0, scales)  # of a block of zeros
    found = gptq(objective, steps, Levels(kind.low - zeros, kind.high - zeros))
    before = start.numbers[:, part].T[None] - zeros
    better = objective.error(found * scales) < objective.error(before * scales)
    result: np.ndarray = (np.where(better[..., None], found, before) + zeros)[0].T
    return result
