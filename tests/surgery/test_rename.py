import numpy as np
import onnx_ir as ir
import pytest

from graphopt.errors import UserError
from graphopt.passes.surgery.rename import Rename

GRAPH = """
g (float[N,4] x, float[M,4] u) => (float[N,4] y, float[M,4] z) <float[4] w = {1,2,3,4}> {
    [first] a = Mul(x, w)
    [second] y = Relu(a)
    [third] z = Mul(u, w)
}
"""
BODIES = """
g (float[2] x, bool c) => (float[2] y) {
    a = Exp(x)
    y = If(c) <
        then_branch = t () => (float[2] p) { [n] i = Neg(a)  p = Abs(i) },
        else_branch = e () => (float[2] q) { [n] i = Abs(a)  q = Neg(i) }>
}
"""


def inner(model: ir.Model) -> list[str | None]:
    return [value.name for node in model.graph.all_nodes() for value in node.outputs]


def test_inputs_outputs_weights_and_inner_tensors(operate, names):
    model, step = operate(Rename(names=("x=image", "y=scores", "w=scale", "a=scaled")), GRAPH)
    assert names(model) == (["image", "u"], ["scores", "z"])
    assert list(model.graph.initializers) == ["scale"]
    assert inner(model) == ["scaled", "scores", "z"]
    assert step.report == {"tensors": 4}


def test_swapped_names(operate, names):
    assert names(operate(Rename(names=("x=u", "u=x")), GRAPH)[0]) == (["u", "x"], ["y", "z"])


def test_patterns(operate):
    model, _ = operate(Rename(names=("a=kept", "*=m/*"), nodes=("*d=*D", "first=1")), GRAPH)
    assert inner(model) == ["kept", "m/y", "m/z"]
    assert [node.name for node in model.graph] == ["1", "seconD", "thirD"]


def test_axes(operate):
    model, step = operate(Rename(axes=("N=batch",)), GRAPH)
    assert [str(value.shape) for value in (*model.graph.inputs, *model.graph.outputs)] == [
        "[batch,4]", "[M,4]", "[batch,4]", "[M,4]"]  # fmt: skip
    assert step.report == {"axes": 1}


def test_expressions_of_axes_follow(operate, parse):
    model = parse("""g (float[N,S] x) => (float["2*N",S] y, float["floor(S/2)"] z, float["N-left"] v) {
        y = Concat<axis = 0>(x, x)
        two = Constant<value_int = 2>()
        s = Shape<start = 1, end = 2>(x)
        h = Div(s, two)
        z = ConstantOfShape(h)
        n = Shape<end = 1>(x)
        v = ConstantOfShape(n)
    }""".replace('"2*N"', "two_n").replace('"floor(S/2)"', "half").replace('"N-left"', "other"))  # fmt: skip
    for value, text in zip(model.graph.outputs, ("2*N", "floor(S/2)", "N-left"), strict=True):
        value.shape = ir.Shape([text, *value.shape[1:]])
    model, _ = operate(Rename(axes=("N=batch", "S=length")), model)
    assert [str(value.shape) for value in model.graph.outputs] == ["[2*batch,length]", "[floor(length/2)]", "[N-left]"]


def test_nameless_axes_of_inputs_and_outputs(operate):
    model, _ = operate(Rename(axes=("x:0=batch", "y:0=batch")), "g (float[?,4] x) => (float[?,4] y) { y = Relu(x) }")
    assert str(model.graph.inputs[0].shape) == str(model.graph.outputs[0].shape) == "[batch,4]"


def test_all_bodies(operate):
    model, step = operate(Rename(names=("i=inner",), nodes=("n=same",)), BODIES)
    assert inner(model).count("inner") == 2
    assert [node.name for node in model.graph.all_nodes()].count("same") == 2
    assert step.report == {"tensors": 1, "nodes": 1}


def test_names_that_are_taken(parse):
    for names, text in [(("x=u",), "cannot become 'u'"), (("x=b", "u=b"), "cannot become 'b'"), (("a=w",), "'w'")]:
        with pytest.raises(UserError, match=text):
            Rename(names=names)(parse(GRAPH))
    with pytest.raises(UserError, match="tensor 'a' cannot become 'i'"):
        Rename(names=("a=i",))(parse(BODIES))
    with pytest.raises(UserError, match="axis 'N' cannot become 'M'"):
        Rename(axes=("N=M",))(parse(GRAPH))
    with pytest.raises(UserError, match="node 'first' cannot become 'third'"):
        Rename(nodes=("first=third",))(parse(GRAPH))


@pytest.mark.parametrize(
    ("entry", "text"),
    [("names=X=image", "no tensor 'X'; known: a, u,"), ("names=x", "'x' is not of the form old=new"),
     ("names=onnx*=a", "no tensor is called like 'onnx*'"), ("names=*a*=b", "more than one"),
     ("nodes=frist=a", "no node 'frist'; did you mean 'first'?"), ("axes=K=batch", "no axis 'K'"),
     ("axes=N=3", "an axis cannot be called '3'")],
)  # fmt: skip
def test_what_is_wrong_is_said(graphopt, model_file, tmp_path, entry, text):
    field, _, value = entry.partition("=")
    ran = graphopt("rename", model_file(GRAPH), f"--{field}", value, "-o", tmp_path / "o.onnx")
    assert ran.code == 1
    assert text in ran.error


def test_a_quantization_annotation_follows(parse):
    model = parse(GRAPH)
    model.graph.node(0).outputs[0].meta["quant_parameter_tensor_names"] = {"SCALE_TENSOR": "w"}
    Rename(names=("w=scale",))(model)
    assert ir.to_proto(model).graph.quantization_annotation[0].quant_parameter_tensor_names[0].value == "scale"


def test_the_copy_alone_is_renamed(parse):
    model = parse(GRAPH)
    before = ir.to_proto(model).SerializeToString()
    Rename(names=("w=scale", "x=image"))(model.clone())
    assert ir.to_proto(model).SerializeToString() == before


def test_the_same_name_changes_nothing(operate):
    operate(Rename(names=("x=x",)), GRAPH, "skipped")


def test_sequences(operate):
    text = """g (float[N,4] x) => (seq(float[N,K]) y) <int64[2] k = {1,3}> { y = SplitToSequence<axis = 1>(x, k) }"""
    operate(Rename(names=("y=parts",)), text)


def test_by_command_line(graphopt, model_file, tmp_path):
    path = model_file(GRAPH)
    np.savez(tmp_path / "d.npz", x=np.ones((3, 4), np.float32), u=np.ones((3, 4), np.float32))
    ran = graphopt(
        "rename", path, "--names", "x=image,y=scores", "--data", tmp_path / "d.npz", "-o", tmp_path / "o.onnx"
    )
    assert ran.code == 0, ran.err
    assert "tensors 2" in ran.out
