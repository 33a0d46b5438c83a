"""Values that a file defines twice get names of their own, and every use finds the definition it meant."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from graphopt import io, runtime, target

X = np.array([1.0, -2.0, 3.0], np.float32)


def compute(path, **feeds):
    """Load the file and run it on ONNX Runtime, which refuses duplicate definitions; return all outputs in order."""
    model = io.load(path)
    return list(runtime.open_session(model, target.find("cpu")).run(feeds or {"x": X}).values())


def renamed(path):
    return io.load(path).meta[io.RENAMED]


def test_a_valid_model_is_left_alone(model_file):
    path = model_file("g (float[N] x) => (float[N] y) { a = Neg(x) y = Abs(a) }")
    assert renamed(path) == []


def test_a_graph_output_named_like_an_inner_value(model_file):
    """What PyTorch's exporter writes: the last definition is the output."""
    path = model_file("g (float[N] x) => (float[N] y) { y = Neg(x) b = Abs(y) y = Add(b, y) }")
    with pytest.raises(Exception, match="Duplicate definition of name"):
        onnxruntime.InferenceSession(path)
    (y,) = compute(path)
    np.testing.assert_array_equal(y, np.abs(-X) + -X)
    assert renamed(path) == [("y", "y_1")]
    assert [v.name for v in io.load(path).graph.outputs] == ["y"]


def test_uses_refer_to_the_definition_last_seen(model_file):
    path = model_file(
        """g (float[N] x) => (float[N] p, float[N] q, float[N] r, float[N] v) {
            v = Neg(x)
            p = Identity(v)
            v = Abs(v)
            q = Identity(v)
            v = Exp(v)
            r = Identity(v)
        }"""
    )
    p, q, r, v = compute(path)
    np.testing.assert_array_equal(p, -X)
    np.testing.assert_array_equal(q, np.abs(X))
    np.testing.assert_allclose(r, np.exp(np.abs(X)), rtol=1e-6)
    np.testing.assert_array_equal(v, r)
    assert [old for old, _ in renamed(path)] == ["v", "v"]


def test_fresh_names_avoid_what_is_taken(model_file):
    path = model_file("g (float[N] x) => (float[N] y) { y_1 = Neg(x) y = Abs(x) z = Add(y, y_1) y = Exp(z) }")
    np.testing.assert_allclose(compute(path)[0], np.exp(np.abs(X) - X), rtol=1e-6)
    assert renamed(path) == [("y", "y_2")]


def test_several_names_are_defined_twice(model_file):
    path = model_file(
        """g (float[N] x) => (float[N] a, float[N] b) {
            a = Neg(x)   b = Abs(a)   a = Exp(b)   b = Sub(a, b)
        }"""
    )
    a, b = compute(path)
    np.testing.assert_allclose(a, np.exp(np.abs(X)), rtol=1e-6)
    np.testing.assert_allclose(b, np.exp(np.abs(X)) - np.abs(X), rtol=1e-6)


def test_a_value_named_like_an_input(model_file):
    path = model_file("g (float[N] x) => (float[N] y) { a = Neg(x) x = Abs(a) y = Sub(x, a) }")
    np.testing.assert_array_equal(compute(path)[0], np.abs(X) + X)


def test_an_output_named_like_an_input(model_file):
    """The interface cannot keep both: the input keeps its name, the output gets another."""
    path = model_file("g (float[N] x) => (float[N] x) { a = Neg(x) x = Abs(a) }")
    np.testing.assert_array_equal(compute(path)[0], np.abs(X))
    assert [v.name for v in io.load(path).graph.inputs] == ["x"]
    assert [v.name for v in io.load(path).graph.outputs] == ["x_1"]


def test_a_value_named_like_an_initializer(model_file):
    path = model_file("g (float[N] x) => (float[N] y) <float[1] w = {5.0}> { a = Add(x, w) w = Neg(a) y = Mul(w, w) }")
    np.testing.assert_array_equal(compute(path)[0], (X + 5) ** 2)
    (initializer,) = io.load(path).graph.initializers.values()
    assert initializer.name == "w"


def test_declared_shapes_of_ambiguous_names_are_dropped(model_file):
    """A value_info for a name that meant two values describes at most one of them."""
    path = model_file("g (float[N,3] x) => (float[N] y) { y = Neg(x) s = Abs(y) y = ReduceSum<keepdims = 0>(s, k) }")
    model = onnx.load(path)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "k"))
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N"]))
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("s", onnx.TensorProto.FLOAT, ["N", 3]))
    onnx.save(model, path)
    np.testing.assert_array_equal(compute(path, x=np.ones((2, 3), np.float32))[0], [3, 3])


IF = """g (float[N] x, bool c) => (float[N] y, float[N] z) {
    v = Neg(x)
    y = If(c) <then_branch = t () => (float[N] p) { p = Identity(v) },
               else_branch = e () => (float[N] q) { q = Abs(v) }>
    v = Exp(x)
    z = Identity(v)
}"""


@pytest.mark.parametrize("condition", [True, False])
def test_a_subgraph_sees_the_definition_before_its_node(model_file, condition):
    y, z = compute(model_file(IF), x=X, c=np.array(condition))
    np.testing.assert_array_equal(y, -X if condition else np.abs(X))
    np.testing.assert_allclose(z, np.exp(X), rtol=1e-6)


@pytest.mark.parametrize("condition", [True, False])
def test_a_subgraph_that_sees_the_last_definition(model_file, condition):
    path = model_file(
        """g (float[N] x, bool c) => (float[N] y) {
            v = Neg(x)
            v = Exp(v)
            y = If(c) <then_branch = t () => (float[N] p) { p = Identity(v) },
                       else_branch = e () => (float[N] q) { q = Neg(v) }>
        }"""
    )
    expected = np.exp(-X) if condition else -np.exp(-X)
    np.testing.assert_allclose(compute(path, x=X, c=np.array(condition))[0], expected, rtol=1e-6)


def test_duplicates_inside_a_subgraph(model_file):
    path = model_file(
        """g (float[N] x, bool c) => (float[N] y) {
            y = If(c) <then_branch = t () => (float[N] p) { p = Neg(x) r = Abs(p) p = Add(r, p) },
                       else_branch = e () => (float[N] q) { q = Abs(x) }>
        }"""
    )
    np.testing.assert_array_equal(compute(path, x=X, c=np.array(True))[0], np.abs(X) - X)


def test_a_subgraphs_own_value_hides_the_outer_one(model_file):
    """`y` inside the branch is the branch's own, whatever became of the two outer ones."""
    path = model_file(
        """g (float[N] x, bool c) => (float[N] y) {
            z = If(c) <then_branch = t () => (float[N] y) { y = Neg(x) },
                       else_branch = e () => (float[N] q) { q = Abs(x) }>
            y = Exp(z)
            y = Neg(y)
        }"""
    )
    np.testing.assert_allclose(compute(path, x=X, c=np.array(True))[0], -np.exp(-X), rtol=1e-6)


def test_a_fresh_name_is_not_captured_by_a_subgraph(model_file):
    """The branch has a `v_1` of its own, so the outer `v` must not become `v_1`."""
    path = model_file(
        """g (float[N] x, bool c) => (float[N] v) {
            v = Neg(x)
            w = If(c) <then_branch = t () => (float[N] p) { v_1 = Exp(x) p = Add(v, v_1) },
                       else_branch = e () => (float[N] q) { q = Identity(v) }>
            v = Abs(w)
        }"""
    )
    np.testing.assert_allclose(compute(path, x=X, c=np.array(True))[0], np.abs(np.exp(X) - X), rtol=1e-6)


def test_a_fresh_name_in_a_subgraph_does_not_hide_an_outer_value(model_file):
    """The branch defines `p` twice; its first must not become `p_1`, which is the outer value it reads deeper down."""
    path = model_file(
        """g (float[N] x, bool c) => (float[N] y) {
            p_1 = Exp(x)
            y = If(c) <then_branch = t () => (float[N] p) {
                           p = Neg(x)
                           r = If(c) <then_branch = tt () => (float[N] s) { s = Add(p, p_1) },
                                      else_branch = ee () => (float[N] u) { u = Identity(p) }>
                           p = Abs(r)
                       },
                       else_branch = e () => (float[N] q) { q = Abs(x) }>
        }"""
    )
    np.testing.assert_allclose(compute(path, x=X, c=np.array(True))[0], np.abs(np.exp(X) - X), rtol=1e-6)


def test_a_loop_body_sees_the_right_definition(model_file):
    path = model_file(
        """g (float[N] x) => (float[N] v) <int64 n = {3}, bool yes = {1}> {
            v = Neg(x)
            s = Loop(n, yes, x) <body = b (int64 i, bool go, float[N] a) => (bool on, float[N] o) {
                on = Identity(go)
                o = Add(a, v)
            }>
            v = Abs(s)
        }"""
    )
    np.testing.assert_array_equal(compute(path)[0], np.abs(X - 3 * X))


def test_the_same_file_gives_the_same_names(model_file):
    path = model_file(
        """g (float[N] x) => (float[N] a) {
            a = Neg(x) b = Neg(a) c = Neg(b) d = Neg(c) a_1 = Neg(d)
            d = Abs(a_1) c = Abs(d) b = Abs(c) a_1 = Abs(b) a = Abs(a_1)
        }"""
    )
    first = renamed(path)
    assert len(first) == 5
    assert len({new for _, new in first}) == 5
    for _ in range(5):
        assert renamed(path) == first
