"""Quantized tensors as ONNX Runtime's contrib operators take them, against ONNX Runtime."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("torch")

from graphopt.runtime import ExecutionError


def floats(*shape, seed=0):
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype(np.float32)


def codes(dtype, *shape, seed=0):
    limits = np.iinfo(dtype)
    return np.random.default_rng(seed + sum(shape)).integers(limits.min, limits.max, shape, dtype, endpoint=True)


def real(number):
    return np.array(number, np.float32)


KINDS = [np.uint8, np.int8]
"""Types of eight bits."""


def elementwise(dtype):
    """Return the cases of one element type."""
    x, y, zero, other = codes(dtype, 2, 3, 4), codes(dtype, 3, 1, seed=1), dtype(3), dtype(7)
    image = codes(dtype, 2, 3, 6, 5)
    return {
        "QLinearAdd": ("QLinearAdd", [x, real(0.1), zero, y, real(0.2), other, real(0.3), dtype(9)], {}),
        "QLinearAdd to a zero point of zero": (
            "QLinearAdd",
            [x, real(0.1), zero, y, real(0.2), other, real(0.3)],
            {},
        ),
        "QLinearMul": ("QLinearMul", [x, real(0.1), zero, y, real(0.2), other, real(1.5), dtype(9)], {}),
        "QLinearSigmoid": ("QLinearSigmoid", [x, real(0.05), zero, real(1 / 256), dtype(0)], {}),
        "QLinearLeakyRelu": ("QLinearLeakyRelu", [x, real(0.1), zero, real(0.1), other], {"alpha": 0.3}),
        "QLinearSoftmax": ("QLinearSoftmax", [x, real(0.1), zero, real(1 / 256), dtype(0)], {"opset": 13}),
        "QLinearSoftmax along an axis": (
            "QLinearSoftmax",
            [x, real(0.1), zero, real(1 / 256), dtype(0)],
            {"opset": 13, "axis": 1},
        ),
        "QLinearSoftmax of opset 12": (
            "QLinearSoftmax",
            [x, real(0.02), zero, real(1 / 256), dtype(0)],
            {"opset": 12, "axis": 1},
        ),
        "QLinearGlobalAveragePool": (
            "QLinearGlobalAveragePool",
            [image, real(0.1), zero, real(0.05), other],
            {"channels_last": 0},
        ),
        "QLinearGlobalAveragePool, channels last": (
            "QLinearGlobalAveragePool",
            [image, real(0.1), zero, real(0.05), other],
            {"channels_last": 1},
        ),
        "QLinearAveragePool": (
            "QLinearAveragePool",
            [image, real(0.1), zero, real(0.08), other],
            {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]},
        ),
        "QLinearAveragePool that counts padding, channels last": (
            "QLinearAveragePool",
            [image, real(0.1), zero, real(0.08), other],
            {"kernel_shape": [3, 2], "pads": [1, 1, 1, 1], "count_include_pad": 1, "channels_last": 1},
        ),
        "QLinearConcat": (
            "QLinearConcat",
            [real(0.2), other, x, real(0.1), zero, codes(dtype, 2, 2, 4), real(0.3), other],
            {"axis": 1},
        ),
        "QuantizeLinear": ("QuantizeLinear", [floats(2, 3, 4), floats(3) ** 2 + 0.01, np.full(3, zero)], {"axis": 1}),
        "DequantizeLinear": ("DequantizeLinear", [x, floats(3), np.full(3, zero)], {"axis": 1}),
    }


LEFT, RIGHT = codes(np.uint8, 3, 8), codes(np.int8, 8, 5)
SCALES, ZEROS = floats(5) ** 2 / 100 + 0.001, codes(np.int8, 5)
SUMS = np.random.default_rng(0).integers(-1000, 1000, 5).astype(np.int32)

PRODUCTS = {
    "QGemm": (
        "QGemm",
        [LEFT, real(0.02), np.uint8(120), RIGHT, real(0.01), np.int8(3), SUMS, real(0.1), np.uint8(100)],
        {},
    ),
    "QGemm of columns, as floats": (
        "QGemm",
        [LEFT, real(0.02), np.uint8(120), RIGHT, SCALES, np.zeros(5, np.int8), SUMS],
        {"alpha": 1.0},
    ),
    "QGemm, turned": (
        "QGemm",
        [
            LEFT.T.copy(),
            real(0.02),
            np.uint8(120),
            RIGHT.T.copy(),
            SCALES,
            np.zeros(5, np.int8),
            None,
            real(0.1),
            np.uint8(9),
        ],
        {"transA": 1, "transB": 1, "alpha": 0.5},
    ),
    "MatMulIntegerToFloat": ("MatMulIntegerToFloat", [LEFT, RIGHT, real(0.02), real(0.01)], {}),
    "MatMulIntegerToFloat of columns": (
        "MatMulIntegerToFloat",
        [LEFT[None], RIGHT, real([0.02]), SCALES, np.uint8(120), ZEROS, floats(5)],
        {},
    ),
    "DynamicQuantizeMatMul": ("DynamicQuantizeMatMul", [floats(2, 3, 8), RIGHT, real([0.01])], {}),
    "DynamicQuantizeMatMul of columns": (
        "DynamicQuantizeMatMul",
        [floats(2, 3, 8), RIGHT, SCALES, ZEROS, floats(5)],
        {},
    ),
}

CONVOLUTION = [codes(np.uint8, 1, 4, 6, 5), real(0.02), np.uint8(120), codes(np.int8, 4, 4, 3, 3)]
CONVOLUTION += [floats(4) ** 2 / 100 + 0.001, np.zeros(4, np.int8), real(0.2), np.uint8(100)]
CONVOLUTION += [np.arange(4, dtype=np.int32) * 50]

ATTENTION = [codes(np.uint8, 2, 5, 12), codes(np.int8, 12, 3 * 16), floats(3 * 16), real(0.02), real(0.01)]
MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32)


def blocks(bits, zeros=False, width=80):
    """Return operands of MatMulNBits: numbers [2, 3, width] times [6, width], in blocks of 32."""
    count = -(-width // 32)
    given = [floats(2, 3, width), codes(np.uint8, 6, count, 32 * bits // 8), floats(6, count) ** 2 / 10]
    return [*given, codes(np.uint8, 6, -(-count * bits // 8))] if zeros else given


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("name", elementwise(np.uint8))
def test_elementwise(against_ort, name, dtype):
    op_type, arrays, attributes = elementwise(dtype)[name]
    against_ort(op_type, arrays, steps=1, **attributes)


@pytest.mark.parametrize("name", PRODUCTS)
def test_product(against_ort, name):
    op_type, arrays, attributes = PRODUCTS[name]
    against_ort(op_type, arrays, steps=1, atol=1e-4, **attributes)


@pytest.mark.parametrize("last", [0, 1])
def test_convolution(against_ort, last):
    arrays = [np.moveaxis(CONVOLUTION[0], 1, -1).copy() if last else CONVOLUTION[0], *CONVOLUTION[1:]]
    against_ort("QLinearConv", arrays, steps=1, channels_last=last, pads=[1, 1, 1, 1], strides=[2, 1])


@pytest.mark.parametrize("dtype", KINDS)
def test_largest_of_windows(against_ort, dtype):
    against_ort("NhwcMaxPool", [codes(dtype, 1, 6, 5, 3)], kernel_shape=[3, 2], pads=[1, 0, 0, 1], strides=[2, 1])


@pytest.mark.parametrize("dtype", KINDS)
def test_choice(against_ort, dtype):
    x, y, chosen = codes(dtype, 2, 3, 4), codes(dtype, 3, 1, seed=1), floats(2, 1, 4) > 0
    arrays = [chosen, x, real(0.1), dtype(3), y, real(0.2), dtype(7), real(0.3), dtype(9)]
    against_ort("QLinearWhere", arrays, steps=1)


@pytest.mark.parametrize("columns", [1, 20])
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_recurrence(against_ort, direction, columns):
    count = 2 if direction == "bidirectional" else 1
    arrays = [floats(4, 3, 6), codes(np.int8, count, 6, 20), codes(np.int8, count, 5, 20), floats(count, 40)]
    shape = (count, columns) if columns > 1 else (count,)
    scale, zero = np.full(shape, 0.004, np.float32), np.zeros(shape, np.int8)
    arrays += [None, None, None, None, scale, zero, scale, zero]
    against_ort("DynamicQuantizeLSTM", arrays, 3, hidden_size=5, direction=direction, atol=2e-2)


@pytest.mark.parametrize(
    ("more", "causal"), [([], 0), ([MASK, np.uint8(120), np.int8(0)], 1), ([None, np.uint8(9), np.int8(0)], 1)]
)
def test_attention(against_ort, more, causal):
    against_ort("QAttention", ATTENTION + more, 1, num_heads=2, unidirectional=causal)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_blocks(against_ort, bits, zeros):
    against_ort("MatMulNBits", blocks(bits, zeros), K=80, N=6, bits=bits, block_size=32, atol=1e-3)


def test_blocks_with_zero_points_of_floats_and_a_bias(against_ort):
    arrays = [*blocks(4), floats(6, 3) + 8, None, floats(6)]
    against_ort("MatMulNBits", arrays, K=80, N=6, bits=4, block_size=32, atol=1e-3)


def test_blocks_in_an_order_of_their_own(by_torch):
    a, b, scales = blocks(4, width=64)
    order = np.random.default_rng(0).permutation(64).astype(np.int32) // 32
    numbers = np.stack([b & 15, b >> 4], -1).reshape(6, 64).astype(np.float32)
    wanted = a @ ((numbers - 8) * scales[:, order]).T
    made = by_torch("MatMulNBits", [a, b, scales, None, order], K=64, N=6, bits=4, block_size=32)[0]
    np.testing.assert_allclose(made, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("dtype", [ml_dtypes.int4, ml_dtypes.uint4, np.uint8])
def test_slices_of_blocks(against_ort, dtype, zeros):
    narrow = dtype != np.uint8
    table = codes(np.uint8, 7, 64 if narrow else 32) % 8 if narrow else codes(np.uint8, 7, 32)
    points = codes(np.uint8, 7, 2) % 8 if narrow else codes(np.uint8, 7, 1)
    arrays = [table.astype(dtype), np.array([[3, 0], [6, -2]], np.int64), floats(7, 2)]
    arrays += [points.astype(dtype)] if zeros else []
    against_ort("GatherBlockQuantized", arrays, block_size=32, gather_axis=0, quantize_axis=1, bits=4)


def test_weights_in_the_order_of_a_device_are_refused(by_torch):
    with pytest.raises(ExecutionError, match="in the order of a device is not computed"):
        by_torch("MatMulNBits", blocks(4), K=80, N=6, bits=4, block_size=32, weight_prepacked=1)


def test_blocks_along_the_axis_of_slices_are_refused(by_torch):
    arrays = [codes(np.uint8, 7, 32), np.array([1]), floats(7, 2)]
    with pytest.raises(ExecutionError, match="along the blocks, or of floats, is not computed"):
        by_torch("GatherBlockQuantized", arrays, block_size=32, gather_axis=1, quantize_axis=1)
