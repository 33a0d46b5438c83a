"""What processors without VNNI compute of 8-bit products: neighbouring pairs saturate at 16 bits

AVX2 and AVX-512 multiply an unsigned by a signed byte with `vpmaddubsw`, which adds two neighbouring products and
saturates the sum at 16 bits. ONNX Runtime uses it where activations are uint8 and weights int8 (u8s8) and the processor
has no VNNI: in matrix products (`QgemmU8X8KernelAvx2`, `QgemvU8S8KernelAvx2` and their AVX-512 twins) and in convolutions
with groups of 4 input channels (`ConvSymKernelAvx2`). Neighbours are elements 2j and 2j + 1 of a row of the weights, laid
out along the dimension that is summed up; the kernels take that in fours from its beginning, and pad its end with zeros.
Sums of pairs are exact from there on. The stored bytes are multiplied; zero points are subtracted later.

Unsigned weights (u8u8) take `vpmaddwd` on 16-bit copies instead, which is exact and slower.
See https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html, "When and why do I need to try U8U8".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

LOW, HIGH = -(2**15), 2**15 - 1
"""What a sum of two products saturates at."""

_LIMIT = 1 << 24
"""Elements of temporary arrays."""


def pairs(rows: np.ndarray) -> np.ndarray:
    """Return rows [C, K] in pairs of neighbours, [C, ceil(K / 2), 2]."""
    if rows.shape[1] % 2:
        rows = np.pad(rows, ((0, 0), (0, 1)))
    return rows.reshape(len(rows), -1, 2)


def largest_sum(high: int) -> int:
    """Return how large |w0| + |w1| of two weights of one sign may be without saturating, for activations up to `high`."""
    return HIGH // max(high, 1)


def can_saturate(rows: np.ndarray, low: int, high: int) -> np.ndarray:
    """Tell which pairs saturate for some activations, bool [C, ceil(K / 2)].

    Args:
        rows: stored weights, int8 values, [C, K].
        low, high: range of the activations, 0 to 255.
    """
    found = np.zeros((len(rows), (rows.shape[1] + 1) // 2), bool)
    for part in _parts(len(rows), rows.shape[1]):
        ends = pairs(rows[part]).astype(np.int32)[..., None] * np.array([low, high], np.int32)
        found[part] = (ends.max(-1).sum(-1) > HIGH) | (ends.min(-1).sum(-1) < LOW)
    return found


def can_saturate_in_any_order(rows: np.ndarray, low: int, high: int) -> np.ndarray:
    """Tell which rows have two weights anywhere that would saturate as neighbours, bool [C]."""
    found = np.zeros(len(rows), bool)
    if rows.shape[1] < 2:
        return np.asarray(can_saturate(rows, low, high).any(axis=1))
    for part in _parts(len(rows), rows.shape[1]):
        ends = rows[part].astype(np.int32)[..., None] * np.array([low, high], np.int32)
        most, least = np.partition(ends.max(-1), -2)[:, -2:], np.partition(ends.min(-1), 1)[:, :2]
        found[part] = (most.sum(-1) > HIGH) | (least.sum(-1) < LOW)
    return found


def products(activations: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return what such a processor computes: [M, C] integers, before zero points are accounted for.

    Args:
        activations: uint8, [M, K].
        rows: stored weights, int8 values, [C, K].
    """
    result = np.empty((len(activations), len(rows)), np.int64)
    two = pairs(activations).astype(np.int32)
    weights = pairs(rows).astype(np.int32)
    for part in _parts(len(activations), weights[..., 0].size):
        sums = np.einsum("mpi,cpi->mcp", two[part], weights)
        result[part] = np.clip(sums, LOW, HIGH).sum(-1, dtype=np.int64)
    return result


def _parts(count: int, each: int) -> list[slice]:
    """Cut so many things, of so many elements each, into parts that fit the limit."""
    step = max(1, _LIMIT // max(each, 1))
    return [slice(start, start + step) for start in range(0, count, step)]


def promise(report: Mapping[str, Any]) -> str:
    """Return in one line what the report of the pass avoid-saturation says."""
    layers, risky, fixed = report["layers"], report["can_saturate"], report["fixed"]
    fused = report.get("not_audited", 0)
    rest = f"; {fused} fused operators were not audited" if fused else ""
    if not risky and not fused:
        return f"same results on processors without VNNI: none of {layers} integer layers can saturate there"
    if not risky:
        return f"none of {layers} integer layers can saturate on processors without VNNI{rest}"
    ways = {"7-bit": "coarser weights", "u8u8": "unsigned weights"}
    how = ", ".join(f"{count} by {ways[way]}" for way, count in fixed.items())
    left = risky - sum(fixed.values())
    text = f"{risky} of {layers} integer layers could saturate on processors without VNNI; fixed: {how or 'none'}"
    if left:
        text += f", {left} {'is' if left == 1 else 'are'} left"
    text += rest
    if "sqnr_before" in report:
        text += f"; simulated, {report['sqnr_before']:.1f} dB before and {report['sqnr_after']:.1f} dB after"
    return text
