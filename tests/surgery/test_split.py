import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import graphopt as package
from graphopt import cutting, io, runtime, splitting, target
from graphopt.errors import UsageError, UserError

GRAPH = """
g (float[N,4] x, float[N,4] u) => (float[N,3] y, float[N,4] early, float[N,3] late)
<float[4,3] w = {1,-2,3,0.5,1.5,-1,2,0.1,0.2,-0.3,0.4,1}, float[4] k = {1,2,3,4}> {
    a = Relu(x)
    s = Mul(a, k)
    early = Neg(s)
    b = MatMul(s, w)
    c = Mul(a, u)
    d = Mul(c, k)
    e = MatMul(d, w)
    y = Add(b, e)
    late = Exp(y)
}
"""


@pytest.fixture
def cut(model_file, tmp_path):
    def run(text, *tensors, **options):
        return splitting.split(model_file(text), tensors, tmp_path / "head.onnx", tmp_path / "tail.onnx", **options)

    return run


def run(path, feeds):
    model = io.load(path)
    names = [port.name for port in runtime.model_inputs(model)]
    return runtime.open_session(model, target.find("cpu")).run({name: feeds[name] for name in names})


def test_everything_that_crosses_is_handed_over(cut, tmp_path, model_file):
    done = cut(GRAPH, "b")
    assert done.handed_over == ["a", "s", "b"]
    assert (done.head.inputs, done.head.outputs, done.head.nodes) == (["x"], ["a", "s", "b"], 3)
    assert (done.tail.inputs, done.tail.outputs, done.tail.nodes) == (["a", "s", "b", "u"], ["y", "early", "late"], 6)
    assert done.runs > 1
    rng = np.random.default_rng(1)
    feeds = {name: rng.standard_normal((5, 4)).astype(np.float32) for name in ("x", "u")}
    middle = run(tmp_path / "head.onnx", feeds)
    for name, expected in run(model_file(GRAPH), feeds).items():
        np.testing.assert_allclose(run(tmp_path / "tail.onnx", {**feeds, **middle})[name], expected, rtol=1e-5)
    for path, size in (("head.onnx", done.head.bytes), ("tail.onnx", done.tail.bytes)):
        onnx.checker.check_model(tmp_path / path, full_check=True)
        assert (tmp_path / path).stat().st_size == size
    head = io.load(tmp_path / "head.onnx")
    assert [str(value.shape) for value in head.graph.outputs] == ["[N,4]", "[N,4]", "[N,3]"]
    made = json.loads(head.metadata_props["graphopt"])
    assert made["pipeline"] == ["extract{inputs=x outputs=a,s,b}"]
    assert made["sha256"] == {"model": io.sha256([model_file(GRAPH)])}


def test_outputs_of_the_head_are_its_own(cut):
    done = cut(GRAPH, "early")
    assert done.head.outputs == ["a", "s", "early"]
    assert done.tail.outputs == ["y", "late"]


def test_at_several_tensors(cut):
    done = cut(GRAPH, "b", "d")
    assert done.handed_over == ["s", "b", "d"]
    assert done.head.inputs == ["x", "u"]
    assert done.tail.inputs == ["s", "b", "d"]


def test_an_output_that_the_tail_goes_on_with(cut):
    done = cut(GRAPH, "early", "y")
    assert (done.head.outputs, done.tail.inputs, done.tail.outputs) == (["y", "early"], ["y"], ["late"])


def test_constants_are_in_both(cut):
    done = cut("""g (float[2] x) => (float[2] y) {
        c = Constant<value_floats = [1.0, 2.0]>()
        a = Mul(x, c)
        b = Exp(a)
        y = Mul(b, c)
    }""", "a")  # fmt: skip
    assert done.handed_over == ["a"]
    assert (done.head.nodes, done.tail.nodes) == (2, 3)


def test_what_bodies_read_crosses(cut):
    done = cut("""g (float[2] x, bool c, float[2] k) => (float[2] y) <float[2] k = {1,2}> {
        a = Exp(x)
        b = Neg(a)
        y = If(c) < then_branch = t () => (float[2] p) { p = Mul(a, k) },
                    else_branch = e () => (float[2] q) { q = Abs(b) }>
    }""", "b")  # fmt: skip
    assert done.handed_over == ["a", "b"]
    assert done.tail.inputs == ["a", "b", "c"]


def test_defaults_stay_defaults(cut, tmp_path):
    cut("""g (float[2] x, float[2] k) => (float[2] y) <float[2] k = {1,2}> {
        a = Mul(x, k)
        b = Exp(a)
        y = Add(b, k)
    }""", "b")  # fmt: skip
    for name in ("head.onnx", "tail.onnx"):
        graph = io.load(tmp_path / name).graph
        assert graph.initializers["k"] in graph.inputs


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        (["bb"], "no node computes a tensor 'bb'; did you mean 'b'?"),
        (["x"], "no head would be left before 'x'"),
        (["k"], "no head would be left before 'k'"),
        (["late", "early"], "nothing is left for the tail after late, early"),
        (["c", "d"], "the tail would not read 'c'; leave it out"),
    ],
)
def test_where_it_cannot_be_cut(cut, tmp_path, tensors, text):
    with pytest.raises(UserError, match=text.replace("?", r"\?")):
        cut(GRAPH, *tensors)
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_a_rank_that_is_unknown_is_told(graphopt, model_file, tmp_path):
    path = model_file("""<ir_version: 9, opset_import: ["": 18, "com.microsoft": 1]>
    g (float[N,1,4,4] x) => (float[N,1,4,4] y) <float[1,1,1,1] w = {2}> {
        a = com.microsoft.FusedConv<activation = "Relu">(x, w)
        b = Exp(a)
        y = Neg(b)
    }""")
    ran = graphopt("split", path, "b", "--head", tmp_path / "h.onnx", "--tail", tmp_path / "t.onnx")
    assert (ran.code, ran.err) == (0, "")
    assert "b: its rank is unknown" in ran.out


def test_sequences_do_not_cross(cut):
    with pytest.raises(UserError, match="split: 's' is no tensor, and cannot be fed"):
        cut("""g (float[N,4] x) => (float[N,2] z) <int64 first = {0}, int64[2] h = {2,2}> {
            s = SplitToSequence<axis = 1>(x, h)  z = SequenceAt(s, first)
        }""", "s")  # fmt: skip


def test_parts_that_compute_something_else(graphopt, model_file, tmp_path, monkeypatch):
    right = cutting.extract

    def wrong(model, inputs, outputs):
        right(model, inputs, outputs)
        weight = model.graph.initializers["k"]
        weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(1.01), name="k")

    monkeypatch.setattr(cutting, "extract", wrong)
    ran = graphopt("split", model_file(GRAPH), "b", "--head", tmp_path / "h.onnx", "--tail", tmp_path / "t.onnx")
    assert ran.code == 3
    assert "output 'y': largest error" in ran.error
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]
    files = ("--head", tmp_path / "h.onnx", "--tail", tmp_path / "t.onnx")
    assert graphopt("split", model_file(GRAPH), "b", *files, "--rtol", 1).code == 0


def test_both_files_or_none(graphopt, model_file, tmp_path):
    """The tail's folder is missing: the head that was there stays."""
    (tmp_path / "h.onnx").write_bytes(b"before")
    path = model_file(GRAPH)
    ran = graphopt("split", path, "b", "--head", tmp_path / "h.onnx", "--tail", tmp_path / "no" / "t.onnx")
    assert (ran.code, "does not exist" in ran.error) == (1, True)
    assert (tmp_path / "h.onnx").read_bytes() == b"before"


def test_a_failure_in_the_last_moment(tmp_path, parse, monkeypatch):
    model = parse("g (float[2] x) => (float[2] y) { y = Neg(x) }")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, last = tmp_path / "a" / "m.onnx", tmp_path / "b" / "m.onnx"
    first.write_bytes(b"before")
    replace = io.os.replace

    def fail(source, destination):
        if destination == last:
            raise OSError(28, "No space left on device")
        replace(source, destination)

    monkeypatch.setattr(io.os, "replace", fail)
    with pytest.raises(UserError, match="No space left"):
        io.save_all({first: model, last: model})
    assert first.read_bytes() == b"before"
    assert not last.exists()
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["m.onnx"]


def test_paths(cut, model_file, tmp_path):
    path = model_file(GRAPH)
    with pytest.raises(UsageError, match="head and tail are both"):
        package.split(path, ["b"], tmp_path / "o.onnx", tmp_path / "o.onnx")
    with pytest.raises(UserError, match="is also the input"):
        package.split(path, ["b"], tmp_path / "o.onnx", path)


def test_by_command_line(graphopt, model_file, tmp_path):
    path, head, tail = model_file(GRAPH), tmp_path / "h.onnx", tmp_path / "t.onnx"
    ran = graphopt("split", path, "b", "--head", head, "--tail", tail)
    assert (ran.code, ran.err) == (0, "")
    assert f"{head}: 3 nodes" in ran.out
    assert "x -> a, s, b" in ran.out
    assert "handed over, too: a, s" in ran.out
    record = graphopt("split", path, "b", "--head", head, "--tail", tail, "--json").json
    assert record["handed_over"] == ["a", "s", "b"]
    assert record["head"]["path"] == str(head)
    ran = graphopt("compose", head, "--other", tail, "-o", tmp_path / "whole.onnx")
    assert ran.code == 0, ran.err
    again = graphopt("validate", tmp_path / "whole.onnx", "--reference", path)
    assert again.code == 0, again.out
