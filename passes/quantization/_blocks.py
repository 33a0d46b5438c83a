"""Encode weights in blocks: some neighbours along the axis that is summed over share a scale.

Symmetric integers use the whole of their range: the element of the largest magnitude becomes the smallest integer, with
a scale of whichever sign that takes. For the integers so found, the scale of least squared error has a closed form,
<q, w> / <q, q>. `search` also tries scales (and zero points) that clip a little to round the rest more finely, and then
rounds again on the best of them and fits it again, as Half-Quadratic Quantization alternates (Badri and Shaji 2023).
Ternary and binary weights have the best scale as it is (see `_weights`), float8 the one that covers the block.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx_ir as ir

from graphopt.passes.quantization._weights import number, quantize_weight, weight_scales

_PART = 1 << 18
"""Elements to encode at a time: they stay in the cache."""
_WIDE, _NARROW = 512, 64
"""Columns of a part, where rows or where columns lie in one piece in memory."""
_THREADS = min(os.cpu_count() or 1, 8)
_SHRUNK = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7)
"""Parts of the full scale that `search` tries."""
_ENDS = (1.0, 0.92, 0.84, 0.76)
"""Parts of either end of the range that `search` tries where there are zero points."""
_AGAIN = 2
_WORD = 16
"""Bits that are packed at a time: float32 adds up this many exactly."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """How weights are kept.

    Attributes:
        name: what people call it.
        dtype: the type that keeps it.
        opset: the first version of ONNX in which DequantizeLinear knows the type.
        low, high: smallest and largest number.
        symmetric: whether zero stands for 0, or each block has a zero point.
        uniform: whether the numbers are all integers from `low` to `high`, so that scales can be fitted here.
    """

    name: str
    dtype: ir.DataType
    opset: int
    low: int
    high: int
    symmetric: bool = True
    uniform: bool = True


def _coarse(name: str) -> Kind:
    """Return a kind whose scales `_weights` knows."""
    type_ = number(name)
    return Kind(name, type_.dtype, type_.opset, type_.low, type_.high, uniform=False)


KINDS = {
    "int4": Kind("int4", ir.DataType.INT4, 21, -8, 7),
    "uint4": Kind("uint4", ir.DataType.UINT4, 21, 0, 15, symmetric=False),
    "int8": Kind("int8", ir.DataType.INT8, 13, -128, 127),
    "uint8": Kind("uint8", ir.DataType.UINT8, 13, 0, 255, symmetric=False),
    "ternary": _coarse("ternary"),
    "binary": _coarse("binary"),
    "float8": _coarse("float8"),
}


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A matrix [K, N] in blocks of `block` rows.

    Attributes:
        numbers: [K, N], int8, uint8 or float8; packed for MatMulNBits, uint8 [N, blocks, block * bits / 8].
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
        weight: [K, N], floating-point; blocks lie along the first axis.
        block: elements that share a scale; the last block may be shorter. To be packed, it must divide by 4.
        kind: how they are kept.
        scale_type: type of the scales, to which they are rounded before the integers are chosen.
        search: look for better scales than those that cover the block.
        pack: return integers as MatMulNBits takes them: blocks of a column behind each other, the first of two 4-bit
            numbers in the lower half of its byte, signed ones moved by half their range.
    """
    rows, columns = weight.shape
    count = -(-rows // block)
    bits = kind.dtype.bitwidth
    if pack:
        numbers = np.empty((columns, count, block * bits // _WORD), "<u2")
    else:
        numbers = np.empty((rows, columns), _stored(kind))
    scales = np.empty((count, columns), scale_type)
    zeros = None if kind.symmetric else np.empty((count, columns), np.uint8)

    def work(part: tuple[int, int, int, slice]) -> None:
        first, last, size, where = part
        inside = slice(first * block, first * block + (last - first) * size)
        piece = np.ascontiguousarray(weight[inside, where], np.float32).reshape(last - first, size, -1)
        found, scales[first:last, where], offsets = _encode(piece, kind, scale_type, search=search)
        if zeros is not None:
            zeros[first:last, where] = offsets
        if pack:
            numbers[where, first:last] = _words(found, block, kind).transpose(2, 0, 1)
        else:
            numbers[inside, where] = found.reshape(inside.stop - inside.start, -1)

    narrow = abs(weight.strides[0]) < abs(weight.strides[1])
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(work, _parts(rows, columns, block, _NARROW if narrow else _WIDE)):
            pass
    return Encoded(numbers.view(np.uint8) if pack else numbers, scales, zeros)


def decode(encoded: Encoded, block: int) -> np.ndarray:
    """Return what numbers that are not packed stand for, float32 [K, N]."""
    rows = len(encoded.numbers)
    scales = np.repeat(encoded.scales.astype(np.float32), block, axis=0)[:rows]
    centred = encoded.numbers.astype(np.float32)
    if encoded.zeros is not None:
        centred -= np.repeat(encoded.zeros.astype(np.float32), block, axis=0)[:rows]
    result: np.ndarray = centred * scales
    return result


def pack_zeros(zeros: np.ndarray, bits: int) -> np.ndarray:
    """Return zero points [blocks, N] as MatMulNBits takes them: those of a column behind each other, uint8."""
    across = np.ascontiguousarray(zeros.T)
    if bits == 8:
        return across.reshape(-1)
    if across.shape[1] % 2:
        across = np.pad(across, ((0, 0), (0, 1)))
    return (across[:, 0::2] | (across[:, 1::2] << 4)).reshape(-1)


def _stored(kind: Kind) -> np.dtype:
    """Return the type that holds one number of a kind in memory; those of less than 8 bits take a byte."""
    if kind.dtype.is_floating_point():
        return kind.dtype.numpy()
    return np.dtype(np.int8 if kind.symmetric else np.uint8)


def _encode(
    weight: np.ndarray, kind: Kind, scale_type: np.dtype, *, search: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Encode float32 [blocks, block, N]; return numbers of that shape, scales and zero points [blocks, N]."""
    if not kind.uniform:
        return *_encode_coarse(weight, kind, scale_type), None
    high, low = weight.max(1), weight.min(1)
    tries = _symmetric(low, high, kind, search=search) if kind.symmetric else _asymmetric(low, high, kind, search=search)
    scales, zeros = next(tries)
    steps, scales = _round(weight, scales, zeros, kind, scale_type)
    if not search:
        return steps, scales, zeros
    error = _error(weight, steps, scales, zeros)

    def consider(tried: np.ndarray, offsets: np.ndarray | None) -> None:
        nonlocal steps, scales, zeros, error
        numbers, fitted = _round(weight, tried, offsets, kind, scale_type)
        found = _error(weight, numbers, fitted, offsets)
        better = found < error
        error = np.where(better, found, error)
        steps = np.where(better[:, None], numbers, steps)
        scales = np.where(better, fitted, scales)
        zeros = None if zeros is None or offsets is None else np.where(better, offsets, zeros)

    for tried, offsets in tries:
        consider(tried, offsets)
    for _ in range(_AGAIN):
        consider(scales.astype(np.float32), zeros)
    return steps, scales, zeros


def _symmetric(
    low: np.ndarray, high: np.ndarray, kind: Kind, *, search: bool
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Yield scales to try, the one that covers the block first."""
    full = np.where(high > -low, high, low) / np.float32(kind.low)
    yield full, None
    if search:
        other = full * np.float32(kind.low / kind.high)  # the largest magnitude becomes the largest integer
        for share in _SHRUNK:
            if share < 1:
                yield full * np.float32(share), None
            yield other * np.float32(share), None


def _asymmetric(
    low: np.ndarray, high: np.ndarray, kind: Kind, *, search: bool
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Yield scales and zero points to try, those that cover the block and 0 first."""
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    for below, above in itertools.product(_ENDS, _ENDS) if search else [(1.0, 1.0)]:
        start = low * np.float32(below)
        scales = (high * np.float32(above) - start) / np.float32(kind.high)
        yield scales, np.rint(np.divide(-start, scales, out=np.zeros_like(scales), where=scales != 0))


def _round(
    weight: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None, kind: Kind, scale_type: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest integers, float32, and the scales that suit them best."""
    scales = scales.astype(scale_type).astype(np.float32)
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    steps = weight * inverse[:, None]
    np.rint(steps, out=steps)
    if zeros is None:
        np.clip(steps, kind.low, kind.high, out=steps)
        centred = steps
    else:
        steps += zeros[:, None]
        np.clip(steps, kind.low, kind.high, out=steps)
        centred = steps - zeros[:, None]
    power = np.einsum("kbn,kbn->kn", centred, centred)
    fitted = np.divide(np.einsum("kbn,kbn->kn", centred, weight), power, out=scales.copy(), where=power != 0)
    fitted = fitted.astype(scale_type)
    unfit = ~np.isfinite(fitted) | (fitted == 0)
    return steps, np.where(unfit, scales.astype(scale_type), fitted)


def _error(weight: np.ndarray, steps: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None) -> np.ndarray:
    """Return the squared error of every block, [blocks, N]."""
    wrong = steps.copy() if zeros is None else steps - zeros[:, None]
    wrong *= scales.astype(np.float32)[:, None]
    wrong -= weight
    found: np.ndarray = np.einsum("kbn,kbn->kn", wrong, wrong)
    return found


def _encode_coarse(weight: np.ndarray, kind: Kind, scale_type: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Encode float32 [blocks, block, N] in a kind that has its scales from `_weights`."""
    blocks, size, columns = weight.shape
    rows = weight.transpose(0, 2, 1).reshape(-1, size)
    scales = weight_scales(rows, 0, None, 1.0, kind.name)
    numbers = quantize_weight(rows, scales, 0, kind.name).astype(_stored(kind))
    return numbers.reshape(blocks, columns, size).transpose(0, 2, 1), scales.reshape(blocks, columns).astype(scale_type)


def _words(steps: np.ndarray, block: int, kind: Kind) -> np.ndarray:
    """Pack integers, float32 [blocks, block or less, N], which are used up: uint16 [blocks, block * bits / 16, N]."""
    if steps.shape[1] < block:
        steps = np.pad(steps, ((0, 0), (0, block - steps.shape[1]), (0, 0)))
    bits = kind.dtype.bitwidth
    if kind.symmetric:
        steps -= kind.low
    each = _WORD // bits
    words = steps[:, each - 1 :: each]
    for position in reversed(range(each - 1)):
        words *= 1 << bits
        words += steps[:, position::each]
    return words.astype("<u2")


def _parts(rows: int, columns: int, block: int, wide: int) -> Iterator[tuple[int, int, int, slice]]:
    """Cut [rows, columns] into parts of about `_PART` elements: first and last block, rows of a block, columns.

    A short last block makes parts of its own.
    """
    full, rest = divmod(rows, block)
    wide = min(columns, wide, max(_NARROW, _PART // block))
    each = max(1, _PART // (block * wide))
    for start in range(0, columns, wide):
        where = slice(start, min(start + wide, columns))
        for first in range(0, full, each):
            yield first, min(first + each, full), block, where
        if rest:
            yield full, full + 1, rest, where
