from __future__ import annotations

import importlib.util

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import compare, io, runtime
from graphopt.errors import UserError
from graphopt.passbase import PreconditionError
from graphopt.passes.quantization import _adaround, _moments, _parts, _twins
from graphopt.passes.quantization._gptq import Levels, Objective, gptq, refit, search
from graphopt.passes.quantization._quantized import layers
from graphopt.passes.quantization.calibrate import Calibrate
from graphopt.passes.quantization.quantize_static import QuantizeStatic
from graphopt.passes.quantization.round_weights import RoundWeights
from graphopt.pipeline import duplicate
from graphopt.target import find

CPU = find("cpu", 1)
FOUR = Levels(-8, 7)
NETWORK = """g (float[N,4,8,8] x, float[8,4,3,3] w1, float[8] b1, float[8,1,3,3] w2, float[8] b2, float[8,4,1,1] w3, float[8,5] w4,
                float[5] b4) => (float[N,5] y) {
    a = Conv<pads=[1,1,1,1]>(x, w1, b1)
    r = Relu(a)
    b = Conv<group=8, strides=[2,2], dilations=[2,1]>(r, w2, b2)
    s = Relu(b)
    c = Conv<group=2>(s, w3)
    p = GlobalAveragePool(c)
    f = Flatten(p)
    y = Gemm(f, w4, b4)
}"""
WEIGHTS = {
    "w1": (8, 4, 3, 3), "b1": (8,), "w2": (8, 1, 3, 3), "b2": (8,), "w3": (8, 4, 1, 1), "w4": (8, 5), "b4": (5,),
}  # fmt: skip


def smooth(count: int, seed: int = 0) -> np.ndarray:
    """Pictures whose neighbours are alike, as in practice: with independent numbers nearest rounding is the best."""
    noise = np.random.default_rng(seed).normal(size=(count, 4, 10, 10))
    mixed = noise + 0.7 * noise[:, ::-1]
    return sum(mixed[:, :, i : i + 8, j : j + 8] for i in range(3) for j in range(3)).astype(np.float32) / 3


X = smooth(64)
TEST = smooth(64, 1)


@pytest.fixture
def pair(narrowed):
    """The network, or another, and the same with 4-bit weights."""

    def make(text=NETWORK, arrays=WEIGHTS, data=X, **fields):
        return narrowed(text, arrays, data, **fields)

    return make


def sqnr(reference: ir.Model, model: ir.Model, data=TEST) -> float:
    want, got = (runtime.open_session(m, CPU).run({"x": data})["y"] for m in (reference, model))
    return compare.sqnr(want, got)


def drawn(groups: int, channels: int, inputs: int, seed: int, rows: int = 200) -> tuple[Objective, np.ndarray]:
    """The error of a random layer whose inputs go together, and the weights that make none of it."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(groups, rows, inputs)) @ rng.normal(size=(groups, inputs, inputs)) + rng.normal()
    weight = rng.normal(size=(groups, channels, inputs))
    xx = x.swapaxes(1, 2) @ x / rows
    return Objective(xx, weight @ xx, ((weight @ xx) * weight).sum(-1)).towards(weight, 0.01), weight


KINDS = [(1, 8, 12), (1, 1, 1), (16, 1, 9), (4, 3, 18), (1, 5, 300)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gptq_errs_less_than_nearest_rounding(kind, seed):
    objective, weight = drawn(*kind, seed)
    scale = np.abs(weight).max(-1) / 7
    nearest = objective.error(FOUR.nearest(weight / scale[..., None]) * scale[..., None])
    integers = gptq(objective, scale, FOUR)
    assert np.all(integers == np.rint(integers))
    assert integers.min() >= -8
    assert integers.max() <= 7
    found = objective.error(integers * scale[..., None])
    assert found.sum() <= nearest.sum() * (1 + 1e-9)
    if kind[2] > 9:
        assert found.sum() < 0.8 * nearest.sum()


def test_gptq_agrees_with_the_definition_column_by_column():
    objective, weight = drawn(1, 3, 140, 5)  # more columns than one block
    scale = np.abs(weight).max(-1) / 7
    order = np.argsort(-np.diag(objective.xx[0]), kind="stable")
    hessian = objective.xx[0][np.ix_(order, order)]
    left, done = weight[0][:, order].copy(), np.zeros((3, 140))
    for i in range(140):
        done[:, i] = np.clip(np.rint(left[:, i] / scale[0]), -8, 7)
        inverse = np.linalg.inv(hessian[i:, i:])
        left[:, i:] -= np.outer(left[:, i] - done[:, i] * scale[0], inverse[0] / inverse[0, 0])
    np.testing.assert_array_equal(gptq(objective, scale, FOUR)[0][:, order], done)


def test_gptq_keeps_what_is_on_the_grid_already():
    objective, weight = drawn(2, 4, 10, 0)
    integers = np.random.default_rng(0).integers(-8, 8, weight.shape).astype(float)
    scale = np.full((2, 4), 0.25)
    on_grid = objective.around(integers * 0.25)
    np.testing.assert_array_equal(gptq(on_grid, scale, FOUR), integers)
    np.testing.assert_allclose(refit(on_grid, integers, scale * 1.1), scale)


@pytest.mark.parametrize("kind", KINDS)
def test_scales_are_never_worse(kind):
    objective, weight = drawn(*kind, 3)
    scale = np.abs(weight).max(-1) / 7

    def error(s, integers=None):
        integers = FOUR.nearest(weight / s[..., None]) if integers is None else integers
        return objective.error(integers * s[..., None])

    found = search(objective, weight, scale, FOUR, np.linspace(0.5, 1.1, 9))
    assert np.all(error(found) <= error(scale) * (1 + 1e-9))
    integers = FOUR.nearest(weight / scale[..., None])
    assert np.all(error(refit(objective, integers, scale), integers) <= error(scale, integers) * (1 + 1e-9))


@pytest.mark.parametrize("kind", [(1, 8, 12), (16, 1, 9)])
def test_adaround_decides_and_errs_less_than_nearest_rounding(kind):
    pytest.importorskip("torch")
    objective, weight = drawn(*kind, 0)
    scale = np.abs(weight).max(-1) / 7
    ratio = weight / scale[..., None]
    integers, shares = _adaround.learned(objective, weight, scale, FOUR, 400)
    assert np.mean((shares == 0) | (shares == 1)) > 0.95
    assert np.all((integers == np.floor(ratio)) | (integers == np.clip(np.floor(ratio) + 1, -8, 7)))
    nearest = objective.error(FOUR.nearest(ratio) * scale[..., None]).sum()
    assert objective.error(integers * scale[..., None]).sum() < 0.9 * nearest
    again, _ = _adaround.learned(objective, weight, scale, FOUR, 400)
    np.testing.assert_array_equal(integers, again)


CONVS = [
    ("", (6, 4, 3, 3)),
    ("pads=[1,0,2,1], strides=[2,1]", (6, 4, 3, 2)),
    ("group=2, dilations=[2,1]", (6, 2, 2, 3)),
    ("group=4", (8, 1, 3, 3)),
    ('auto_pad="SAME_UPPER", strides=[2,2]', (6, 4, 3, 3)),
    ('auto_pad="SAME_LOWER", strides=[3,2]', (6, 4, 2, 4)),
    ('auto_pad="VALID"', (6, 4, 3, 3)),
]


@pytest.mark.parametrize(("attributes", "shape"), CONVS)
def test_rows_times_weights_are_convolutions(build, attributes, shape):
    attributes = f"<{attributes}>" if attributes else ""
    model = build(
        f"g (float[N,4,8,9] x, float{list(shape)} w) => (float[N,M,H,W] y) {{ y = Conv{attributes}(x, w) }}", w=shape
    )
    x = np.random.default_rng(0).normal(size=(3, 4, 8, 9)).astype(np.float32)
    y = runtime.open_session(model, CPU).run({"x": x})["y"]
    node = model.graph[0]
    weight = model.graph.initializers["w"].const_value.numpy()
    for count in (10**6, 12):
        rows, wanted = _moments.sampled(node, shape, x, y, count, np.random.default_rng(0))
        made = rows @ _moments.to_rows(node, weight).swapaxes(1, 2)
        np.testing.assert_allclose(made, wanted, atol=1e-5)
        assert rows.shape[1] == (12 if count == 12 else y[:, 0].size)
    np.testing.assert_array_equal(_moments.from_rows(node, _moments.to_rows(node, weight), shape), weight)


@pytest.mark.parametrize("centred", [True, False])
def test_moments_are_those_of_the_rows(centred):
    rng = np.random.default_rng(0)
    x, y = rng.normal(5, 1, (2, 40, 3)), rng.normal(-3, 2, (2, 40, 4))
    moments = _moments.Moments()
    for half, part in enumerate((slice(0, 10), slice(10, 40))):
        moments.add(x[:, part].astype(np.float32), y[:, part].astype(np.float32), half)
    means = moments.means()
    np.testing.assert_allclose(means[0], x.mean(1), rtol=1e-5)
    weight = rng.normal(size=(2, 4, 3))
    off = y - x @ weight.swapaxes(1, 2)
    expected = off.var(1) if centred else np.square(off).mean(1)
    np.testing.assert_allclose(moments.objective(centred=centred).error(weight), expected, rtol=1e-4)


@pytest.mark.parametrize("method", ["gptq", "search", "adaround"])
def test_outputs_come_closer_to_those_of_the_float_model(pair, method):
    if method == "adaround":
        pytest.importorskip("torch")
    reference, model = pair()
    before = sqnr(reference, model)
    result = RoundWeights(reference, {"x": X}, method=method, steps=100, threads=1)(model)
    assert result.modified
    assert result.skipped == []
    assert result.report["rounded"] == 4
    assert result.report["mean_gain_db"] > 0.5
    assert sqnr(reference, model) > before + 3


def test_the_graph_stays_in_integers(pair):
    reference, model = pair()
    kinds = [node.op_type for node in model.graph]
    RoundWeights(reference, {"x": X}, threads=1)(model)
    assert [node.op_type for node in model.graph] == kinds
    for layer in layers(model.graph):
        assert layer.weight.dtype == ir.DataType.INT4
        if layer.bias:
            np.testing.assert_allclose(layer.bias.scale, layer.input.scale * layer.weight.scale, rtol=1e-6)
    optimized = [node.op_type for node in runtime.find(CPU).optimized(model, CPU).graph]
    assert optimized.count("QLinearConv") == 3
    assert "Conv" not in optimized


def test_scales_stay_when_they_must(pair):
    reference, model = pair()
    scales = [layer.weight.scale for layer in layers(model.graph)]
    before = sqnr(reference, model)
    RoundWeights(reference, {"x": X}, scales=False, threads=1)(model)
    for old, layer in zip(scales, layers(model.graph), strict=True):
        np.testing.assert_array_equal(old, layer.weight.scale)
    assert sqnr(reference, model) > before


@pytest.mark.parametrize(
    "fields", [{"per_channel": False}, {"weights": "int8"}, {"weights": "uint8"}, {"weights": "ternary"}]
)
def test_other_integers(pair, fields):
    reference, model = pair(**fields)
    before = sqnr(reference, model)
    ranges = {"int8": (-127, 127), "uint8": (-128, 127), "ternary": (-1, 1)}
    low, high = ranges.get(fields.get("weights", ""), (-8, 7))
    RoundWeights(reference, {"x": X}, threads=1)(model)
    for layer in layers(model.graph):
        integers = _parts.rows_of(layer).integers
        assert low <= integers.min()
        assert integers.max() <= high
    assert sqnr(reference, model) > before - 0.1


def test_seven_bits_stay_seven_bits(pair):
    reference, model = pair(weights="int8")
    for layer in layers(model.graph):
        layer.weight.store(layer.weight.integers // 2)
        scale = layer.weight.node.inputs[1]
        scale.const_value = ir.tensor(layer.weight.scale * np.float32(2), name=scale.name)
    RoundWeights(reference, {"x": X}, threads=1)(model)
    assert all(np.abs(layer.weight.integers).max() <= 64 for layer in layers(model.graph))


def test_binary_weights_are_left_alone(pair):
    reference, model = pair(weights="binary")
    result = RoundWeights(reference, {"x": X}, threads=1)(model)
    assert not result.modified
    assert {reason for _, reason in result.skipped} == {"its weight is binary"}


def test_it_is_deterministic(pair):
    reference, model = pair()
    copies = [model.clone() for _ in range(2)]
    for copy in copies:
        RoundWeights(reference, {"x": X}, rows=2000, seed=1, threads=1)(copy)
    one, other = (io.to_proto(copy).SerializeToString(deterministic=True) for copy in copies)
    assert one == other


def test_few_positions_and_single_samples_will_do(pair):
    reference, model = pair()
    before = sqnr(reference, model)
    RoundWeights(reference, {"x": X}, rows=640, batch=1, threads=1)(model)
    assert sqnr(reference, model) > before


def test_a_single_sample_does_not_break_it(pair):
    reference, model = pair()
    result = RoundWeights(reference, {"x": X}, samples=1, batch=1, threads=1)(model)
    assert result.report["rounded"] == 4
    assert np.isfinite(sqnr(reference, model))


def test_memory_is_bounded_by_small_batches(pair, monkeypatch):
    reference, model = pair()
    monkeypatch.setattr(_twins, "_LIMIT", 20_000)
    sizes = []
    first = next(layers(model.graph)).node
    values = [(model, [first.inputs[0]]), (reference, [reference.graph[0].outputs[0]])]
    from graphopt.data import open_data

    for count, (one, other) in _twins.read(values, open_data({"x": X}), CPU, 64, 64):
        sizes.append(count)
        assert len(next(iter(one.values()))) == count
        assert sum(array.nbytes for part in (one, other) for array in part.values()) <= 20_000
    assert sum(sizes) == 64
    assert len(sizes) > 4


def test_layers_of_many_inputs_are_left_alone(pair, monkeypatch):
    from graphopt.passes.quantization import round_weights

    reference, model = pair()
    monkeypatch.setattr(round_weights, "_MOST_INPUTS", 20)
    result = RoundWeights(reference, {"x": X}, threads=1)(model)
    assert [reason for _, reason in result.skipped] == ["one output reads more than 20 numbers"]
    assert result.report["rounded"] == 3


def test_a_shared_weight_is_left_alone(pair):
    text = """g (float[N,4,8,8] x, float[4,4,1,1] w) => (float[N,4,8,8] y) {
        a = Conv(x, w)  r = Relu(a)  y = Conv(r, w)
    }"""
    reference, model = pair(text, {"w": (4, 4, 1, 1)})
    result = RoundWeights(reference, {"x": X}, threads=1)(model)
    assert not result.modified
    assert {reason for _, reason in result.skipped} == {"its weight is shared"}


def test_products_of_matrices(pair):
    text = """g (float[N,6,8] x, float[8,16] w1, float[16] b1, float[16,8] w2) => (float[N,6,8] y) {
        m = MatMul(x, w1)  a = Add(m, b1)  r = Relu(a)  y = MatMul(r, w2)
    }"""
    rng = np.random.default_rng(0)
    data = (rng.normal(size=(64, 6, 8)) @ rng.normal(size=(8, 8)) + 0.5).astype(np.float32)
    reference, model = pair(text, {"w1": (8, 16), "b1": (16,), "w2": (16, 8)}, data)
    before = sqnr(reference, model, data)
    result = RoundWeights(reference, {"x": data}, threads=1)(model)
    assert result.report["rounded"] == 2
    assert sqnr(reference, model, data) > before + 2


def test_a_vector_times_a_matrix(pair):
    text = "g (float[8] x, float[8,8] w1, float[8] b) => (float[8] y) { m = MatMul(x, w1)  y = Add(m, b) }"
    data = np.random.default_rng(0).normal(size=8).astype(np.float32)
    reference, model = pair(text, {"w1": (8, 8), "b": (8,)}, data)
    RoundWeights(reference, {"x": data}, threads=1)(model)
    assert np.isfinite(sqnr(reference, model, data))


def test_what_is_not_finite_is_told(pair):
    reference, model = pair()
    bias = reference.graph.initializers["b2"]
    bias.const_value = ir.tensor(np.full(8, np.inf, np.float32), name="b2")
    result = RoundWeights(reference, {"x": X}, threads=1)(model)
    assert ("it reads or computes NaN or infinity on this data") in {reason for _, reason in result.skipped}
    assert result.report["rounded"] == 1


def test_a_bias_that_is_added_but_cannot_be_changed(pair):
    """Its MatMul must not take over what the bias does."""
    text = "g (float[N,6,8] x, float[8,8] w, float[8] b) => (float[N,6,8] y) { m = MatMul(x, w)  y = Add(m, b) }"
    data = np.random.default_rng(0).normal(size=(32, 6, 8)).astype(np.float32)
    reference, model = pair(text, {"w": (8, 8), "b": (8,)}, data)
    (layer,) = layers(model.graph)
    if layer.bias is not None:
        zero = ir.tensor(np.ones((), np.int32), name="one")
        value = ir.Value(name="one", const_value=zero, type=ir.TensorType(ir.DataType.INT32), shape=ir.Shape([]))
        model.graph.register_initializer(value)
        layer.bias.node.resize_inputs(3)
        layer.bias.node.replace_input_with(2, value)
    result = RoundWeights(reference, {"x": data}, threads=1)(model)
    assert [reason for _, reason in result.skipped] == ["its bias has a zero point"]


FOREIGN = """g (float[N,8] x, uint4[6,8] w_q, float[6] sw, uint4[6] zw, float[6] b) => (float[N,6] y) <float sx = {0.05}, int8 zx = {3}> {
    xq = QuantizeLinear(x, sx, zx)
    xd = DequantizeLinear(xq, sx, zx)
    wd = DequantizeLinear<axis=-2>(w_q, sw, zw)
    y = Gemm<transB=1>(xd, wd, b)
}"""


def test_a_graph_of_another_tool(build):
    """Unsigned 4 bits with a zero point of each channel's own, dequantized directly, and a float bias."""
    reference = build(
        "g (float[N,8] x, float[6,8] w, float[6] b) => (float[N,6] y) { y = Gemm<transB=1>(x, w, b) }", w=(6, 8), b=(6,)
    )
    weight = reference.graph.initializers["w"].const_value.numpy()
    low, high = weight.min(1), weight.max(1)
    scale = (high - low) / 15
    zero = np.clip(np.rint(-low / scale), 0, 15)
    integers = np.clip(np.rint(weight / scale[:, None]) + zero[:, None], 0, 15)
    uint4 = ir.DataType.UINT4.numpy()
    model = build(FOREIGN, w_q=integers.astype(uint4), sw=scale.astype(np.float32), zw=zero.astype(uint4), b=(6,))
    model.graph.opset_imports[""] = 21
    rng = np.random.default_rng(0)
    data = (rng.normal(size=(200, 8)) @ rng.normal(size=(8, 8)) / 2).astype(np.float32)
    before = sqnr(reference, model, data)
    result = RoundWeights(reference, {"x": data}, threads=1)(model)
    assert result.report["rounded"] == 1
    assert result.skipped == []
    (layer,) = layers(model.graph)
    assert layer.weight.dtype == ir.DataType.UINT4
    assert sqnr(reference, model, data) > before + 1


def test_constants_in_nodes(pair):
    """The same graph with its integers in Constant nodes, where nothing may be changed in place."""
    reference, model = pair()
    for layer in layers(model.graph):
        value = layer.weight.source
        node = ir.Node("", "Constant", [], [ir.AttrTensor("value", value.const_value)])
        model.graph.insert_before(model.graph[0], node)
        node.outputs[0].name = f"{value.name}_node"
        value.replace_all_uses_with(node.outputs[0])
        del model.graph.initializers[value.name]
    before = sqnr(reference, model)
    RoundWeights(reference, {"x": X}, threads=1)(model)
    assert sqnr(reference, model) > before + 3


def test_a_reference_before_batch_normalization_is_folded(build):
    text = """g (float[N,4,8,8] x, float[6,4,3,3] w, float[6] s, float[6] t, float[6] m, float[6] v, float[3,6,1,1] w2)
            => (float[N,3,6,6] y) {
        c = Conv(x, w)  a = BatchNormalization(c, s, t, m, v)  r = Relu(a)  y = Conv(r, w2)
    }"""
    positive = np.linspace(0.5, 2, 6).astype(np.float32)
    reference = build(text, w=(6, 4, 3, 3), s=positive, t=(6,), m=(6,), v=positive[::-1].copy(), w2=(3, 6, 1, 1))
    from graphopt import spec

    model = duplicate(reference)
    spec.build("fold-batchnorm", {})(model)
    Calibrate({"x": X}, threads=1)(model)
    QuantizeStatic(weights="int4")(model)
    before = sqnr(reference, model)
    result = RoundWeights(reference, {"x": X}, threads=1)(model)
    assert result.report["rounded"] == 2
    assert sqnr(reference, model) > before + 2


def test_another_model_is_no_reference(pair, build):
    _, model = pair()
    other = build("g (float[N,4,8,8] x, float[8,4,3,3] w) => (float[N,8,6,6] z) { z = Conv(x, w) }", w=(8, 4, 3, 3))
    with pytest.raises(UserError, match="the reference has none of the model's layers"):
        RoundWeights(other, {"x": X})(model)


def test_what_is_missing_is_told(pair, monkeypatch):
    reference, model = pair()
    for pass_, reason in [(RoundWeights(), "no reference"), (RoundWeights(reference), "no data")]:
        with pytest.raises(PreconditionError, match=reason):
            pass_(model)
    with pytest.raises(PreconditionError, match="no layer has integer weights"):
        RoundWeights(reference, {"x": X})(reference.clone())
    with pytest.raises(ValueError, match="at least 1"):
        RoundWeights(rows=0)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PreconditionError, match="needs PyTorch"):
        RoundWeights(reference, {"x": X}, method="adaround")(model)
    assert RoundWeights(reference, {"x": X}, threads=1)(model).modified


def test_on_the_command_line(pair, tmp_path, graphopt):
    reference, model = pair()
    before = sqnr(reference, model)
    io.save(reference, tmp_path / "float.onnx")
    io.save(model, tmp_path / "int.onnx")
    np.savez(tmp_path / "data.npz", x=X)
    out = tmp_path / "out.onnx"
    arguments = ["--reference", str(tmp_path / "float.onnx"), "--data", str(tmp_path / "data.npz")]
    done = graphopt("round-weights", str(tmp_path / "int.onnx"), "-o", str(out), *arguments)
    assert done.code == 0, done.err
    assert sqnr(reference, io.load(out)) > before + 3
