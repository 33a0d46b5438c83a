import numpy as np
import onnx_ir as ir
import pytest

from graphopt.errors import UserError
from graphopt.passbase import PreconditionError
from graphopt.passes.surgery.extract import Extract
from graphopt.pipeline import Pipeline, begin, feeds_for
from graphopt.target import find

CHAIN = """
g (float[N,4] x, float[N,4] u) => (float[N,3] y, float[N,4] z)
<float[4,3] w = {1,-2,3,0.5,1.5,-1,2,0.1,0.2,-0.3,0.4,1}, float[4] k = {1,2,3,4}> {
    a = Relu(x)
    b = Add(a, u)
    c = MatMul(b, w)
    y = Exp(c)
    z = Mul(a, k)
}
"""


def test_between_inner_tensors(operate, names):
    model, step = operate(Extract(inputs=("b",), outputs=("c",)), CHAIN)
    assert names(model) == (["b"], ["c"])
    assert [node.op_type for node in model.graph] == ["MatMul"]
    assert list(model.graph.initializers) == ["w"]
    assert str(model.graph.inputs[0].shape) == "[N,4]"
    assert str(model.graph.outputs[0].shape) == "[N,3]"
    assert step.report == {"inputs": ["b"], "outputs": ["c"]}


def test_the_inputs_that_are_needed_stay_by_default(operate, names):
    assert names(operate(Extract(outputs=("z",)), CHAIN)[0]) == (["x"], ["z"])


def test_the_outputs_stay_by_default(operate, names):
    assert names(operate(Extract(inputs=("a", "u")), CHAIN)[0]) == (["a", "u"], ["y", "z"])


def test_order_is_as_given(operate, names):
    assert names(operate(Extract(("u", "a"), ("z", "c")), CHAIN)[0]) == (["u", "a"], ["z", "c"])


def test_a_weight_may_become_an_input(operate, names):
    model, _ = operate(Extract(("b", "w"), ("c",)), CHAIN)
    assert names(model) == (["b", "w"], ["c"])
    assert not model.graph.initializers


def test_what_is_missing_is_named(parse):
    with pytest.raises(UserError, match="extract: the outputs also depend on u; add them to the inputs"):
        Extract(("a",), ("y",))(parse(CHAIN))


@pytest.mark.parametrize("name", ["x", "y"])
def test_an_input_that_nothing_reads_is_refused(parse, name):
    with pytest.raises(UserError, match=f"no output depends on '{name}'"):
        Extract(("b", name), ("c",))(parse(CHAIN))


def test_a_wrong_name(graphopt, model_file, tmp_path):
    ran = graphopt("extract", model_file("g (float[2] input) => (float[2] y) { a = Exp(input) y = Neg(a) }"),
                   "--inputs", "inptu", "-o", tmp_path / "o.onnx")  # fmt: skip
    assert (ran.code, ran.error) == (1, "extract: there is no tensor 'inptu'; did you mean 'input'?")
    assert not (tmp_path / "o.onnx").exists()


def test_a_name_given_twice(parse):
    with pytest.raises(UserError, match="'a' is given twice"):
        Extract(("a", "a"), ("y",))(parse(CHAIN))


def test_nothing_to_cut_at(graphopt, model_file, tmp_path):
    ran = graphopt("extract", model_file(CHAIN), "-o", tmp_path / "o.onnx")
    assert (ran.code, ran.error) == (1, "extract: nothing to cut at; name tensors with inputs or outputs")


def test_the_same_cut_again_changes_nothing(operate):
    model, _ = operate(Extract(("b",), ("c",)), CHAIN)
    operate(Extract(("b",), ("c",)), model, "skipped")


BODIES = """
g (float[N,4] x, bool c, float[4] k) => (float[N,4] y) <float[4] k = {1,2,3,4}> {
    a = Relu(x)
    b = Exp(x)
    d = If(c) <
        then_branch = t () => (float[N,4] p) { p = Mul(a, k) },
        else_branch = e () => (float[N,4] q) { q = Neg(b) }>
    y = Tanh(d)
}
"""


def test_what_bodies_read_is_needed(operate, parse, names):
    with pytest.raises(UserError, match="depend on x;"):
        Extract(("a", "c"), ("y",))(parse(BODIES))
    model, _ = operate(Extract(("b", "c", "a"), ("d",)), BODIES)
    assert names(model) == (["b", "c", "a", "k"], ["d"])


def test_defaults_stay_defaults(operate):
    model, _ = operate(Extract(("b", "c", "a"), ("d",)), BODIES)
    assert model.graph.inputs[3].is_initializer()


def test_functions(operate):
    model, _ = operate(
        Extract(outputs=("a",)),
        """<ir_version: 9, opset_import: ["": 18, "f": 1]>
        g (float[2] x) => (float[2] y) { a = f.one(x)  y = f.two(a) }
        <domain: "f", opset_import: ["": 18]> one (a) => (b) { b = Neg(a) }
        <domain: "f", opset_import: ["": 18]> two (a) => (b) { b = Abs(a) }""",
    )
    assert [function.name for function in model.functions.values()] == ["one"]


def test_sequences_are_no_inputs(parse):
    text = """g (float[N,4] x) => (float[N,2] z) <int64 first = {0}, int64[2] h = {2,2}> {
        s = SplitToSequence<axis = 1>(x, h)  z = SequenceAt(s, first)
    }"""
    with pytest.raises(PreconditionError, match="'s' is no tensor"):
        Extract(inputs=("s",))(parse(text))


def test_a_sequence_may_be_an_output(operate):
    text = """g (float[N,4] x) => (float[N,2] z) <int64 first = {0}, int64[2] h = {2,2}> {
        s = SplitToSequence<axis = 1>(x, h)  z = SequenceAt(s, first)
    }"""
    operate(Extract(outputs=("s",)), text)


def test_operators_that_no_inference_knows(parse):
    text = """<ir_version: 9, opset_import: ["": 18, "com.microsoft": 1]>
    g (float[2,4] x) => (float[2,4] y) { a = com.microsoft.FusedGemm(x, x)  b = Abs(a) y = Neg(b) }"""
    model = parse(text)
    result = Extract(inputs=("b",))(model)
    assert model.graph.inputs[0].dtype == ir.DataType.FLOAT
    assert [name for name, _ in result.skipped] == ["b"]
    assert "its rank is unknown" in result.skipped[0][1]


def test_a_type_that_nobody_knows(parse):
    text = """<ir_version: 9, opset_import: ["": 18, "other": 1]>
    g (float[2] x) => (float[2] y) { a = other.Op() y = Add(x, a) }"""
    with pytest.raises(PreconditionError, match="the type of 'a' is not declared and cannot be inferred"):
        Extract(inputs=("a", "x"))(parse(text))


def test_a_stale_size_is_not_declared(operate, parse):
    model = parse(CHAIN)
    for node in model.graph:
        for value in node.outputs:
            if value.name == "b":
                value.shape = ir.Shape([1, 4])  # as traced with a batch of one
    model, _ = operate(Extract(("b",), ("c",)), model)
    assert str(model.graph.inputs[0].shape) == "[N,4]"


def test_a_declared_size_stays_where_every_size_is_fixed(operate, parse):
    """A contrib operator's output has no proven shape; with fixed inputs what the file declares of it cannot be stale."""
    text = """<ir_version: 9, opset_import: ["": 18, "com.microsoft": 1]>
    g (float[2,4] x, float alpha) => (float[2,4] y) { a = com.microsoft.QuickGelu(x) b = Mul(a, alpha) y = Neg(b) }"""
    model = parse(text)
    gelu = model.graph.node(0).outputs[0]
    gelu.type, gelu.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([2, 4])
    model, _ = operate(Extract(("a", "alpha"), ("b",)), model)
    assert str(model.graph.inputs[0].shape) == "[2,4]"


def test_what_computes_something_else_is_rolled_back(parse, monkeypatch):
    """The check itself must be able to fail."""
    from graphopt import cutting

    right = cutting.extract

    def wrong(model, inputs, outputs):
        right(model, inputs, outputs)
        weight = model.graph.initializers["w"]
        weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(1.01), name="w")

    monkeypatch.setattr(cutting, "extract", wrong)
    start = begin(parse(CHAIN), find("cpu"), (), "test")
    step = Pipeline(start, find("cpu"), feeds_for(start, None, 0, "test")).run(Extract(("b",), ("c",)))
    assert step.status == "reverted"
    assert "changed the result: output 'c'" in step.reason


def test_initializers_keep_their_order(operate):
    weights = ", ".join(f"float[2] w{i} = {{{i},1}}" for i in range(20))
    sums = " ".join(f"s{i + 1} = Add(s{i}, w{i})" for i in range(20))
    model, _ = operate(
        Extract(("s0",), ("s20",)), f"g (float[2] x) => (float[2] s20) <{weights}> {{ s0 = Exp(x) {sums} }}"
    )
    assert list(model.graph.initializers) == [f"w{i}" for i in range(20)]


def test_by_command_line(graphopt, model_file, tmp_path):
    ran = graphopt(
        "extract", model_file(CHAIN), "--inputs", "b", "--outputs", "c,y", "-o", tmp_path / "o.onnx", "--json"
    )
    assert ran.code == 0
    assert ran.json["steps"][0]["report"] == {"inputs": ["b"], "outputs": ["c", "y"]}
    shown = graphopt("inspect", tmp_path / "o.onnx", "--json").json
    assert [port["name"] for port in shown["outputs"]] == ["c", "y"]
    assert shown["provenance"]["pipeline"] == ["extract{inputs=b outputs=c,y}"]


def test_an_input_that_is_an_output_too(operate, names):
    assert names(operate(Extract(("a",), ("z", "a")), CHAIN)[0]) == (["a"], ["z", "a"])
    assert names(operate(Extract(outputs=("x", "z")), CHAIN)[0]) == (["x"], ["x", "z"])
