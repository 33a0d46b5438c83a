"""Transposes cancel through operators that work in any layout, and stay where their number would not fall."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt.passes.structural._transpose_cut import ONE, ZERO, Cut
from graphopt.passes.structural._transpose_layout import blocks, canonical, extend, inverse, restrict, through
from graphopt.passes.structural.merge_transposes import MergeTransposes

CONSTANTS = (
    "float[5] w = {1.0,2.0,3.0,4.0,5.0}, float[3,1,1] v = {1.0,-2.0,3.0}, float s = {0.5}, int64[1] a1 = {1}, "
    "int64[1] a2 = {2}, int64[1] last = {-1}, int64[1] one = {1}, int64[1] three = {3}, int64[2] hw = {1,2}, "
    "int64[8] pads = {0,1,2,0,0,0,1,0}, int64[2] halves = {2,3}, int64[4] rep = {1,2,1,3}, int64[2] pick = {3,0}, "
    "int64[3] joined = {0,24,5}, int64[5] split = {-1,4,2,3,5}, int64 first = {0}, float[5,2] m = {1.0,2.0,3.0,4.0,5.0,"
    "6.0,7.0,8.0,9.0,0.5}, float[5] scale = {0.1,0.2,0.3,0.1,0.2}, int8[5] zero = {0,1,2,0,1}"
)


def graph(body, inputs="float[N,5,4,6] x", outputs="float[A,B,C,D] y", opset=18):
    return f'<ir_version: 9, opset_import: ["": {opset}]> g ({inputs}) => ({outputs}) <{CONSTANTS}> {{ {body} }}'


def to_last(name):
    """Return a Transpose of x (channels second) that puts channels last."""
    return f"{name} = Transpose<perm = [0,2,3,1]>(x) "


BACK = "y = Transpose<perm = [0,3,1,2]>(z)"


@pytest.mark.parametrize(
    "body",
    [
        "z = Relu(t)",
        "z = Mul(t, w)",
        "z = Add(w, t)",
        "z = Sub(t, s)",
        "z = Add(t, t)",
        "z = Clip(t, s)",
        "z = Softmax(t)",
        "z = Softmax<axis = 1>(t)",
        "z = Concat<axis = -1>(t, t)",
        "z = Slice(t, one, three, a2)",
        "z = Slice(t, one, three)",
        "z = Pad(t, pads)",
        "p, q = Split<axis = 3>(t, halves)  z = Concat<axis = 3>(q, p)",
        "z = ReduceMean(t, hw)",
        "r = ReduceSum<keepdims = 0>(t, hw)  z = Unsqueeze(r, hw)",
        "i = ArgMax<axis = 3>(t)  z = Cast<to = 1>(i)",
        "z = Tile(t, rep)",
        "z = Gather<axis = 3>(t, pick)",
        "g = Gather<axis = 1>(t, first)  z = Unsqueeze(g, a1)",
        "z = CumSum(t, first)",
        "z, i = TopK(t, one)",
        "z = MatMul(t, m)  u = Transpose<perm = [0,2,1,3]>(t)  n = Neg(u)  o = ReduceMax<keepdims = 0>(n)",
        "u = Reshape(t, joined)  v1 = Relu(u)  z = Reshape(v1, split5)",
        "q = QuantizeLinear<axis = 3>(t, scale, zero)  z = DequantizeLinear<axis = 3>(q, scale, zero)",
        "q = QuantizeLinear(t, s)  z = DequantizeLinear(q, s)",
        "z = LayerNormalization<axis = 3>(t, w)  k = GlobalAveragePool(x)",
    ],
)
def test_a_pair_around_an_operator(apply, parse, ops, body):
    constants = CONSTANTS + ", int64[4] split5 = {-1,4,6,5}"
    text = f"g (float[N,5,4,6] x) => (float[A,B,C,D] y) <{constants}> {{ {to_last('t')} {body} {BACK} }}"
    model = parse(text)
    expected = 2 if "LayerNormalization" in body or "MatMul" in body else 0
    apply(MergeTransposes(), model, rtol=1e-5)
    assert ops(model).count("Transpose") == expected


def test_neighbours_merge(apply, parse, ops):
    model = parse(graph(to_last("t") + "u = Transpose<perm = [0,3,2,1]>(t)  y = Transpose(u)"))
    apply(MergeTransposes(), model)
    (node,) = model.graph
    assert list(node.attributes["perm"].as_ints()) == [2, 3, 1, 0]


def test_branches_of_one_layout(apply, parse, ops):
    """A residual block in another layout loses all four Transposes."""
    body = to_last("t") + "a = Relu(t)  b = Mul(t, w)  c = Add(a, b)  d = Sigmoid(c)  z = Mul(c, d)  " + BACK
    model = parse(graph(body))
    assert apply(MergeTransposes(), model).report == {"regions": 1, "removed": 2}
    assert "Transpose" not in ops(model)


def test_a_value_needed_in_both_layouts_takes_one_transpose(apply, parse, ops):
    body = to_last("t") + "a = Relu(t)  b = Neg(a)  z = Abs(a)  " + BACK
    model = parse(graph(body, outputs="float[A,B,C,D] y, float[E,F,G,H] b"))
    assert apply(MergeTransposes(), model).report["removed"] == 1
    assert ops(model).count("Transpose") == 1


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        (to_last("t") + "y = Relu(t)", "float[A,B,C,D] y"),
        (to_last("t") + "y = Relu(t)  z = Neg(t)", "float[A,B,C,D] y, float[E,F,G,H] z"),
        (to_last("t") + "z = LRN<size = 3>(t)  " + BACK, "float[A,B,C,D] y"),
        (to_last("t") + "u = Reshape(t, joined2)  y = Relu(u)", "float[A,B,C] y"),
        (to_last("t") + "k = NonZero(t)  y = Cast<to = 1>(k)", "float[A,B] y"),
    ],
)
def test_nothing_moves_for_nothing(apply, parse, body, outputs):
    constants = CONSTANTS + ", int64[3] joined2 = {0,0,30}"
    model = parse(f"g (float[N,5,4,6] x) => ({outputs}) <{constants}> {{ {body} }}")
    assert not apply(MergeTransposes(), model).modified


def test_a_shuffle_of_channels_in_the_other_layout(apply, parse, ops):
    """Reshape, Transpose, Reshape in one layout, with Transposes around: one Transpose does."""
    text = """g (float[1,6,4,5] x) => (float[1,3,4,5] y, float[1,3,4,5] z)
        <int64[5] apart = {1,4,5,2,3}, int64[4] joined = {1,4,5,6}> {
        t = Transpose<perm = [0,2,3,1]>(x)
        u = Reshape(t, apart)
        v = Transpose<perm = [0,1,2,4,3]>(u)
        w = Reshape(v, joined)
        a, b = Split<axis = 3, num_outputs = 2>(w)
        y = Transpose<perm = [0,3,1,2]>(a)
        z = Transpose<perm = [0,3,1,2]>(b)
    }"""
    model = parse(text)
    apply(MergeTransposes(), model)
    assert ops(model).count("Transpose") == 1


def test_axes_of_size_one_move_for_nothing(apply, parse, ops):
    model = parse(graph("t = Transpose<perm = [1,0,3,2]>(x)  y = Relu(t)", "float[1,N,1,6] x"))
    assert apply(MergeTransposes(), model).report == {"reshaped": 1}
    assert ops(model) == ["Reshape", "Relu"]


def test_an_unsqueeze_takes_the_transpose_in(apply, parse, ops):
    model = parse(graph("u = Unsqueeze(x, three)  y = Transpose<perm = [0,3,1,2]>(u)", "float[N,M,6] x"))
    apply(MergeTransposes(), model)
    assert ops(model) == ["Unsqueeze"]


def test_a_size_may_be_zero(apply, parse, ops):
    model = parse(graph("t = Transpose<perm = [0,2,1]>(x)  y = Relu(t)", "float[N,1,6] x", "float[A,B,C] y"))
    apply(MergeTransposes(), model, {"x": np.zeros((0, 1, 6), np.float32)})
    assert ops(model) == ["Reshape", "Relu"]


def test_a_gemm_takes_the_transpose_in(apply, parse, ops):
    model = parse(graph("t = Transpose(x)  y = Gemm(t, m)", "float[5,N] x", "float[A,B] y"))
    apply(MergeTransposes(), model, rtol=1e-5)
    assert ops(model) == ["Gemm"]


def test_a_shape_of_which_elements_are_picked(apply, parse, ops):
    body = to_last("t") + "h = Shape(t)  d = Gather(h, a2)  y = Relu(x)"
    model = parse(graph(body, outputs="float[A,B,C,D] y, int64[1] d"))
    apply(MergeTransposes(), model)
    assert "Transpose" not in ops(model)


def test_old_operator_sets(apply, parse, ops):
    body = (
        "r = ReduceMean<axes = [1,2], keepdims = 1>(t)  u = Mul(t, r)  q = Slice<starts = [1], ends = [3], axes = [3]>(u)  "
        "p = Pad<pads = [0,0,0,1,0,0,0,0]>(q)  k = Unsqueeze<axes = [1]>(p)  z = Squeeze<axes = [1]>(k)  "
    )
    model = parse(graph(to_last("t") + body + BACK, opset=9))
    apply(MergeTransposes(), model, rtol=1e-5)
    assert "Transpose" not in ops(model)


def test_graph_outputs_keep_their_names(apply, parse, ops):
    body = to_last("t") + "z = Relu(t)  " + BACK + "  q = Identity(y)"
    model = parse(graph(body, outputs="float[A,B,C,D] y, float[E,F,G,H] z, float[I,J,K,L] q"))
    apply(MergeTransposes(), model)
    assert [value.name for value in model.graph.outputs] == ["y", "z", "q"]
    assert ops(model).count("Transpose") == 1


def test_a_pair_from_an_input_to_an_output(apply, parse, ops):
    model = parse(graph(to_last("z") + BACK))
    apply(MergeTransposes(), model)
    assert ops(model) == ["Identity"]


def test_in_a_function_and_in_control_flow(apply, parse, ops):
    model = parse(
        """<ir_version: 9, opset_import: ["": 18, "local": 1]>
        g (float[2,3,4] x, bool c) => (float[A,B,C] y, float[D,E,F] z) {
            y = local.f(x)
            o = Transpose<perm = [0,2,1]>(x)
            z = If(c) <then_branch = t () => (float[G,H,I] p) {
                    a = Transpose<perm = [1,0,2]>(o)  b = Relu(a)  p = Transpose<perm = [1,0,2]>(b) },
                else_branch = e () => (float[J,K,L] q) { q = Neg(o) }>
        }
        <domain: "local", opset_import: ["": 18]>
        f (i) => (j) { t = Transpose<perm = [0,2,1]>(i)  r = Softmax<axis = 1>(t)  j = Transpose<perm = [0,2,1]>(r) }"""
    )
    assert (
        apply(MergeTransposes(), model, {"x": np.ones((2, 3, 4), np.float32), "c": np.array(True)}).report["removed"]
        == 4
    )
    (function,) = model.functions.values()
    assert [node.op_type for node in function] == ["Softmax"]
    assert ops(model).count("Transpose") == 1


def test_an_overridable_default_is_no_constant(apply, parse, ops):
    text = """g (float[2,3] x, float[3,2] k) => (float[A,B] y) <float[3,2] k = {1.0,2.0,3.0,4.0,5.0,6.0}> {
        t = Transpose(x)  u = Add(t, k)  z = Relu(u)  y = Transpose(z) }"""
    model = parse(text)
    apply(
        MergeTransposes(), model, {"x": np.ones((2, 3), np.float32), "k": np.arange(6, dtype=np.float32).reshape(3, 2)}
    )
    assert ops(model).count("Transpose") == 1
    assert next(node for node in model.graph if node.op_type == "Transpose").inputs[0].name == "k"


def test_a_large_shared_constant_is_not_copied(apply, parse):
    weights = ", ".join(["1.0"] * 1200)
    text = f"""g (float[30,40] x) => (float[A,B] y, float[C,D] o) <float[40,30] k = {{{weights}}}> {{
        t = Transpose(x)  u = Add(t, k)  y = Transpose(u)  o = Neg(k) }}"""
    model = parse(text)
    apply(MergeTransposes(), model)
    assert len(model.graph.initializers) == 1


def test_layouts():
    assert inverse((0, 2, 3, 1)) == (0, 3, 1, 2)
    assert canonical((2, 1, 0), (1, 5, 1)) == (0, 1, 2)
    assert restrict((0, 2, 3, 1), [0, 3]) == (0, 1)
    assert extend((1, 0), [0, 2], 3) == (2, 1, 0)
    pairs = blocks((2, 12, 5), (2, 3, 4, 5))
    assert pairs == [([0], [0]), ([1], [1, 2]), ([2], [3])]
    assert through((0, 2, 1), pairs) == (0, 2, 3, 1)
    assert through((0, 1, 3, 2), [(there, here) for here, there in pairs]) is None
    assert blocks((2, "n"), ("m", 2)) is None
    assert blocks(("n", 1, 6), ("n", 2, 3)) == [([0], [0]), ([1], []), ([2], [1, 2])]


def test_the_least_cut_with_the_fewest_ones():
    cut = Cut()
    one, two, three = cut.node(), cut.node(), cut.node()
    cut.arc(ONE, one, 3)
    cut.arc(one, two, 1)
    cut.arc(two, ZERO, 2)
    cut.arc(three, ZERO, 5)
    cost, labels = cut.solve()
    assert cost == 1
    assert [labels[node] for node in (one, two, three)] == [True, False, False]


@pytest.mark.parametrize("seed", range(40))
def test_random_graphs(apply, seed):
    apply(MergeTransposes(), ir.from_proto(random_model(seed)), rtol=1e-4)


def random_model(seed):
    """Return a random graph of Transposes and operators that work in any layout, of static or dynamic size."""
    rng = np.random.default_rng(seed)
    nodes, values = [], [("x", (2, 1, 3, 4)), ("k", (4, 3, 1, 2))]

    def emit(op, inputs, shape, **attributes):
        values.append((f"v{len(values)}", tuple(shape)))
        nodes.append(onnx.helper.make_node(op, inputs, [values[-1][0]], **attributes))

    for _ in range(16):
        name, shape = values[max(0, len(values) - 1 - int(rng.integers(4)))]
        rank = len(shape)
        kind = int(rng.integers(8))
        axis = int(rng.integers(rank))
        if kind < 3:
            perm = [int(a) for a in rng.permutation(rank)]
            emit("Transpose", [name], [shape[a] for a in perm], perm=perm)
        elif kind == 3:
            emit(str(rng.choice(["Relu", "Neg", "Tanh"])), [name], shape)
        elif kind == 4:
            other, _ = values[int(rng.choice([i for i, (_, s) in enumerate(values) if s == shape]))]
            emit("Add", [name, other], shape)
        elif kind == 5:
            emit("Softmax", [name], shape, axis=axis)
        elif kind == 6 and rank > 2:
            emit("ReduceMax", [name], shape[:axis] + shape[axis + 1 :], axes=[axis], keepdims=0)
        elif kind == 7 and rank < 5:
            emit("Flatten", [name], [int(np.prod(shape[:axis])), int(np.prod(shape[axis:]))], axis=axis)
    used = {name for node in nodes for name in node.input}
    info = onnx.helper.make_tensor_value_info
    outputs = [info(n, 1, [None] * len(s)) for n, s in values if n not in used and n[0] == "v"]
    inputs = [info(n, 1, [f"{n}{i}" if seed % 2 and d == 3 else d for i, d in enumerate(s)]) for n, s in values[:2]]
    graph_ = onnx.helper.make_graph(nodes, "g", inputs, outputs)
    return onnx.helper.make_model(graph_, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
