from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import io, runtime
from graphopt.errors import UserError
from graphopt.passbase import PreconditionError
from graphopt.passes.quantization._quantized import layers
from graphopt.passes.quantization.correct_bias import CorrectBias
from graphopt.target import find

CPU = find("cpu", 1)
NETWORK = """g (float[N,4,8,8] x, float[8,4,3,3] w1, float[8] b1, float[8,1,3,3] w2, float[8] b2, float[8,8,1,1] w3, float[8,5] w4,
                float[5] b4) => (float[N,5] y) {
    a = Conv<pads=[1,1,1,1]>(x, w1, b1)
    r = Relu(a)
    b = Conv<group=8, strides=[2,2]>(r, w2, b2)
    s = Relu(b)
    c = Conv(s, w3)
    p = GlobalAveragePool(c)
    f = Flatten(p)
    y = Gemm(f, w4, b4)
}"""
WEIGHTS = {
    "w1": (8, 4, 3, 3), "b1": (8,), "w2": (8, 1, 3, 3), "b2": (8,), "w3": (8, 8, 1, 1), "w4": (8, 5), "b4": (5,),
}  # fmt: skip
X = np.random.default_rng(3).normal(0.3, 1, (64, 4, 8, 8)).astype(np.float32)


@pytest.fixture
def pair(narrowed):
    """The network, or another, and the same with 4-bit weights."""

    def make(text=NETWORK, arrays=WEIGHTS, data=X, **fields):
        return narrowed(text, arrays, data, **fields)

    return make


def mean_error(reference: ir.Model, model: ir.Model, data=X) -> np.ndarray:
    want, got = (runtime.open_session(m, CPU).run({"x": data})["y"] for m in (reference, model))
    return np.abs((want - got).mean(0))


def test_the_mean_error_goes(pair):
    reference, model = pair()
    before = mean_error(reference, model)
    result = CorrectBias(reference, {"x": X}, threads=1)(model)
    assert result.modified
    assert result.report == {"corrected": 4}
    assert result.skipped == []
    assert mean_error(reference, model).max() < 0.1 * before.max()


def test_a_second_time_changes_next_to_nothing(pair):
    reference, model = pair()
    CorrectBias(reference, {"x": X}, threads=1)(model)
    once = [layer.bias.integers for layer in layers(model.graph)]
    CorrectBias(reference, {"x": X}, threads=1)(model)
    twice = [layer.bias.integers for layer in layers(model.graph)]
    for one, other in zip(once, twice, strict=True):
        assert np.abs(one - other).max() <= 2


def test_the_effect_of_the_weights_alone_is_computed(pair):
    reference, model = pair()
    before = mean_error(reference, model)
    result = CorrectBias(reference, {"x": X}, method="analytic", threads=1)(model)
    assert result.report == {"corrected": 4}
    assert mean_error(reference, model).mean() < 0.6 * before.mean()


def test_the_bias_stays_in_integers_on_the_grid_of_the_products(pair):
    reference, model = pair()
    CorrectBias(reference, {"x": X}, threads=1)(model)
    found = list(layers(model.graph))
    assert len(found) == 4
    for layer in found:  # the one that had no bias, too
        assert layer.bias.dtype == ir.DataType.INT32
        np.testing.assert_allclose(layer.bias.scale, layer.input.scale * layer.weight.scale, rtol=1e-6)
    optimized = runtime.find(CPU).optimized(model, CPU)
    kinds = [node.op_type for node in optimized.graph]
    assert kinds.count("QLinearConv") == 3
    assert "Conv" not in kinds


def test_weights_and_the_reference_stay(pair):
    reference, model = pair()
    floats = [v.const_value.tobytes() for v in reference.graph.initializers.values()]
    before = [layer.weight.integers for layer in layers(model.graph)]
    CorrectBias(reference, {"x": X}, threads=1)(model)
    for old, layer in zip(before, layers(model.graph), strict=True):
        np.testing.assert_array_equal(old, layer.weight.integers)
    assert floats == [v.const_value.tobytes() for v in reference.graph.initializers.values()]


def test_it_is_deterministic_and_small_batches_do_not_matter(pair):
    reference, model = pair()
    other = model.clone()
    CorrectBias(reference, {"x": X}, threads=1)(model)
    CorrectBias(reference, {"x": X}, batch=7, threads=1)(other)
    for one, two in zip(layers(model.graph), layers(other.graph), strict=True):
        assert np.abs(one.bias.integers - two.bias.integers).max() <= 1


def test_a_matmul_is_corrected_behind_its_add_and_skipped_without(pair):
    text = """g (float[N,6,8] x, float[8,8] w1, float[8] b1, float[8,8] w2) => (float[N,6,8] y) {
        m = MatMul(x, w1)  a = Add(b1, m)  r = Relu(a)  y = MatMul(r, w2)
    }"""
    data = np.random.default_rng(0).normal(0.5, 1, (64, 6, 8)).astype(np.float32)
    reference, model = pair(text, {"w1": (8, 8), "b1": (8,), "w2": (8, 8)}, data)
    result = CorrectBias(reference, {"x": data}, threads=1)(model)
    assert result.report == {"corrected": 1}
    assert [reason for _, reason in result.skipped] == ["it adds no constant bias"]
    seen = [_inner(part, "a", data).mean((0, 1)) for part in (reference, model)]
    step = next(layers(model.graph)).bias.scale.max()
    np.testing.assert_allclose(seen[0], seen[1], atol=0.51 * step)


def _inner(model: ir.Model, name: str, data: np.ndarray) -> np.ndarray:
    copy = model.clone()
    copy.graph.outputs.append(next(v for node in copy.graph for v in node.outputs if v.name == name))
    return runtime.open_session(copy, CPU).run({"x": data})[name]


def test_a_shared_bias_is_copied(pair):
    text = """g (float[N,4,8,8] x, float[4,4,3,3] w1, float[4,4,3,3] w2, float[4] b) => (float[N,4,D,E] y) {
        a = Conv<pads=[1,1,1,1]>(x, w1, b)  r = Relu(a)  y = Conv(r, w2, b)
    }"""
    reference, model = pair(text, {"w1": (4, 4, 3, 3), "w2": (4, 4, 3, 3), "b": np.zeros(4, np.float32)})
    sources = {layer.bias.source for layer in layers(model.graph)}
    assert len(sources) == 1  # zeros are stored once
    result = CorrectBias(reference, {"x": X}, threads=1)(model)
    assert result.report == {"corrected": 2}
    assert len({layer.bias.source for layer in layers(model.graph)}) == 2


def test_a_bias_that_does_not_fit_is_cut_and_told(build):
    reference = build(
        "g (float[N,2] x, float[2,2] w, float[2] b) => (float[N,2] y) { y = Gemm(x, w, b) }",
        w=np.array([[1e-6, 0], [0, 1.0]], np.float32), b=np.array([1e9, 0], np.float32),
    )  # fmt: skip
    model = build(
        """g (float[N,2] x, int8[2,2] w_q, float[2] sw, int8[2] zw, int32[2] b_q, float[2] sb) => (float[N,2] y) <
            float sx = {0.01}, uint8 zx = {128}> {
            xq = QuantizeLinear(x, sx, zx)
            xd = DequantizeLinear(xq, sx, zx)
            wd = DequantizeLinear<axis=1>(w_q, sw, zw)
            bd = DequantizeLinear<axis=0>(b_q, sb)
            y = Gemm(xd, wd, bd)
        }""",
        w_q=np.array([[1, 0], [0, 100]], np.int8), sw=np.array([1e-6, 0.01], np.float32), zw=np.zeros(2, np.int8),
        b_q=np.zeros(2, np.int32), sb=np.array([1e-8, 1e-4], np.float32),
    )  # fmt: skip
    data = np.random.default_rng(0).normal(size=(16, 2)).astype(np.float32)
    result = CorrectBias(reference, {"x": data}, threads=1)(model)
    assert [reason for _, reason in result.skipped] == ["1 numbers of its bias do not fit into int32"]
    (layer,) = layers(model.graph)
    assert layer.bias.integers[0] == 2**31 - 1


def test_a_float_bias_and_a_float_input_are_corrected_too(build):
    weights = {"w": (4, 3), "b": (3,)}
    reference = build("g (float[N,4] x, float[4,3] w, float[3] b) => (float[N,3] y) { y = Gemm(x, w, b) }", **weights)
    weight = reference.graph.initializers["w"].const_value.numpy()
    model = build(
        """g (float[N,4] x, int8[4,3] w_q, float[3] b) => (float[N,3] y) <float s = {0.1}> {
            wd = DequantizeLinear(w_q, s)  y = Gemm(x, wd, b)
        }""",
        w_q=np.rint(weight / 0.1).astype(np.int8), b=(3,),
    )  # fmt: skip
    data = np.random.default_rng(0).normal(1, 1, size=(32, 4)).astype(np.float32)
    assert CorrectBias(reference, {"x": data}, threads=1)(model).report == {"corrected": 1}
    assert mean_error(reference, model, data).max() < 1e-5


def test_layers_that_the_reference_does_not_have_are_told(pair, build):
    reference, model = pair()
    for node in reference.graph:
        if node.outputs[0].name == "b":
            node.outputs[0].name = "elsewhere"
    result = CorrectBias(reference, {"x": X}, threads=1)(model)
    assert result.report == {"corrected": 3}
    assert [reason for _, reason in result.skipped] == ["the reference computes no 'b'"]


def test_another_model_is_no_reference(pair, build):
    _, model = pair()
    other = build("g (float[N,4,8,8] x, float[8,4,3,3] w) => (float[N,8,6,6] z) { z = Conv(x, w) }", w=(8, 4, 3, 3))
    with pytest.raises(UserError, match="the reference has none of the model's layers"):
        CorrectBias(other, {"x": X})(model)


def test_other_weights_are_no_reference(pair, build):
    _, model = pair()
    rng = np.random.default_rng(9)
    other = build(NETWORK, **{name: rng.normal(size=shape).astype(np.float32) for name, shape in WEIGHTS.items()})
    with pytest.raises(UserError, match="its weight is another than that of the reference"):
        CorrectBias(other, {"x": X})(model)


def test_a_quantized_reference_is_refused(pair):
    _, model = pair()
    with pytest.raises(UserError, match="the reference is quantized itself"):
        CorrectBias(model.clone(), {"x": X})(model)


def test_what_is_not_finite_is_told(pair):
    reference, model = pair()
    reference.graph.initializers["b2"].const_value = ir.tensor(np.full(8, np.inf, np.float32), name="b2")
    result = CorrectBias(reference, {"x": X}, threads=1)(model)
    assert result.report == {"corrected": 1}
    assert {reason for _, reason in result.skipped} == {"it computes NaN or infinity on this data"}


def test_what_is_missing_is_told(pair):
    reference, model = pair()
    for pass_, reason in [
        (CorrectBias(), "no reference"),
        (CorrectBias(reference), "no data"),
    ]:
        with pytest.raises(PreconditionError, match=reason):
            pass_(model)
    with pytest.raises(PreconditionError, match="no layer has integer weights"):
        CorrectBias(reference, {"x": X})(reference.clone())
    with pytest.raises(ValueError, match="at least 1"):
        CorrectBias(samples=0)


def test_on_the_command_line(pair, tmp_path, graphopt):
    reference, model = pair()
    io.save(reference, tmp_path / "float.onnx")
    io.save(model, tmp_path / "int.onnx")
    np.savez(tmp_path / "data.npz", x=X)
    out = tmp_path / "out.onnx"
    arguments = ["--reference", str(tmp_path / "float.onnx"), "--data", str(tmp_path / "data.npz")]
    done = graphopt("correct-bias", str(tmp_path / "int.onnx"), "-o", str(out), *arguments)
    assert done.code == 0, done.err
    assert mean_error(reference, io.load(out)).max() < mean_error(reference, model).max()
    missing = ["--reference", str(tmp_path / "none.onnx"), *arguments[2:]]
    done = graphopt("correct-bias", str(tmp_path / "int.onnx"), "-o", str(tmp_path / "o2.onnx"), *missing)
    assert done.code == 1
    assert "none.onnx" in done.error
    assert not (tmp_path / "o2.onnx").exists()


def test_a_clamp_that_saturation_replaced_is_looked_behind(pair):
    """Other tools give the name of the clamp to the layer before it."""
    reference, model = pair()
    for node in model.graph:
        if node.outputs[0].name in ("a", "b"):
            node.outputs[0].name = {"a": "r", "b": "s"}[node.outputs[0].name]
    before = mean_error(reference, model)
    assert CorrectBias(reference, {"x": X}, threads=1)(model).report == {"corrected": 4}
    assert mean_error(reference, model).max() < 0.1 * before.max()


def test_weights_of_another_shape_are_no_reference(pair, build):
    reference, model = pair()
    held = {name: value.const_value.numpy() for name, value in reference.graph.initializers.items()}
    text = NETWORK.replace("float[8,4,3,3] w1", "float[8,4,5,5] w1").replace("pads=[1,1,1,1]", "pads=[2,2,2,2]")
    other = build(text, **{**held, "w1": (8, 4, 5, 5)})
    result = CorrectBias(other, {"x": X}, threads=1)(model)
    assert result.report == {"corrected": 3}
    assert ["shape" in reason for _, reason in result.skipped] == [True]
