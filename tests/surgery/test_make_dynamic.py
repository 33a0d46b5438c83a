"""Fixed axes become dynamic, and constants that hold the old size follow."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import runtime, target
from graphopt.errors import UserError
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
    ],
    ids=["reduced over samples", "multiplied together", "softmax over samples", "sum over samples"],
)
def test_models_that_mix_samples_are_refused(operate, text):
    with pytest.raises(UserError, match="make-dynamic: "):
        operate(MakeDynamic(), text)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ("x:0=3", "an axis cannot be called '3'"),
        ("x:5=batch", "'x' has no axis 5"),
        ("z:0=batch", "there is no input 'z'"),
        ("x=batch", "not of the form input:axis"),
        ("x:0=batch,x:1=batch", "are of size"),
    ],
)
def test_wrong_axes(graphopt, model_file, tmp_path, axes, message):
    model = model_file("g (float[1,2] x) => (float[1,2] y) { y = Relu(x) }")
    ran = graphopt("make-dynamic", model, "--axes", axes, "-o", tmp_path / "o.onnx")
    assert ran.code == 1
    assert message in ran.error
