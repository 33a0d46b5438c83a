"""Quantization by measurement."""

from __future__ import annotations

import pytest

from graphopt import io, spec
from graphopt.passbase import PreconditionError
from graphopt.passes.quantization import _plan, _ranges
from graphopt.passes.quantization.calibrate import Calibrate
from graphopt.passes.quantization.quantize import Quantize

NET = """
    g (float[N,16,32,32] x, float[32,16,3,3] w1, float[32] b1, float[32,32,3,3] w2, float[32] b2) => (float[N,32,32,32] y) {
      [first] a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)
      r = Relu(a)
      [second] y = Conv<pads = [1, 1, 1, 1]>(r, w2, b2)
    }
"""
WEIGHTS = {"w1": (32, 16, 3, 3), "b1": (32,), "w2": (32, 32, 3, 3), "b2": (32,)}


@pytest.fixture
def net(build):
    return build(NET, **WEIGHTS)


@pytest.fixture
def data(sample):
    return sample(x=[8, 16, 32, 32])


def test_what_pays_is_quantized(net, data):
    result = Quantize(data, seconds=0.5)(net)
    assert result.modified
    assert {"how", "sqnr", "speedup", "tried"} <= result.report.keys()
    assert result.report["sqnr"] > 30
    assert any(node.op_type == "QuantizeLinear" for node in net.graph)


def test_what_loses_too_much_stays_in_float(net, data):
    with pytest.raises(PreconditionError, match=r"dB, under 80 dB"):
        Quantize(data, seconds=0.2, min_sqnr=80)(net)
    assert all(node.op_type != "QuantizeLinear" for node in net.graph)


def test_what_is_slower_stays_in_float(build, sample):
    """A product so small that calls are all that counts."""
    model = build("g (float[N,4] x, float[4,4] w) => (float[N,4] y) { h = MatMul(x, w) y = Tanh(h) }", w=(4, 4))
    with pytest.raises(PreconditionError, match=r"static.*x the speed"):
        Quantize(sample(x=[64, 4]), seconds=0.5, min_sqnr=0)(model)


def test_a_quantized_model_is_left_alone(net, data):
    Quantize(data, seconds=0.2)(net)
    with pytest.raises(PreconditionError, match="quantized already: it has QuantizeLinear"):
        Quantize(data)(net)


def test_without_data(net):
    with pytest.raises(PreconditionError, match="no calibration data"):
        Quantize()(net)


def test_targets_without_integer_kernels(net, data):
    with pytest.raises(PreconditionError, match="use to-float16 there"):
        Quantize(data, target="cuda")(net)


def test_through_a_specification(net, data):
    assert spec.build("quantize", {"data": data, "seconds": 0.2})(net).modified


def test_the_cheapest_placement_is_a_minimum_cut(net, data):
    Calibrate(data, threads=1)(net)
    ranges = _ranges.read(net)

    def integers(**times):
        return {unit.node.name for unit in _plan.make(net.graph, ranges, (), ("Conv",), times).units}

    assert integers(first=(900.0, 100.0), second=(900.0, 100.0)) == {"first", "second"}
    assert integers(first=(900.0, 100.0), second=(100.0, 900.0)) == {"first"}
    assert integers(first=(100.0, 101.0), second=(900.0, 100.0)) == {"first", "second"}, "a conversion costs more"
    assert integers(first=(10.0, 9.0), second=(10.0, 9.0)) == set(), "so it does here"


def test_bytes_are_the_same_twice(build, data):

    made = []
    for _ in range(2):
        model = build(NET, **WEIGHTS)
        Quantize(data, seconds=0.3)(model)
        made.append(io.to_proto(model).SerializeToString(deterministic=True))
    assert made[0] == made[1]
