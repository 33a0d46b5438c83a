"""Quantization by measurement."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import compare, io, runtime, saturation, spec, target
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
CPU = target.find("cpu", 1)
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


def test_data_that_are_no_numbers(net, data):
    with pytest.raises(PreconditionError, match="the data holds NaN or infinity; take such samples out"):
        Quantize({"x": np.full_like(data["x"], np.nan)}, seconds=0.2)(net)


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


ENCODER = """g (float[N,T,128] x, float[128,512] w, float[512] b, float[512,128] v, float[128] one, float[128] zero)
  => (float[N,T,128] y) {
    n = LayerNormalization(x, one, zero)
    h = MatMul(n, w)
    i = Add(h, b)
    r = Relu(i)
    p = MatMul(r, v)
    s = Add(p, n)
    y = LayerNormalization(s, one, zero)
}"""


@pytest.mark.parametrize(("outlier", "how"), [(1.0, "dynamic"), (300.0, "dynamic, smoothed by Mul")])
def test_scales_of_run_time(build, sample, monkeypatch, outlier, how):
    """Operators come fused. What a residual connection reads, too, cannot take factors over, so a Mul does."""
    monkeypatch.setattr("graphopt.passes.quantization.quantize.pays", lambda latency: True)
    model = build(ENCODER, w=(128, 512), b=(512,), v=(512, 128), one=(128,), zero=(128,))
    gain = np.ones(128, np.float32)
    gain[5] = outlier
    model.graph.initializers["one"].const_value = ir.tensor(gain, name="one")
    reference = runtime.open_session(model, CPU)
    feeds = sample(x=[32, 8, 128])
    result = Quantize(feeds, method="dynamic", min_sqnr=30.0, seconds=0.1)(model)
    assert result.report["how"].startswith(how)
    assert "DynamicQuantizeMatMul" in {node.op_type for node in model.graph}
    test = sample(x=[16, 8, 128])
    got = runtime.open_session(model, CPU).run(test)["y"]
    assert compare.sqnr(reference.run(test)["y"], got) > 28


def test_a_mixed_placement_is_not_looked_for_where_scales_of_run_time_will_do(build, sample, monkeypatch):
    monkeypatch.setattr("graphopt.passes.quantization.quantize.pays", lambda latency: True)
    monkeypatch.setattr("graphopt.passes.quantization.quantize._Trial._mixed", lambda *asked: pytest.fail("not needed"))
    model = build(ENCODER, w=(128, 512), b=(512,), v=(512, 128), one=(128,), zero=(128,))
    report = Quantize(sample(x=[32, 8, 128]), min_sqnr=20.0, seconds=0.1)(model).report
    assert report["tried"][0].startswith("dynamic: ")
    assert any(row.startswith("static, ") for row in report["tried"])


def test_fused_operators_are_portable_too(build, sample, monkeypatch):
    """Their weights are unsigned, so that no pair of products saturates anywhere."""
    monkeypatch.setattr("graphopt.passes.quantization.quantize.pays", lambda latency: True)
    model = build(ENCODER, w=(128, 512), b=(512,), v=(512, 128), one=(128,), zero=(128,))
    report = Quantize(sample(x=[32, 8, 128]), method="dynamic", portable=True, min_sqnr=20.0, seconds=0.1)(model).report
    assert report["portable"] == (
        "same results on processors without VNNI: none of 2 integer layers can saturate there"
    )
    fused = [node for node in model.graph if node.op_type == "DynamicQuantizeMatMul"]
    assert len(fused) == 2
    assert all(node.inputs[1].const_value.dtype == ir.DataType.UINT8 for node in fused)


def test_fused_operators_of_others_are_told(build, sample, monkeypatch):
    monkeypatch.setattr("graphopt.passes.quantization.quantize.pays", lambda latency: True)
    model = build(ENCODER, w=(128, 512), b=(512,), v=(512, 128), one=(128,), zero=(128,))
    Quantize(sample(x=[32, 8, 128]), method="dynamic", min_sqnr=20.0, seconds=0.1)(model)
    result = spec.build("avoid-saturation", {})(model)
    assert result.report["not_audited"] == 2
    assert "run avoid-saturation before fuse" in result.skipped[0][1]
    assert saturation.promise(result.report) == (
        "none of 0 integer layers can saturate on processors without VNNI; 2 fused operators were not audited"
    )
