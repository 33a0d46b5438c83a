"""Dynamic axes get a size, and everything that is declared follows."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt import runtime, target
from graphopt.errors import UserError
from graphopt.passes.surgery.set_shape import SetShape

NET = """g (float[batch,4] x, float[batch,width] m, float[?,2] z) => (float[batch,4] y, float[d,width] w, float[k,2] u) {
    y = Relu(x)
    w = Concat<axis = 0>(m, m)
    u = Neg(z)
}"""


def shapes(values):
    return {value.name: str(value.shape) for value in values}


def test_by_name_everywhere(operate):
    model, step = operate(SetShape(axes=("batch=3", "width=5")), NET)
    assert shapes(model.graph.inputs) == {"x": "[3,4]", "m": "[3,5]", "z": "[None,2]"}
    assert shapes(model.graph.outputs) == {"y": "[3,4]", "w": "[6,5]", "u": "[k,2]"}
    assert step.report["inputs"]["x"] == "[3,4]"


def test_by_place_fixes_all_axes_of_that_name(operate):
    model, _ = operate(SetShape(axes=("x:0=3",)), NET)
    assert shapes(model.graph.inputs)["m"] == "[3,width]"


def test_a_nameless_axis(operate):
    model, _ = operate(SetShape(axes=("z:0=7",)), NET)
    assert shapes(model.graph.inputs) == {"x": "[batch,4]", "m": "[batch,width]", "z": "[7,2]"}
    assert shapes(model.graph.outputs)["u"] == "[7,2]"


def test_a_fixed_axis_gets_another_size(operate):
    text = "g (float[1,2,3] x) => (float[1,6] y) <int64[2] s = {1, 6}> { y = Reshape(x, s) }"
    model, _ = operate(SetShape(axes=("x:0=4",)), text)
    assert shapes(model.graph.inputs) == {"x": "[4,2,3]"}
    assert shapes(model.graph.outputs) == {"y": "[4,6]"}


def test_a_size_that_it_has(operate):
    _, step = operate(SetShape(axes=("x:1=4",)), NET, "skipped")
    assert ("x:1", "is 4 already") in step.skipped


def test_stale_sizes_of_inner_values_go(operate):
    text = "g (float[n,4] x) => (float[n,4] y) <float[4] b = {1,2,3,4}> { a = Add(x, b)  y = Relu(a) }"
    model, _ = operate(SetShape(axes=("n=2",)), text)
    assert str(model.graph[0].outputs[0].shape) in ("None", "[2,4]")


def test_sizes_at_which_the_model_does_not_run(operate):
    text = "g (float[n] x, float[m] y) => (float[k] z) <int64[2] s = {2, -1}> { a = Reshape(x, s)  z = Add(a, y) }"
    text = text.replace("float[k] z", "float[2,k] z")
    with pytest.raises(UserError, match="does not run at these sizes"):
        operate(SetShape(axes=("n=3",)), text)


CLASSIFIER = """g (float[1,2,3] x, float[1,6] m) => (float[1,6] y) <int64[2] s = {1, 6}> {
    a = Reshape(x, s)  b = Add(a, m)  y = Softmax<axis = 1>(b)
}"""


def test_a_fixed_batch_becomes_another(operate, parse):
    model, step = operate(SetShape(axes=("x:0=8", "m:0=8")), CLASSIFIER)
    assert shapes((*model.graph.inputs, *model.graph.outputs)) == {"x": "[8,2,3]", "m": "[8,6]", "y": "[8,6]"}
    assert step.report["target of Reshape"] == 1
    place = target.find("cpu")
    new, old = runtime.open_session(model, place), runtime.open_session(parse(CLASSIFIER), place)
    rng = np.random.default_rng(1)
    x, m = (rng.standard_normal(shape).astype(np.float32) for shape in ((8, 2, 3), (8, 6)))
    rows = [old.run({"x": x[i : i + 1], "m": m[i : i + 1]})["y"] for i in range(8)]
    np.testing.assert_allclose(new.run({"x": x, "m": m})["y"], np.concatenate(rows), rtol=1e-5)


def test_a_smaller_fixed_batch(operate):
    text = "g (float[4,6] x) => (float[4,2,3] y) <int64[3] s = {4,2,3}> { y = Reshape(x, s) }"
    model, _ = operate(SetShape(axes=("x:0=2",)), text)
    assert shapes(model.graph.outputs) == {"y": "[2,2,3]"}


def test_another_height_and_width(operate):
    text = """g (float[1,3,8,8] x) => (float[1,64,3] y) <int64[3] s = {1,3,64}> {
        a = Reshape(x, s)  y = Transpose<perm = [0,2,1]>(a)
    }"""
    model, _ = operate(SetShape(axes=("x:2=16", "x:3=16")), text)
    assert shapes((*model.graph.inputs, *model.graph.outputs)) == {"x": "[1,3,16,16]", "y": "[1,256,3]"}


def test_fixed_and_dynamic_axes_at_once(operate):
    text = "g (float[n,1,6] x) => (float[n,1,6] y) { y = Exp(x) }"
    model, _ = operate(SetShape(axes=("n=2", "x:1=3")), text)
    assert shapes(model.graph.outputs) == {"y": "[2,3,6]"}


def test_a_fixed_size_that_a_constant_has_too(operate):
    text = "g (float[2,2] x) => (float[2,2] y) <float[2,2] w = {1,2,3,4}> { y = Add(x, w) }"
    with pytest.raises(UserError, match=r"set-shape: Add of 'y' \(Add\): the constant 'w' differs along axis 0"):
        operate(SetShape(axes=("x:0=3",)), text)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (("bach=3",), "there is no dynamic axis 'bach'; did you mean 'batch'?"),
        (("x:2=8",), "'x' has no axis 2, it is of rank 2"),
        (("xx:0=8",), "there is no input 'xx'"),
        (("batch=n",), "'n' is no size; rename gives an axis another name"),
        (("batch=2", "m:0=3"), "axis 'batch' is given two sizes, 2 and 3"),
        (("batch",), "'batch' is not of the form"),
    ],
)
def test_refused(graphopt, model_file, tmp_path, axes, message):
    ran = graphopt("set-shape", model_file(NET), "--axes", ",".join(axes), "-o", tmp_path / "o.onnx")
    assert ran.code == 1
    assert message in ran.error
    assert not (tmp_path / "o.onnx").exists()
