import numpy as np
import onnx_ir as ir
import pytest

from graphopt import runtime, target
from graphopt.errors import UsageError, UserError
from graphopt.passes.surgery.replace_op import ReplaceOp

GRAPH = """
g (float[N,4] x) => (float[N,4] y) {
    [first] a = HardSwish(x)
    b = Exp(a)
    [second] y = HardSwish(b)
}
"""


def ops(model):
    return [node.op_type for node in model.graph.all_nodes()]


def run(model, x):
    return runtime.open_session(model, target.find("cpu")).run({"x": np.float32(x)})["y"]


def test_everywhere(operate):
    model, step = operate(ReplaceOp("HardSwish", "Relu"), GRAPH)
    assert ops(model) == ["Relu", "Exp", "Relu"]
    assert step.report == {"replaced": 2}


def test_in_named_nodes(operate):
    assert ops(operate(ReplaceOp("HardSwish", "Relu", ("second",)), GRAPH)[0]) == ["HardSwish", "Exp", "Relu"]


def test_settings_that_are_inputs(operate):
    model, _ = operate(ReplaceOp("Relu", "Clip{min=0 max=6}"), "g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
    np.testing.assert_array_equal(run(model, [[-1, 1, 6, 7]]), np.float32([[0, 1, 6, 6]]))


def test_nodes_share_their_settings(operate):
    text = """g (float[N,4] x, bool c) => (float[N,4] y) {
        a = HardSwish(x)
        b = HardSwish(a)
        y = If(c) < then_branch = t () => (float[N,4] p) { p = HardSwish(b) },
                    else_branch = e () => (float[N,4] q) { q = Neg(b) }>
    }"""
    model, _ = operate(ReplaceOp("HardSwish", "Clip{min=0 max=6}"), text)
    assert ops(model).count("Constant") == 4, "two in the main graph, two in the branch"


def test_one_input_and_not_the_one_before_it(operate):
    model, _ = operate(ReplaceOp("Relu", "Clip{max=6}"), "g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
    np.testing.assert_array_equal(run(model, [[-1, 1, 6, 7]]), np.float32([[-1, 1, 6, 6]]))


def test_settings_that_are_attributes(operate):
    text = '<ir_version: 6, opset_import: ["": 9]> g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }'
    model, _ = operate(ReplaceOp("Relu", "Clip{min=0 max=6}"), text)
    assert model.graph.node(0).attributes["max"].value == 6.0
    np.testing.assert_array_equal(run(model, [[-1, 1, 6, 7]]), np.float32([[0, 1, 6, 6]]))


def test_the_type_of_a_setting_follows_its_input(operate):
    text = """g (float[N,4] x) => (float[N,4] y) {
        h = Cast<to = 10>(x)  r = Relu(h)  y = Cast<to = 1>(r)
    }"""
    model, _ = operate(ReplaceOp("Relu", "Clip{min=0 max=6}"), text)
    constants = [node.attributes["value"].as_tensor().dtype for node in model.graph if node.op_type == "Constant"]
    assert constants == [ir.DataType.FLOAT16, ir.DataType.FLOAT16]


def test_a_list_of_whole_numbers(operate):
    text = "g (float[N,4,4] x) => (float[N,4,1] y) <int64[1] axes = {2}> { y = ReduceMax(x, axes) }"
    model, _ = operate(ReplaceOp("ReduceMax", "ReduceMean{axes=2,}"), text)
    assert model.graph.node(0).attributes["value"].as_tensor().numpy().tolist() == [2]
    assert not model.graph.initializers


def test_structure_is_kept_and_numbers_are_not(operate):
    pool = "g (float[N,1,8,8] x) => (float[N,1,4,4] y) { y = MaxPool<kernel_shape = [2,2], strides = [2,2]>(x) }"
    model, _ = operate(ReplaceOp("MaxPool", "AveragePool"), pool)
    assert set(model.graph.node(0).attributes) == {"kernel_shape", "strides"}
    elu = "g (float[N,4] x) => (float[N,4] y) { y = Elu<alpha = 1.0>(x) }"
    model, _ = operate(ReplaceOp("Elu", "LeakyRelu"), elu)
    assert not model.graph.node(0).attributes, "with alpha 1 it would be the identity"
    model, _ = operate(ReplaceOp("Elu", "LeakyRelu{alpha=0.1}"), elu)
    assert model.graph.node(0).attributes["alpha"].value == pytest.approx(0.1)


def test_surplus_constants_go(operate):
    text = """g (float[N,4] x) => (float[N,4] y, float[4] t) <float[4] s = {1,2,3,4}, float[4] r = {1,1,1,1}> {
        a = PRelu(x, s)  y = PRelu(a, r)  t = Neg(r)
    }"""
    model, _ = operate(ReplaceOp("PRelu", "Relu"), text)
    assert list(model.graph.initializers) == ["r"]
    assert [len(node.inputs) for node in model.graph] == [1, 1, 1]


def test_what_cannot_be_replaced_is_told(operate):
    text = """g (float[N,4] x, float[4] s) => (float[N,4] y) { a = Exp(x) [node] y = PRelu(a, s) }"""
    _, step = operate(ReplaceOp("PRelu", "Relu"), text, "skipped")
    assert step.skipped == (("node", "Relu takes only 1 input(s)"),)
    _, step = operate(ReplaceOp("Exp", "Add"), text, "skipped")
    assert step.skipped[0][1] == "Add needs 2 inputs"
    _, step = operate(ReplaceOp("Exp", "Cast"), text, "skipped")
    assert step.skipped[0][1] == "Cast needs attribute 'to'"
    text = "g (float[4] x) => (float[2] y, int64[2] z) <int64[1] k = {2}> { [node] y, z = TopK(x, k) }"
    _, step = operate(ReplaceOp("TopK", "Relu"), text, "skipped")
    assert step.skipped == (("node", "Relu has only 1 output(s)"),)


def test_bodies_and_functions(operate):
    text = """<ir_version: 9, opset_import: ["": 18, "f": 1]>
    g (float[2] x, bool c) => (float[2] y) {
        a = f.f(x)
        y = If(c) < then_branch = t () => (float[2] p) { p = Relu(a) }, else_branch = e () => (float[2] q) { q = Relu(x) }>
    }
    <domain: "f", opset_import: ["": 18]> f (a) => (b) { b = Relu(a) }"""
    _, step = operate(ReplaceOp("Relu", "Softplus"), text)
    assert step.report == {"replaced": 3}
    _, step = operate(ReplaceOp("Relu", "Clip{min=0}"), text)
    assert step.report == {"replaced": 2}
    assert step.skipped[0][1] == "the type of 'min' cannot be told here"


def test_the_same_operator_changes_nothing(operate):
    operate(ReplaceOp("HardSwish", "HardSwish"), GRAPH, "skipped")


def test_another_setting_of_the_same_operator(operate):
    text = "g (float[N,4] x) => (float[N,4] y) { y = HardSigmoid<alpha = 0.3, beta = 0.4>(x) }"
    model, _ = operate(ReplaceOp("HardSigmoid", "HardSigmoid{alpha=0.2}"), text)
    assert [a.value for a in model.graph.node(0).attributes.values()] == pytest.approx([0.2, 0.4])
    operate(ReplaceOp("HardSigmoid", "HardSigmoid"), text, "skipped")


def test_a_result_of_another_shape_is_rolled_back(operate):
    _, step = operate(ReplaceOp("HardSwish", "Shape", ("second",)), GRAPH, "reverted")
    assert step.reason


@pytest.mark.parametrize(
    ("op", "by", "nodes", "text"),
    [
        ("Hardswish", "Relu", (), "the model has no Hardswish; did you mean 'HardSwish'?"),
        ("HardSwish", "ReLU", (), "no operator 'ReLU' at opset 18"),
        ("HardSwish", "Gelu", (), "no operator 'Gelu' at opset 18"),
        ("HardSwish", "ai.onnx.ml.Scaler", (), "does not import the operators of domain 'ai.onnx.ml'"),
        ("HardSwish", "Clip{maximum=6}", (), "Clip: has no setting 'maximum'; did you mean 'max'?"),
        ("HardSwish", "Relu", ("thrid",), "there is no node 'thrid'"),
        ("Exp", "Neg", ("first",), r"first \(HardSwish\): is no Exp"),
        ("HardSwish", "ConstantOfShape{value=3}", (), "is a tensor, which cannot be written here"),
    ],
)
def test_what_is_wrong_is_said(parse, op, by, nodes, text):
    with pytest.raises(UserError, match=text.replace("?", r"\?")):
        ReplaceOp(op, by, nodes)(parse(GRAPH))


def test_values_that_do_not_fit(parse):
    for by in ("Elu{alpha=big}", "Clip{min=low}", "Clip{min", "Softmax{axis=0.5}"):
        with pytest.raises(UsageError):
            ReplaceOp("HardSwish", by)(parse(GRAPH))


def test_by_command_line(graphopt, model_file, tmp_path):
    ran = graphopt("replace-op", model_file(GRAPH), "--op", "HardSwish", "--by", "Clip{min=0 max=6}", "-o", tmp_path / "o.onnx", "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    assert ran.json["steps"][0]["pass"] == "replace-op{op=HardSwish by='Clip{min=0 max=6}'}"
    again = graphopt("apply", model_file(GRAPH), ran.json["steps"][0]["pass"], "-o", tmp_path / "p.onnx")
    assert again.code == 0
    assert (tmp_path / "p.onnx").read_bytes() == (tmp_path / "o.onnx").read_bytes()
