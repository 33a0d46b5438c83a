import pytest

from graphopt.errors import UserError
from graphopt.passes.surgery.remove_output import RemoveOutput

GRAPH = """
g (float[N,2] x, float[N,2] u, float[N,2] idle) => (float[N,2] y, float[N,2] z, float[2] w, float[N,2] v)
<float[2] w = {1,2}, float[2] k = {3,4}> {
    a = Mul(x, w)
    y = Relu(a)
    b = Mul(u, k)
    z = Neg(b)
    v = Exp(a)
}
"""


def test_what_only_it_needed_goes(operate, names):
    model, step = operate(RemoveOutput(("z",)), GRAPH)
    assert names(model) == (["x", "u", "idle"], ["y", "w", "v"])
    assert [node.op_type for node in model.graph] == ["Mul", "Relu", "Exp"]
    assert list(model.graph.initializers) == ["w"]
    assert step.report == {"outputs": ["z"], "inputs": []}


def test_inputs_that_it_alone_needed_go_on_demand(operate, names):
    model, step = operate(RemoveOutput(("z",), prune_inputs=True), GRAPH)
    assert names(model) == (["x", "idle"], ["y", "w", "v"])
    assert step.report == {"outputs": ["z"], "inputs": ["u"]}


def test_an_output_that_is_used_inside(operate):
    model, _ = operate(RemoveOutput(("w", "v", "y")), GRAPH)
    assert list(model.graph.initializers) == ["k"]


def test_an_output_that_is_an_input(operate, names):
    model, _ = operate(RemoveOutput(("x",)), "g (float[2] x) => (float[2] x, float[2] y) { y = Neg(x) }")
    assert names(model) == (["x"], ["y"])


def test_one_of_several_outputs_of_a_node(operate):
    text = "g (float[4] x) => (float[2] a, float[2] b) <int64[2] s = {2,2}> { a, b = Split(x, s) }"
    model, _ = operate(RemoveOutput(("b",)), text)
    assert [value.name for value in model.graph.node(0).outputs] == ["a", "b"]


def test_control_flow_and_what_it_captures(operate):
    text = """g (float[2] x, bool c) => (float[2] y, float[2] z) <float[2] k = {1,2}> {
        a = Exp(x)
        y = If(c) < then_branch = t () => (float[2] p) { p = Mul(a, k) },
                    else_branch = e () => (float[2] q) { q = Neg(a) }>
        z = Abs(x)
    }"""
    model, step = operate(RemoveOutput(("y",), prune_inputs=True), text)
    assert [node.op_type for node in model.graph] == ["Abs"]
    assert not model.graph.initializers
    assert step.report["inputs"] == ["c"]


def test_sequences(operate):
    text = """g (float[N,4] x) => (seq(float[N,K]) y, float[N,4] z) <int64[2] k = {1,3}> {
        y = SplitToSequence<axis = 1>(x, k)
        z = Neg(x)
    }"""
    operate(RemoveOutput(("z",)), text)
    operate(RemoveOutput(("y",)), text)


def test_one_must_stay(parse):
    with pytest.raises(UserError, match="leave at least one"):
        RemoveOutput(("y", "z", "w", "v"))(parse(GRAPH))


def test_wrong_names(graphopt, model_file, tmp_path):
    ran = graphopt("remove-output", model_file(GRAPH), "--outputs", "a", "-o", tmp_path / "o.onnx")
    assert (ran.code, ran.error) == (1, "remove-output: there is no output 'a'; known: v, w, y, z")
    ran = graphopt("remove-output", model_file(GRAPH), "-o", tmp_path / "o.onnx")
    assert ran.error == "remove-output: no output is named; name some with outputs"
