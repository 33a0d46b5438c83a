"""Images become what the model takes, in the graph or in its weights."""

from __future__ import annotations

import numpy as np
import onnx.reference
import onnx_ir as ir
import pytest

from graphopt import runtime, target
from graphopt.errors import UserError
from graphopt.passes.surgery import _pre_numpy
from graphopt.passes.surgery._pre_steps import Resizing, Steps, model_of
from graphopt.passes.surgery.add_preprocessing import AddPreprocessing

CPU = target.find("cpu")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
WEIGHTS = "{" + ",".join(str((7 * i) % 11 - 5) for i in range(54)) + "}"


def conv(attributes="", shape="N,3,H,W", bias=", b", rest="y = Relu(c)"):
    """Return a graph whose first layer is a convolution of 3 to 2 channels, 3x3."""
    return f"""g (float[{shape}] x) => (float[A,B,C,D] y) <float[2,3,3,3] w = {WEIGHTS}, float[2] b = {{0.5,-1}}> {{
        c = Conv{attributes}(x, w{bias})
        {rest}
    }}"""


PADDED = conv("<pads = [1,1,1,1]>", "N,3,6,5")


def ops(model):
    return [node.op_type for node in model.graph.all_nodes()]


def run(model, feeds):
    return runtime.open_session(model, CPU).run(feeds)


def images(*shape):
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def by_hand(x, mean=MEAN, std=STD, scale=1 / 255):
    """Normalize [N, 3, H, W] in so many words."""
    shape = (-1, 1, 1)
    return ((x * scale - np.reshape(mean, shape)) / np.reshape(std, shape)).astype(np.float32)


def check(model, text, parse, given, prepared, rtol=1e-4):
    """Hold what the new model computes from images against the old one on images prepared by hand."""
    expected, actual = run(parse(text), {"x": prepared})["y"], run(model, {"x": given})["y"]
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=1e-4)


def test_scale_alone_is_folded(operate, parse):
    model, step = operate(AddPreprocessing(), PADDED)
    assert ops(model) == ["Cast", "Conv", "Relu"]
    assert step.report == {"input": "x: uint8[N, 3, 6, 5]", "folded": ["scale"], "added": ["Cast"]}
    assert model.graph.inputs[0].dtype == ir.DataType.UINT8
    assert list(model.graph.initializers) == ["w", "b"]
    x = images(2, 3, 6, 5)
    check(model, PADDED, parse, x, by_hand(x, (0, 0, 0), (1, 1, 1)))


def test_everything_is_folded_without_padding(operate, parse):
    model, step = operate(AddPreprocessing(mean=MEAN, std=STD, reverse_channels=True), conv())
    assert ops(model) == ["Cast", "Conv", "Relu"]
    assert (step.report["folded"], step.skipped) == (["scale", "mean", "channel order"], ())
    x = images(2, 3, 6, 5)
    check(model, conv(), parse, x, by_hand(x[:, ::-1]))


def test_the_mean_stays_beside_padding(operate, parse):
    model, step = operate(AddPreprocessing(mean=MEAN, std=STD, reverse_channels=True), PADDED)
    assert ops(model) == ["Cast", "Sub", "Conv", "Relu"]
    assert step.report["folded"] == ["scale", "channel order"]
    assert "pads with zeros" in step.skipped[0][1]
    x = images(2, 3, 6, 5)
    check(model, PADDED, parse, x, by_hand(x[:, ::-1]))


def test_nothing_is_folded_if_so_told(operate, parse):
    model, step = operate(AddPreprocessing(mean=MEAN, std=STD, reverse_channels=True, fold=False), conv())
    assert ops(model) == ["Gather", "Cast", "Sub", "Mul", "Conv", "Relu"]
    assert step.report["folded"] == []
    x = images(2, 3, 6, 5)
    check(model, conv(), parse, x, by_hand(x[:, ::-1]))


def test_layout(operate, parse):
    model, _ = operate(AddPreprocessing(mean=MEAN, std=STD, layout="nhwc"), conv())
    assert ops(model) == ["Transpose", "Cast", "Conv", "Relu"]
    assert str(model.graph.inputs[0].shape) == "[N,H,W,3]"
    x = images(2, 6, 5, 3)
    check(model, conv(), parse, x, by_hand(x.transpose(0, 3, 1, 2)))


def test_a_model_with_channels_last(operate, parse):
    text = conv(shape="N,6,5,3").replace("c = Conv(x", "t = Transpose<perm = [0,3,1,2]>(x)\n c = Conv(t")
    model, step = operate(AddPreprocessing(mean=MEAN, std=STD, reverse_channels=True), text)
    assert ops(model) == ["Cast", "Transpose", "Conv", "Relu"]
    assert step.report["folded"] == ["scale", "mean", "channel order"]
    x = images(2, 6, 5, 3)
    prepared = by_hand(x[..., ::-1].transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    check(model, text, parse, x, prepared.copy())


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32"])
def test_types(operate, dtype, fold):
    model, _ = operate(AddPreprocessing(dtype=dtype, mean=MEAN, std=STD, fold=fold), conv())
    assert model.graph.inputs[0].dtype.numpy() == np.dtype(dtype)


def test_mean_alone_without_a_new_type(operate, parse):
    model, step = operate(AddPreprocessing(dtype="float32", mean=MEAN), conv())
    assert (ops(model), step.report["folded"]) == (["Conv", "Relu"], ["mean"])
    x = np.random.default_rng(0).random((2, 3, 6, 5), np.float32)
    check(model, conv(), parse, x, by_hand(x, std=(1, 1, 1), scale=1))


def test_scale_in_pixels(operate, parse):
    model, _ = operate(AddPreprocessing(scale=1, mean=(127,), std=(128,)), PADDED)
    x = images(1, 3, 6, 5)
    check(model, PADDED, parse, x, by_hand(x, (127,) * 3, (128,) * 3, 1))


def test_groups(operate, parse):
    weights = ",".join(str((5 * i) % 13 - 6) for i in range(72))
    text = (
        f"g (float[N,4,6,5] x) => (float[N,4,4,3] y) <float[4,2,3,3] w = {{{weights}}}> {{ y = Conv<group = 2>(x, w) }}"
    )
    mean, std = (0.1, 0.2, 0.3, 0.4), (0.5, 0.6, 0.7, 0.8)
    model, step = operate(AddPreprocessing(mean=mean, std=std), text)
    assert step.report["folded"] == ["scale", "mean"]
    assert list(model.graph.initializers) == ["w", "y_bias"]
    x = images(2, 4, 6, 5)
    check(model, text, parse, x, by_hand(x, mean, std))


def test_depthwise_keeps_the_order_explicit(operate):
    text = "g (float[N,3,6,5] x) => (float[N,3,6,5] y) <float[3,1,1,1] w = {1,2,3}> { y = Conv<group = 3>(x, w) }"
    model, step = operate(AddPreprocessing(mean=MEAN, std=STD, reverse_channels=True), text)
    assert ops(model) == ["Gather", "Cast", "Conv"]
    assert "groups" in step.skipped[0][1]


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("y = Gemm(f, w, b)", "float[12,2] w = {W}, float[2] b = {1,2}"),
        ("y = Gemm<transB = 1, alpha = 0.5, beta = 2.0>(f, w, b)", "float[2,12] w = {W}, float b = {3}"),
        ("y = Gemm(f, w)", "float[12,2] w = {W}"),
        ("m = MatMul(f, w)  y = Add(b, m)", "float[12,2] w = {W}, float[2] b = {1,2}"),
    ],
)
@pytest.mark.parametrize("flat", ["Flatten(x)", "Reshape(x, s)"])
def test_dense_layers(operate, parse, body, constants, flat):
    constants = constants.replace("{W}", "{" + ",".join(str((5 * i) % 7 - 3) for i in range(24)) + "}")
    text = f"g (float[N,3,2,2] x) => (float[N,2] y) <int64[2] s = {{-1,12}}, {constants}> {{ f = {flat}  {body} }}"
    model, step = operate(AddPreprocessing(mean=MEAN, std=STD, reverse_channels=True), text)
    assert step.report["folded"] == ["scale", "mean", "channel order"], step.skipped
    x = images(3, 3, 2, 2)
    check(model, text, parse, x, by_hand(x[:, ::-1]))


def test_rows_of_features(operate, parse):
    """A table is no image, but it may be normalized by column."""
    text = "g (float[N,3] x) => (float[N,1] y) <float[3,1] w = {1,2,3}> { y = MatMul(x, w) }"
    model, step = operate(AddPreprocessing(input_name="x", dtype="float32", mean=MEAN, std=STD), text)
    assert ops(model) == ["Sub", "MatMul"]
    assert "has no bias" in step.skipped[0][1]


def test_several_layers(operate, parse):
    text = conv(rest="v = Conv(x, w)  t = Shape(x)  u = Add(c, v)  y = Relu(u)")
    model, step = operate(AddPreprocessing(mean=MEAN, std=STD), text)
    assert step.report["folded"] == ["scale", "mean"]
    x = images(2, 3, 6, 5)
    check(model, text, parse, x, by_hand(x))


def test_weights_in_use_elsewhere_are_copied(operate, parse):
    text = conv(rest="s = ReduceSum<keepdims = 0>(w)  y = Add(c, s)")
    model, _ = operate(AddPreprocessing(mean=MEAN, std=STD), text)
    np.testing.assert_array_equal(
        model.graph.initializers["w"].const_value.numpy(), parse(text).graph.initializers["w"].const_value.numpy()
    )
    x = images(2, 3, 6, 5)
    check(model, text, parse, x, by_hand(x))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (conv(rest="y = Mul(c, b2)").replace("c = Conv(x", "b2 = Constant<value_float = 2.0>()  r = Relu(x)  c = Conv(r"),
         "is Relu, no Conv"),
        (conv().replace("(float[N,3,H,W] x)", "(float[N,3,H,W] x, float[2,3,3,3] w)"), "may override"),
        (conv(rest="y = Relu(x)"), "is Relu"),
        ("""g (float[2,3,4,5] x, bool c) => (float[2,3,4,5] y) { y = If(c) <
            then_branch = t () => (float[2,3,4,5] p) { p = Neg(x) }, else_branch = e () => (float[2,3,4,5] q) { q = Abs(x) }> }""",
         "body of a control-flow operator"),
        ("g (float[N,3,4,5] x) => (float[N,3,4,5] y) { y = Identity(x) }", "gives the input to an output"),
        ("g (float[N,3,4,5] x, float[2,3,1,1] w) => (float[N,2,4,5] y) { y = Conv(x, w) }", "no constants"),
        ("g (float[1,3,4,5] x, float[1,3,9,9] z) => (float[1,1,6,5] y) { y = Conv(z, x) }", "something else than the data"),
    ],
)  # fmt: skip
def test_explicit_where_folding_is_impossible(operate, text, reason):
    _, step = operate(AddPreprocessing(input_name="x", mean=MEAN, std=STD), text)
    assert step.report["folded"] == []
    assert reason in step.skipped[0][1]


@pytest.mark.parametrize(("size", "folded"), [(0.0001, []), (1.0, ["scale"])])
def test_float16(operate, parse, size, folded):
    """1/255 of small weights is beneath the normal numbers of float16; the mean always needs more digits than it has."""
    model = parse(conv())
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.dtype = ir.DataType.FLOAT16
    for value in model.graph.initializers.values():
        value.const_value = ir.tensor((value.const_value.numpy() * size).astype(np.float16), name=value.name)
    changed, step = operate(AddPreprocessing(mean=MEAN, std=STD), model.clone())
    assert step.report["folded"] == folded
    assert all("precision in float16" in reason for _, reason in step.skipped)
    x = images(1, 3, 6, 5)
    expected = run(model, {"x": by_hand(x).astype(np.float16)})["y"]
    np.testing.assert_allclose(run(changed, {"x": x})["y"], expected, rtol=4e-3, atol=4e-3 * expected.max())
    _, step = operate(AddPreprocessing(dtype="uint16"), model)
    assert "do not fit" in step.skipped[0][1]


def test_double(operate):
    text = "g (double[N,3,5,5] x) => (double[N,3,5,5] y) { y = Identity(x) }"
    model, _ = operate(AddPreprocessing(mean=MEAN, std=STD), text)
    x = images(1, 3, 5, 5)
    expected = (x / 255 - np.reshape(MEAN, (-1, 1, 1))) / np.reshape(STD, (-1, 1, 1))
    np.testing.assert_allclose(run(model, {"x": x})["y"], expected, rtol=1e-12, atol=1e-12)


def test_whole_numbers(operate, parse):
    """A quantized model takes 8-bit images; size, layout and order can change, normalization cannot."""
    text = "g (uint8[N,3,6,5] x) => (uint8[N,3,6,5] y) { y = Identity(x) }"
    model, _ = operate(AddPreprocessing(layout="nhwc", reverse_channels=True), text)
    x = images(1, 6, 5, 3)
    np.testing.assert_array_equal(run(model, {"x": x})["y"], x[..., ::-1].transpose(0, 3, 1, 2))
    model, _ = operate(AddPreprocessing(resize=("any",), mode="cubic"), text)
    assert run(model, {"x": images(1, 3, 12, 9)})["y"].shape == (1, 3, 6, 5)
    assert operate(AddPreprocessing(), text, status="skipped")[1].skipped == (("x", "takes such images already"),)
    with pytest.raises(UserError, match="whole numbers; leave out scale"):
        operate(AddPreprocessing(mean=(0.5,)), text)
    with pytest.raises(UserError, match="into which images of uint16 cannot be made"):
        operate(AddPreprocessing(dtype="uint16"), text)


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
def test_resizing_any_size(operate, fit, mode):
    model, step = operate(
        AddPreprocessing(mean=MEAN, std=STD, resize=("any",), fit=fit, mode=mode, layout="nhwc"), PADDED
    )
    assert str(model.graph.inputs[0].shape) == "[N,height,width,3]"
    assert step.report["folded"] == ["scale"]
    assert run(model, {"x": images(2, 31, 17, 3)})["y"].shape == (2, 2, 6, 5)


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_resizing_for_a_quantized_model(operate, fit):
    """ONNX Runtime moves the Transpose past everything down to the first layer, if that is quantized."""
    text = f"""g (float[N,3,6,5] x) => (float[N,2,6,5] y)
        <int8[2,3,3,3] w = {WEIGHTS}, float s = {{0.02}}, uint8 z = {{128}}, float t = {{0.1}}, int8 o = {{0}}> {{
        q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        v = DequantizeLinear(w, t, o)
        c = Conv<pads = [1,1,1,1]>(d, v)
        e = QuantizeLinear(c, t, z)
        y = DequantizeLinear(e, t, z)
    }}"""
    operate(AddPreprocessing(mean=MEAN, std=STD, resize=("any",), fit=fit, layout="nhwc"), text)


def test_resizing_a_fixed_size(operate):
    model, step = operate(AddPreprocessing(resize=("12", "9"), antialias=True), PADDED)
    assert str(model.graph.inputs[0].shape) == "[N,3,12,9]"
    assert "Resize" in step.report["added"]
    _, step = operate(AddPreprocessing(resize=("6", "5")), PADDED)
    assert "Resize" not in step.report["added"]


def test_resizing_for_a_model_of_any_size(operate):
    model, _ = operate(AddPreprocessing(resize=("any",), to=(8, 7)), conv().replace("H,W", "height,W"))
    assert str(model.graph.inputs[0].shape) == "[N,3,height_1,width]"
    assert run(model, {"x": images(1, 3, 20, 30)})["y"].shape == (1, 2, 6, 5)


def test_a_single_image_without_batch(operate):
    text = "g (float[6,5,3] x) => (float[6,5,1] y) <float[3,1] w = {1,2,3}> { y = MatMul(x, w) }"
    model, _ = operate(AddPreprocessing(input_name="x", layout="nchw", mean=MEAN, resize=("any",)), text)
    assert str(model.graph.inputs[0].shape) == "[3,height,width]"


MODES = [("linear", False), ("nearest", False), ("cubic", False), ("linear", True), ("cubic", True)]
WAYS = [Resizing((6, 5), fit, mode, smooth) for fit in ("stretch", "crop", "pad") for mode, smooth in MODES]


@pytest.mark.parametrize(
    ("opset", "how"), [(opset, how) for opset in (11, 13, 18, 21) for how in WAYS if opset >= how.least_opset]
)
def test_numpy_agrees_with_the_operators(opset, how):
    mean, factor = (np.reshape(numbers, (-1, 1, 1)) for numbers in ((100.0, 120, 90), (0.02, 0.01, 0.03)))
    steps = Steps(ir.DataType.UINT8, (0, 3, 1, 2), 1, True, how, mean[None], factor[None], ir.DataType.FLOAT)
    session = runtime.open_session(model_of(steps, ["N", "h", "w", 3], opset), CPU)
    for height, width in ((17, 31), (6, 5), (13, 5), (3, 2), (40, 1)):
        x = images(2, height, width, 3)
        np.testing.assert_allclose(session.run({"x": x})["y"], _pre_numpy.preprocess(x, steps), atol=1e-4)


@pytest.mark.parametrize(("mode", "antialias"), MODES)
def test_numpy_agrees_with_the_specification(mode, antialias):
    how = Resizing((4, 3), "stretch", mode, antialias)
    steps = Steps(ir.DataType.UINT8, None, 1, False, how, np.array(0.0), np.array(1.0), ir.DataType.FLOAT)
    reference = onnx.reference.ReferenceEvaluator(ir.to_proto(model_of(steps, [1, 1, "h", "w"], 18)))
    x = images(1, 1, 9, 7)
    np.testing.assert_allclose(reference.run(None, {"x": x})[0], _pre_numpy.preprocess(x, steps), atol=1e-3)


@pytest.mark.parametrize(
    ("pass_", "text", "reason"),
    [
        (AddPreprocessing(), "g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }", "no input looks like images"),
        (AddPreprocessing(), "g (float[N,3,4,4] a, float[N,3,4,4] b) => (float[N,3,4,4] y) { y = Add(a, b) }",
         "several inputs look like images: a, b; name one"),
        (AddPreprocessing(input_name="z"), PADDED, "there is no input 'z'"),
        (AddPreprocessing(mean=(1, 2)), PADDED, "has not 2 channels as mean"),
        (AddPreprocessing(std=(2, 2)), PADDED, "has not 2 channels as std"),
        (AddPreprocessing(std=(0, 1, 1)), PADDED, "must be finite and not 0"),
        (AddPreprocessing(scale=0), PADDED, "must be finite and not 0"),
        (AddPreprocessing(scale=float("nan")), PADDED, "must be finite and not 0"),
        (AddPreprocessing(resize=("1",)), PADDED, "'any' or height,width"),
        (AddPreprocessing(resize=("0", "2")), PADDED, "'any' or height,width"),
        (AddPreprocessing(resize=("any",), to=(9, 9)), PADDED, "takes images of .6, 5. only"),
        (AddPreprocessing(resize=("any",)), conv(), "give the one to resize to"),
        (AddPreprocessing(resize=("any",), to=(9,)), conv(), "give the one to resize to"),
        (AddPreprocessing(fit="crop"), PADDED, "belong to resize"),
        (AddPreprocessing(resize=("any",), mode="nearest", antialias=True), PADDED, "does not go with mode nearest"),
        (AddPreprocessing(resize=("any",), mode="cubic"), PADDED.replace("N,3,6,5", "N,6,5,3").replace("Conv", "ConvInteger"),
         "does not load"),
        (AddPreprocessing(reverse_channels=True), "g (float[N,4,5,5] x) => (float[N,4,5,5] y) { y = Relu(x) }",
         "has not 3 channels"),
        (AddPreprocessing(layout="nhwc"), "g (float[N,3,5,3] x) => (float[N,3,5,3] y) { y = Relu(x) }", "give model_layout"),
        (AddPreprocessing(), '<ir_version: 8, opset_import: ["": 6]>' + PADDED, "needs opset 7"),
        (AddPreprocessing(resize=("any",)), '<ir_version: 8, opset_import: ["": 10]>' + PADDED, "run graphopt convert-opset"),
        (AddPreprocessing(resize=("any",), antialias=True), '<ir_version: 8, opset_import: ["": 17]>' + PADDED, "needs opset 18"),
        (AddPreprocessing(), "g (float[N,3,4,4] x) => (float[N,3,4,4] y, float[N,3,4,4] x) { y = Relu(x) }", "is also an output"),
        (AddPreprocessing(input_name="b"), "g (float[N,3,4,4] x, float[1,1,1,1] b) => (float[N,3,4,4] y) <float[1,1,1,1] b = {1}> "
         "{ y = Add(x, b) }", "has a default value"),
    ],
)  # fmt: skip
def test_refusals(operate, pass_, text, reason):
    with pytest.raises(UserError, match=reason):
        operate(pass_, text)


def test_digits(graphopt, digits, tmp_path):
    """The sample takes 0..1; as 8-bit images of twice the size it is still right."""
    out = tmp_path / "out.onnx"
    ran = graphopt(
        "add-preprocessing", digits / "digits.onnx", "-o", out, "--layout", "nhwc", "--resize", "16,16", "--json"
    )
    assert ran.code == 0, ran.err
    assert ran.json["steps"][0]["report"]["input"] == "image: uint8[batch, 16, 16, 1]"
    data = np.load(digits / "test.npz")
    large = np.rint(data["image"] * 255).astype(np.uint8).transpose(0, 2, 3, 1).repeat(2, 1).repeat(2, 2)
    session = runtime.find(CPU).open_file(out, CPU)
    logits = session.run({"image": large})["logits"]
    assert np.mean(logits.argmax(1) == data["labels"]) > 0.99


def test_bad_values_on_the_command_line(graphopt, model_file, tmp_path):
    out = tmp_path / "out.onnx"
    assert graphopt("add-preprocessing", model_file(PADDED), "-o", out, "--mean", "1,x").code == 2
    assert "has not 2 channels" in graphopt("add-preprocessing", model_file(PADDED), "-o", out, "--mean", "1,2").error
    assert not out.exists()
