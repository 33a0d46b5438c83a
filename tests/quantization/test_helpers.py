"""The parts that the passes are made of, where their edges are sharper than a whole model shows."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.passes.quantization import _cut, _grid, _islands, _weights
from graphopt.passes.quantization._graphs import infer_types


@pytest.mark.parametrize(
    ("lo", "hi"), [(0, 1), (-1, 1), (-3, 0.1), (0.5, 2), (-2, -1), (0, 0), (1e-30, 1e-20), (-1e30, 1e30)]
)
def test_zero_is_exact_and_the_range_is_covered(lo, hi):
    grid = _grid.grid(lo, hi)
    assert 0 <= grid.zero_point <= 255
    assert grid.scale > 0
    assert grid.quantize(np.float32(0)) == grid.zero_point
    ends = np.array([min(lo, 0), max(hi, 0)])
    restored = (grid.quantize(ends).astype(float) - grid.zero_point) * grid.scale
    np.testing.assert_allclose(restored, ends, atol=0.51 * grid.scale)


def test_quantize_rounds_ties_to_even_and_saturates():
    grid = _grid.Grid(1.0, 10)
    np.testing.assert_array_equal(grid.quantize(np.array([0.5, 1.5, -0.5, 300, -300])), [10, 12, 10, 255, 0])


def test_weights_are_symmetric_and_per_channel():
    weight = np.array([[1.0, -2.0], [0.1, 0.05]], np.float32)
    scales = _weights.weight_scales(weight, 0, None, 1.0)
    np.testing.assert_allclose(scales, [2 / 127, 0.1 / 127], rtol=1e-6)
    np.testing.assert_array_equal(_weights.quantize_weight(weight, scales, 0), [[64, -127], [127, 64]])
    by_column = _weights.weight_scales(weight, 1, None, 1.0)
    np.testing.assert_allclose(by_column, [1 / 127, 2 / 127], rtol=1e-6)


def test_bias_scales_never_overflow():
    bias = np.array([1e6, 1e-9, 0], np.float32)
    scales = _weights.weight_scales(np.zeros((3, 2), np.float32), 0, bias, 1e-3)
    integers = _weights.quantize_bias(bias, scales * np.float32(1e-3))
    assert np.abs(integers.astype(np.int64)).max() <= 2**30 + 2**8
    np.testing.assert_allclose(integers * scales.astype(float) * 1e-3, bias, rtol=1e-6)


def test_cut_finds_the_cheapest_separation():
    edges = [("s", "a", 3), ("s", "b", 2), ("a", "b", 1), ("a", "t", 2), ("b", "t", 5)]
    inside = _cut.sink_side(edges, "s", "t")
    cost = sum(capacity for tail, head, capacity in edges if tail not in inside and head in inside)
    assert cost == 5


def test_cut_keeps_the_sink_side_small_among_equals():
    assert _cut.sink_side([("s", "a", 1), ("a", "b", 1), ("b", "t", 1)], "s", "t") == {"t"}


def test_cut_respects_unbreakable_edges():
    edges = [("s", "a", 1), ("a", "t", _cut.UNBREAKABLE)]
    assert _cut.sink_side(edges, "s", "t") == {"t", "a"}


def test_islands(parse):
    model = parse(
        """
        g (uint8[N,4] x, float[N,4] f) => (uint8[N,4] y, float[N,4] z, uint8[N,4] v, uint8 w) <float s = {0.1}, uint8 o = {3}> {
          a = DequantizeLinear(x, s, o)
          b = Tanh(a)
          c = Exp(b)
          y = QuantizeLinear(c, s, o)
          z = Sqrt(b)
          size = Shape(a)
          bytes = Cast<to=1>(size)
          length = ReduceSum<keepdims=0>(bytes)
          w = QuantizeLinear(length, s, o)
          u = Neg(f)
          v = QuantizeLinear(u, s, o)
        }
        """
    )
    infer_types(model)
    for node in model.graph:
        node.name = {"b": "b_token_3", "c": "c_nchwc"}.get(node.outputs[0].name, node.outputs[0].name)
    found = [name for name, _ in _islands.find(model.graph)]
    assert found == ["b", "c"], "before and after integers, not at either end, nor what computes a shape"


def test_a_product_of_dequantized_weights_is_reported(parse):
    graph = parse(
        """
        g (float[N,4] x) => (float[N,4] y) <int8[1,1] w = {3}, float s = {0.1}> { d = DequantizeLinear(w, s) y = MatMul(x, d) }
        """
    ).graph
    assert _islands.find(graph) == [("y", "has an integer weight, but ONNX Runtime multiplies in float")]
