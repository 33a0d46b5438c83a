"""float16: what converts, what stays float32 and why, and that the result loads at every level of ONNX Runtime."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt import compare, runtime, target
from graphopt.errors import UserError
from graphopt.passbase import PreconditionError
from graphopt.passes.precision.to_float16 import ToFloat16
from graphopt.pipeline import Pipeline, begin, feeds_for

CPU = target.find("cpu")
HALF, SINGLE = ir.DataType.FLOAT16, ir.DataType.FLOAT
LEVELS = ("none", "basic", "extended", "all")
W = "float[4,4] w = {1.0,-2.0,3.0,0.5,1.5,-1.0,2.0,0.1,0.2,-0.3,0.4,1.0,0.7,0.3,-0.6,0.9}"
"""Weights of a MatMul, which makes a node worth converting."""


@pytest.fixture
def convert(parse):
    """Convert a model as a user does, and check everything that must hold of the result.

    It is valid, loads at every optimization level, keeps its interface, and computes the same within 30 dB.
    """

    def run(text, feeds=None, **fields):
        model = parse(text) if isinstance(text, str) else text
        start = begin(model, CPU, (), "model")
        feeds = [feeds] if feeds else feeds_for(start, None, 0, "model")
        pass_ = ToFloat16(**fields)
        pipe = Pipeline(start, CPU, feeds)
        step = pipe.run(pass_, strict=True)
        assert step.status == "kept", (step.status, step.reason, step.skipped)
        onnx.checker.check_model(ir.to_proto(pipe.model), full_check=True)
        names = [
            [port.name for port in (*runtime.model_inputs(m), *runtime.ports(m.graph.outputs))]
            for m in (model, pipe.model)
        ]
        assert names[0] == names[1]
        types = {port.name: port.dtype for port in runtime.model_inputs(pipe.model)}
        for level in LEVELS:
            session = runtime.open_session(pipe.model, target.find(f"cpu{{level={level}}}"))
            for arrays in feeds:
                actual = session.run({n: a.astype(types[n].numpy()) for n, a in arrays.items()})
                for name, expected in start.session.run(arrays).items():
                    assert actual[name].shape == expected.shape
                    if compare.is_float(expected.dtype):
                        assert compare.sqnr(expected, actual[name]) > 30
        pipe.model.meta["step"] = step
        return pipe.model

    return run


def node(model, op_type, index=0):
    return [n for n in model.graph.all_nodes() if n.op_type == op_type][index]


def ops(model):
    return [n.op_type for n in model.graph.all_nodes()]


def why(model):
    return dict(model.meta["step"].skipped)


def graph(body, inputs="float[N,4] x", outputs="float[N,4] y", constants=""):
    return f"g ({inputs}) => ({outputs}) <{W}{', ' if constants else ''}{constants}> {{ {body} }}"


def test_weights_and_nodes_are_half_and_the_casts_two(convert):
    model = convert(graph("a = MatMul(x, w)  b = Relu(a)  y = Add(b, a)"))
    assert ops(model) == ["Cast", "MatMul", "Relu", "Add", "Cast"]
    assert model.graph.initializers["w"].const_value.dtype == HALF
    assert {v.dtype for v in node(model, "Relu").outputs} == {HALF}
    assert [v.dtype for v in (*model.graph.inputs, *model.graph.outputs)] == [SINGLE, SINGLE]
    report = model.meta["step"].report
    assert (report["float16"], report["float32"], report["casts"]) == (3, 0, 2)
    assert report["sqnr"] > 60


def test_inputs_and_outputs_too(convert):
    model = convert(graph("a = MatMul(x, w)  y = Relu(a)"), keep_io=False)
    assert ops(model) == ["MatMul", "Relu"]
    assert [v.dtype for v in (*model.graph.inputs, *model.graph.outputs)] == [HALF, HALF]


def test_a_network_that_would_only_gain_casts_is_left_alone(parse):
    model = parse("g (float[N,4] x) => (float[N,4] y) { y = Neg(x) }")
    assert not ToFloat16()(model).modified


def test_values_are_declared_as_they_are(convert):
    text = (
        graph("a = MatMul(x, w)  y = Relu(a)")
        .replace("{ a =", "<float[N,4] a> { a =")
        .replace("> <float[N,4] a>", ", float[N,4] a>")
    )
    model = convert(text)
    assert node(model, "MatMul").outputs[0].dtype == HALF


# onnxconverter-common #320: a Cast to float stays, and what follows it is half


@pytest.mark.parametrize("keep_io", [True, False])
@pytest.mark.parametrize("kind", ["bool", "uint8"])
def test_cast_to_float_follows(convert, keep_io, kind):
    model = convert(
        graph("f = Cast<to = 1>(m)  a = MatMul(x, w)  y = Mul(a, f)", f"float[N,4] x, {kind}[N,4] m"), keep_io=keep_io
    )
    cast = next(n for n in model.graph if n.inputs[0] is not None and n.inputs[0].name == "m")
    assert cast.attributes["to"].as_int() == HALF
    assert cast.outputs[0].dtype == HALF


def test_cast_between_half_nodes_is_dropped(convert):
    model = convert(graph("a = MatMul(x, w)  h = Cast<to = 10>(a)  b = Cast<to = 1>(h)  y = MatMul(b, w)"))
    assert ops(model) == ["Cast", "MatMul", "MatMul", "Cast"]


def test_cast_like_follows_its_model(convert):
    model = convert(graph("a = MatMul(x, w)  f = CastLike(m, a)  y = Mul(a, f)", "float[N,4] x, int32[N,4] m"))
    assert node(model, "Mul").outputs[0].dtype == HALF


def test_cast_to_integers_takes_half(convert):
    model = convert(graph("a = MatMul(x, w)  y = Relu(a)  i = Cast<to = 7>(a)", outputs="float[N,4] y, int64[N,4] i"))
    assert model.graph.outputs[1].dtype == ir.DataType.INT64


# onnxconverter-common #304: Resize


@pytest.mark.parametrize("keep_io", [True, False])
def test_resize_keeps_scales_and_roi_in_float32(convert, keep_io):
    model = convert(
        "g (float[1,2,4,4] x) => (float[1,2,H,V] y) "
        "<float[2,2,1,1] w = {1.0,0.5,-1.0,2.0}, float[4] s = {1.0,1.0,2.0,2.0}, float[8] roi = {0.0,0.0,0.0,0.0,1.0,1.0,1.0,1.0}> "
        '{ c = Conv(x, w)  r = Resize<mode = "linear">(c, roi, s)  y = Conv(r, w) }',
        keep_io=keep_io,
    )
    resize = node(model, "Resize")
    assert [v.dtype for v in resize.inputs] == [HALF, SINGLE, SINGLE]
    assert resize.outputs[0].dtype == HALF


def test_computed_scales_stay_float32(convert):
    """Sizes are computed from integers, as exporters do."""
    model = convert(
        "g (float[1,2,4,4] x) => (float[1,2,H,V] y) <float[2,2,1,1] w = {1.0,0.5,-1.0,2.0}, float[4] f = {1.0,1.0,1.5,2.5}> "
        "{ c = Conv(x, w)  s = Shape(c)  t = Cast<to = 1>(s)  u = Mul(t, f)  v = Cast<to = 7>(u) "
        'r = Resize<mode = "nearest">(c, , , v)  y = Conv(r, w) }'
    )
    assert node(model, "Mul").outputs[0].dtype == SINGLE
    assert "integers" in why(model)["Mul of 'u'"]
    assert node(model, "Resize").outputs[0].dtype == HALF


# onnxconverter-common #208: inputs and outputs that stay float32


def test_one_cast_serves_every_user(convert):
    model = convert(graph("a = MatMul(x, w)  b = MatMul(x, w)  c = Add(a, b)  y = Add(c, x)"))
    assert ops(model).count("Cast") == 2
    casts = [n for n in model.graph if n.op_type == "Cast"]
    assert casts[0] is model.graph[0]


def test_outputs_used_inside_keep_their_names(convert):
    model = convert(graph("a = MatMul(x, w)  y = MatMul(a, w)", outputs="float[N,4] a, float[N,4] y"))
    assert [v.name for v in model.graph.outputs] == ["a", "y"]
    assert node(model, "MatMul", 1).inputs[0].dtype == HALF


def test_in_branches_casts_are_shared_and_outputs_agree(convert):
    model = convert(
        graph(
            "k = MatMul(x, w)  y = If(c) <then_branch = t () => (float[N,4] p) { i = MatMul(k, w)  p = MatMul(i, w) }, "
            "else_branch = e () => (float[N,4] q) { j = Mul(x, x)  q = MatMul(j, w) }>",
            "float[N,4] x, bool c",
        )
    )
    assert node(model, "If").outputs[0].dtype == HALF
    assert ops(model).count("Cast") == 2
    for attribute in node(model, "If").attributes.values():
        assert attribute.as_graph().outputs[0].dtype == HALF


def test_a_branch_that_the_data_never_takes_stays(convert):
    model = convert(
        graph(
            "k = MatMul(x, w)  y = If(c) <then_branch = t () => (float[N,4] p) { p = MatMul(k, w) }, "
            "else_branch = e () => (float[N,4] q) { i = MatMul(k, w) q = MatMul(i, w) }>",
            "float[N,4] x, bool c",
        ),
        feeds={"x": np.ones((2, 4), np.float32), "c": np.array(True)},
        seed=1,
    )
    assert node(model, "MatMul").outputs[0].dtype == HALF


@pytest.mark.parametrize("keep_io", [True, False])
def test_loop_carries_half(convert, keep_io):
    model = convert(
        graph(
            "y, s = Loop(n, yes, x) <body = b (int64 i, bool go, float[N,4] a) => (bool on, float[N,4] o, float[N,4] scan) "
            "{ on = Identity(go)  z = MatMul(a, w)  o = Tanh(z)  scan = MatMul(o, w) }>",
            outputs="float[N,4] y, float[3,N,4] s", constants="int64 n = {3}, bool yes = {1}",
        ),
        keep_io=keep_io,
    )  # fmt: skip
    body = node(model, "Loop").attributes["body"].as_graph()
    assert [v.dtype for v in body.inputs[2:]] == [HALF]
    assert [v.dtype for v in body.outputs[1:]] == [HALF, HALF]
    assert ops(model).count("Cast") == (3 if keep_io else 0)


def test_scan_carries_half(convert):
    model = convert(
        graph(
            "y, s = Scan<num_scan_inputs = 1, body = b (float[4] a, float[4] e) => (float[4] o, float[4] r) "
            "{ z = MatMul(e, w)  o = Add(a, z)  r = MatMul(o, w) }>(start, x)",
            outputs="float[4] y, float[N,4] s", constants="float[4] start = {0.0,0.0,0.0,0.0}",
        )
    )  # fmt: skip
    assert [v.dtype for v in node(model, "Scan").outputs] == [HALF, HALF]


def test_functions_are_inlined(convert):
    model = convert(
        f'<ir_version: 9, opset_import: ["": 18, "local": 1]> g (float[N,4] x) => (float[N,4] y) <{W}> {{ '
        "a = local.f<scale = 0.5>(x, w)  y = local.f<scale = 2.0>(a, w) } "
        '<domain: "local", opset_import: ["": 18]> f <scale> (x, w) => (y) '
        "{ c = Constant<value_float: float = @scale>()  m = MatMul(x, w)  y = Mul(m, c) }"
    )
    assert not model.functions
    assert {v.dtype for n in model.graph if n.op_type in ("MatMul", "Mul") for v in n.outputs} == {HALF}


# Types in attributes


def test_constants_of_every_kind(convert):
    model = convert(
        graph(
            "c1 = Constant<value = float {2.0}>()  c2 = Constant<value_float = 0.5>()  c3 = Constant<value_floats = [1.0,2.0,3.0,4.0]>() "
            "s = Shape(x)  z = ConstantOfShape<value = float[1] {1.5}>(s)  e = EyeLike(z) "
            "a = MatMul(x, w)  b = Mul(a, c1)  d = Mul(b, c2)  f = Add(d, c3)  g = Add(f, z)  h = MatMul(g, w)  y = Add(h, e)"
        )
    )
    assert ops(model).count("Cast") == 2
    assert node(model, "ConstantOfShape").attributes["value"].as_tensor().dtype == HALF
    assert node(model, "EyeLike").attributes["dtype"].as_int() == HALF


def test_default_fill_of_constant_of_shape(convert):
    model = convert(graph("s = Shape(x)  z = ConstantOfShape(s)  a = MatMul(x, w)  y = Add(a, z)"))
    assert node(model, "ConstantOfShape").attributes["value"].as_tensor().dtype == HALF


def test_random_numbers_and_ranges_stay(parse):
    model = parse(
        graph(
            "r = RandomNormal<shape = [1, 4]>()  k = Range(zero, four, one)  a = MatMul(x, w)  b = Add(a, k)  y = MatMul(b, w)  z = Shape(r)",
            outputs="float[N,4] y, int64[2] z", constants="float zero = {0.0}, float four = {4.0}, float one = {1.0}",
        )
    )  # fmt: skip
    result = ToFloat16()(model)
    assert result.modified
    assert node(model, "RandomNormal").outputs[0].dtype in (None, SINGLE)
    assert "without float16" in dict(result.skipped)["Range of 'k'"]
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_operators_without_float16_stay(convert):
    model = convert(
        "g (float[1,4,4] x, float[1,1,4] s) => (int64[K,3] i, float[1,1,4] t) <float[4,4] w = "
        "{1.0,0.0,0.0,0.0,0.0,1.0,0.0,0.0,0.0,0.0,1.0,0.0,0.0,0.0,0.0,1.0}, int64 k = {2}> "
        "{ b = MatMul(x, w)  t = MatMul(s, w)  i = NonMaxSuppression(b, t, k) }"
    )
    nms = node(model, "NonMaxSuppression")
    assert [v.dtype for v in nms.inputs[:2]] == [SINGLE, SINGLE]
    assert "coordinates" in why(model)["NonMaxSuppression of 'i'"]


def test_layer_normalization_gives_its_statistics_in_float32(convert):
    model = convert(
        graph(
            "a = MatMul(x, w)  n, m, d = LayerNormalization<epsilon = 1e-12>(a, s)  y = MatMul(n, w)",
            outputs="float[N,4] y, float[N,1] m", constants="float[4] s = {1.0,2.0,3.0,4.0}",
        )
    )  # fmt: skip
    assert [v.dtype for v in node(model, "LayerNormalization").outputs] == [HALF, SINGLE, SINGLE]


def test_sequences_stay(convert):
    model = convert(
        graph("a = MatMul(x, w)  s = SplitToSequence<axis = 1>(a, k)  t = SequenceAt(s, first)  y = Tanh(t)",
              outputs="float[N,2] y", constants="int64[2] k = {2,2}, int64 first = {0}")
    )  # fmt: skip
    assert node(model, "SequenceAt").outputs[0].dtype in (None, SINGLE)
    assert node(model, "MatMul").outputs[0].dtype == HALF


def test_operators_of_onnxruntime(convert):
    model = convert(
        f'<ir_version: 9, opset_import: ["": 18, "com.microsoft": 1]> g (float[N,4] x) => (float[N,4] y) <{W}> {{ '
        "a = com.microsoft.FusedMatMul(x, w)  b = com.microsoft.Gelu(a)  y = MatMul(b, w) }"
    )
    assert ops(model) == ["Cast", "FusedMatMul", "Gelu", "MatMul", "Cast"]


def test_dropout_that_draws_stays(parse):
    model = parse(
        graph(
            "a = MatMul(x, w)  b = Dropout<seed = 3>(a, r, t)  y = MatMul(b, w)",
            constants="float r = {0.5}, bool t = {1}",
        )
    )
    result = ToFloat16()(model)
    assert "training" in dict(result.skipped)["Dropout of 'b'"]


def test_a_transpose_that_crashes_onnxruntime_stays(convert):
    """At the level "all" the process would end when ONNX Runtime 1.31 loads the model."""
    model = convert(
        f"g (float[A,B,4] x) => (float[B,A,4] y) <{W}> {{ a = MatMul(x, w)  t = Transpose<perm = [1, 0, 2]>(a)  y = MatMul(t, w) }}"
    )
    assert node(model, "Transpose").outputs[0].dtype == SINGLE
    assert [n.outputs[0].dtype for n in model.graph if n.op_type == "MatMul"] == [HALF, HALF]


def test_sizes_declared_wrongly_do_no_harm(convert):
    """One name for two sizes breaks ONNX Runtime as soon as a node is added that could reuse memory."""
    model = convert(
        f"g (float[N,4] x) => (float[M,4] y) <{W}, int64[1] zero = {{0}}, int64[1] one = {{1}}, float[N,4] a, float[N,4] b, float[N,4] c> "
        "{ a = MatMul(x, w)  b = Slice(a, zero, one, zero)  c = Mul(b, a)  d = Add(c, b)  y = MatMul(d, w) }"
    )
    assert node(model, "Slice").outputs[0].dtype == HALF


# Weights


def test_a_weight_of_half_and_float32_nodes_is_there_twice(convert):
    model = convert(graph("a = MatMul(x, w)  b = MatMul(a, w)  y = Gemm(b, w)"), keep=("Gemm",))
    assert model.graph.initializers["w"].const_value.dtype == SINGLE
    assert model.graph.initializers["w_float16"].const_value.dtype == HALF
    assert node(model, "MatMul").inputs[1] is node(model, "MatMul", 1).inputs[1]
    assert why(model)["Gemm of 'y'"] == "asked for by keep"


def test_a_weight_that_is_an_output(convert):
    model = convert(graph("y = MatMul(x, w)", outputs="float[N,4] y, float[4,4] w"))
    assert model.graph.outputs[1].name == "w"
    assert model.graph.outputs[1].dtype == SINGLE
    model = convert(graph("y = MatMul(x, w)", outputs="float[N,4] y, float[4,4] w"), keep_io=False)
    assert model.graph.outputs[1].dtype == HALF


def test_weights_of_subgraphs(convert):
    model = convert(
        graph(
            "k = MatMul(x, w)  y = If(c) <then_branch = t () => (float[N,4] p) <float[4] v = {1.0,2.0,3.0,4.0}> { i = Mul(k, v)  p = MatMul(i, w) }, "
            "else_branch = e () => (float[N,4] q) { v2 = Constant<value = float[4] {1.0,2.0,3.0,4.0}>()  j = Mul(k, v2)  q = MatMul(j, w) }>",
            "float[N,4] x, bool c",
        )
    )  # fmt: skip
    then = node(model, "If").attributes["then_branch"].as_graph()
    assert then.initializers["v"].const_value.dtype == HALF


def test_old_formats_list_weights_as_inputs(convert):
    """They had to, below version 4: that is no offer to override them, and they shrink like others."""
    text = f'<ir_version: 3, opset_import: ["": 9]> g (float[N,4] x, float[4,4] w) => (float[N,4] y) <{W}> {{ y = MatMul(x, w) }}'
    model = convert(text)
    assert model.ir_version == 4
    assert model.graph.initializers["w"].const_value.dtype == HALF


def test_a_weight_that_callers_may_override_stays(convert):
    model = convert(f"g (float[N,4] x, float[4,4] w) => (float[N,4] y) <{W}> {{ y = MatMul(x, w) }}")
    assert model.graph.initializers["w"].const_value.dtype == SINGLE
    assert "freeze-defaults" in why(model)["input 'w'"]


def test_a_network_that_is_half_already(parse):
    model = parse(
        "g (float16[N,4] x) => (float16[N,4] y) <float[4] f = {1.0,2.0,3.0,4.0}> { w = Cast<to = 10>(f)  y = Mul(x, w) }"
    )
    assert not ToFloat16()(model).modified


# Range


def test_a_number_too_large_in_between_stays_float32(convert):
    """On a CPU the overflow would not show: ONNX Runtime goes on in float32 there."""
    text = graph(
        "a = MatMul(x, w)  b = Mul(a, k)  c = Mul(b, b)  d = Sqrt(c)  e = Div(d, k)  y = MatMul(e, w)",
        constants="float k = {1000.0}",
    )
    model = convert(text)
    assert node(model, "Mul", 1).outputs[0].dtype == SINGLE
    assert "over 16376" in why(model)["Mul of 'c'"]
    assert node(model, "MatMul", 1).outputs[0].dtype == HALF


def test_data_decides(convert, tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, x=np.full((8, 4), 3000.0, np.float32))
    text = graph("a = MatMul(x, w)  b = MatMul(a, w)  y = Relu(b)")
    assert not why(convert(text))
    assert "over 16376" in why(convert(text, data=str(path), feeds={"x": np.ones((2, 4), np.float32)}))["MatMul of 'b'"]
    assert not why(convert(text, data=str(path), feeds={"x": np.ones((2, 4), np.float32)}, headroom=1.0))


@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMean", "ReduceL2"])
def test_a_sum_that_is_too_large_inside(convert, op):
    """Elements and result are small enough; what is added up on the way is not."""
    text = graph(
        f"a = MatMul(x, w)  b = Mul(a, k)  m = {op}<keepdims = 1>(b, axes)  c = Div(a, k)  y = Add(c, m)",
        "float[N,4,4] x",
        "float[N,4,4] y",
        "float k = {200.0}, int64[2] axes = {-2,-1}",
    )
    feeds = {"x": np.tile(np.array([[9.0, 5, 3, 8], [-9, -5, -3, -8]], np.float32), (1, 2, 1))}
    model = convert(text, feeds=feeds, data={"x": feeds["x"]})
    assert node(model, op).outputs[0].dtype == SINGLE, why(model)


def test_an_epsilon_that_would_be_zero_stays(convert):
    model = convert(
        graph("a = MatMul(x, w)  b = Relu(a)  c = Mul(b, b)  d = ReduceMean<keepdims = 1>(c)  e = Add(d, eps)  f = Sqrt(e)  h = Div(b, f)  y = MatMul(h, w)",
              constants="float eps = {1e-12}")
    )  # fmt: skip
    assert "1e-12" in why(model)["Add of 'e'"]
    assert node(model, "MatMul", 1).outputs[0].dtype == HALF


def test_a_small_bias_is_no_epsilon(convert):
    model = convert(
        graph("a = MatMul(x, w)  b = Add(a, bias)  y = MatMul(b, w)", constants="float[4] bias = {1e-6,0.0,-2e-6,3e-7}")
    )
    assert not why(model)


def test_weights_that_are_too_small_stay(convert):
    model = convert(
        graph(
            "a = MatMul(x, v)  b = Mul(a, k)  y = MatMul(b, w)",
            constants="float[4,4] v = {1e-7,2e-7,3e-7,4e-7,1e-7,2e-7,3e-7,5e-7,1e-7,2e-7,3e-7,6e-7,1e-7,2e-7,3e-7,7e-7}, float k = {1e7}",
        )
    )
    assert "under" in why(model)["MatMul of 'a'"]
    assert node(model, "MatMul", 1).outputs[0].dtype == HALF


def test_bounds_beyond_the_range_are_no_bounds(convert):
    model = convert(
        graph(
            "a = MatMul(x, w)  b = Clip(a, low, high)  y = MatMul(b, w)",
            constants="float low = {0.0}, float high = {3.4e38}",
        )
    )
    assert node(model, "Clip").outputs[0].dtype == HALF
    assert np.isposinf(node(model, "Clip").inputs[2].const_value.numpy())


MASKED = "s = MatMul(x, w)  inverse = Sub(one, m)  f = Mul(inverse, low)  t = Add(s, f)  p = Softmax<axis = -1>(t)  y = MatMul(p, w)"


@pytest.mark.parametrize("fill", ["-3.4028234663852886e38", "-1e9", "-10000.0", "-65504.0"])
def test_masks_are_made_to_fit(convert, fill):
    model = convert(graph(MASKED, "float[N,4] x, float[N,4] m", constants=f"float one = {{1.0}}, float low = {{{fill}}}"),
                    feeds={"x": np.eye(4, dtype=np.float32), "m": np.tri(4, dtype=np.float32)},
                    data={"x": np.eye(4, dtype=np.float32), "m": np.tri(4, dtype=np.float32)})  # fmt: skip
    assert not why(model)
    assert ops(model).count("Cast") == 3
    x, m = np.eye(4, dtype=np.float32), np.zeros((4, 4), np.float32)
    assert np.isfinite(runtime.open_session(model, CPU).run({"x": x, "m": m})["y"]).all(), (
        "a row that is masked as a whole"
    )


def test_masks_of_infinity(convert):
    model = convert(
        graph("s = MatMul(x, w)  t = Where(m, s, low)  p = Softmax<axis = -1>(t)  y = MatMul(p, w)", "float[N,4] x, bool[N,4] m",
              constants="float low = {-inf}"),
        feeds={"x": np.eye(4, dtype=np.float32), "m": np.tri(4) > 0},
        data={"x": np.eye(4, dtype=np.float32), "m": np.tri(4) > 0},
    )  # fmt: skip
    assert not why(model)


def test_a_large_number_that_is_no_mask_stays(convert):
    model = convert(
        graph("a = MatMul(x, w)  b = Mul(a, big)  c = Div(b, big)  y = MatMul(c, w)", constants="float big = {1e6}")
    )
    assert "reaches 1e+06" in why(model)["Mul of 'b'"]


def test_positions_stay_float32(convert):
    """In float16 the position 2049 is 2048, though nothing of that shows on short inputs."""
    model = convert(
        graph("p = Cast<to = 1>(i)  q = Mul(p, f)  r = Sin(q)  a = MatMul(x, w)  b = Add(a, r)  y = MatMul(b, w)",
              "float[N,4] x, int64[N,1] i", constants="float[4] f = {1.0,0.1,0.01,0.001}")
    )  # fmt: skip
    assert node(model, "Sin").outputs[0].dtype == SINGLE
    assert node(model, "MatMul").outputs[0].dtype == HALF


def test_quantized_networks_keep_what_is_around_integers(parse):
    model = parse(
        graph("q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  a = MatMul(d, w)  b = MatMul(a, w)  y = MatMul(b, w)",
              constants="float s = {0.1}, uint8 z = {128}")
    )  # fmt: skip
    result = ToFloat16()(model)
    assert "quantized" in dict(result.skipped)["MatMul of 'a'"]
    assert [n.outputs[0].dtype for n in model.graph if n.op_type == "MatMul"][1:] == [HALF, HALF]


# The stated error


CANCELLING = graph(
    "a = MatMul(x, w)  b = Add(a, k)  c = Sub(b, k)  d = MatMul(c, w)  y = Tanh(d)", constants="float k = {5000.0}"
)


def test_nodes_that_lose_the_signal_go_back(convert):
    model = convert(CANCELLING)
    assert [n.outputs[0].dtype for n in model.graph if n.op_type in ("Add", "Sub")] == [SINGLE, SINGLE]
    assert node(model, "MatMul", 1).outputs[0].dtype == HALF
    assert model.meta["step"].report["sqnr"] >= 40
    assert any("leaves" in reason for reason in why(model).values())


def test_more_signal_leaves_less_in_half(convert):
    chain = "".join(f"a{i + 1} = MatMul(a{i}, w)  " for i in range(8))
    text = graph(f"a0 = Tanh(x)  {chain} y = Tanh(a8)")
    loose = convert(text).meta["step"].report
    floor = loose["sqnr"] + 3
    tight = convert(text, min_sqnr=floor).meta["step"].report
    assert loose["float32"] == 0 < tight["float32"] < 9
    assert tight["sqnr"] >= floor


def test_an_error_that_cannot_be_kept_is_refused(parse):
    with pytest.raises(PreconditionError, match="nothing can be float16 within the error: MatMul"):
        ToFloat16(min_sqnr=150.0)(parse(graph("y = MatMul(x, w)")))


def test_integers_must_agree(convert):
    model = convert(
        graph(
            "a = MatMul(x, w)  i = ArgMax<axis = 1, keepdims = 0>(a)  y = Relu(a)", outputs="float[N,4] y, int64[N] i"
        )
    )
    assert node(model, "ArgMax").inputs[0].dtype == HALF


def test_the_result_is_the_same_every_time(parse):
    first, second = parse(CANCELLING), parse(CANCELLING)
    ToFloat16()(first)
    ToFloat16()(second)
    assert ir.to_proto(first).SerializeToString() == ir.to_proto(second).SerializeToString()


# What users get wrong


def test_keep_must_name_something(parse):
    with pytest.raises(UserError, match=r"keep: no float32 node is called 'Matmul'.*did you mean 'MatMul'"):
        ToFloat16(keep=("Matmul",))(parse(graph("y = MatMul(x, w)")))


@pytest.mark.parametrize("fields", [{"headroom": 0.5}, {"samples": 0}])
def test_fields_out_of_range(fields):
    with pytest.raises(ValueError, match="must be at least 1"):
        ToFloat16(**fields)


def test_an_opset_too_old(parse):
    with pytest.raises(PreconditionError, match="convert-opset --to 7"):
        ToFloat16()(parse('<ir_version: 3, opset_import: ["": 6]> g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }'))


def test_from_the_command_line(graphopt, model_file, tmp_path):
    path, out = model_file(graph("a = MatMul(x, w)  y = Relu(a)")), tmp_path / "half.onnx"
    ran = graphopt("to-float16", path, "-o", out, "--no-keep-io", "--json")
    assert ran.code == 0, ran.err
    (step,) = ran.json["steps"]
    assert step["report"]["float16"] == 2
    assert onnx.load(out).graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    json.dumps(ran.json)


def test_data_that_does_not_fit(graphopt, model_file, tmp_path):
    path, data = model_file(graph("y = MatMul(x, w)")), tmp_path / "data.npz"
    np.savez(data, other=np.ones((2, 4), np.float32))
    ran = graphopt("to-float16", path, "-o", tmp_path / "half.onnx", "--data", data)
    assert ran.code == 1
    assert "other" in ran.error
