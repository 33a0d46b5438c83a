from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import io, spec
from graphopt.errors import UsageError
from graphopt.passbase import PreconditionError
from graphopt.passes.quantization import _ranges
from graphopt.passes.quantization.calibrate import Calibrate
from graphopt.passes.quantization.quantize_static import QuantizeStatic

X = {"x": [4, 4, 8, 8]}
LAYER = "(float[N,4,8,8] x, float[4,4,3,3] w1, float[4,4,3,3] w2, float[4] b1) => (float[N,4,D,E] y)"
WEIGHTS = {"w1": (4, 4, 3, 3), "w2": (4, 4, 3, 3), "b1": (4,)}
FIRST = "a = Conv<pads=[1,1,1,1]>(x, w1, b1)"
SAME = "<pads=[1,1,1,1]>"


def between(build, body: str, head: str = LAYER, **weights):
    """A model that does something between two convolutions: from `a` to `m`."""
    return build(f"g {head} {{ {FIRST} {body} y = Conv{SAME}(m, w2) }}", **{**WEIGHTS, **weights})


def test_a_chain_is_integers_throughout(build, sample, quantize):
    model = between(build, "m = Relu(a)")
    done = quantize(model, sample(**X))
    assert [k for k in done.kernels if k != "Transpose"] == [
        "QuantizeLinear", "QLinearConv", "QLinearConv", "DequantizeLinear",
    ]  # fmt: skip
    assert done.islands == []
    assert done.sqnr["y"] > 35
    assert done.result.skipped == []
    assert done.result.report == {"quantized": {"Conv": 2}, "left_in_float": 0}


def test_the_signature_stays(build, sample, quantize):
    done = quantize(between(build, "m = Relu(a)"), sample(**X))
    (x,), (y,) = done.model.graph.inputs, done.model.graph.outputs
    assert (x.name, x.dtype, y.name, y.dtype) == ("x", ir.DataType.FLOAT, "y", ir.DataType.FLOAT)
    assert y.producer().op_type == "DequantizeLinear"


def test_relu_becomes_saturation(build, sample, quantize):
    done = quantize(between(build, "m = Relu(a)"), sample(**X))
    assert not done.nodes("Relu")
    after_relu = done.nodes("QuantizeLinear")[1]
    assert done.constant(after_relu.inputs[2].name) == 0


def test_max_and_min_become_saturation(build, sample, quantize):
    head = LAYER.replace("x,", "x, float lo, float hi,")
    done = quantize(
        between(build, "t = Max(lo, a) m = Min(t, hi)", head, lo=np.float32(0), hi=np.float32(0.5)), sample(**X)
    )
    assert not done.nodes("Max")
    assert not done.nodes("Min")
    assert done.sqnr["y"] > 35


def test_clip_becomes_saturation(build, sample, quantize):
    done = quantize(between(build, "m = Clip(a, lo, hi)", LAYER.replace("x,", "x, float lo, float hi,"), lo=np.float32(0), hi=np.float32(0.5)), sample(**X))  # fmt: skip
    assert not done.nodes("Clip")
    scale = done.constant(done.nodes("QuantizeLinear")[1].inputs[1].name)
    assert scale == pytest.approx(0.5 / 255)
    assert done.islands == []
    assert done.sqnr["y"] > 35


def test_activations_are_uint8_weights_int8_biases_int32(build, sample, quantize):
    done = quantize(between(build, "m = Relu(a)"), sample(**X))
    types = {
        done.constant(n.inputs[0].name).dtype for n in done.nodes("DequantizeLinear") if n.inputs[0].is_initializer()
    }
    assert types == {np.dtype(np.int8), np.dtype(np.int32)}
    assert all(done.constant(n.inputs[2].name).dtype == np.uint8 for n in done.nodes("QuantizeLinear"))


def test_bias_scale_is_input_scale_times_weight_scale(build, sample, quantize):
    done = quantize(between(build, "m = Relu(a)"), sample(**X))
    x, w, b = (value.producer() for value in done.nodes("Conv")[0].inputs)
    x_scale, w_scale, b_scale = (done.constant(node.inputs[1].name) for node in (x, w, b))
    np.testing.assert_array_equal(b_scale, x_scale * w_scale)
    assert w_scale.shape == (4,)
    assert w.attributes["axis"].value == b.attributes["axis"].value == 0


def test_weights_stay_within_127(build, sample, quantize):
    done = quantize(between(build, "m = Relu(a)"), sample(**X))
    weight = done.constant("w1_q")
    assert (np.abs(weight.astype(int)).max(axis=(1, 2, 3)) == 127).all()
    assert (done.constant(done.nodes("Conv")[0].inputs[1].producer().inputs[2].name) == 0).all()


def test_a_channel_of_zeros_keeps_its_bias(build, sample, quantize):
    weight = np.random.default_rng(0).normal(0, 0.2, (4, 4, 3, 3)).astype(np.float32)
    weight[1:3] = 0
    bias = np.array([0.1, 0, -0.7, 0.2], np.float32)
    done = quantize(
        build(f"g {LAYER} {{ y = Conv{SAME}(x, w1, b1) }}", **{**WEIGHTS, "w1": weight, "b1": bias}), sample(**X)
    )
    step = done.constant(done.nodes("QuantizeLinear")[1].inputs[1].name)
    np.testing.assert_allclose(done.outputs["y"][:, 1:3], done.reference["y"][:, 1:3], atol=step)
    assert done.sqnr["y"] > 35


def test_a_large_bias_on_tiny_weights_does_not_overflow(build, sample, quantize):
    weight = np.full((4, 4, 3, 3), 1e-9, np.float32)
    bias = np.array([3, -3, 2, 1], np.float32)
    done = quantize(
        build(f"g {LAYER} {{ y = Conv{SAME}(x, w1, b1) }}", **{**WEIGHTS, "w1": weight, "b1": bias}), sample(**X)
    )
    assert np.abs(done.constant("b1_q").astype(np.int64)).max() == 2**30
    assert done.sqnr["y"] > 35


@pytest.mark.parametrize("trans", [0, 1])
def test_gemm_per_output_channel(build, sample, quantize, trans):
    shape = [6, 8] if trans else [8, 6]
    model = build(
        f"g (float[N,8] x, float{shape} w, float[6] b) => (float[N,6] y) {{ y = Gemm<transB={trans}, alpha=0.5, beta=2.0>(x, w, b) }}",
        w=shape,
        b=(6,),
    )
    done = quantize(model, sample(x=[32, 8]))
    node = done.nodes("Gemm")[0].inputs[1].producer()
    assert node.attributes["axis"].value == 1 - trans
    assert done.constant(node.inputs[1].name).shape == (6,)
    assert done.kernels == ["QuantizeLinear", "QGemm"], "a Gemm yields float at no cost"
    assert done.sqnr["y"] > 38


def test_gemm_between_gemms(build, sample, quantize):
    model = build(
        "g (float[N,8] x, float[8,8] w, float[8,4] v, float[8] b) => (float[N,4] y) { a = Gemm(x, w, b) m = Relu(a) y = Gemm(m, v) }",
        w=(8, 8), v=(8, 4), b=(8,),
    )  # fmt: skip
    done = quantize(model, sample(x=[32, 8]))
    assert done.kernels == ["QuantizeLinear", "QGemm", "QGemm"]
    assert done.sqnr["y"] > 35


@pytest.mark.parametrize("shape", [["N", 8], [4, 5, 8], ["N", "S", 8]])
@pytest.mark.parametrize("bias", [(6,), (1, 6)])
def test_matmul_with_bias(build, sample, quantize, shape, bias):
    dims = ",".join(map(str, shape))
    model = build(
        f"g (float[{dims}] x, float[8,6] w, float{list(bias)} b) => (float[{dims[:-1]}6] y) {{ m = MatMul(x, w) y = Add(b, m) }}",
        w=(8, 6),
        b=bias,
    )
    done = quantize(model, sample(x=[4, 5, 8] if len(shape) == 3 else [20, 8]))
    assert {"QGemm", "MatMulIntegerToFloat"} & set(done.kernels)
    assert not {"Gemm", "MatMul"} & set(done.kernels)
    assert done.outputs["y"].shape == done.reference["y"].shape
    assert done.sqnr["y"] > 38


FOLLOWERS = ["Relu(m)", "Clip(m, c)", "Add(m, b)", "Add(h, m)", "Sum(m, h)", "Softmax(m)"]


@pytest.mark.parametrize("product", ["MatMul(x, w)", "Gemm(x, w)", "Gemm(x, w, b)"])
@pytest.mark.parametrize("follow", FOLLOWERS)
def test_what_follows_a_product_does_not_drive_it_back_to_float(build, sample, quantize, product, follow):
    model = build(
        f"g (float[N,8] x, float[8,8] w, float c, float[8] b) => (float[N,8] y) {{ h = Tanh(x) m = {product} t = {follow} y = Sin(t) }}",
        w=(8, 8), c=np.float32(0.1), b=(8,),
    )  # fmt: skip
    done = quantize(model, sample(x=[32, 8]))
    assert done.islands == []
    assert not {"Gemm", "FusedGemm", "MatMul"} & set(done.kernels)
    assert done.sqnr["y"] > 30


def test_product_of_two_activations(build, sample, quantize):
    model = build(
        "g (float[6,8] x, float[8,8] w, float[6] b) => (float[6,6] y) { k = MatMul(x, w) t = Transpose(k) m = MatMul(x, t) y = Add(m, b) }",
        w=(8, 8),
        b=(6,),
    )
    done = quantize(model, sample(x=[6, 8]))
    assert "MatMul" not in done.kernels
    assert "Gemm" not in done.kernels
    assert done.sqnr["y"] > 30


CARRIERS = {
    "Flatten": "f = Flatten(a) m = Reshape(f, shape)",
    "Gather": "m = Gather<axis=1>(a, order)",
    "Identity": "m = Identity(a)",
    "MaxPool": "m = MaxPool<kernel_shape=[2,2]>(a)",
    "Pad": "m = Pad(a, pads)",
    "Pad of zeros": "m = Pad(a, pads, zero)",
    "reflecting Pad": 'm = Pad<mode="reflect">(a, pads)',
    "Relu of what is read elsewhere, too": "r = Relu(a) s = Sub(a, r) m = MaxPool<kernel_shape=[1,1]>(r)",
    "Resize": "m = Resize(a, , scales)",
    "Slice": "m = Slice(a, starts, ends, axes, steps)",
    "Split": "p, q = Split<axis=1, num_outputs=2>(a) m = Concat<axis=1>(q, p)",
    "Squeeze": "u = Unsqueeze(a, axis) m = Squeeze(u, axis)",
    "Tile": "m = Tile(a, repeats)",
    "Transpose": "m = Transpose<perm=[0,1,3,2]>(a)",
    "DepthToSpace": "d = DepthToSpace<blocksize=2>(a) m = SpaceToDepth<blocksize=2>(d)",
    "ReduceMax": "m = ReduceMax<keepdims=1>(a, axis)",
    "Expand": "m = Expand(a, ones)",
    "Clip above zero": "m = Clip(a, zero_one, zero_five)",
    "Max and Min": "p = MaxPool<kernel_shape=[1,1]>(a) b = Max(zero, p) m = Min(b, zero_five)",
}
INDICES = {
    "shape": np.array([-1, 4, 8, 8]), "order": np.array([3, 1, 0, 2]), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    "zero": np.float32(0), "scales": np.array([1, 1, 2, 2], np.float32), "starts": np.array([0, 0]),
    "ends": np.array([9, 9]), "axes": np.array([2, 3]), "steps": np.array([2, 2]), "axis": np.array([0]),
    "repeats": np.array([1, 1, 2, 1]), "ones": np.array([1, 1, 1, 1]), "zero_one": np.float32(0.1),
    "zero_five": np.float32(0.5),
}  # fmt: skip


@pytest.mark.parametrize("name", CARRIERS)
def test_what_moves_elements_moves_integers(build, sample, quantize, name):
    declared = "".join(
        f", {'float' if a.dtype.kind == 'f' else 'int64'}{list(a.shape) if a.shape else ''} {key}"
        for key, a in INDICES.items()
    )
    head = LAYER.replace(") =>", declared + ") =>")
    if "elsewhere" in name:
        head = head.replace("y)", "y, float[N,4,8,8] s)")
    done = quantize(between(build, CARRIERS[name], head, **INDICES), sample(**X))
    conversions = 2 if "elsewhere" in name else 0
    assert done.kernels.count("QuantizeLinear") == 1
    assert done.kernels.count("DequantizeLinear") == 1 + conversions
    assert done.islands == []
    assert done.sqnr["y"] > (25 if "above" in name else 30), "few levels lie between the bounds of that Clip"


def test_pad_is_exact_on_integers(build, sample, quantize):
    """The shortcut of small ResNets: every other pixel, then empty channels on both sides."""
    model = build(
        """
        g (float[N,4,8,8] x, float[4,4,3,3] w1, float[8,4,3,3] w2, float[8,8,1,1] w3) => (float[N,8,4,4] y)
        <int64[8] pads = {0,2,0,0,0,2,0,0}, int64[2] s = {0,0}, int64[2] e = {99,99}, int64[2] a = {2,3}, int64[2] t = {2,2}> {
          r = Conv<pads=[1,1,1,1]>(x, w1)
          c = Conv<pads=[1,1,1,1], strides=[2,2]>(r, w2)
          h = Slice(r, s, e, a, t)
          p = Pad(h, pads)
          m = Add(c, p)
          y = Conv(m, w3)
        }
        """,
        w1=(4, 4, 3, 3), w2=(8, 4, 3, 3), w3=(8, 8, 1, 1),
    )  # fmt: skip
    done = quantize(model, sample(**X))
    pad = done.nodes("Pad")[0]
    assert pad.outputs[0].dtype == ir.DataType.UINT8
    (conversion,) = pad.outputs[0].consumers()
    assert [value.name for value in conversion.inputs[1:]] == [
        value.name for value in done.nodes("QuantizeLinear")[1].inputs[1:]
    ], "padding leaves the scale as it was"
    assert pad.inputs[2] is conversion.inputs[2], "it pads with what stands for zero"
    assert not {"Conv", "Add"} & set(done.kernels)
    assert "Slice" in done.kernels
    assert done.islands == []
    assert done.sqnr["y"] > 30


ARITHMETIC = {
    "Add": ("m = Add(a, x)", "QLinearAdd"),
    "Add of itself": ("m = Add(a, a)", "QLinearAdd"),
    "Add of a constant": ("m = Add(a, c)", "QLinearAdd"),
    "Mul": ("m = Mul(a, x)", "QLinearMul"),
    "Mul of a constant": ("m = Mul(c, a)", "QLinearMul"),
    "AveragePool": ("m = AveragePool<kernel_shape=[2,2]>(a)", "QLinearAveragePool"),
    "GlobalAveragePool": ("m = GlobalAveragePool(a)", "QLinearGlobalAveragePool"),
    "ReduceMean": ("m = ReduceMean(a, spatial)", "QLinearGlobalAveragePool"),
    "flat ReduceMean": ("f = ReduceMean<keepdims=0>(a, spatial) m = Unsqueeze(f, spatial)", "QLinearGlobalAveragePool"),
    "LeakyRelu": ("m = LeakyRelu<alpha=0.1>(a)", "QLinearLeakyRelu"),
    "Sigmoid": ("m = Sigmoid(a)", "QLinearSigmoid"),
    "Softmax": ("m = Softmax<axis=-1>(a)", "QLinearSoftmax"),
    "Where": (
        "total = ReduceSum<keepdims=1>(x) flag = Cast<to=9>(total) s = Sigmoid(a) m = Where(flag, a, s)",
        "QLinearWhere",
    ),
    "SiLU": ("s = Sigmoid(a) m = Mul(a, s)", "QLinearMul"),
    "HardSigmoid": ("m = HardSigmoid<alpha=0.3, beta=0.4>(a)", "QLinearAdd"),
    "HardSwish": ("m = HardSwish(a)", "QLinearMul"),
    "hard swish in pieces": ("t = Add(a, three) u = Clip(t, zero, six) v = Mul(a, u) m = Div(v, six)", "QLinearMul"),
    "Concat": ("n = Concat<axis=2>(a, x) m = MaxPool<kernel_shape=[1,1]>(n)", "QLinearConcat"),
}


@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_between_convolutions(build, sample, quantize, name):
    body, kernel = ARITHMETIC[name]
    head = LAYER.replace("x,", "x, float[4,1,1] c, int64[2] spatial, float three, float zero, float six,")
    scalars = {"three": np.float32(3), "zero": np.float32(0), "six": np.float32(6)}
    done = quantize(between(build, body, head, c=(4, 1, 1), spatial=np.array([2, 3]), **scalars), sample(**X))
    assert kernel in done.kernels
    assert done.kernels.count("QuantizeLinear") == done.kernels.count("DequantizeLinear") == 1
    assert done.islands == []
    assert done.sqnr["y"] > 30


@pytest.mark.parametrize("c", [np.float32(0.3), np.full((1, 1, 1, 1), 3, np.float32)])
@pytest.mark.parametrize("body", ["m = Mul(a, c)", "m = Mul(c, a)", "m = Div(a, c)"])
def test_a_positive_factor_only_changes_the_scale(build, sample, quantize, body, c):
    done = quantize(between(build, body, LAYER.replace("x,", f"x, float{list(c.shape) or ''} c,"), c=c), sample(**X))
    assert [k for k in done.kernels if k != "Transpose"] == [
        "QuantizeLinear", "QLinearConv", "QLinearConv", "DequantizeLinear",
    ]  # fmt: skip
    assert done.sqnr["y"] > 35


@pytest.mark.parametrize("body", ["m = Mul(a, c)", "m = Div(a, c)", "m = Div(c, a)"])
def test_other_factors_do_more(build, sample, quantize, body):
    done = quantize(between(build, body, LAYER.replace("x,", "x, float c,"), c=np.float32(-0.3)), sample(**X))
    assert {"QLinearMul", "Div"} & set(done.kernels)
    assert done.outputs["y"].shape == done.reference["y"].shape


@pytest.mark.parametrize("clamp", ["Identity", "Relu"])
def test_what_only_a_concat_reads_is_on_its_grid(build, sample, quantize, clamp):
    model = build(
        f"g {LAYER.replace('w2', 'w2, float[4,8,1,1] v')} {{ a = Conv{SAME}(x, w1, b1) b = Conv{SAME}(x, w2) c = Concat<axis=1>(a, b) d = {clamp}(c) y = Conv(d, v) }}",
        **WEIGHTS,
        v=(4, 8, 1, 1),
    )
    done = quantize(model, sample(**X))
    _, a, b, c, _ = (tuple(v.name for v in node.inputs[1:]) for node in done.nodes("QuantizeLinear"))
    assert a == b == c
    assert done.kernels.count("QuantizeLinear") == done.kernels.count("DequantizeLinear") == 1
    assert done.sqnr["y"] > 33


def test_a_narrow_input_of_a_concat_is_not_drowned(build, sample, quantize):
    """Box offsets beside probabilities: on a common scale nothing would be left of the probabilities."""
    big = np.random.default_rng(0).normal(0, 20, (4, 4, 3, 3)).astype(np.float32)
    model = build(
        f"g {LAYER.replace('w2', 'w2, float[4,8,1,1] v')} {{ a = Conv{SAME}(x, w1) b = Conv{SAME}(x, w2) s = Sigmoid(b) c = Concat<axis=1>(a, s) y = Conv(c, v) }}",
        **{**WEIGHTS, "w1": big},
        v=(4, 8, 1, 1),
    )
    done = quantize(model, sample(**X))
    assert "would keep fewer than 32 of the 256 levels" in done.reasons["Concat of 'c'"]
    assert "QLinearConcat" not in done.kernels


def test_what_comes_last_stays_in_float(build, sample, quantize):
    model = build(f"g {LAYER} {{ a = Conv{SAME}(x, w1) s = Sigmoid(a) y = Mul(s, b1) }}".replace("float[4] b1", "float[8] b1"), **{**WEIGHTS, "b1": (8,)})  # fmt: skip
    done = quantize(model, sample(**X))
    assert set(done.reasons) == {"Sigmoid of 's'", "Mul of 'y'"}
    assert done.kernels[-3:] == ["DequantizeLinear", "Sigmoid", "Mul"]


def test_what_comes_first_stays_in_float(build, sample, quantize):
    model = build(
        f"g {LAYER.replace('x,', 'x, float[4,1,1] c,')} {{ n = Add(x, c) y = Conv{SAME}(n, w1) }}",
        **WEIGHTS,
        c=(4, 1, 1),
    )
    done = quantize(model, sample(**X))
    assert done.reasons == {"Add of 'n'": "nothing before it is quantized, and float costs nothing there"}
    assert done.kernels[:2] == ["Add", "QuantizeLinear"]


def test_a_relu_does_not_change_what_others_read_before_it(build, sample, quantize):
    done = quantize(between(build, "m = Relu(a)", LAYER.replace("y)", "y, float[N,4,8,8] a)")), sample(**X))
    assert done.outputs["a"].min() < 0
    assert min(done.sqnr.values()) > 30


def test_moved_floats_of_which_some_are_an_output(build, sample, quantize):
    body = "t = Tanh(a) m = Transpose<perm=[0,1,3,2]>(t)"
    done = quantize(between(build, body, LAYER.replace("y)", "y, float[N,4,8,8] m)")), sample(**X))
    assert done.nodes("Transpose")[0].outputs[0].dtype == ir.DataType.FLOAT


def test_a_product_yields_float_to_a_float_addition(build, sample, quantize):
    model = build(
        "g (float[N,4,8] x, float[8,8] w) => (float[N,4,8] y, float[N,4,8] s) { t = Tanh(x) m = MatMul(x, w) n = Add(m, t) s = Sin(n) y = MatMul(n, w) }",
        w=(8, 8),
    )
    done = quantize(model, sample(x=[8, 4, 8]))
    assert "MatMulIntegerToFloat" in done.kernels
    assert "Add" in done.kernels
    assert "DequantizeLinear" not in done.kernels
    assert min(done.sqnr.values()) > 35


def test_a_bias_that_adds_an_axis(build, sample, quantize):
    model = build(
        "g (float[N,8] x, float[8,6] w, float[1,1,6] b) => (float[1,N,6] y) { m = MatMul(x, w) y = Add(m, b) }",
        w=(8, 6), b=(1, 1, 6),
    )  # fmt: skip
    done = quantize(model, sample(x=[32, 8]))
    assert done.outputs["y"].shape == (1, 32, 6)
    assert done.sqnr["y"] > 38


def test_constants_that_are_not_folded_yet(build, sample, quantize):
    model = build(
        "g (float[N,8] x, float[2,4,6] w, float[8,6] v, int64[2] s) => (float[N,6] y, float[N,6] z) { k = Reshape(w, s) y = MatMul(x, k) u = Add(v, v) z = MatMul(x, v) }",
        w=(2, 4, 6), v=(8, 6), s=np.array([8, 6]),
    )  # fmt: skip
    done = quantize(model, sample(x=[32, 8]))
    assert (
        done.reasons["Add of 'u'"]
        == done.reasons["MatMul of 'y'"]
        == "it reads what is computed from constants alone; run fold-constants first"
    )


def test_indices_of_a_pool(build, sample, quantize):
    head = LAYER.replace("y)", "y, int64[N,4,7,7] i)")
    done = quantize(between(build, "m, i = MaxPool<kernel_shape=[2,2]>(a)", head), sample(**X))
    assert done.reasons == {"MaxPool of 'm'": "its indices are used"}


def test_types_that_follow_from_the_operator_are_not_spelled_out(build, sample, quantize):
    done = quantize(between(build, "m = Relu(a)"), sample(**X))
    assert "a" not in {info.name for info in io.to_proto(done.model).graph.value_info}


def test_moved_floats_among_floats_are_left_alone(build, sample, quantize):
    body = "t = Tanh(a) r = Transpose<perm=[0,1,3,2]>(t) m = Transpose<perm=[0,1,3,2]>(r) s = Sin(m)"
    done = quantize(between(build, body, LAYER.replace("y)", "y, float[N,4,8,8] s)")), sample(**X))
    assert done.reasons["Transpose of 'r'"] == "it sits among float nodes; integers would only add conversions"
    assert [node.outputs[0].dtype for node in done.nodes("Transpose")] == [ir.DataType.FLOAT] * 2
    assert len(done.nodes("QuantizeLinear")) == 4, "x, a, m, y"


def test_float_islands_are_reported_under_their_own_names(build, sample, quantize):
    model = between(build, "m = Tanh(a)")
    model.graph.node(1).name = "squash"
    done = quantize(model, sample(**X))
    ((node, reason),) = done.islands
    assert node == "squash"
    assert reason == "Tanh runs in float between integer nodes, with a conversion on both sides"
    assert "no integer kernel for Tanh" in done.reasons["squash"]


def test_one_tensor_is_quantized_once_for_all_its_readers(build, sample, quantize):
    model = build(
        f"g {LAYER.replace('y)', 'y, float[N,4,8,8] e, float[N,4,8,8] a)')} {{ {FIRST} c = Conv{SAME}(a, w2) m = Add(a, c) y = Conv{SAME}(m, w2) e = Exp(a) }}",
        **WEIGHTS,
    )
    done = quantize(model, sample(**X))
    assert [value.name for value in done.model.graph.outputs] == ["y", "e", "a"]
    assert len(done.nodes("QuantizeLinear")) == 5, "x, a, c, m, y"
    assert "QLinearAdd" in done.kernels
    assert min(done.sqnr.values()) > 30


def test_two_outputs_of_one_tensor(build, sample, quantize):
    model = build(
        f"g {LAYER.replace('y)', 'y, float[N,4,8,8] z)')} {{ y = Conv{SAME}(x, w1) z = Identity(y) }}", **WEIGHTS
    )
    done = quantize(model, sample(**X))
    assert [value.name for value in done.model.graph.outputs] == ["y", "z"]
    np.testing.assert_array_equal(done.outputs["y"], done.outputs["z"])
    assert done.sqnr["z"] > 35


def test_shared_weights_are_stored_once(build, sample, quantize):
    model = build(f"g {LAYER} {{ a = Conv{SAME}(x, w1) b = Relu(a) y = Conv{SAME}(b, w1) }}", **WEIGHTS)
    done = quantize(model, sample(**X))
    int8 = [v for v in done.model.graph.initializers.values() if v.dtype == ir.DataType.INT8 and len(v.shape) == 4]
    assert len(int8) == 1
    assert done.islands == []


def test_one_weight_along_two_axes(build, sample, quantize):
    model = build(
        "g (float[N,6] x, float[6,6] w) => (float[N,6] y) { a = Gemm(x, w) b = Relu(a) y = Gemm<transB=1>(b, w) }",
        w=(6, 6),
    )
    done = quantize(model, sample(x=[32, 6]))
    assert {node.attributes["axis"].value for node in done.nodes("DequantizeLinear") if "axis" in node.attributes} == {
        0,
        1,
    }
    assert done.sqnr["y"] > 33


def test_float_readers_inside_a_subgraph(build, sample, quantize):
    model = build(
        f"""
        g {LAYER} <float zero = {{0}}> {{
          a = Conv{SAME}(x, w1)
          total = ReduceSum<keepdims=0>(x)
          flag = Less(total, zero)
          y = If (flag) <then_branch = t () => (float[N,4,8,8] p) {{ p = Neg(a) }},
                         else_branch = e () => (float[N,4,8,8] q) {{ q = Conv{SAME}(a, w2) }}>
        }}
        """,
        **WEIGHTS,
    )
    done = quantize(model, sample(**X))
    assert "run calibrate" in done.reasons["Conv of 'q'"]  # it ran on no sample
    assert "QLinearConv" in done.kernels
    assert done.sqnr["y"] > 33


def test_functions_stay_in_float(parse, sample, quantize):
    model = parse(
        """
        <ir_version: 9, opset_import: ["": 18, "local": 1]>
        g (float[N,1,4,4] x) => (float[N,1,4,4] y) <float[1,1,1,1] w = {0.5}> { a = Conv(x, w) y = local.layer(a, w) }
        <domain: "local", opset_import: ["": 18]> layer (v, k) => (r) { r = Conv(v, k) }
        """
    )
    done = quantize(model, sample(x=[2, 1, 4, 4]))
    assert done.reasons["Conv of 'r'"] == "it is part of function layer; inline functions"
    assert done.sqnr["y"] > 35


def test_weights_listed_as_inputs_become_constants(parse, sample, quantize):
    model = parse(
        """
        <ir_version: 3, opset_import: ["": 12]>
        g (float[N,1,4,4] x, float[1,1,1,1] w) => (float[N,1,4,4] y) <float[1,1,1,1] w = {0.5}> { y = Conv(x, w) }
        """
    )
    done = quantize(model, sample(x=[2, 1, 4, 4]))
    assert [value.name for value in done.model.graph.inputs] == ["x"]
    assert "QLinearConv" in done.kernels


@pytest.mark.parametrize("opset", [7, 9, 11, 12])
def test_old_opsets_are_raised(parse, sample, quantize, opset):
    clip = "c = Clip<min=0.0, max=0.5>(a)" if opset < 11 else "c = Clip(a, lo, hi)"
    model = parse(
        f"""
        <ir_version: 6, opset_import: ["": {opset}]>
        g (float[N,1,4,4] x) => (float[N,1,8,8] y)
        <float[1,1,1,1] w = {{0.5}}, float lo = {{0}}, float hi = {{0.5}}, float[4] s = {{1, 1, 2, 2}}, float[0] none = {{}}> {{
          a = Conv(x, w) {clip} {"u = Resize(c, none, s)" if opset > 10 else "u = Upsample(c, s)" if opset > 7 else "u = Upsample<scales=[1.0,1.0,2.0,2.0]>(c)"} y = Conv(u, w)
        }}
        """
    )
    done = quantize(model, sample(x=[2, 1, 4, 4]))
    assert done.model.opset_imports[""] == 13
    assert done.model.ir_version == 7, "what opset 13 came with"
    assert done.islands == []
    assert done.kernels.count("QLinearConv") == 2
    assert done.sqnr["y"] > 30


def test_nothing_to_quantize_is_nothing_changed(parse, sample):
    model = parse(
        """
        <ir_version: 6, opset_import: ["": 9]>
        g (float[N,4] x, float[N,4] z) => (float[N,4] y) { a = Add(x, z) y = Relu(a) }
        """
    )
    Calibrate(sample(x=[2, 4], z=[2, 4]), threads=1)(model)
    result = QuantizeStatic()(model)
    assert not result.modified
    assert model.opset_imports[""] == 9
    assert dict(result.skipped)["Add of 'a'"].startswith("what reads it computes in float")


def test_interpolation_of_old_opsets_keeps_its_coordinates(parse, sample, quantize):
    model = parse(
        """
        <ir_version: 6, opset_import: ["": 9]>
        g (float[N,1,4,4] x) => (float[N,1,8,8] y) <float[1,1,1,1] w = {0.5}, float[4] s = {1, 1, 2, 2}> {
          a = Conv(x, w) y = Upsample<mode="linear">(a, s)
        }
        """
    )
    assert quantize(model, sample(x=[2, 1, 4, 4])).sqnr["y"] > 35


def test_without_ranges(build):
    with pytest.raises(PreconditionError, match=r"carries no activation ranges; run calibrate\{data=FILE.npz\} first"):
        QuantizeStatic()(between(build, "m = Relu(a)"))


def test_a_value_without_a_range_keeps_its_nodes_in_float(build, sample, quantize):
    feeds = sample(**X)
    model = between(build, "m = Relu(a)")
    Calibrate(feeds, threads=1)(model)
    del model.graph.node(1).outputs[0].metadata_props[_ranges.KEY]
    result = QuantizeStatic()(model)
    assert not result.modified
    assert dict(result.skipped)["Conv of 'a'"] == "no range was recorded for 'm'; run calibrate on data without NaN"


def named(model):
    for node, name in zip(model.graph, ("first", "relu", "second"), strict=True):
        node.name = name
    return model


@pytest.mark.parametrize("name", ["first", "relu"])
def test_exclude(build, sample, quantize, name):
    done = quantize(named(between(build, "m = Relu(a)")), sample(**X), exclude=(name,))
    assert done.reasons == {"first": "excluded", "relu": "excluded"}
    assert done.kernels.count("QLinearConv") == 1
    assert done.sqnr["y"] > 35


def test_exclude_what_does_not_exist(build, sample):
    model = named(between(build, "m = Relu(a)"))
    with pytest.raises(PreconditionError) as caught:
        QuantizeStatic(exclude=("frist",))(model)
    assert isinstance(caught.value.__cause__, UsageError)
    assert "no node is called 'frist'; did you mean 'first'?" in str(caught.value.__cause__)


def test_ops(build, sample, quantize):
    model = build(
        "g (float[N,4,1,1] x, float[4,4,1,1] w, float[4,2] v) => (float[N,2] y) { a = Conv(x, w) f = Flatten(a) y = Gemm(f, v) }",
        w=(4, 4, 1, 1), v=(4, 2),
    )  # fmt: skip
    done = quantize(model, sample(x=[8, 4, 1, 1]), ops=("Gemm",))
    assert done.reasons["Conv of 'a'"] == "Conv is not among the operators to quantize"
    assert "QGemm" in done.kernels


def test_other_float_types_stay(build, sample):
    model = build("g (float16[N,4] x, float[N,4] z, float16[4,2] w, float[4,2] v) => (float16[N,2] y, float[N,2] u) { y = MatMul(x, w) u = MatMul(z, v) }", w=np.ones((4, 2), np.float16), v=(4, 2))  # fmt: skip
    feeds = {"x": np.ones((3, 4), np.float16), **sample(z=[3, 4])}
    Calibrate(feeds, threads=1)(model)
    result = QuantizeStatic()(model)
    assert result.report["quantized"] == {"MatMul": 1}


def test_ranges_are_used_up(build, sample, quantize, tmp_path):
    done = quantize(between(build, "m = Relu(a)"), sample(**X))
    io.save(done.model, tmp_path / "m.onnx")
    assert _ranges.read(io.load(tmp_path / "m.onnx")) == {}
    assert b"graphopt.range" not in (tmp_path / "m.onnx").read_bytes()


def test_names_do_not_collide(build, sample, quantize):
    model = build(
        f"g {LAYER.replace('y)', 'x_q)')} {{ {FIRST} scale = Relu(a) x_q = Conv{SAME}(scale, w2) }}", **WEIGHTS
    )
    done = quantize(model, sample(**X))
    assert done.sqnr["x_q"] > 35


def test_the_file_is_little_more_than_its_weights(build, sample, quantize, tmp_path):
    model = build(
        "g (float[N,64,4,4] x, float[64,64,3,3] w1, float[64,64,3,3] w2, float[64] b1) => (float[N,64,4,4] y) { a = Conv<pads=[1,1,1,1]>(x, w1, b1) b = Relu(a) y = Conv<pads=[1,1,1,1]>(b, w2, b1) }",
        w1=(64, 64, 3, 3), w2=(64, 64, 3, 3), b1=(64,),
    )  # fmt: skip
    io.save(model, tmp_path / "float.onnx")
    done = quantize(model, sample(x=[2, 64, 4, 4]))
    io.save(done.model, tmp_path / "int8.onnx")
    parameters = 2 * (64 * 64 * 9 + 64 * (4 + 4 + 4))
    assert (tmp_path / "int8.onnx").stat().st_size < parameters + 2000
    assert (tmp_path / "int8.onnx").stat().st_size < 0.27 * (tmp_path / "float.onnx").stat().st_size


def test_the_same_bytes_twice(build, sample, quantize, tmp_path):
    for name in "ab":
        done = quantize(between(build, "s = Sigmoid(a) m = Mul(a, s)"), sample(**X))
        io.save(done.model, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_specification():
    pass_ = spec.parse("quantize-static{exclude=a,b ops=Conv}")
    assert pass_ == QuantizeStatic(exclude=("a", "b"), ops=("Conv",))
    assert spec.render(pass_) == "quantize-static{exclude=a,b ops=Conv}"


def test_the_reference_runtime_computes_the_same(build, sample, quantize):
    """The file means what it says, and not only to ONNX Runtime."""
    from onnx.reference import ReferenceEvaluator

    feeds = sample(**X)
    model = build(
        f'<ir_version: 9, opset_import: ["": 19]> g {LAYER} {{ {FIRST} m = Relu(a) y = Conv{SAME}(m, w2) }}', **WEIGHTS
    )
    done = quantize(model, feeds)
    (other,) = ReferenceEvaluator(io.to_proto(done.model)).run(None, dict(feeds))
    step = float(done.constant(done.model.graph.outputs[0].producer().inputs[1].name))
    assert np.abs(other - done.outputs["y"]).max() <= 2.001 * step
    assert np.mean(np.abs(other - done.outputs["y"]) > 0.001 * step) < 0.1


def test_only_standard_operators(build, sample, quantize):
    done = quantize(between(build, "s = HardSwish(a) r = ReduceMean<keepdims=0>(s, k) u = Unsqueeze(r, k) m = Add(u, a)", LAYER.replace("x,", "x, int64[2] k,"), k=np.array([2, 3])), sample(**X))  # fmt: skip
    assert {node.domain for node in done.model.graph} == {""}
    assert done.islands == []


def test_a_choice_between_constants(build, sample, quantize):
    model = between(build, "total = ReduceSum<keepdims=1>(x) flag = Cast<to=9>(total) s = Where(flag, one, two) m = Mul(a, s)",
                    head=LAYER.replace("w2", "w2, float one, float two"), one=np.float32(1), two=np.float32(2))  # fmt: skip
    done = quantize(model, sample(**X))
    assert done.reasons["Where of 's'"] == "all that it reads is constant"


@pytest.mark.parametrize("far", [-3.4e38, -1e4])
def test_a_mask_does_not_wipe_out_what_it_is_added_to(build, quantize, sample, far):
    """Attention scores plus the lowest number there is: in 256 levels nothing but the mask is left."""
    model = build(
        """g (float[N,4,8] x, float[N,4,4] mask, float[8,8] w, float[8,8] v) => (float[N,4,8] y) {
          q = MatMul(x, w)  t = Transpose<perm = [0, 2, 1]>(x)  s = MatMul(q, t)
          [masked] a = Add(s, mask)  [soft] p = Softmax(a)  h = MatMul(p, x)  y = MatMul(h, v) }""",
        w=(8, 8),
        v=(8, 8),
    )
    mask = np.where(np.tril(np.ones((4, 4))) > 0, 0, far).astype(np.float32)
    made = quantize(model, {**sample(x=[16, 4, 8]), "mask": np.broadcast_to(mask, (16, 4, 4)).copy()})
    assert "'s' would vanish in a range of" in made.reasons["masked"]
    assert "would be a factor of e or more" in made.reasons["soft"]
    assert made.sqnr["y"] > 20
