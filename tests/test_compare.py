"""The comparison helpers must fail on every way to be wrong, and pass on nothing but rounding."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from graphopt import compare

RTOL = 1e-4
A = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)


def changed(index, value, like=A):
    array = like.copy()
    array[index] = value
    return array


WRONG = {
    "scaled by 1.001": (A, A * np.float32(1.001)),
    "scaled by 10": (A, A * np.float32(10)),
    "negated": (A, -A),
    "zero": (A, np.zeros_like(A)),
    "shifted": (A, A + np.float32(0.001)),
    "transposed": (A, np.ascontiguousarray(A.T)),
    "flattened": (A, A.ravel()),
    "one more axis": (A, A[None]),
    "broadcastable": (np.ones((4, 1), np.float32), np.ones((1, 4), np.float32)),
    "double instead of float": (A, A.astype(np.float64)),
    "int instead of float": (np.ones(3, np.float32), np.ones(3, np.int64)),
    "new NaN": (A, changed((3, 3), np.nan)),
    "lost NaN": (changed((3, 3), np.nan), A),
    "moved NaN": (changed((3, 3), np.nan), changed((3, 4), np.nan)),
    "new infinity": (A, changed((3, 3), np.inf)),
    "infinity of the other sign": (changed((3, 3), np.inf), changed((3, 3), -np.inf)),
    "infinity became NaN": (changed((3, 3), np.inf), changed((3, 3), np.nan)),
    "noise where all was zero": (np.zeros(4, np.float32), np.full(4, 1e-6, np.float32)),
    "int off by one": (np.arange(9), changed(4, 5, np.arange(9))),
    "uint8 off by one": (np.full(9, 255, np.uint8), changed(4, 254, np.full(9, 255, np.uint8))),
    "bool flipped": (np.ones(3, bool), changed(1, False, np.ones(3, bool))),
    "other word": (np.array(["a", "b"], object), np.array(["a", "c"], object)),
    "int4 off by one": (np.ones(3, ml_dtypes.int4), np.array([1, 2, 1], ml_dtypes.int4)),
    "empty of another shape": (np.zeros((0, 3), np.float32), np.zeros((0, 2), np.float32)),
    "float16 scaled by 1.02": (A.astype(np.float16), (A * 1.02).astype(np.float16)),
    "bfloat16 scaled by 1.2": (A.astype(ml_dtypes.bfloat16), (A * 1.2).astype(ml_dtypes.bfloat16)),
    "float8 scaled by 10": (A.astype(ml_dtypes.float8_e4m3fn), (A * 10).astype(ml_dtypes.float8_e4m3fn)),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told(name):
    reference, candidate = WRONG[name]
    assert compare.mismatch(reference, candidate, RTOL)
    assert not compare.same(reference, candidate, RTOL)
    assert compare.first_mismatch({"y": reference}, {"y": candidate}, RTOL).startswith("output 'y': ")


@pytest.mark.parametrize("name", WRONG)
def test_everything_equals_itself(name):
    for array in WRONG[name]:
        assert compare.same(array, array.copy(), 0.0)


def test_a_single_wrong_element_in_a_large_tensor():
    large = np.random.default_rng(1).standard_normal(1_000_000).astype(np.float32)
    index = int(np.argmax(np.abs(large)))
    assert not compare.same(large, changed(index, large[index] * 1.001, large), RTOL)
    assert not compare.same(large, changed(123_456, large[123_456] + 0.01, large), RTOL)


@pytest.mark.parametrize("fill", [-1e9, -1e30, float(np.finfo(np.float32).min)])
def test_a_huge_fill_value_does_not_hide_wrong_elements(fill):
    """Attention masks hold the lowest finite number; it must not become the scale of the others."""
    masked, wrong = changed((slice(None), 0), fill), changed((slice(None), 0), fill, A * np.float32(10))
    assert compare.same(masked, masked.copy(), RTOL)
    assert not compare.same(masked, wrong, RTOL)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_another_order_of_summing_passes(scale):
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((64, 512)).astype(np.float32), rng.standard_normal((512, 64)).astype(np.float32)
    order = rng.permutation(512)
    one, other = a @ b * np.float32(scale), a[:, order] @ b[order] * np.float32(scale)
    assert not np.array_equal(one, other)
    assert compare.same(one, other, RTOL)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_rounding_where_most_of_the_sum_cancels_passes(scale):
    """Q Q' is the identity matrix plus rounding noise; its few ones are results, not outliers of the noise."""
    q = np.linalg.qr(np.random.default_rng(3).standard_normal((256, 256)))[0].astype(np.float32)
    order = np.random.default_rng(4).permutation(256)
    one, other = ((m @ m.T) * np.float32(scale) for m in (q, q[:, order]))
    assert not np.array_equal(one, other)
    assert compare.same(one, other, RTOL)
    assert not compare.same(one, other * np.float32(1.001), RTOL)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_narrow_types_have_a_floor_of_eight_epsilons(dtype):
    eps = float(ml_dtypes.finfo(dtype).eps)
    ones = np.ones(64, dtype)  # its root mean square is 1, so that up to 16 epsilons are allowed
    assert compare.same(ones, changed(0, 1 + 16 * eps, ones), RTOL)
    assert not compare.same(ones, changed(0, 1 + 17 * eps, ones), RTOL)


def test_float32_has_no_floor():
    assert not compare.same(A, np.nextafter(A, np.float32(np.inf)), 0.0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_ends_of_the_range(dtype):
    high = np.array([np.finfo(dtype).max, np.finfo(dtype).tiny, 0], dtype)
    assert compare.same(high, high.copy(), RTOL)
    assert not compare.same(high, -high, RTOL)


def test_outputs_are_compared_by_name():
    assert compare.first_mismatch({"a": A, "b": A}, {"b": A, "a": A}, 0.0) is None
    assert compare.first_mismatch({"a": A, "b": A}, {"a": A}, RTOL) == "output 'b' is missing"
    assert compare.first_mismatch({"a": A}, {"a": A, "c": A}, RTOL) == "unexpected output 'c'"
    assert compare.first_mismatch({}, {}, RTOL) is None


def test_sqnr_of_known_noise():
    signal = np.array([3.0, 4.0])
    assert compare.sqnr(signal, signal) == math.inf
    assert compare.sqnr(signal, signal * 1.1) == pytest.approx(20, abs=1e-9)
    assert compare.sqnr(signal, signal * 1.001) == pytest.approx(60, abs=1e-6)
    assert compare.sqnr(signal, np.zeros(2)) == pytest.approx(0)
    assert compare.sqnr(np.zeros(2), signal) == -math.inf
    assert compare.sqnr(np.zeros(2), np.zeros(2)) == math.inf
    assert compare.sqnr(signal, np.array([3.0, np.nan])) == -math.inf
    assert compare.sqnr(np.array([3.0, np.inf]), np.array([3.0, np.inf])) == math.inf


def test_cosine_of_no_samples():
    assert compare.cosine(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)).shape == (0,)


def test_cosine_is_per_sample():
    a = np.array([[1.0, 0], [0, 2], [0, 0], [0, 0], [1, 1]])
    b = np.array([[5.0, 0], [2, 0], [0, 0], [1, 0], [1, 0]])
    assert compare.cosine(a, b) == pytest.approx([1, 0, 1, 0, math.sqrt(0.5)])
    assert compare.cosine(a, np.full_like(a, np.nan)).tolist() == [0, 0, 0, 0, 0]
