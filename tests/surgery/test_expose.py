import numpy as np
import pytest

from graphopt import runtime, target
from graphopt.errors import UserError
from graphopt.passbase import PreconditionError
from graphopt.passes.surgery.expose import Expose

GRAPH = """
g (float[N,4] x) => (float[N,2] y) <float[4,2] w = {1,2,3,4,5,6,7,8}> {
    a = Relu(x)
    b = MatMul(a, w)
    y = Exp(b)
}
"""
LOOP = """
g (float[2] x, int64 n) => (float[2] y) {
    go = Constant<value = bool {1}>()
    y = Loop(n, go, x) <body = body (int64 i, bool c, float[2] s) => (bool d, float[2] t) {
        d = Identity(c)
        h = Add(s, s)
        t = Neg(h)
    }>
}
"""


def run(model, **feeds):
    return runtime.open_session(model, target.find("cpu")).run(feeds)


def test_inner_tensors_become_outputs(operate, names):
    model, step = operate(Expose(("a", "b")), GRAPH)
    assert names(model) == (["x"], ["y", "a", "b"])
    assert [str(value.shape) for value in model.graph.outputs[1:]] == ["[N,4]", "[N,2]"]
    assert step.report == {"outputs": {"a": "a", "b": "b"}}


def test_inputs_and_weights(operate, names):
    assert names(operate(Expose(("x", "w")), GRAPH)[0])[1] == ["y", "x", "w"]


def test_what_is_one_already(operate):
    _, step = operate(Expose(("y", "a")), GRAPH)
    assert step.skipped == (("y", "is an output already"),)
    operate(Expose(("y",)), GRAPH, "skipped")


def test_in_the_body_of_a_loop(operate):
    model, step = operate(Expose(("h", "y")), LOOP)
    name = step.report["outputs"]["h"]
    seen = run(model, x=np.float32([1, 2]), n=np.array(3))
    np.testing.assert_array_equal(seen[name], np.float32([[2, 4], [-4, -8], [8, 16]]))
    np.testing.assert_array_equal(seen["y"], np.float32([-8, -16]))


def test_in_a_branch(operate):
    model, step = operate(
        Expose(("p2",)),
        """g (float[2] x, bool c) => (float[2] y) {
            y = If(c) < then_branch = t () => (float[2] p) { p2 = Exp(x)  p = Neg(p2) },
                        else_branch = e () => (float[2] q) { q = Neg(x) }>
        }""",
    )
    name = step.report["outputs"]["p2"]
    assert run(model, x=np.float32([0, 0]), c=np.array(True))[name].tolist() == [1, 1]
    assert run(model, x=np.float32([0, 0]), c=np.array(False))[name].size == 0


def test_a_name_that_several_bodies_use(parse):
    text = """g (float[2] x, bool c) => (float[2] y) {
        y = If(c) < then_branch = t () => (float[2] p) { i = Exp(x)  p = Neg(i) },
                    else_branch = e () => (float[2] q) { i = Neg(x)  q = Neg(i) }>
    }"""
    with pytest.raises(PreconditionError, match="several bodies define 'i'"):
        Expose(("i",))(parse(text))


def test_wrong_names(parse):
    with pytest.raises(UserError, match="expose: there is no tensor 'c'"):
        Expose(("c",))(parse(GRAPH))
    with pytest.raises(UserError, match="'a' is given twice"):
        Expose(("a", "a"))(parse(GRAPH))


def test_a_long_list_of_names_is_not_printed(parse):
    steps = " ".join(f"s{i + 1} = Neg(s{i})" for i in range(200))
    with pytest.raises(UserError) as error:
        Expose(("banana",))(parse(f"g (float[2] s0) => (float[2] s200) {{ {steps} }}"))
    assert len(str(error.value)) < 200
    assert "201" in str(error.value)


def test_by_command_line(graphopt, model_file, tmp_path):
    ran = graphopt("expose", model_file(GRAPH), "--tensors", "b", "-o", tmp_path / "o.onnx", "--json")
    assert ran.json["steps"][0]["report"] == {"outputs": {"b": "b"}}
    ran = graphopt("expose", model_file(GRAPH), "-o", tmp_path / "o.onnx")
    assert ran.error == "expose: no tensor is named; name some with tensors"
