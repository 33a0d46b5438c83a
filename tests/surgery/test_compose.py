import json

import numpy as np
import onnx
import pytest

from graphopt import io
from graphopt.errors import UserError
from graphopt.passes.surgery.compose import Compose

FIRST = """
g (float[batch,4] x) => (float[batch,3] y, float[batch,4] extra) <float[4,3] w = {1,-2,3,0.5,1.5,-1,2,0.1,0.2,-0.3,0.4,1}> {
    [node] a = Relu(x)
    y = MatMul(a, w)
    extra = Neg(a)
}
"""
SECOND = """
h (float[N,3] y, float[3] bias) => (float[N,2] out) <float[3] bias = {1,2,3}, float[3,2] w = {1,2,3,4,5,6}> {
    [node] a = Add(y, bias)
    out = MatMul(a, w)
}
"""


@pytest.fixture
def compose(operate, model_file):
    def run(first, second, *args, **named):
        return operate(Compose(str(model_file(second, "second.onnx")), *args, **named), first)

    return run


def test_equal_names_are_connected(compose, names):
    model, step = compose(FIRST, SECOND)
    assert names(model) == (["x", "bias"], ["extra", "out"])
    assert step.report == {"connected": {"y": "y"}, "renamed": {}}
    assert model.graph.inputs[1].is_initializer(), "a default that callers may override stays one"
    assert list(model.graph.initializers) == ["w", "bias", "other_w"]
    assert [node.name for node in model.graph if node.name] == ["node", "other_node"]


def test_axes_that_meet_are_one(compose):
    model, _ = compose(FIRST, SECOND)
    assert str(model.graph.outputs[1].shape) == "[batch,2]"


def test_axes_that_do_not_meet_are_two(compose):
    second = "h (float[K,3] y, float[batch] z) => (float[K,3] out, float[batch] v) { out = Neg(y)  v = Neg(z) }"
    model, _ = compose(FIRST, second)
    assert [str(value.shape) for value in (*model.graph.inputs, *model.graph.outputs)] == [
        "[batch,4]", "[other_batch]", "[batch,4]", "[batch,3]", "[other_batch]"]  # fmt: skip


def test_in_order_without_equal_names(compose, names):
    second = "h (float[N,3] u, float[N,4] v) => (float[N,3] p, float[N,4] q) { p = Abs(u)  q = Exp(v) }"
    model, step = compose(FIRST, second)
    assert step.report["connected"] == {"u": "y", "v": "extra"}
    assert names(model) == (["x"], ["p", "q"])


def test_as_told(compose, names):
    second = "h (float[N,4] u, float[N,4] v) => (float[N,4] p) { p = Sub(u, v) }"
    model, step = compose(FIRST, second, ("extra=v", "extra=u"))
    assert step.report["connected"] == {"v": "extra", "u": "extra"}
    assert names(model) == (["x"], ["y", "p"])


def test_an_inner_tensor_gives_way_to_an_output(compose, names):
    """Both call their output y; the first one's is consumed."""
    model, step = compose(
        "g (float[2] x) => (float[2] y) { y = Exp(x) }", "h (float[2] x) => (float[2] y) { y = Neg(x) }"
    )
    assert names(model) == (["x"], ["y"])
    assert step.report == {"connected": {"x": "y"}, "renamed": {}}
    assert [node.op_type for node in model.graph] == ["Exp", "Neg"]


def test_outputs_of_both_that_are_called_alike(compose, names):
    first = "g (float[2] x) => (float[2] y, float[2] z) { y = Exp(x)  z = Abs(x) }"
    second = "h (float[2] y) => (float[2] z) { z = Neg(y) }"
    assert names(compose(first, second)[0]) == (["x"], ["z", "other_z"])
    model, step = compose(first, second, prefix="b/")
    assert names(model) == (["x"], ["z", "b/z"])
    assert step.report["renamed"] == {"z": "b/z"}


def test_an_input_of_both(compose, names):
    first = "g (float[2] x) => (float[2] y) { y = Exp(x) }"
    second = "h (float[2] y, float[2] x) => (float[2] z) { z = Sub(y, x) }"
    assert names(compose(first, second)[0]) == (["x"], ["z"])
    assert names(compose(first, second, ("y=y",))[0]) == (["x", "other_x"], ["z"])
    assert names(compose(first, second, ("y=x", "x=y"))[0]) == (["x"], ["z"])


def test_inputs_that_depend_on_each_other(compose, names):
    """What is generated for the free input must fit what the first model hands over: a shape, and its batch."""
    first = """g (float[batch,6] x) => (int64[2] shape, float[batch,6] y) <int64[1] three = {3}> {
        y = Exp(x)
        n = Shape<end = 1>(x)
        two = Constant<value_ints = [-1]>()
        shape = Concat<axis = 0>(two, three)
    }"""
    second = """h (int64[2] shape, float[batch,6] y, float[batch,6] bias) => (float[K,3] z) {
        a = Add(y, bias)
        z = Reshape(a, shape)
    }"""
    assert names(compose(first, second)[0]) == (["x", "bias"], ["z"])


def test_what_is_passed_through(compose, names):
    first = "g (float[2] x) => (float[2] y) { y = Exp(x) }"
    second = "h (float[2] y, float[2] v) => (float[2] y, float[2] v, float[2] z) { z = Sub(y, v) }"
    assert names(compose(first, second)[0]) == (["x", "v"], ["y", "v", "z"])


def test_bodies_and_their_names(compose):
    body = """{
        a = Exp(x)
        y = If(c) < then_branch = t () => (float[2] p) { i = Neg(a)  p = Abs(i) },
                    else_branch = e () => (float[2] q) { i = Abs(a)  q = Neg(i) }>
    }"""
    first = f"g (float[2] x, bool c) => (float[2] y) {body}"
    model, _ = compose(first, first, ("y=x",))
    found = [
        value.name for graph in (model.graph, *model.graph.subgraphs()) for node in graph for value in node.outputs
    ]
    assert len(found) == 12
    assert [found.count(name) for name in ("i", "other_i", "a", "y")] == [2, 1, 1, 1]


FUNCTION = """<ir_version: 9, opset_import: ["": 18, "f": 1]>
g (float[2] x) => (float[2] {out}) {{ {out} = f.f(x) }}
<domain: "f", opset_import: ["": 18]> f (a) => (b) {{ b = {op}(a) }}
"""


def test_functions(compose):
    first = FUNCTION.format(out="x2", op="Neg")
    assert len(compose(first, FUNCTION.format(out="y", op="Neg"))[0].functions) == 1
    model, _ = compose(first, FUNCTION.format(out="y", op="Exp"))
    assert [node.op_type for node in model.graph] == ["f", "Exp"]


def test_a_function_of_the_second_alone(compose):
    model, _ = compose("g (float[2] x) => (float[2] y) { y = Exp(x) }", FUNCTION.format(out="z", op="Neg"))
    assert len(model.functions) == 1


def test_a_fixed_batch_in_the_second(compose):
    """The first runs at any batch; only what the second can go on with is verified."""
    compose("g (float[N,2] x) => (float[N,2] y) { y = Exp(x) }", "h (float[2,2] y) => (float[2,2] z) { z = Neg(y) }")


def test_never_verified_is_not_kept(operate, model_file):
    first = "g (float[N,2] x) => (float[N,2] y) { y = Exp(x) }"
    second = "h (float[7,2] y) => (float[7,2] z) { z = Neg(y) }"
    _, step = operate(Compose(str(model_file(second, "second.onnx"))), first, "reverted")
    assert step.reason == "cannot be verified: no inputs are known that it must run on"


@pytest.mark.parametrize(
    ("second", "named", "text"),
    [
        ("h (float[N,5] y) => (float[N,5] z) { z = Neg(y) }", {}, r"'y' cannot feed 'y': its shape is \[batch, 3\]"),
        ("h (float[N] y) => (float[N] z) { z = Neg(y) }", {}, r"not \[N\]; insert a Reshape"),
        ("h (int64[N,3] y) => (int64[N,3] z) { z = Neg(y) }", {}, "it is FLOAT, not INT64; insert a Cast"),
        ("h (float[N,3] q) => (float[N,3] z) { z = Neg(q) }", {}, "outputs y, extra do not match the inputs q"),
        ("h (float[N,3] q) => (float[N,3] z) { z = Neg(q) }", {"connect": ("yy=q",)}, "no output 'yy'; did you mean 'y'"),
        ("h (float[N,3] q) => (float[N,3] z) { z = Neg(q) }", {"connect": ("y=p",)}, "second.onnx called 'p'"),
        ("h (float[N,3] q) => (float[N,3] z) { z = Neg(q) }", {"connect": ("y=q", "y=q")}, "'q' is given twice"),
        ("h (float[N,3] q) => (float[N,3] z) { z = Neg(q) }", {"connect": ("y",)}, "not of the form"),
        ('<ir_version: 8, opset_import: ["": 13]> h (float[N,3] y) => (float[N,3] z) { z = Neg(y) }', {},
         "opsets 18 and 13 of domain 'ai.onnx'; run graphopt convert-opset"),
    ],
)  # fmt: skip
def test_what_does_not_fit(compose, second, named, text):
    with pytest.raises(UserError, match=text):
        compose(FIRST, second, **named)


def test_sequences_cannot_be_fed(compose):
    first = "g (float[N,4] x) => (seq(float[N,K]) y) <int64[2] k = {1,3}> { y = SplitToSequence<axis = 1>(x, k) }"
    second = "h (seq(float[N,K]) y) => (int64 n) { n = SequenceLength(y) }"
    with pytest.raises(UserError, match="it is no tensor"):
        compose(first, second)


def test_metadata(operate, parse, model_file):
    first, path = parse(FIRST), model_file(SECOND, "second.onnx")
    first.metadata_props.update(author="me", task="a")
    second = onnx.load(path)
    onnx.helper.set_model_props(second, {"task": "b", "labels": "cat", "graphopt": "{}"})
    second.ir_version = 10
    onnx.save(second, path)
    model, step = operate(Compose(str(path)), first)
    assert model.metadata_props == {"author": "me", "task": "a", "labels": "cat"}
    assert step.skipped == (("metadata 'task'", "differs in the second model, and stays as in the first"),)
    assert model.ir_version == 10


def test_by_command_line(graphopt, model_file, tmp_path):
    first, second = model_file(FIRST), model_file(SECOND, "second.onnx")
    out = tmp_path / "out.onnx"
    ran = graphopt("compose", first, "--other", second, "--connect", "y=y", "-o", out, "--json")
    assert ran.code == 0, ran.err
    made = json.loads(io.load(out).metadata_props["graphopt"])
    assert made["pipeline"] == ["compose{connect=y=y}"]
    assert made["sha256"] == {"model": io.sha256([first]), "compose.other": io.sha256([second])}


def test_the_second_model_is_not_overwritten(graphopt, model_file):
    first, second = model_file(FIRST), model_file(SECOND, "second.onnx")
    before = second.read_bytes()
    ran = graphopt("compose", first, "--other", second, "-o", second)
    assert (ran.code, ran.error) == (1, f"{second}: is also the input; write to another file")
    assert second.read_bytes() == before


def test_files_that_are_none(graphopt, model_file, tmp_path):
    ran = graphopt("compose", model_file(FIRST), "--other", tmp_path / "no.onnx", "-o", tmp_path / "o.onnx")
    assert (ran.code, ran.error) == (1, f"{tmp_path / 'no.onnx'}: no such file; check the path")
    ran = graphopt("compose", model_file(FIRST), "-o", tmp_path / "o.onnx")
    assert ran.error == "compose: no second model is named; give other"


def test_external_data_of_both(graphopt, tmp_path, model_file):
    rng = np.random.default_rng(0)
    for name, source, target in (("a", "x", "y"), ("b", "y", "z")):
        folder = tmp_path / name
        folder.mkdir()
        model = onnx.load(
            model_file(
                f"g (float[N,16] {source}) => (float[N,16] {target}) <float[16,16] w> {{ {target} = MatMul({source}, w) }}"
            )
        )
        model.graph.initializer.append(onnx.numpy_helper.from_array(rng.random((16, 16), np.float32), "w"))
        onnx.save(model, folder / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    out = tmp_path / "o.onnx"
    assert graphopt("compose", tmp_path / "a/m.onnx", "--other", tmp_path / "b/m.onnx", "-o", out).code == 0
    assert len(onnx.load(out, load_external_data=False).graph.initializer[1].raw_data) == 1024
