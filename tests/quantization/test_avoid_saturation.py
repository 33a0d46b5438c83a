"""Saturation of 8-bit products on processors without VNNI: audit, simulation, and layers that cannot saturate afterwards."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt import runtime, saturation, spec, target
from graphopt.errors import UserError
from graphopt.passes.quantization._coarse import coarsen
from graphopt.passes.quantization._quantized import layers
from graphopt.passes.quantization._saturation import sites
from graphopt.passes.quantization._simulation import simulate
from graphopt.passes.quantization.avoid_saturation import AvoidSaturation

CPU = target.find("cpu", 1)
DRAWN = settings(max_examples=60, deadline=None)


def dot(activations, weights):
    """One element as vpmaddubsw, vpmaddwd and vpaddd compute it, in plain Python."""
    total = 0
    for k in range(0, len(weights), 2):
        pair = sum(int(a) * int(w) for a, w in zip(activations[k : k + 2], weights[k : k + 2], strict=True))
        total += min(max(pair, -32768), 32767)
    return total


def conv(image, weight, zero, pads, strides, dilations, group):
    """A convolution of raw bytes, position by position; rows in the order (kernel position, channel)."""
    count, _, *_ = image.shape
    outputs, width, height, breadth = weight.shape
    top, left, bottom, right = pads
    padded = np.pad(image, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=zero)
    rows = (padded.shape[2] - dilations[0] * (height - 1) - 1) // strides[0] + 1
    columns = (padded.shape[3] - dilations[1] * (breadth - 1) - 1) // strides[1] + 1
    result = np.zeros((count, outputs, rows, columns), np.int64)
    for n, m, i, j in itertools.product(*map(range, result.shape)):
        first = m // (outputs // group) * width
        places = [(k, x, c) for k in range(height) for x in range(breadth) for c in range(width)]
        a = [
            padded[n, first + c, i * strides[0] + k * dilations[0], j * strides[1] + x * dilations[1]]
            for k, x, c in places
        ]
        result[n, m, i, j] = dot(a, [weight[m, c, k, x] for k, x, c in places])
    return result


# The arithmetic


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.sampled_from([(0, 255), (0, 127), (3, 200), (255, 255)]))
@DRAWN
def test_products_and_bounds(seed, width, ends):
    rng = np.random.default_rng(seed)
    low, high = ends
    rows = rng.choice([-128, -127, -100, -64, 0, 1, 64, 65, 100, 127], (5, width))
    activations = rng.choice([low, (low + high) // 2, high], (7, width)).astype(np.uint8)
    got = saturation.products(activations, rows)
    assert got.tolist() == [[dot(a, w) for w in rows] for a in activations]
    exact = activations.astype(int) @ rows.T
    wrong = (got != exact).any(axis=0)
    assert not wrong[~saturation.can_saturate(rows, low, high).any(axis=1)].any()
    shuffled = rng.permutation(width)
    wrong |= (saturation.products(activations[:, shuffled], rows[:, shuffled]) != exact).any(axis=0)
    assert not wrong[~saturation.can_saturate_in_any_order(rows, low, high)].any()


@given(st.lists(st.integers(-128, 127), min_size=1, max_size=5), st.integers(0, 255))
@DRAWN
def test_bounds_are_tight(row, high):
    rows = np.array([row])
    found = saturation.can_saturate(rows, 0, high)[0]
    for (a, b), said in zip(saturation.pairs(rows)[0], found, strict=True):
        sums = [int(x) * int(a) + int(y) * int(b) for x in (0, high) for y in (0, high)]
        assert said == (max(sums) > 32767 or min(sums) < -32768)


@given(st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from([255, 200, 140]))
@DRAWN
def test_coarse_weights_cannot_saturate(seed, any_order, high):
    rng = np.random.default_rng(seed)
    rows = np.clip(np.rint(rng.normal(0, 70, (4, 7))), -128, 127).astype(np.int32)
    wanted = rows + rng.uniform(-0.5, 0.5, rows.shape).astype(np.float32)
    integers, factors = coarsen(wanted, saturation.largest_sum(high), any_order=any_order)
    assert not saturation.can_saturate(integers, 0, high).any()
    if any_order:
        assert not saturation.can_saturate_in_any_order(integers, 0, high).any()
    assert np.all(factors >= 1)
    assert np.all(factors <= 2.02)


def test_coarse_weights_err_less_than_halved_ones():
    rng = np.random.default_rng(0)
    wanted = rng.normal(0, 40, (64, 288)).clip(-127, 127).astype(np.float32)
    integers, factors = coarsen(wanted, saturation.largest_sum(255))
    error = np.sum((integers * factors[:, None] - wanted) ** 2)
    assert error < 0.6 * np.sum((np.rint(wanted / 2) * 2 - wanted) ** 2)


# Layers

CONV = """<ir_version: 9, opset_import: ["": 18]> g (float[N,C,H,W] x, int8[O,I,K,L] w, float[S] ws, int8[S] wz,
    int32[O] b, float[B] bs, float s, uint8 z, float ys, uint8 yz) => (float[A,O,P,Q] y) {{
    q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)
    wd = DequantizeLinear<axis = 0>(w, ws, wz)  bd = DequantizeLinear<axis = 0>(b, bs)
    c = Conv<{attributes}>(d, wd, bd)
    yq = QuantizeLinear(c, ys, yz)  y = DequantizeLinear(yq, ys, yz) }}"""


def make_conv(build, weight, attributes="", zero=37, per_channel=True):
    count = len(weight) if per_channel else 1
    scales = np.linspace(0.004, 0.009, count).astype(np.float32)
    shape = (lambda a: a) if per_channel else (lambda a: a.reshape(()))
    text = CONV.format(attributes=attributes or "group = 1")
    if not per_channel:
        text = text.replace("float[S] ws, int8[S] wz", "float ws, int8 wz").replace("float[B] bs", "float bs")
    return build(
        text, w=weight.astype(np.int8), ws=shape(scales), wz=shape(np.zeros(count, np.int8)),
        b=np.arange(len(weight), dtype=np.int32) * 100, bs=shape(scales * np.float32(0.02)),
        s=np.float32(0.02), z=np.uint8(zero), ys=np.float32(0.3), yz=np.uint8(100),
    )  # fmt: skip


def images(shape, zero, scale=0.02, seed=0):
    integers = np.random.default_rng(seed).choice([0, 3, 128, 250, 255], shape).astype(np.float32)
    return ((integers - zero) * np.float32(scale)).astype(np.float32), integers.astype(np.uint8)


def heavy(shape, seed=0):
    return np.random.default_rng(seed).choice([-127, -90, -20, 0, 20, 90, 127], shape)


@pytest.mark.parametrize(
    ("shape", "weight", "attributes", "geometry"),
    [
        ((2, 3, 5, 6), (4, 3, 3, 3), "pads = [1,1,1,1]", ((1, 1, 1, 1), (1, 1), (1, 1), 1)),
        ((1, 4, 6, 5), (6, 2, 3, 2), "group = 2, strides = [2,1], pads = [0,1,2,0]", ((0, 1, 2, 0), (2, 1), (1, 1), 2)),
        ((1, 3, 7, 7), (5, 3, 2, 3), "dilations = [2,1]", ((0, 0, 0, 0), (1, 1), (2, 1), 1)),
        ((2, 5, 3, 3), (4, 5, 1, 1), "", ((0, 0, 0, 0), (1, 1), (1, 1), 1)),
    ],
)
@pytest.mark.parametrize("per_channel", [True, False])
def test_a_convolution_against_a_loop(build, shape, weight, attributes, geometry, per_channel):
    stored = heavy(weight)
    model = make_conv(build, stored, attributes, per_channel=per_channel)
    feed, integers = images(shape, 37)
    expected = conv(integers, stored, 37, *geometry)
    expected = expected - 37 * stored.sum(axis=(1, 2, 3)).reshape(-1, 1, 1)
    layer = next(layers(model.graph))
    scale = (0.02 * np.broadcast_to(layer.weight.scale, len(stored))).reshape(-1, 1, 1)
    bias = np.arange(len(stored)).reshape(-1, 1, 1) * 100
    real = np.clip(np.rint((expected + bias) * scale / 0.3) + 100, 0, 255)
    simulated = simulate(model)
    (got,) = runtime.open_session(simulated.model, CPU).run({"x": feed}).values()
    assert np.abs(np.rint(got / np.float32(0.3)) + 100 - real).max() <= 1  # a tie may round either way
    assert np.mean(np.rint(got / np.float32(0.3)) + 100 != real) < 0.02
    (vnni,) = runtime.open_session(simulate(model, exact=True).model, CPU).run({"x": feed}).values()
    (plain,) = runtime.open_session(model, CPU).run({"x": feed}).values()
    np.testing.assert_allclose(vnni, plain, atol=0.301)
    assert np.mean(vnni != plain) < 0.02
    assert np.abs(got - plain).max() > 1, "nothing saturated: the test shows nothing"


MATMUL = """<ir_version: 9, opset_import: ["": 18]> g (float[N,K] x, float s, TYPE z, int8[A,B] w, float[S] ws, int8[S] wz)
    => (float[N,M] y) { q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)
    wd = DequantizeLinear<axis = AXIS>(w, ws, wz)  y = OP(d, wd) }"""


def make_product(build, weight, op, axis, activations="uint8", zero=100):
    text = MATMUL.replace("TYPE", activations).replace("AXIS", str(axis)).replace("OP", op)
    count = weight.shape[axis]
    return build(
        text, w=weight.astype(np.int8), ws=np.linspace(0.01, 0.02, count).astype(np.float32),
        wz=np.zeros(count, np.int8), s=np.float32(0.5), z=np.array(zero, activations),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("op", "axis", "activations", "zero"),
    [("MatMul", 1, "uint8", 100), ("Gemm<transB = 1>", 0, "uint8", 0), ("Gemm<alpha = 0.5>", 1, "uint8", 255),
     ("MatMul", 1, "int8", -5)],
)  # fmt: skip
@pytest.mark.parametrize("width", [6, 7])
def test_a_product_against_a_loop(build, op, axis, activations, zero, width):
    rows = heavy((5, width))
    model = make_product(build, rows if axis == 0 else rows.T, op, axis, activations, zero)
    offset = 128 if activations == "int8" else 0
    _, integers = images((9, width), 0)
    feed = ((integers.astype(np.float32) - offset - zero) * np.float32(0.5)).astype(np.float32)
    sums = np.array([[dot(a, w) for w in rows] for a in integers]) - (zero + offset) * rows.sum(axis=1)
    assert np.array_equal(saturation.products(integers, rows) - (zero + offset) * rows.sum(axis=1), sums)
    scale = np.linspace(0.01, 0.02, 5).astype(np.float32) * 0.5 * (0.5 if "alpha" in op else 1)
    (got,) = runtime.open_session(simulate(model).model, CPU).run({"x": feed}).values()
    np.testing.assert_allclose(got, sums * scale, rtol=1e-6, atol=1e-6)
    assert np.abs(got - runtime.open_session(model, CPU).run({"x": feed})["y"]).max() > 1


def test_very_many_pairs_are_summed_exactly(build):
    """More pairs of one channel than float32 can add up, so that they come in segments."""
    rows = np.full((3, 1400), 127)
    rows[1] = -127
    rows[2] = 1
    model = make_product(build, rows.T, "MatMul", 1, zero=0)
    feed = np.full((2, 1400), 127.5, np.float32)
    (got,) = runtime.open_session(simulate(model).model, CPU).run({"x": feed}).values()
    sums = np.array([700 * 32767, 700 * -32768, 1400 * 255])
    np.testing.assert_allclose(got, np.tile(sums * np.linspace(0.01, 0.02, 3) * 0.5, (2, 1)), rtol=1e-6)


def test_the_reference_runtime_agrees(build):
    model = make_product(build, heavy((5, 8)).T, "MatMul", 1)
    feed = ((images((4, 8), 0)[1].astype(np.float32) - 100) * np.float32(0.5)).astype(np.float32)
    simulated = simulate(model).model
    one, two = (
        runtime.open_session(simulated, target.find(name)).run({"x": feed})["y"] for name in ("cpu", "reference")
    )
    np.testing.assert_allclose(one, two, rtol=1e-6)


# The pass


def guilty(model):
    return [bool(site.guilty.any()) for site in sites(model.graph)]


@pytest.mark.parametrize("fields", [{}, {"method": "u8u8"}, {"any_order": True}])
@pytest.mark.parametrize("per_channel", [True, False])
def test_nothing_can_saturate_afterwards(build, fields, per_channel):
    model = make_conv(build, heavy((6, 4, 3, 3)), "pads = [1,1,1,1]", per_channel=per_channel)
    feed, _ = images((2, 4, 6, 6), 37)
    before = runtime.open_session(model, CPU).run({"x": feed})["y"]
    assert guilty(model) == [True]
    result = AvoidSaturation(**fields)(model)
    assert result.modified
    assert (result.report["layers"], result.report["can_saturate"]) == (1, 1)
    assert guilty(model) == [False]
    if "any_order" in fields:
        assert not next(sites(model.graph)).suspicious.any()
    optimized = runtime.find(CPU).optimized(model, CPU)
    assert "QLinearConv" in [node.op_type for node in optimized.graph]
    after = runtime.open_session(model, CPU).run({"x": feed})["y"]
    if fields.get("method") == "u8u8":
        np.testing.assert_array_equal(before, after)
    else:
        assert np.abs(before - after).max() < 0.06 * np.abs(before).max()
    assert not AvoidSaturation(**fields)(model).modified


@pytest.mark.parametrize("op_axis", [("MatMul", 1), ("Gemm<transB = 1>", 0), ("Gemm", 1)])
def test_products_are_fixed_in_any_layout(build, op_axis):
    rows = heavy((5, 9))
    model = make_product(build, rows if op_axis[1] == 0 else rows.T, *op_axis)
    feed = {"x": np.random.default_rng(0).normal(0, 30, (4, 9)).astype(np.float32)}
    before = runtime.open_session(model, CPU).run(feed)["y"]
    assert AvoidSaturation()(model).report["fixed"] == {"7-bit": 1}
    assert guilty(model) == [False]
    after = runtime.open_session(model, CPU).run(feed)["y"]
    assert np.linalg.norm(before - after) < 0.03 * np.linalg.norm(before)


TWO = """<ir_version: 9, opset_import: ["": 18]> g (float[N,8] x, float s, uint8 z, int8[8,8] w, float[8] ws, int8[8] wz,
    int8[8,8] light) => (float[N,8] y) { q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)
    wd = DequantizeLinear<axis = 1>(w, ws, wz)  a = MatMul(d, wd)  aq = QuantizeLinear(a, s, z)  ad = DequantizeLinear(aq, s, z)
    ld = DequantizeLinear<axis = 1>(light, ws, wz)  y = MatMul(ad, ld) }"""


def make_two(build, heavy_columns):
    weight = np.full((8, 8), 20, np.int8)
    weight[:, heavy_columns] = 127
    return build(
        TWO, w=weight, light=np.full((8, 8), 64, np.int8), ws=np.full(8, 0.01, np.float32), wz=np.zeros(8, np.int8),
        s=np.float32(0.1), z=np.uint8(0),
    )  # fmt: skip


def test_what_cannot_saturate_stays_as_it_is(build):
    model = make_two(build, [2, 5])
    before = {name: value.const_value.numpy().copy() for name, value in model.graph.initializers.items()}
    assert AvoidSaturation()(model).report == {"layers": 2, "can_saturate": 1, "fixed": {"7-bit": 1}}
    light = next(value for value in model.graph.initializers.values() if value.name == "light")
    np.testing.assert_array_equal(light.const_value.numpy(), before["light"])
    fixed = next(layers(model.graph)).weight
    same = [0, 1, 3, 4, 6, 7]
    np.testing.assert_array_equal(fixed.integers[:, same], before["w"][:, same])
    np.testing.assert_array_equal(fixed.scale[same], before["ws"][same])
    assert np.all(fixed.scale[[2, 5]] > before["ws"][[2, 5]])


@pytest.mark.parametrize(
    "text",
    [
        "g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }",
        "g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1.0,2.0,3.0,4.0}> { y = MatMul(x, w) }",
    ],
)
def test_nothing_to_do(parse, text):
    assert not AvoidSaturation()(parse(text)).modified


def test_light_weights_are_left(build):
    model = make_two(build, [])
    data = ir.to_proto(model).SerializeToString()
    assert not AvoidSaturation()(model).modified
    assert ir.to_proto(model).SerializeToString() == data


def test_shared_weights_are_copied_for_the_layer_that_needs_it(build):
    """One weight, two readers: the second one's activations end at 100, so that it cannot saturate."""
    model = build(
        """<ir_version: 9, opset_import: ["": 18]> g (float[N,4] x, float s, uint8 z, uint8 top, int8[4,4] w, float ws, int8 wz)
        => (float[N,4] y, float[N,4] v) { q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)
        wd = DequantizeLinear(w, ws, wz)  y = MatMul(d, wd)
        r = Clip(q, z, top)  rd = DequantizeLinear(r, s, z)  v = MatMul(rd, wd) }""",
        w=np.full((4, 4), 127, np.int8), ws=np.float32(0.01), wz=np.int8(0), s=np.float32(1), z=np.uint8(0), top=np.uint8(100),
    )  # fmt: skip
    feed = {"x": np.full((1, 4), 90, np.float32)}
    before = runtime.open_session(model, CPU).run(feed)
    assert AvoidSaturation()(model).report == {"layers": 2, "can_saturate": 1, "fixed": {"7-bit": 1}}
    assert guilty(model) == [False, False]
    after = runtime.open_session(model, CPU).run(feed)
    np.testing.assert_array_equal(before["v"], after["v"])
    np.testing.assert_allclose(before["y"], after["y"], rtol=0.02)


def test_depthwise_and_float_layers_are_exempt(build):
    depthwise = make_conv(build, np.full((4, 1, 3, 3), 127), "group = 4")
    assert not AvoidSaturation()(depthwise).modified
    model = make_conv(build, np.full((4, 4, 3, 3), 127))
    model.graph.outputs[0] = next(node for node in model.graph if node.op_type == "Conv").outputs[0]
    model.graph.outputs[0].name = "y2"
    model.graph.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    assert AvoidSaturation()(model).report["layers"] == 0


def test_weights_with_a_zero_point_become_unsigned(build):
    model = make_product(build, np.full((8, 4), 127), "MatMul", 1)
    model.graph.initializers["wz"].const_value = ir.tensor(np.full(4, 3, np.int8), name="wz")
    feed = {"x": np.random.default_rng(0).normal(0, 30, (4, 8)).astype(np.float32)}
    before = runtime.open_session(model, CPU).run(feed)["y"]
    assert AvoidSaturation()(model).report["fixed"] == {"u8u8": 1}
    np.testing.assert_array_equal(before, runtime.open_session(model, CPU).run(feed)["y"])
    refused = make_product(build, np.full((8, 4), 127), "MatMul", 1)
    refused.graph.initializers["wz"].const_value = ir.tensor(np.full(4, 3, np.int8), name="wz")
    result = AvoidSaturation(method="7-bit")(refused)
    assert not result.modified
    assert "zero point" in result.skipped[0][1]


def test_a_body(build):
    model = build(
        """<ir_version: 9, opset_import: ["": 18]> g (float[N,4] x, bool c, float s, uint8 z, int8[4,4] w, float ws, int8 wz)
        => (float[N,4] y) { y = If(c) <then_branch = t () => (float[N,4] p) { q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)  wd = DequantizeLinear(w, ws, wz)  p = MatMul(d, wd) },
        else_branch = e () => (float[N,4] r) { r = Neg(x) }> }""",
        w=np.full((4, 4), 127, np.int8), ws=np.float32(0.01), wz=np.int8(0), s=np.float32(1), z=np.uint8(0),
    )  # fmt: skip
    feed = {"x": np.full((1, 4), 200, np.float32), "c": np.array(True)}
    before = runtime.open_session(model, CPU).run(feed)["y"]
    simulated = runtime.open_session(simulate(model).model, CPU).run(feed)["y"]
    np.testing.assert_allclose(before, 4 * 200 * 127 * 0.01, rtol=1e-6)
    np.testing.assert_allclose(simulated, 2 * 32767 * 0.01, rtol=1e-6)
    assert AvoidSaturation()(model).report["fixed"] == {"7-bit": 1}
    np.testing.assert_allclose(runtime.open_session(model, CPU).run(feed)["y"], before, rtol=0.02)
    assert not AvoidSaturation()(model).modified


def test_int8_activations_against_int8_are_told(build):
    model = build(
        """<ir_version: 9, opset_import: ["": 18]> g (float[N,4] x, float[4,4] v, float s, uint8 z, int8 z8) => (float[N,4] y) {
        q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  p = QuantizeLinear(v, s, z8)
        e = DequantizeLinear(p, s, z8)  y = MatMul(d, e) }""",
        s=np.float32(1), z=np.uint8(0), z8=np.int8(0),
    )  # fmt: skip
    (row,) = AvoidSaturation()(model).skipped
    assert "int8" in row[1]


# Whole networks


@pytest.fixture(scope="module")
def network(build, quantize):
    """A float network, and what quantize-static makes of it."""
    text = """g (float[N,3,8,8] x, float[8,3,3,3] w1, float[8] b1, float[8,8,3,3] w2, float[8] b2, float[4,512] w3, float[4] b3)
        => (float[N,4] y) { a = Conv<pads = [1,1,1,1]>(x, w1, b1)  r = Relu(a)  b = Conv<pads = [1,1,1,1]>(r, w2, b2)
        t = Relu(b)  f = Flatten(t)  y = Gemm<transB = 1>(f, w3, b3) }"""
    rng = np.random.default_rng(3)
    weights = {
        name: rng.uniform(0.035, 0.05, shape).astype(np.float32)
        * rng.choice([1, -1], (shape[0], *[1] * (len(shape) - 1)))
        for name, shape in {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "w3": (4, 512)}.items()
    }
    weights = {name: array.astype(np.float32) for name, array in weights.items()}
    weights |= {"b1": np.ones(8, np.float32), "b2": np.ones(8, np.float32), "b3": np.zeros(4, np.float32)}
    feeds = {"x": rng.uniform(0.7, 1, (32, 3, 8, 8)).astype(np.float32)}
    floats = build(text, **weights)
    return floats.clone(), quantize(floats, feeds).model, feeds


def test_the_simulated_result_recovers(network):
    floats, model, feeds = network
    model = model.clone()
    report = AvoidSaturation(data=feeds, reference=floats)(model).report
    assert report["layers"] == report["can_saturate"] == 3
    assert report["saturated"] == 3
    assert report["sqnr_before"] < 15 < report["sqnr_after"] - 10
    assert report["sqnr_after"] > report["sqnr_exact"] - 3
    assert guilty(model) == [False] * 3


def test_the_reference_helps(network):
    floats, model, _ = network
    with_it, without = model.clone(), model.clone()
    AvoidSaturation(reference=floats)(with_it)
    AvoidSaturation()(without)
    error = []
    for made in (with_it, without):
        stored = {layer.node.op_type + str(i): layer.weight for i, layer in enumerate(layers(made.graph))}
        exact = [value.const_value.numpy() for value in floats.graph.initializers.values() if value.name[0] == "w"]
        error.append(sum(np.sum((w.floats() - e) ** 2) for w, e in zip(stored.values(), exact, strict=True)))
    assert error[0] < error[1]


def test_unsigned_weights_give_the_same_numbers_everywhere(network):
    _, model, feeds = network
    model = model.clone()
    report = AvoidSaturation(data=feeds, method="u8u8")(model).report
    assert report["sqnr_before"] < 20
    assert report["sqnr_after"] == np.inf


def test_another_reference_is_an_error(network, parse):
    _, model, _ = network
    other = parse("g (float[N,4] x) => (float[N,4] other) { other = Relu(x) }")
    with pytest.raises(UserError, match="reference"):
        AvoidSaturation(reference=other)(model.clone())


def test_models_of_another_tool(tmp_path, network):
    onnxruntime = pytest.importorskip("onnxruntime.quantization")
    floats, _, feeds = network

    class Reader(onnxruntime.CalibrationDataReader):
        def __init__(self):
            self.rows = iter([feeds])

        def get_next(self):
            return next(self.rows, None)

    ir.save(floats, tmp_path / "f.onnx")
    onnxruntime.quantize_static(
        tmp_path / "f.onnx", tmp_path / "q.onnx", Reader(), quant_format=onnxruntime.QuantFormat.QDQ, per_channel=True,
        activation_type=onnxruntime.QuantType.QUInt8, weight_type=onnxruntime.QuantType.QInt8,
    )  # fmt: skip
    model = ir.load(tmp_path / "q.onnx")
    assert sum(guilty(model)) == 3
    report = AvoidSaturation(data=feeds, reference=floats)(model).report
    assert not any(guilty(model))
    assert report["sqnr_after"] > report["sqnr_before"] + 10


def test_the_command(graphopt, tmp_path, network):
    floats, model, feeds = network
    ir.save(model, tmp_path / "q.onnx")
    ir.save(floats, tmp_path / "f.onnx")
    np.savez(tmp_path / "d.npz", **feeds)
    ran = graphopt(
        "avoid-saturation", tmp_path / "q.onnx", "-o", tmp_path / "o.onnx", "--data", tmp_path / "d.npz",
        "--reference", tmp_path / "f.onnx", "--samples", "16", "--json",
    )  # fmt: skip
    assert ran.code == 0
    assert ran.json["steps"][0]["report"]["fixed"] == {"7-bit": 3}
    assert not any(guilty(ir.load(tmp_path / "o.onnx")))


def test_the_promise_in_words(network):
    _, model, feeds = network
    report = AvoidSaturation(data=feeds)(model.clone()).report
    line = saturation.promise(report)
    assert "3 of 3" in line
    assert "dB" in line
    assert "none of 2" in saturation.promise({"layers": 2, "can_saturate": 0, "fixed": {}})
    left = saturation.promise({"layers": 2, "can_saturate": 2, "fixed": {"7-bit": 1}})
    assert "1 is left" in left


def test_specification_round_trip():
    assert spec.render(AvoidSaturation(method="u8u8")) == "avoid-saturation{method=u8u8}"


# Operators on integers

DYNAMIC = """<ir_version: 9, opset_import: ["": 18]> g (float[N,8] x, int8[8,4] w, int8 wz, float ws) => (float[N,4] y) {
    q, s, z = DynamicQuantizeLinear(x)  a = MatMulInteger(q, w, z, wz)  f = Cast<to = 1>(a)  k = Mul(s, ws)  y = Mul(f, k) }"""
OPERATORS = """<ir_version: 9, opset_import: ["": 18]> g (uint8[N,4,5,5] x, int8[6,4,3,3] w, int8[6] wz, float s, float[6] ws,
    uint8 z, int32[6] b) => (uint8[N,6,3,3] y) { y = QLinearConv(x, s, z, w, ws, wz, s, z, b) }"""


def test_dynamic_quantization_gets_unsigned_weights(build):
    def model():
        return build(DYNAMIC, w=np.full((8, 4), 100, np.int8), wz=np.int8(0), ws=np.float32(0.1))

    feed = {"x": np.random.default_rng(0).uniform(0, 1, (3, 8)).astype(np.float32)}
    made = model()
    assert AvoidSaturation().call(made).report == {"layers": 1, "can_saturate": 1, "fixed": {"u8u8": 1}}
    assert made.graph.num_nodes() == model().graph.num_nodes()
    np.testing.assert_array_equal(
        runtime.open_session(model(), CPU).run(feed)["y"], runtime.open_session(made, CPU).run(feed)["y"]
    )
    assert not AvoidSaturation()(made).modified
    (row,) = AvoidSaturation(method="7-bit")(model()).skipped
    assert "u8u8" in row[1]
    light = build(DYNAMIC, w=np.full((8, 4), 60, np.int8), wz=np.int8(0), ws=np.float32(0.1))
    assert not AvoidSaturation()(light).modified


def test_the_operator_format_gets_unsigned_weights(build):
    weights = {
        "w": heavy((6, 4, 3, 3)).astype(np.int8), "wz": np.zeros(6, np.int8), "s": np.float32(0.1),
        "ws": np.full(6, 0.01, np.float32), "z": np.uint8(3), "b": np.arange(6, dtype=np.int32),
    }  # fmt: skip
    model, made = build(OPERATORS, **weights), build(OPERATORS, **weights)
    feed = {"x": images((2, 4, 5, 5), 0)[1]}
    assert AvoidSaturation()(made).report["fixed"] == {"u8u8": 1}
    np.testing.assert_array_equal(
        runtime.open_session(model, CPU).run(feed)["y"], runtime.open_session(made, CPU).run(feed)["y"]
    )
