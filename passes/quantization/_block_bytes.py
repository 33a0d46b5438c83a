"""Numbers to bytes and back: half-precision floats to float32, and narrow integers as ONNX and ONNX Runtime store them."""

from __future__ import annotations

import numpy as np

from graphopt.passes.quantization._block_kinds import Kind

WORD = 16
"""Bits that `words` packs at a time: float32 adds up this many exactly."""

_MANTISSA = 23 - 10
"""Bits by which the mantissa of float32 is longer than that of float16."""
_SIGN_AND_HALF = np.int32(-(1 << 31) | ((1 << 15) - 1) << _MANTISSA)
"""The sign, and where the other bits of a float16 come to lie in a float32."""
_EXPONENT = np.float32(2.0 ** (127 - 15))
"""Between the biases of their exponents."""
_MAGNITUDE, _INFINITY = np.uint16(0x7FFF), 0x7C00
"""Of a float16: the bits but for the sign; infinity, above which nothing is a number."""
_PART = 1 << 18


def widen(weight: np.ndarray, out: np.ndarray) -> None:
    """Copy finite numbers into float32."""
    if weight.dtype != np.float16:
        np.copyto(out, weight)
        return
    bits = out.view(np.int32)  # in integers: numpy's own conversion takes longer than all the rest of encoding
    np.copyto(bits, weight.view(np.int16))
    bits <<= _MANTISSA
    bits &= _SIGN_AND_HALF
    out *= _EXPONENT


def all_finite(weight: np.ndarray) -> bool:
    """Tell whether all numbers are finite, float32 or float16, a part at a time."""
    flat = weight.reshape(-1)
    for start in range(0, flat.size, _PART):
        part = flat[start : start + _PART]
        if part.dtype == np.float16:
            finite = (part.view(np.uint16) & _MAGNITUDE).max() < _INFINITY
        else:
            finite = np.isfinite(part).all()
        if not finite:
            return False
    return True


def words(steps: np.ndarray, block: int, kind: Kind) -> np.ndarray:
    """Pack integers as MatMulNBits takes them: signed ones moved by half their range, the first in the lowest bits.

    Args:
        steps: float32 [blocks, block or less, N].
        block: a multiple of 4; shorter ones are filled up with zeros.
        kind: what the integers are.

    Returns:
        uint16 [blocks, block * bits / 16, N].
    """
    if steps.shape[1] < block:
        steps = np.pad(steps, ((0, 0), (0, block - steps.shape[1]), (0, 0)))
    blocks, _, columns = steps.shape
    places = np.float32(1 << kind.bits) ** np.arange(WORD // kind.bits, dtype=np.float32)
    packed = np.einsum("kwpn,p->kwn", steps.reshape(blocks, -1, len(places), columns), places)
    if kind.symmetric:
        packed -= kind.low * places.sum()
    result: np.ndarray = packed.astype("<u2")
    return result


def pack_zeros(zeros: np.ndarray, bits: int) -> np.ndarray:
    """Return zero points [blocks, N] as MatMulNBits takes them: those of a column behind each other, uint8."""
    across = np.ascontiguousarray(zeros.T)
    if bits < 8 and across.shape[1] % 2:
        across = np.pad(across, ((0, 0), (0, 1)))
    return pack(across, bits)


def pack(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Return integers of one byte each as ONNX stores narrow ones, the first in the lowest bits of a byte; uint8, flat."""
    each, mask = 8 // bits, np.uint8((1 << bits) - 1)
    flat = np.ascontiguousarray(numbers).reshape(-1).view(np.uint8)
    if flat.size % each:
        flat = np.pad(flat, (0, -flat.size % each))
    packed = flat[0::each] & mask
    for position in range(1, each):
        packed |= (flat[position::each] & mask) << np.uint8(bits * position)
    return packed
