import pytest

from graphopt.errors import UserError
from graphopt.passes.surgery.reorder_io import ReorderIo

GRAPH = """
g (float[N] x, float[N] u, float[2] w) => (float[N] y, float[N] z) <float[2] w = {1,2}> {
    y = Sub(x, u)
    z = Neg(u)
}
"""


def test_the_named_come_first(operate, names):
    model, step = operate(ReorderIo(inputs=("u",), outputs=("z", "y")), GRAPH)
    assert names(model) == (["u", "x", "w"], ["z", "y"])
    assert step.report == {"inputs": ["u", "x", "w"], "outputs": ["z", "y"]}
    assert model.graph.inputs[2].is_initializer()


def test_the_order_there_is(operate):
    operate(ReorderIo(inputs=("x", "u")), GRAPH, "skipped")


def test_wrong_names(parse):
    with pytest.raises(UserError, match="no input 'z'"):
        ReorderIo(inputs=("z",))(parse(GRAPH))
    with pytest.raises(UserError, match="'z' is given twice"):
        ReorderIo(outputs=("z", "z"))(parse(GRAPH))


def test_by_command_line(graphopt, model_file, tmp_path):
    assert graphopt("reorder-io", model_file(GRAPH), "--inputs", "u,x", "-o", tmp_path / "o.onnx").code == 0
    ports = graphopt("inspect", tmp_path / "o.onnx", "--json").json["inputs"]
    assert [port["name"] for port in ports] == ["u", "x"]
    ran = graphopt("reorder-io", model_file(GRAPH), "-o", tmp_path / "p.onnx")
    assert (ran.code, ran.error) == (1, "reorder-io: no order is given; name inputs or outputs")
