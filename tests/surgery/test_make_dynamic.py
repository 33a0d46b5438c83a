"""Fixed axes become dynamic, and constants that hold the old size follow."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import runtime, target
from graphopt.errors import UserError
from graphopt.passbase import PreconditionError
from graphopt.passes.surgery.make_dynamic import MakeDynamic

CPU = target.find("cpu")

FOLLOWED = {
    "target of Reshape": "g (float[1,2,3] x) => (float[1,6] y) <int64[2] s = {1, 6}> { y = Reshape(x, s) }",
    "all axes in one": "g (float[1,2,3] x) => (float[6] y) <int64[1] s = {6}> { a = Relu(x)  y = Reshape(a, s) }",
    "batch in front of heads": """g (float[1,4,6] x) => (float[1,4,6] y)
        <int64[4] s = {1, 4, 2, 3}, int64[3] t = {1, 4, 6}> {
        a = Reshape(x, s)  b = Transpose<perm = [0, 2, 1, 3]>(a)  c = Transpose<perm = [0, 2, 1, 3]>(b)  y = Reshape(c, t)
    }""",
    "Expand to the old size": """g (float[1,2] x) => (float[1,3,2] y) <float[1,1,2] w = {1, 2}, int64[3] s = {1, 3, 2}, int64[1] one = {1}> {
        e = Expand(w, s)  u = Unsqueeze(x, one)  y = Add(e, u)
    }""",
    "a table with a row per sample": """g (float[1,2] x) => (float[1,4] y) <float[1,2] w = {5, 6}> { y = Concat<axis = 1>(x, w) }""",
    "initial state": """g (float[3,1,2] x) => (float[3,1,1,2] y)
        <float[1,8,2] w = {1,2,3,4,5,6,7,8,1,2,3,4,5,6,7,8}, float[1,8,2] r = {1,0,0,1,1,0,0,1,1,0,0,1,1,0,0,1},
         float[1,1,2] h = {0.5, 0.25}> { y, yh, yc = LSTM<hidden_size = 2>(x, w, r, , , h) }""",
    "ConstantOfShape": """g (float[1,2] x) => (float[1,2] y) <int64[2] s = {1, 2}> {
        z = ConstantOfShape<value = float[1] {2.0}>(s)  y = Mul(x, z)
    }""",
    "batch merged with heads": """g (float[1,4,6] x) => (float[1,4,6] y)
        <int64[4] s = {1,4,2,3}, int64[3] m = {2,4,3}, int64[4] r = {1,2,4,3}, int64[3] o = {1,4,6}> {
        a = Reshape(x, s)  b = Transpose<perm = [0,2,1,3]>(a)  c = Reshape(b, m)  d = Transpose<perm = [0,2,1]>(c)
        e = MatMul(c, d)  f = Softmax(e)  g = MatMul(f, c)  h = Reshape(g, r)
        i = Transpose<perm = [0,2,1,3]>(h)  y = Reshape(i, o)
    }""",
    "a target without zeros, with allowzero": """g (float[1,2,3] x) => (float[1,6] y) <int64[2] s = {1, -1}> {
        y = Reshape<allowzero = 1>(x, s)
    }""",
    "a target that is half computed": """g (float[1,2,3] x) => (float[1,3,2] y)
        <int64[1] one = {1}, int64[1] two = {2}> {
        s = Shape(x)  d = Gather(s, two)  t = Concat<axis = 0>(one, d, two)  y = Reshape(x, t)
    }""",
    "squeezed and brought back": """g (float[1,4,3] x) => (float[1,4,3] y) <int64[1] z = {0}> {
        a = Squeeze(x, z)  b = Exp(a)  c = Unsqueeze(b, z)  y = Softmax<axis = 1>(c)
    }""",
    "squeezed without axes": "g (float[1,4,3] x) => (float[4,3] y) { a = Squeeze(x)  y = Exp(a) }",
    "the only sample": "g (float[1,4,3] x) => (float[4,3] y) <int64 z = {0}> { a = Gather<axis = 0>(x, z)  y = Exp(a) }",
    "a list of the only sample": "g (float[1,3] x) => (float[1,3] y) <int64[1] z = {0}> { a = Gather<axis = 0>(x, z)  y = Exp(a) }",
    "sizes of Resize": """g (float[1,1,2,2] x) => (float[1,1,4,4] y) <int64[4] s = {1,1,4,4}> {
        y = Resize<mode = "nearest">(x, , , s)
    }""",
    "end of Slice": """g (float[1,3] x) => (float[1,2] y) <int64[2] a = {0,0}, int64[2] b = {1,2}> { y = Slice(x, a, b) }""",
    "Slice before opset 10": """<ir_version: 9, opset_import: ["": 9]>
        g (float[1,3] x) => (float[1,2] y) { y = Slice<starts = [0,0], ends = [1,2]>(x) }""",
    "norm of a whole sample": """g (float[1,2,3] x) => (float[1,2,3] y) {
        m = ReduceMean(x)  y = Sub(x, m)
    }""",
    "indices that number the samples": """g (float[1,4] x) => (float[1,2] y) <int64[1,2,2] i = {0,3,0,1}> {
        y = GatherND(x, i)
    }""",
    "assignment to a slice": """g (float[1,3,2] x) => (float[1,3,2] y)
        <int64[1,1,2,3] i = {0,1,0,0,1,1}, float[1,1,2] u = {7,8}> { y = ScatterND(x, i, u) }""",
    "both branches": """g (float[1,4] x) => (float[1,2,2] y) <bool c = {1}, int64[3] s = {1,2,2}> {
        y = If(c) <then_branch = t () => (float[1,2,2] p) { p = Reshape(x, s) },
                   else_branch = e () => (float[1,2,2] q) { n = Neg(x)  q = Reshape(n, s) }>
    }""",
    "a loop from zeros": """g (float[1,4] x) => (float[1,4] y)
        <int64 n = {3}, bool go = {1}, float[1,4] h = {0,0,0,0}, int64[3] s = {1,2,2}, int64[2] o = {1,4}> {
        y = Loop(n, go, h) <body = body (int64 i, bool c, float[1,4] v) => (bool d, float[1,4] w) {
            d = Identity(c)  a = Add(v, x)  e = Reshape(a, s)  f = Exp(e)  k = Reshape(f, o)  w = Tanh(k)
        }>
    }""",
    "a scan from zeros": """g (float[1,5,2] x) => (float[1,2] y) <float[1,2] h = {0,0}> {
        y, z = Scan<num_scan_inputs = 1, scan_input_axes = [1],
                    body = body (float[1,2] v, float[1,2] u) => (float[1,2] w, float[1,2] o) {
            w = Add(v, u)  o = Identity(w)
        }>(h, x)
    }""",
    "a function": """<ir_version: 9, opset_import: ["": 18, "local": 1]>
        g (float[1,4] x) => (float[1,2,2] y) { y = local.f(x) }
        <domain: "local", opset_import: ["": 18]> f (a) => (b) { s = Constant<value_ints = [1,2,2]>()  b = Reshape(a, s) }""",
    "used by several, and an output": """g (float[1,2,2] x) => (float[1,4] y, float[1,4] b, float[4] z)
        <int64[2] s = {1,4}, int64[1] f = {4}> { b = Reshape(x, s)  y = Exp(b)  z = Reshape(x, f) }""",
    "a convolution to which the samples come on another axis": """g (float[1,1,4] x) => (float[1,1,3] y)
        <float[1,1,2] w = {1, 2}> { t = Transpose<perm = [1,0,2]>(x)  y = Conv(t, w) }""",
}

FOUR = {
    "target of Reshape": "g (float[4,2,3] x) => (float[4,6] y) <int64[2] s = {4, 6}> { y = Reshape(x, s) }",
    "a table with equal rows": """g (float[4,2] x) => (float[4,2] y) <float[4,2] w = {1,2,1,2,1,2,1,2}> { y = Add(x, w) }""",
    "position ids": """g (float[4,2] x) => (float[4,3,2] y)
        <float[3,2] table = {1,2,3,4,5,6}, int64[1,3] ids = {0,1,2}, int64[2] s = {4,3}, int64[1] one = {1}> {
        i = Expand(ids, s)  p = Gather(table, i)  u = Unsqueeze(x, one)  y = Add(p, u)
    }""",
    "Expand to the old size": """g (float[4,1] x) => (float[4,3] y) <int64[2] s = {4,3}> { y = Expand(x, s) }""",
    "indices that number the samples": """g (float[4,3] x) => (float[4,1] y) <int64[4,1,2] i = {0,1,1,1,2,1,3,1}> {
        y = GatherND(x, i)
    }""",
    "heads": """g (float[4,2,6] x) => (float[8,2,3] y) <int64[4] s = {4,2,2,3}, int64[3] m = {8,2,3}> {
        a = Reshape(x, s)  b = Transpose<perm = [0,2,1,3]>(a)  y = Reshape(b, m)
    }""",
}


def computed(model: ir.Model, feeds):
    return runtime.open_session(model, CPU).run(feeds)


@pytest.mark.parametrize("text", FOLLOWED.values(), ids=FOLLOWED)
def test_samples_at_once_are_samples_one_by_one(operate, parse, text):
    axis = 1 if "LSTM" in text else 0
    before = parse(text)
    model, _ = operate(MakeDynamic(axes=(f"x:{axis}=batch",)), text)
    assert model.graph.inputs[0].shape[axis] == "batch"
    rng = np.random.default_rng(3)
    shape = [d if isinstance(d, int) else 4 for d in model.graph.inputs[0].shape]
    x = rng.standard_normal(shape).astype(np.float32)
    whole = computed(model, {"x": x})["y"]
    parts = [computed(before, {"x": part})["y"] for part in np.split(x, 4, axis)]
    place = 2 if "LSTM" in text else 0
    np.testing.assert_allclose(whole, np.concatenate(parts, place), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("text", FOUR.values(), ids=FOUR)
def test_from_four_samples(operate, parse, text):
    model, step = operate(MakeDynamic(), text)
    assert step.report["verified at"] == [1, 2, 3, 4, 5]
    rng = np.random.default_rng(3)
    x = rng.standard_normal([4 if d == "batch" else d for d in model.graph.inputs[0].shape]).astype(np.float32)
    expected = computed(parse(text), {"x": x})["y"]
    np.testing.assert_allclose(computed(model, {"x": x})["y"], expected, rtol=1e-6)
    part = computed(model, {"x": x[1:3]})["y"]
    np.testing.assert_allclose(
        part, np.split(expected, 4)[1:3][0] if len(part) == 1 else np.concatenate(np.split(expected, 4)[1:3]), rtol=1e-6
    )


def test_samples_in_the_middle_of_an_axis(operate):
    text = """g (float[5,1,3] x) => (float[5,3] y) <int64[2] s = {5,3}, float[3,3] w = {1,2,3,4,5,6,7,8,9}> {
        a = Reshape(x, s)  y = MatMul(a, w)
    }"""
    model, _ = operate(MakeDynamic(axes=("x:1=batch",)), text)
    assert str(model.graph.outputs[0].shape) == "[5*batch,3]"
    x = np.arange(30, dtype=np.float32).reshape(5, 2, 3)
    y = computed(model, {"x": x})["y"].reshape(5, 2, 3)
    np.testing.assert_allclose(y, x @ np.arange(1, 10, dtype=np.float32).reshape(3, 3), rtol=1e-6)


def test_the_report_counts_what_was_mended(operate):
    text = "g (float[1,2,3] x) => (float[1,6] y) <int64[2] s = {1, 6}> { y = Reshape(x, s) }"
    _, step = operate(MakeDynamic(), text)
    assert step.report["target of Reshape"] == 1
    assert step.report["outputs"] == {"y": "[batch,6]"}


def test_what_is_computed_already_stays(operate):
    text = """g (float[1,2,3] x) => (float[1,6] y) <int64 z = {0}, int64[1] zero = {0}, int64[1] rest = {-1}> {
        s = Shape(x)  d = Gather(s, z)  u = Unsqueeze(d, zero)  t = Concat<axis = 0>(u, rest)  y = Reshape(x, t)
    }"""
    model, step = operate(MakeDynamic(), text)
    assert len(model.graph) == 5
    assert "target of Reshape" not in step.report


def test_the_input_of_the_model_stays_as_it_was_after_a_refusal(parse):
    model = parse("g (float[2,3] x) => (float[2,3] y) { a = Neg(x)  y = Softmax<axis = 0>(a) }")
    before = ir.to_proto(model)
    with pytest.raises(PreconditionError):
        MakeDynamic()(model)
    assert ir.to_proto(model) == before


def test_a_dynamic_axis_beside(operate):
    text = """g (float[1,length,4] x) => (float[1,length,2,2] y) <int64[4] s = {1,-1,2,2}> { y = Reshape(x, s) }"""
    model, _ = operate(MakeDynamic(), text)
    assert [str(v.shape) for v in (*model.graph.inputs, *model.graph.outputs)] == [
        "[batch,length,4]",
        "[batch,length,2,2]",
    ]
    got = computed(model, {"x": np.arange(24, dtype=np.float32).reshape(2, 3, 4)})["y"]
    assert got.shape == (2, 3, 2, 2)


def test_names_of_axes_may_be_any_text(operate):
    text = "g (float[1,n,4] x) => (float[1,n,4] y) { y = Relu(x) }"
    model, _ = operate(MakeDynamic(axes=("x:0=any size, really",)), text)
    assert [str(d) for d in model.graph.outputs[0].shape] == ["any size, really", "n", "4"]


def test_one_axis_joins_another(operate):
    text = "g (float[1,4] x, float[batch,4] m) => (float[batch,4] y) { y = Add(x, m) }"
    model, _ = operate(MakeDynamic(axes=("x:0=batch",), samples="none"), text)
    assert [str(v.shape) for v in model.graph.inputs] == ["[batch,4]", "[batch,4]"]


def test_height_and_width(operate):
    text = """g (float[1,3,8,6] x) => (float[1,48,3] y) <int64[3] s = {1,3,48}, int64[4] b = {1,3,8,6}, int64[3] r = {1,3,-1}> {
        a = Reshape(x, s)  c = Exp(a)  d = Reshape(c, b)  e = Neg(d)  f = Reshape(e, r)  y = Transpose<perm = [0,2,1]>(f)
    }"""
    model, step = operate(MakeDynamic(axes=("x:2=height", "x:3=width")), text)
    assert set(step.report["sizes"].values()) == {"runs"}
    x = np.random.default_rng(0).standard_normal((1, 3, 5, 9)).astype(np.float32)
    expected = -np.exp(x).reshape(1, 3, 45).transpose(0, 2, 1)
    np.testing.assert_allclose(computed(model, {"x": x})["y"], expected, rtol=1e-5)


def test_a_table_of_positions_cannot_grow(graphopt, model_file, tmp_path):
    text = "g (float[1,3,2] x) => (float[1,3,2] y) <float[1,3,2] w = {1,2,3,4,5,6}> { y = Add(x, w) }"
    ran = graphopt("make-dynamic", model_file(text), "--axes", "x:1=length", "-o", tmp_path / "o.onnx")
    assert ran.error == (
        "make-dynamic: Add of 'y' (Add): the constant 'w' differs along axis 1, which has the fixed size 3"
    )
    assert not (tmp_path / "o.onnx").exists()


def test_the_default_is_the_first_axis_of_every_input(operate):
    model, step = operate(MakeDynamic(), "g (float[1,2] x, float[1,2] m) => (float[1,2] y) { y = Add(x, m) }")
    assert [str(value.shape) for value in (*model.graph.inputs, *model.graph.outputs)] == ["[batch,2]"] * 3
    assert step.report["inputs"] == {"x:0": "batch", "m:0": "batch"}


def test_another_axis_is_held_against_the_old_size(operate):
    text = "g (float[1,3,8,8] x) => (float[1,3,8,8] y) { y = Relu(x) }"
    model, _ = operate(MakeDynamic(axes=("x:2=height",)), text)
    assert str(model.graph.outputs[0].shape) == "[1,3,height,8]"


def test_there_and_back(graphopt, model_file, tmp_path):
    text = "g (float[1,2,3] x) => (float[1,6] y) <int64[2] s = {1, 6}> { y = Reshape(x, s) }"
    command = ("apply", model_file(text), "make-dynamic", "set-shape{axes=batch=1}", "-o", tmp_path / "o.onnx")
    assert graphopt(*command).code == 0
    graph = ir.load(tmp_path / "o.onnx").graph
    assert [str(value.shape) for value in (*graph.inputs, *graph.outputs)] == ["[1,2,3]", "[1,6]"]


@pytest.mark.parametrize(
    "text",
    [
        "g (float[2,3] x) => (float[3] y) <int64[1] a = {0}> { y = ReduceSum<keepdims = 0>(x, a) }",
        "g (float[2,2] x) => (float[2,2] y) { t = Transpose(x)  y = MatMul(t, x) }",
        "g (float[2,3] x) => (float[2,3] y) { y = Softmax<axis = 0>(x) }",
        "g (float[2,3] x) => (float[2,3] y) <int64 z = {0}> { y = CumSum(x, z) }",
        "g (float[2,3] x) => (float[2,3] y) <int64[2] z = {1,0}> { y = Gather<axis = 0>(x, z) }",
        "g (float[2,3] x) => (float[1,3] y) <int64[1] a = {0}, int64[1] b = {1}> { y = Slice(x, a, b) }",
        "g (float[2,3] x) => (float[4,3] y) { y = Concat<axis = 0>(x, x) }",
        "g (float[2,3] x) => (int64[2,n] y) { y = NonZero(x) }",
        "g (float[2,2] x) => (float[2,2] y) <float[2,2] w = {1,2,3,4}> { y = Add(x, w) }",
        "g (float[1,1] x) => (float[1,1] y) { c = Cast<to = 9>(x)  y = If(c) "
        "<then_branch = t () => (float[1,1] p) { p = Neg(x) }, else_branch = e () => (float[1,1] q) { q = Exp(x) }> }",
    ],
    ids=[
        "reduced over samples",
        "multiplied together",
        "softmax over samples",
        "sum over samples",
        "in another order",
        "one of two",
        "put in a row",
        "depends on the data",
        "a constant for each",
        "a branch for each",
    ],
)
def test_models_that_mix_samples_are_refused_with_the_node(operate, text):
    with pytest.raises(UserError, match=r"make-dynamic: \w+ of '\w+' \(\w+\): "):
        operate(MakeDynamic(), text)


def test_what_no_rule_sees_is_found_by_running_it(operate):
    text = """g (float[1,4] x) => (float[1,4] y) {
        s = Shape(x)  z = Constant<value_int = 0>()  n = Gather(s, z)  f = Cast<to = 1>(n)  a = Neg(x)  y = Div(a, f)
    }"""
    message = (
        r"on 2 samples at once, output 'y': .*; first at Div of 'y' \(Div\): the model does not treat every sample"
    )
    with pytest.raises(UserError, match=message):
        operate(MakeDynamic(), text)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ("x:0=3", "an axis cannot be called '3'"),
        ("x:5=batch", "'x' has no axis 5"),
        ("z:0=batch", "there is no input 'z'"),
        ("x=batch", "not of the form input:axis"),
        ("x:0=batch,x:0=n", "axis 0 of 'x' is given twice"),
        ("x:0=batch,x:1=batch", "are of size"),
    ],
)
def test_wrong_axes(graphopt, model_file, tmp_path, axes, message):
    model = model_file("g (float[1,2] x) => (float[1,2] y) { y = Relu(x) }")
    ran = graphopt("make-dynamic", model, "--axes", axes, "-o", tmp_path / "o.onnx")
    assert ran.code == 1
    assert message in ran.error
    assert not (tmp_path / "o.onnx").exists()


def test_defaults_of_weights_are_said_to_be_in_the_way(operate):
    text = """<ir_version: 3, opset_import: ["": 9]>
        g (float[1,4] x, int64[3] s) => (float[1,2,2] y) <int64[3] s = {1,2,2}> { y = Reshape(x, s) }"""
    with pytest.raises(UserError, match=r"; freeze-defaults and 'convert-opset\{to=13\}' before it may help"):
        operate(MakeDynamic(), text)
