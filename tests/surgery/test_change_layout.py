"""Inputs and outputs get another layout; Transposes that are there take it up."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt import runtime, target
from graphopt.errors import UserError
from graphopt.passes.surgery.change_layout import ChangeLayout

CONV = """
g (float[N,3,H,W] x) => (float[N,2,H,W] y) <float[2,3,1,1] w = {1,2,3,4,5,6}> { y = Conv(x, w) }
"""
TENSORFLOW = """
g (float[N,6,5,3] x) => (float[N,6,5,2] y) <float[2,3,1,1] w = {1,2,3,4,5,6}> {
    a = Transpose<perm = [0,3,1,2]>(x)
    b = Conv(a, w)
    y = Transpose<perm = [0,2,3,1]>(b)
}
"""


def ops(model):
    return [node.op_type for node in model.graph.all_nodes()]


def shapes(model):
    return [str(value.shape) for value in (*model.graph.inputs, *model.graph.outputs)]


def run(model, feeds):
    return runtime.open_session(model, target.find("cpu")).run(feeds)


def test_input_and_output(operate, names):
    model, step = operate(ChangeLayout(inputs=("x",), outputs=("y",)), CONV)
    assert ops(model) == ["Transpose", "Conv", "Transpose"]
    assert names(model) == (["x"], ["y"])
    assert shapes(model) == ["[N,H,W,3]", "[N,H,W,2]"]
    assert step.report == {
        "inputs": {"x": "[N, H, W, 3]"},
        "outputs": {"y": "[N, H, W, 2]"},
        "transposes": [0, 2],
    }


def test_numbers(operate, parse):
    image = np.random.default_rng(0).random((2, 4, 5, 3), np.float32)
    model, _ = operate(ChangeLayout(inputs=("x",), outputs=("y",)), CONV)
    expected = run(parse(CONV), {"x": image.transpose(0, 3, 1, 2).copy()})["y"]
    np.testing.assert_allclose(run(model, {"x": image})["y"], expected.transpose(0, 2, 3, 1), rtol=1e-5)


def test_transposes_of_the_model_vanish(operate):
    model, step = operate(ChangeLayout(inputs=("x",), outputs=("y",), to="nchw"), TENSORFLOW)
    assert ops(model) == ["Conv"]
    assert shapes(model) == ["[N,3,6,5]", "[N,2,6,5]"]
    assert step.report["transposes"] == [2, 0]


def test_there_and_back(operate):
    model, _ = operate(ChangeLayout(inputs=("x",), outputs=("y",)), CONV)
    model, _ = operate(ChangeLayout(inputs=("x",), outputs=("y",), to="nchw"), model)
    assert ops(model) == ["Conv"]


def test_a_transpose_to_something_else_is_merged(operate):
    model, _ = operate(
        ChangeLayout(inputs=("x",)), "g (float[2,3,5,6] x) => (float[5,6,3,2] y) { y = Transpose<perm = [2,3,1,0]>(x) }"
    )
    assert ops(model) == ["Transpose"]
    assert list(model.graph[0].attributes["perm"].as_ints()) == [1, 2, 3, 0]


def test_a_transpose_without_perm(operate):
    model, _ = operate(ChangeLayout(inputs=("x",)), "g (float[7,3,5] x) => (float[5,3,7] y) { y = Transpose(x) }")
    assert ops(model) == ["Transpose"]
    assert list(model.graph[0].attributes["perm"].as_ints()) == [1, 2, 0]


def test_other_users_keep_the_old_layout(operate):
    model, _ = operate(
        ChangeLayout(inputs=("x",)),
        """g (float[N,3,6,5] x) => (float[N,6,5,3] y, float[N,3,6,5] z) {
            a = Transpose<perm = [0,2,3,1]>(x)
            y = Relu(a)
            z = Neg(x)
        }""",
    )
    assert sorted(ops(model)) == ["Neg", "Relu", "Transpose"]


def test_an_output_used_inside(operate):
    model, _ = operate(
        ChangeLayout(outputs=("y",)),
        "g (float[N,3,6,5] x) => (float[N,3,6,5] y, float[N,3,6,5] z) { y = Relu(x)  z = Neg(y) }",
    )
    assert shapes(model) == ["[N,3,6,5]", "[N,6,5,3]", "[N,3,6,5]"]


def test_a_transpose_that_gives_an_output_its_name(operate, names):
    text = "g (float[N,3,6,5] x) => (float[N,6,5,3] y) { y = Transpose<perm = [0,2,3,1]>(x) }"
    model, _ = operate(ChangeLayout(inputs=("x",)), text)
    assert (ops(model), names(model)) == (["Identity"], (["x"], ["y"]))
    model, _ = operate(ChangeLayout(outputs=("y",), to="nchw"), text)
    assert (ops(model), names(model)) == (["Identity"], (["x"], ["y"]))


def test_a_transpose_of_another_output(operate, names):
    model, _ = operate(
        ChangeLayout(outputs=("y",), to="nchw"),
        """g (float[N,3,6,5] x) => (float[N,3,6,5] z, float[N,6,5,3] y) {
            z = Relu(x)
            y = Transpose<perm = [0,2,3,1]>(z)
        }""",
    )
    assert ops(model) == ["Relu", "Identity"]
    assert names(model) == (["x"], ["z", "y"])


def test_an_initializer_that_is_an_output(operate, names):
    model, _ = operate(
        ChangeLayout(outputs=("w",)),
        "g (float[2] x) => (float[2] y, float[1,2,5] w) <float[1,2,5] w = {1,2,3,4,5,6,7,8,9,0}> { y = Relu(x) }",
    )
    assert names(model) == (["x"], ["y", "w"])
    assert shapes(model)[-1] == "[1,5,2]"


@pytest.mark.parametrize(
    ("given", "turned"), [("N,3,L", "[N,L,3]"), ("2,3,4,5", "[2,4,5,3]"), ("N,3,D,H,W", "[N,D,H,W,3]")]
)
def test_ranks(operate, given, turned):
    model, _ = operate(ChangeLayout(inputs=("x",)), f"g (float[{given}] x) => (float[{given}] y) {{ y = Relu(x) }}")
    assert shapes(model)[0] == turned


def test_a_transpose_in_a_body(operate):
    model, _ = operate(
        ChangeLayout(inputs=("x",), to="nchw"),
        """g (float[2,6,5,3] x, bool c) => (float[2,3,6,5] y) {
            y = If(c) <
                then_branch = t () => (float[2,3,6,5] p) { a = Transpose<perm = [0,3,1,2]>(x)  p = Neg(a) },
                else_branch = e () => (float[2,3,6,5] q) { b = Transpose<perm = [0,3,1,2]>(x)  q = Abs(b) }>
        }""",
    )
    assert ops(model).count("Transpose") == 0


def test_a_shadowed_name_in_a_body(operate):
    """Inside, `x_turned` means another value; nothing may be mixed up."""
    model, _ = operate(
        ChangeLayout(inputs=("x",)),
        """g (float[2,3,6,5] x, bool c) => (float[2,3,6,5] y) {
            y = If(c) <
                then_branch = t () => (float[2,3,6,5] p) { x_turned = Exp(x)  p = Neg(x_turned) },
                else_branch = e () => (float[2,3,6,5] q) { q = Abs(x) }>
        }""",
    )
    assert ops(model).count("Transpose") == 1


def test_what_looks_done_stays(operate):
    _, step = operate(ChangeLayout(inputs=("x",)), TENSORFLOW, status="skipped")
    assert step.skipped == (("x", "is nhwc already, by its shape [N, 6, 5, 3]"),)


@pytest.mark.parametrize(
    ("pass_", "text", "reason"),
    [
        (ChangeLayout(), CONV, "name inputs or outputs"),
        (ChangeLayout(inputs=("z",)), CONV, "there is no input 'z'"),
        (ChangeLayout(outputs=("x",)), CONV, "there is no output 'x'"),
        (ChangeLayout(inputs=("x", "x")), CONV, "given twice"),
        (ChangeLayout(inputs=("x",)), "g (float[2,3] x) => (float[2,3] y) { y = Relu(x) }", "has rank 2"),
        (ChangeLayout(inputs=("x",)), "g (float[] x) => (float[] y) { y = Relu(x) }", "rank of 'x' is unknown"),
        (ChangeLayout(inputs=("x",)), "g (float[2,3,4] x) => (float[2,3,4] y, float[2,3,4] x) { y = Relu(x) }",
         "is also an output"),
        (ChangeLayout(outputs=("x",)), "g (float[2,3,4] x) => (float[2,3,4] y, float[2,3,4] x) { y = Relu(x) }",
         "is also an input"),
        (ChangeLayout(inputs=("w",)),
         "g (float[2,3,4] x, float[1,1,2] w) => (float[2,3,4] y) <float[1,1,2] w = {1,2}> { y = Relu(x) }",
         "has a default value"),
    ],
)  # fmt: skip
def test_refusals(operate, pass_, text, reason):
    with pytest.raises(UserError, match=reason):
        operate(pass_, text)


def test_command_line(graphopt, model_file, tmp_path):
    out = tmp_path / "out.onnx"
    ran = graphopt("change-layout", model_file(CONV), "-o", out, "--inputs", "x", "--to", "nhwc", "--json")
    assert ran.code == 0
    assert ran.json["steps"][0]["status"] == "kept"
    assert graphopt("change-layout", model_file(CONV), "-o", out, "--inputs", "x", "--to", "nhw").code == 2
