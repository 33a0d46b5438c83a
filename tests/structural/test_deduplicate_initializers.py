import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from graphopt.passes.structural.deduplicate_initializers import DeduplicateInitializers


def sums(arrays: list[ir.TensorProtocol]) -> ir.Model:
    """A model that adds initializers w0, w1, ... to its input, after a cast."""
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=[2])
    nodes, initializers, value = [], [], x
    for i, tensor in enumerate(arrays):
        tensor.name = f"w{i}"
        initializers.append(ir.val(f"w{i}", dtype=tensor.dtype, shape=tensor.shape, const_value=tensor))
        nodes.append(ir.node("Cast", [initializers[-1]], {"to": ir.DataType.FLOAT}))
        nodes.append(ir.node("Add", [value, nodes[-1].outputs[0]]))
        value = nodes[-1].outputs[0]
    value.name, value.type, value.shape = "y", ir.TensorType(ir.DataType.FLOAT), ir.Shape([2])
    graph = ir.Graph([x], [value], nodes=nodes, initializers=initializers, opset_imports={"": 21}, name="g")
    return ir.Model(graph, ir_version=10)


def test_equal_initializers_merge(apply, parse):
    model = parse("""
    g (float[2] x) => (float[2] y) <float[2] u = {1, 2}, float[2] v = {1, 2}, float[2] w = {2, 1}, float[1,2] z = {1, 2}> {
        a = Mul(x, u)
        b = Add(a, v)
        c = Add(b, w)
        d = Add(c, z)
        e = Sub(d, v)
        s = Constant<value_ints = [2]>()
        y = Reshape(e, s)
    }
    """)
    assert apply(DeduplicateInitializers(), model).report == {"merged": 1, "bytes": 8}
    assert list(model.graph.initializers) == ["u", "w", "z"]


@pytest.mark.parametrize(
    "dtype",
    [np.float16, np.float64, np.int8, np.int64, np.bool_, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.int4],
)
def test_element_types(apply, dtype):
    model = sums(
        [ir.tensor(np.array([1, 0], dtype)), ir.tensor(np.array([1, 0], dtype)), ir.tensor(np.array([0, 1], dtype))]
    )
    assert apply(DeduplicateInitializers(), model).report["merged"] == 1


def test_equal_bytes_of_different_types_differ(apply):
    model = sums([ir.tensor(np.array(v, t)) for v in ([0, 0], [1, 0]) for t in (np.int32, np.float32, np.uint32)])
    assert not apply(DeduplicateInitializers(), model).modified


def test_zeros_of_both_signs_differ(apply):
    assert not apply(
        DeduplicateInitializers(), sums([ir.tensor(np.float32([0, 0])), ir.tensor(np.float32([-0.0, 0]))])
    ).modified


def test_arrays_that_are_not_contiguous(apply):
    square = np.arange(4, dtype=np.float32).reshape(2, 2)
    model = sums([ir.Tensor(square[:, 0]), ir.tensor(np.float32([0, 2]))])
    assert apply(DeduplicateInitializers(), model).report["merged"] == 1


def test_text(apply, parse):
    text = """
    g (string[2] x) => (bool[2] y, bool[2] z, bool[2] u) <string[2] a = {"p","q"}, string[2] b = {"p","q"}, string[2] c = {"pq",""}> {
        y = Equal(x, a)
        z = Equal(x, b)
        u = Equal(x, c)
    }
    """
    model = parse('<ir_version: 9, opset_import: ["": 19]>' + text)
    result = DeduplicateInitializers()(model)  # ONNX Runtime compares no text
    assert result.report["merged"] == 1
    assert list(model.graph.initializers) == ["a", "c"]


def test_defaults_and_outputs_stay(apply, parse):
    model = parse("""
    g (float[2] x, float[2] u) => (float[2] y, float[2] w) <float[2] u = {1, 2}, float[2] v = {1, 2}, float[2] w = {1, 2}> {
        a = Mul(x, u)
        b = Add(a, v)
        y = Add(b, w)
    }
    """)
    assert not apply(DeduplicateInitializers(), model).modified


BRANCHES = """
g (float[2] x, bool c) => (float[2] y) <float[2] w = {1, 2}> {
    a = Mul(x, w)
    y = If(c) <
        then_branch = t () => (float[2] p) <float[2] u = {1, 2}, float[2] k = {3, 4}> { d = Mul(a, u) p = Add(d, k) },
        else_branch = e () => (float[2] q) <float[2] v = {1, 2}, float[2] l = {3, 4}> { f = Mul(a, v) q = Sub(f, l) }>
}
"""


@pytest.mark.parametrize("condition", [True, False])
def test_subgraphs_use_what_is_around_them(apply, parse, condition):
    model = parse(BRANCHES)
    feeds = {"x": np.float32([1, 2]), "c": np.array(condition)}
    assert apply(DeduplicateInitializers(), model, feeds).report["merged"] == 2  # k and l see each other not
    assert [list(graph.initializers) for graph in model.graphs()] == [["w"], ["k"], ["l"]]


def test_a_name_that_a_subgraph_shadows_is_not_used_there(parse):
    model = parse(BRANCHES)
    inner = next(v for node in model.graph.all_nodes() for v in node.outputs if v.name == "d")
    inner.name = "w"
    result = DeduplicateInitializers()(model)
    assert not result.modified
    assert [name for name, _ in result.skipped] == ["u", "v"]
    assert "several scopes" in result.skipped[0][1]


def test_only_candidates_are_read(parse):
    class Unreadable(ir.Tensor):
        def numpy(self):
            raise AssertionError("read although nothing has its type and shape")

    model = parse(
        "g (float[2] x) => (float[2] y) <float[2] u = {1, 2}, float[1] v = {1}> { a = Mul(x, u) y = Add(a, v) }"
    )
    model.graph.initializers["u"].const_value = Unreadable(np.float32([1, 2]), name="u")
    assert not DeduplicateInitializers()(model).modified


def test_constant_nodes_merge_with_each_other_and_with_initializers(apply, parse, ops):
    model = parse("""
    g (float[2] x, bool c) => (float[2] y) <float[2] w = {1, 2}> {
        a = Constant<value = float[2] {1, 2}>()
        b = Constant<value_floats = [3.0, 4.0]>()
        d = Mul(x, a)
        e = Mul(d, b)
        f = Mul(e, w)
        y = If(c) <
            then_branch = t () => (float[2] p) { g = Constant<value = float[2] {3, 4}>() p = Add(f, g) },
            else_branch = e () => (float[2] q) { h = Constant<value = float[2] {5, 6}>() q = Add(f, h) }>
    }
    """)
    feeds = {"x": np.float32([1, 2]), "c": np.array(True)}
    assert apply(DeduplicateInitializers(), model, feeds).report == {"merged": 2, "bytes": 16}
    assert ops(model).count("Constant") == 2
    assert list(model.graph.initializers) == ["w"]


def test_constant_nodes_of_functions(apply, parse, ops):
    model = parse("""<ir_version: 9, opset_import: ["": 18, "f": 1]>
    g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { a = f.f(x) y = Mul(a, w) }
    <domain: "f", opset_import: ["": 18]> f (a) => (b) {
        k = Constant<value = float[2] {1, 2}>()
        c = Mul(a, k)
        l = Constant<value = float[2] {1, 2}>()
        b = Mul(c, l)
    }""")
    assert apply(DeduplicateInitializers(), model).report["merged"] == 1
    assert ops(next(iter(model.functions.values())).graph) == ["Constant", "Mul", "Mul"]


def test_a_constant_node_that_is_an_output_stays(apply, parse):
    model = parse("""
    g (float[2] x) => (float[2] y, float[2] k) {
        k = Constant<value = float[2] {1, 2}>()
        l = Constant<value = float[2] {1, 2}>()
        y = Mul(x, l)
    }""")
    assert not apply(DeduplicateInitializers(), model).modified
