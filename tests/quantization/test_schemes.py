"""The types that quantize-static keeps tensors in."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import compare, io, runtime, target
from graphopt.errors import UsageError
from graphopt.passbase import PreconditionError
from graphopt.passes.quantization import _weights
from graphopt.passes.quantization.calibrate import Calibrate
from graphopt.passes.quantization.quantize_static import QuantizeStatic

NET = """
    g (float[N,3,8,8] x, float[8,3,3,3] w1, float[8] b1, float[8,8,3,3] w2, float[8] b2, float[8,5] w3, float[5] b3) => (float[N,5] y) {
      [first] a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)
      r = Relu(a)
      p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r)
      [second] c = Conv<pads = [1, 1, 1, 1]>(p, w2, b2)
      s = Relu(c)
      m = GlobalAveragePool(s)
      f = Flatten(m)
      [third] y = Gemm(f, w3, b3)
    }
"""
SHAPES = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 8, 3, 3), "b2": (8,), "w3": (8, 5), "b3": (5,)}
X = {"x": [6, 3, 8, 8]}

PLAIN = target.find("cpu{level=basic}", 1)
"""Where Q and DQ run as they are written: beyond it, ONNX Runtime 1.31 takes float8 for integers."""


@pytest.fixture
def net(build):
    return build(NET, **SHAPES)


@pytest.mark.parametrize(
    ("fields", "dtypes", "opset", "least"),
    [
        ({}, (ir.DataType.UINT8, ir.DataType.INT8), 13, 30),
        ({"weights": "uint8"}, (ir.DataType.UINT8, ir.DataType.UINT8), 13, 30),
        ({"activations": "int8"}, (ir.DataType.INT8, ir.DataType.INT8), 13, 30),
        ({"activations": "int8", "symmetric": True}, (ir.DataType.INT8, ir.DataType.INT8), 13, 25),
        ({"activations": "uint16"}, (ir.DataType.UINT16, ir.DataType.INT8), 21, 35),
        ({"activations": "int16", "symmetric": True}, (ir.DataType.INT16, ir.DataType.INT8), 21, 35),
        ({"weights": "int4"}, (ir.DataType.UINT8, ir.DataType.INT4), 21, 10),
        ({"weights": "ternary"}, (ir.DataType.UINT8, ir.DataType.INT2), 25, 1),
        ({"weights": "binary"}, (ir.DataType.UINT8, ir.DataType.INT2), 25, -3),
        ({"per_channel": False}, (ir.DataType.UINT8, ir.DataType.INT8), 13, 28),
    ],
)
def test_schemes(net, sample, quantize, fields, dtypes, opset, least):
    done = quantize(net, sample(**X), **fields)
    made = {node.inputs[2].dtype for node in done.nodes("QuantizeLinear")}
    stored = {value.dtype for value in done.model.graph.initializers.values() if value.name.startswith("w")}
    assert made == {dtypes[0]}
    assert dtypes[1] in stored
    assert done.model.opset_imports[""] >= opset
    assert done.sqnr["y"] > least


def test_narrow_weights_run_on_integer_kernels(net, sample, quantize):
    done = quantize(net, sample(**X), weights="int4")
    assert done.kernels.count("QLinearConv") == 2
    assert "Conv" not in done.kernels
    assert done.islands == []


def test_float8(net, sample):
    feeds = sample(**X)
    reference = runtime.open_session(net, PLAIN).run(feeds)["y"]
    Calibrate(feeds, threads=1)(net)
    QuantizeStatic(activations="float8", weights="float8")(net)
    assert all(n.inputs[2].dtype == ir.DataType.FLOAT8E4M3FN for n in net.graph if n.op_type == "QuantizeLinear")
    assert net.graph.initializers["b1_b"].dtype == ir.DataType.FLOAT
    assert compare.sqnr(reference, runtime.open_session(net, PLAIN).run(feeds)["y"]) > 20


def test_float8_goes_together():
    with pytest.raises(ValueError, match="together"):
        QuantizeStatic(weights="float8")


def test_nodes_of_their_own_types(net, sample, quantize):
    done = quantize(net, sample(**X), int4=("second",), int16=("third",))
    assert done.constant("w2_q").dtype.name == "int4"
    assert done.constant("w1_q").dtype == np.int8
    wide = {n.inputs[0].name for n in done.nodes("QuantizeLinear") if n.inputs[2].dtype == ir.DataType.UINT16}
    assert wide == {"m"}, "what the third reads is moved there from the pooling"


def test_sixteen_bits_pool_in_float(net, sample, quantize):
    done = quantize(net, sample(**X), activations="uint16")
    pool = done.nodes("MaxPool")[0]
    assert pool.inputs[0].producer().op_type == "DequantizeLinear"


@pytest.mark.parametrize("field", ["exclude", "int4", "int16"])
def test_unknown_nodes(net, sample, field):
    Calibrate(sample(**X), threads=1)(net)
    with pytest.raises(PreconditionError) as caught:
        QuantizeStatic(**{field: ("secnd",)})(net)
    assert isinstance(caught.value.__cause__, UsageError)
    assert f"{field}: no node is called 'secnd'; did you mean 'second'?" in str(caught.value.__cause__)


def test_files_shrink(net, sample, quantize, tmp_path):
    sizes = {}
    for weights in ("int8", "int4", "ternary"):
        model = net.clone()
        quantize(model, sample(**X), weights=weights)
        sizes[weights] = sum(
            v.const_value.nbytes for v in model.graph.initializers.values() if v.name in ("w1_q", "w2_q")
        )
        io.save(model, tmp_path / f"{weights}.onnx")
        assert io.load(tmp_path / f"{weights}.onnx").graph.initializers["w2_q"].const_value.nbytes == 576 * {
            "int8": 8, "int4": 4, "ternary": 2
        }[weights] // 8  # fmt: skip
    assert sizes["int4"] * 2 == sizes["int8"] == sizes["ternary"] * 4


def test_bodies_compute_with_integers(build, sample, quantize):
    model = build(
        """
        g (float[N,3,8,8] x, float[4,3,3,3] w1, float[4,4,3,3] w2, float zero) => (float[N,4,8,8] y) {
          a = Conv<pads = [1, 1, 1, 1]>(x, w1)
          total = ReduceSum<keepdims=0>(x)
          square = Mul(total, total)
          flag = Less(square, zero)
          y = If (flag) <then_branch = t () => (float[N,4,8,8] p) { p = Neg(a) },
                         else_branch = e () => (float[N,4,8,8] q) {
                           i = Conv<pads = [1, 1, 1, 1]>(a, w2)
                           j = Relu(i)
                           q = Conv<pads = [1, 1, 1, 1]>(j, w2)
                         }>
        }
        """,
        w1=(4, 3, 3, 3), w2=(4, 4, 3, 3), zero=np.float32(0),
    )  # fmt: skip
    done = quantize(model, sample(**X))
    inside = [node for node in done.model.graph.all_nodes() if node.graph is not done.model.graph]
    assert sum(node.op_type == "QuantizeLinear" for node in inside) >= 2
    assert done.result.report["quantized"] == {"Conv": 3}
    assert done.sqnr["y"] > 28


@pytest.mark.parametrize("kind", ["ternary", "binary"])
def test_few_levels_err_least(kind):
    rng = np.random.default_rng(0)
    weight = rng.normal(0, 1, (3, 7)).astype(np.float32)
    scales = _weights.weight_scales(weight, 0, None, 1.0, kind)
    integers = _weights.quantize_weight(weight, scales, 0, kind).astype(np.float32)
    error = np.sum((weight - integers * scales[:, None]) ** 2, axis=1)
    assert set(np.unique(integers)) <= {-1, 0, 1}
    levels = (-1, 1) if kind == "binary" else (-1, 0, 1)
    for row, least in zip(weight, error, strict=True):
        tried = []
        for signs in np.stack(np.meshgrid(*[levels] * 7), -1).reshape(-1, 7):
            scale = max(signs @ row / max(signs @ signs, 1), 0)
            tried.append(np.sum((row - scale * signs) ** 2))
        assert least == pytest.approx(min(tried), rel=1e-5)
