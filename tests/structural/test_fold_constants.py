import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.backend.test.loader import load_model_tests

from graphopt import compare
from graphopt.passes.structural.fold_constants import FoldConstants
from graphopt.runtime import ExecutionError


def constants(model: ir.Model) -> dict[str, list]:
    return {name: value.const_value.numpy().tolist() for name, value in model.graph.initializers.items()}


def test_a_chain_of_constants(apply, ops, parse):
    model = parse("""
    g (float[2] x) => (float[2] y) <float[2] w = {1, 2}, float[2] v = {3, 4}> {
        a = Add(w, v)
        b = Mul(a, w)
        y = Mul(x, b)
    }
    """)
    result = apply(FoldConstants(), model)
    assert result.report == {"folded": 2, "lifted": 0, "branches": 0, "bytes": -8}
    assert ops(model) == ["Mul"]
    assert constants(model) == {"b": [4, 12]}


def test_constant_nodes_become_initializers_in_all_graphs(apply, ops, parse):
    model = parse("""
    g (float[2] x, bool c) => (float[2] y) {
        k = Constant<value = float[2] {1, 2}>()
        a = Mul(x, k)
        y = If(c) <
            then_branch = t () => (float[2] p) { s = Constant<value_float = 2.0>() p = Mul(a, s) },
            else_branch = e () => (float[2] q) { i = Constant<value_ints = [1, 0]>() q = Gather(a, i) }>
    }
    """)
    assert apply(FoldConstants(), model).report["lifted"] == 3
    assert ops(model) == ["Mul", "If", "Mul", "Gather"]
    assert [list(graph.initializers) for graph in model.graphs()] == [["k"], ["s"], ["i"]]


def test_lifted_text(apply, parse):
    model = parse(
        'g (string[1] x) => (bool[1] y) { s = Constant<value_strings = ["ä", "b"]>() i = LabelOf(x, s) y = Not(i) }'
    )
    FoldConstants()(model)  # no such operator: only the lifting is looked at
    assert model.graph.initializers["s"].const_value.string_data() == ["ä".encode(), b"b"]


def test_a_folded_graph_output_stays_an_output_of_a_node(apply, ops, parse):
    model = parse("""
    g (float[2] x) => (float[2] y, float[2] z, float[2] k) <float[2] w = {1, 2}> {
        y = Neg(x)
        z = Neg(w)
        k = Constant<value = float[2] {1, 2}>()
    }
    """)
    apply(FoldConstants(), model)
    assert ops(model) == ["Neg", "Constant", "Constant"]


def test_nodes_of_subgraphs_fold_outer_constants(apply, ops, parse):
    model = parse("""
    g (float[2] x, bool c) => (float[2] y) <float[2] w = {1, 2}> {
        y = If(c) <
            then_branch = t () => (float[2] p) { a = Neg(w) p = Mul(x, a) },
            else_branch = e () => (float[2] q) { q = Neg(w) }>
    }
    """)
    assert apply(FoldConstants(), model).report["folded"] == 2
    assert ops(model) == ["If", "Mul", "Constant"]


def test_shape_of_fixed_axes_under_a_dynamic_batch(apply, ops, parse):
    model = parse("""
    g (float[N,4,6] x) => (float[M,K] y) {
        s = Shape(x)
        one = Constant<value_int = 1>()
        zero = Constant<value_ints = [0]>()
        a = Gather(s, one)
        starts = Constant<value_ints = [2]>()
        ends = Constant<value_ints = [3]>()
        b = Slice(s, starts, ends)
        u = Unsqueeze(a, zero)
        c = Mul(u, b)
        minus = Constant<value_ints = [-1]>()
        t = Concat<axis = 0>(minus, c)
        y = Reshape(x, t)
    }
    """)
    apply(FoldConstants(), model)
    assert ops(model) == ["Reshape"]
    assert constants(model) == {"t": [-1, 24]}


def test_a_dynamic_axis_is_not_folded(apply, ops, parse):
    model = parse("""
    g (float[N,4] x) => (int64[2] s, int64 n, int64 z) {
        s = Shape(x)
        zero = Constant<value_int = 0>()
        n = Gather(s, zero)
        z = Size(x)
    }
    """)
    assert apply(FoldConstants(), model).report["folded"] == 0
    assert ops(model) == ["Shape", "Gather", "Size"]


def test_unknown_sizes_are_only_moved(apply, ops, parse):
    model = parse("""
    g (float[N,4] x) => (int64[2] y, int64[2] z) <int64[2] two = {2, 2}, int64[9] table = {0, 1, 2, 3, 4, 5, 6, 7, 8}> {
        s = Shape(x)
        y = Mul(s, two)
        z = Gather(table, s)
    }
    """)
    result = apply(FoldConstants(), model)
    assert (result.modified, result.skipped) == (False, [])


def test_start_and_end_of_shape(apply, parse):
    model = parse(
        "g (float[N,4,6] x) => (int64[1] a, int64[2] b) { a = Shape<start = -2, end = -1>(x) b = Shape<start = 1, end = 9>(x) }"
    )
    assert apply(FoldConstants(), model).report["folded"] == 2


def test_stale_declarations_of_inner_shapes_are_not_believed(apply, ops, parse):
    model = parse("g (float[N,4] x) => (int64[2] s) <float[1,4] traced> { traced = Exp(x) s = Shape(traced) }")
    apply(FoldConstants(), model)
    assert ops(model) == ["Exp", "Shape"]


def test_overridable_initializers_are_not_constant(apply, run, parse):
    model = parse("""
    g (float[2,2] x, int64[2] s, float[2] w) => (float[A,B] y, float[2] z) <int64[2] s = {2, 2}, float[2] w = {1, 2}> {
        y = Reshape(x, s)
        z = Neg(w)
    }
    """)
    assert not apply(FoldConstants(), model).modified
    assert run(model, {"x": np.ones((2, 2), np.float32), "s": np.int64([4, 1])})["y"].shape == (4, 1)


def test_shapes_that_overridable_initializers_decide_are_not_known(apply, parse):
    text = """
    g (float[2,2] x, int64[2] s) => (int64[2] y) <int64[2] s = {2, 2}> { r = Reshape(x, s) y = Shape(r) }
    """
    assert not apply(FoldConstants(), text).modified


def test_the_model_may_not_grow(apply, ops, parse):
    ones = ", ".join(["1"] * 100)
    model = parse(f"""
    g (float[100,100] x) => (float[100,100] y) <float[1,100] w = {{{ones}}}> {{
        shape = Constant<value_ints = [100, 100]>()
        a = Expand(w, shape)
        y = Add(x, a)
    }}
    """)
    growth = 100 * 100 * 4 - 100 * 4 - 2 * 8
    assert apply(FoldConstants(max_growth=1024), model).skipped == [
        ("Expand of 'a'", f"folding it would enlarge the model by {growth} bytes, over max_growth=1024")
    ]
    assert ops(model) == ["Expand", "Add"]
    assert not apply(FoldConstants(max_growth=growth - 1), model).modified
    assert apply(FoldConstants(max_growth=growth), model).report["bytes"] == growth
    assert ops(model) == ["Add"]


def test_a_weight_that_others_use_is_not_doubled(apply, ops, parse):
    text = """
    g (float[2,500] x, float[500,3] z) => (float[2,3] y, float[3,3] u) <float[3,500] w = {VALUES}> {
        t = Transpose(w)
        y = MatMul(x, t)
        u = MatMul(w, z)
    }
    """.replace("VALUES", ",".join(["0.5"] * 1500))
    model = parse(text)
    assert "6000 bytes" in apply(FoldConstants(max_growth=1024), model).skipped[0][1]
    single = parse(text.replace("u = MatMul(w, z)", "u = MatMul(z, z)").replace("[500,3] z", "[3,3] z"))
    assert apply(FoldConstants(), single).report["bytes"] == 0
    assert ops(single) == ["MatMul", "MatMul"]


def test_size_is_checked_before_anything_is_computed(parse):
    model = parse("""
    g (float[2] x) => (float[N] y) <int64[1] n = {1000000000000}> { a = ConstantOfShape(n) y = Concat<axis = 0>(x, a) }
    """)
    assert f"{4 * 10**12 - 8} bytes" in FoldConstants()(model).skipped[0][1]


def test_quantization_stays(apply, ops, parse):
    model = parse("""
    g (float[2] x) => (float[2] y) <float[2] w = {1, 2}, float s = {0.1}, int8 z = {0}> {
        q = QuantizeLinear(w, s, z)
        d = DequantizeLinear(q, s, z)
        y = Add(x, d)
    }
    """)
    result = apply(FoldConstants(), model)
    assert not result.modified
    assert result.skipped == [("QuantizeLinear of 'q'", "it tells the runtime to compute in integers")]


def test_4_bit_weights_stay_packed(parse):
    model = parse(
        '<ir_version: 10, opset_import: ["": 21]> g (int8[2] x) => (int8[2] y) <int8[2] w = {1, 2}> { a = Cast<to = 3>(w) y = Add(x, a) }'
    )
    tensor = ir.tensor(np.array([1, 2], dtype=ir.DataType.INT4.numpy()), name="w")
    model.graph.initializers["w"].const_value = tensor
    model.graph.initializers["w"].type = ir.TensorType(ir.DataType.INT4)
    result = FoldConstants()(model)
    assert not result.modified
    assert "below 8 bits" in result.skipped[0][1]


@pytest.mark.parametrize(
    "nodes",
    [
        "r = Bernoulli(p)",
        "r = RandomNormalLike(p)",
        "r = Dropout(p, ratio, training)",
        "i = Multinomial(m) r = Cast<to = 1>(i)",
    ],
)
def test_random_operators_stay(parse, nodes):
    model = parse(f"""
    g (float[2] x) => (float[A] y)
        <float[2] p = {{0.5, 0.5}}, float ratio = {{0.5}}, bool training = {{1}}, float[1,2] m = {{0.5, 0.5}}> {{
        {nodes}
        y = Add(x, r)
    }}
    """)
    result = FoldConstants()(model)
    assert not result.modified
    assert [reason for _, reason in result.skipped] == ["it draws random numbers"]


def test_what_the_evaluator_cannot_be_trusted_with_stays(apply, ops, parse):
    model = parse(
        '<ir_version: 8, opset_import: ["": 11]> g (float[1,2,2] x) => (float[1,2,2] y) <float[1,2,2] w = {1, 2, 3, 4}> { s = Softmax(w) y = Add(x, s) }'
    )
    result = apply(FoldConstants(), model)
    assert ops(model) == ["Softmax", "Add"]
    assert result.skipped == [("Softmax of 's'", "no evaluator is known to compute Softmax like ONNX Runtime")]


def test_an_operator_that_fails_is_left_with_the_reason(parse):
    model = parse(
        "g (float[2] x) => (float[N] y) <float[2] w = {1, 2}, int64[1] i = {7}> { a = Gather(w, i) y = Add(x, a) }"
    )
    result = FoldConstants()(model)
    assert not result.modified
    assert result.skipped[0][0] == "Gather of 'a'"
    assert result.skipped[0][1].startswith("the reference evaluator cannot compute it")


def test_unknown_domains_and_missing_imports(parse):
    model = parse("""<ir_version: 9, opset_import: ["": 18]>
    g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { a = strange.Neg(w) y = Add(x, a) }
    """)
    result = FoldConstants()(model)
    assert not result.modified
    assert result.skipped == [("Neg of 'a'", "no evaluator is known to compute Neg like ONNX Runtime")]


def test_several_outputs(apply, ops, parse):
    model = parse("""
    g (float[2] x) => (float[2] y) <float[4] w = {1, 2, 3, 4}> {
        a, b = Split<num_outputs = 2>(w)
        c = Add(x, a)
        y = Add(c, b)
    }
    """)
    assert apply(FoldConstants(), model).report["folded"] == 1
    assert constants(model) == {"a": [1, 2], "b": [3, 4]}


@pytest.mark.parametrize(
    ("type_", "values"),
    [
        ("float16", "1, 2"),
        ("double", "1, 2"),
        ("bfloat16", "1, 2"),
        ("int32", "1, 2"),
        ("uint8", "1, 2"),
        ("bool", "1, 0"),
    ],
)
def test_element_types(apply, parse, type_, values):
    op = "Not" if type_ == "bool" else "Identity"
    model = parse(f"""
    g (float[2] x) => ({type_}[2] y) <{type_}[2] w = {{{values}}}> {{
        a = {op}(w)
        k = Cast<to = 7>(a)
        d = Cast<to = 1>(k)
        e = Add(x, d)
        y = CastLike(e, a)
    }}
    """)
    if type_ == "bfloat16":
        assert FoldConstants()(model).report["folded"] == 3
    else:
        assert apply(FoldConstants(), model).report["folded"] == 3


def test_constants_of_functions_stay_nodes(apply, ops, parse):
    model = parse("""<ir_version: 9, opset_import: ["": 18, "f": 1]>
    g (float[2] x) => (float[2] y) { y = f.f(x) }
    <domain: "f", opset_import: ["": 18]>
    f (a) => (b) { k = Constant<value = float[2] {1, 2}>() m = Neg(k) b = Mul(a, m) }
    """)
    assert apply(FoldConstants(), model).report["folded"] == 1
    assert ops(model.functions["f", "f", ""].graph) == ["Constant", "Mul"]


def test_attributes_that_callers_set_are_not_folded(apply, parse):
    text = """<ir_version: 9, opset_import: ["": 18, "f": 1]>
    g (float[2,3] x) => (float[2,3] y, int64[1] z) { y, z = f.f<p = [0, 1], s = 1>(x) }
    <domain: "f", opset_import: ["": 18]>
    f <p, s> (a) => (b, c) { k = Constant<value = float[2,3] {1,2,3,4,5,6}>() t = Transpose<perm: ints = @p>(k) b = Mul(a, t) c = Shape<start: int = @s>(k) }
    """
    result = apply(FoldConstants(), text)
    assert not result.modified
    assert {reason for _, reason in result.skipped} == {"the caller of its function sets some of its attributes"}


def test_functions_of_another_opset_are_left_alone(parse):
    model = parse("""<ir_version: 9, opset_import: ["": 18, "f": 1]>
    g (float[2] x) => (float[2] y) { y = f.f(x) }
    <domain: "f", opset_import: ["": 9]> f (a) => (b) { k = Constant<value = float[2] {1, 2}>() m = Neg(k) b = Mul(a, m) }
    """)
    assert not FoldConstants()(model).modified


IF = """
g (float[2] x) => (float[2] y, float[2] z) <bool c = {CONDITION}, float[2] v = {1, 1}> {
    [n] a = Exp(x)
    y, z = If(c) <
        then_branch = t () => (float[2] p, float[2] a2) <float[2] w = {5, 5}> { [n] d = Add(a, w) p = Neg(d) a2 = Identity(a) },
        else_branch = e () => (float[2] q, float[2] k) <float[2] k = {7, 7}> { [n] d = Mul(a, a) q = Abs(d) }>
    w = Neg(y)
    unused = Add(w, v)
}
"""


@pytest.mark.parametrize(
    ("condition", "expected"), [(1, ["Exp", "Add", "Neg", "Identity"]), (0, ["Exp", "Mul", "Abs", "Constant"])]
)
def test_if_with_a_constant_condition(apply, ops, parse, condition, expected):
    model = parse(IF.replace("CONDITION", str(condition)))
    assert apply(FoldConstants(), model).report["branches"] == 1
    assert ops(model)[:4] == expected
    named = [node.name for node in model.graph if node.name]
    assert len(named) == len(set(named))


def test_a_condition_that_becomes_constant(apply, ops, parse):
    model = parse("""
    g (float[N,4] x) => (float[N,4] y) <int64 four = {4}, int64 one = {1}> {
        s = Shape(x)
        n = Gather(s, one)
        c = Equal(n, four)
        y = If(c) <
            then_branch = t () => (float[N,4] p) {
                p = If(c) <then_branch = tt () => (float[N,4] r) { r = Neg(x) }, else_branch = ee () => (float[N,4] u) { u = Exp(x) }>
            },
            else_branch = e () => (float[N,4] q) { q = Abs(x) }>
    }
    """)
    assert apply(FoldConstants(), model).report["branches"] == 2
    assert ops(model) == ["Neg"]


def test_loop_bodies(apply, ops, parse):
    model = parse("""
    g (float[2] x, int64 n, bool c) => (float[2] y) <float[2] w = {1, 2}> {
        y = Loop(n, c, x) <body = b (int64 i, bool go, float[2] s) => (bool on, float[2] o) {
            on = Identity(go)
            k = Neg(w)
            o = Add(s, k)
        }>
    }
    """)
    assert (
        apply(FoldConstants(), model, {"x": np.float32([1, 2]), "n": np.array(3), "c": np.array(True)}).report["folded"]
        == 1
    )
    assert ops(model) == ["Loop", "Identity", "Add"]


def test_ir_version_rises_for_initializers_that_are_not_inputs(apply, parse):
    model = parse(
        '<ir_version: 3, opset_import: ["": 9]> g (float[2] x) => (float[2] y) { k = Constant<value = float[2] {1, 2}>() y = Mul(x, k) }'
    )
    apply(FoldConstants(), model)
    assert model.ir_version == 4


def test_facts_survive(parse):
    model = parse("g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { a = Neg(w) y = Mul(x, a) }")
    model.graph.node(0).outputs[0].metadata_props["graphopt.range"] = "-2 -1"
    FoldConstants()(model)
    assert model.graph.initializers["a"].metadata_props == {"graphopt.range": "-2 -1"}


def test_a_node_with_another_output_in_use_stays(apply, ops, parse):
    model = parse("""
    g (float[4,4] x) => (float[A,4] y) { a, b = Split<num_outputs = 2>(x) s = Shape(a) z = Reshape(b, s) y = Neg(z) }
    """)
    apply(FoldConstants(), model)
    assert ops(model) == ["Split", "Reshape", "Neg"]


def test_the_branch_not_taken_uses_nothing_any_more(parse):
    inner = (
        "If(k) <then_branch = tt () => (float[2] r) { r = Neg(a) }, else_branch = ee () => (float[2] u) { u = Exp(a) }>"
    )
    model = parse(f"""
    g (float[2] x, bool k) => (float[2] y) <bool c = {{1}}> {{
        a = Neg(x)
        y = If(c) <
            then_branch = t () => (float[2] p) {{ p = Abs(a) }},
            else_branch = e () => (float[2] q) {{ q = {inner} }}>
    }}
    """)
    FoldConstants()(model)
    assert [user.op_type for user in model.graph.node(0).outputs[0].consumers()] == ["Abs"]


def test_what_only_fed_a_folded_node_goes_with_it(apply, ops, parse):
    model = parse(
        "g (float[3,4] x) => (int64[2] y) <int64[2] k = {1, 1}> { a = Exp(x) b = Relu(a) s = Shape(b) y = Mul(s, k) }"
    )
    apply(FoldConstants(), model)
    assert ops(model) == ["Constant"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_evaluator_agrees_with_onnxruntime(run):
    """Fold ONNX's own operator tests, with their inputs as constants."""
    folded = 0
    for case in load_model_tests(kind="node"):
        proto = onnx.ModelProto()
        proto.CopyFrom(case.model)
        if not all(value.type.HasField("tensor_type") for value in proto.graph.input) or "affine_grid" in case.name:
            continue  # affine_grid gives Range tensors of rank 1, which ONNX Runtime refuses when they are constant
        for value, array in zip(proto.graph.input, case.data_sets[0][0], strict=False):
            tensor = proto.graph.initializer.add()
            tensor.CopyFrom(
                array if isinstance(array, onnx.TensorProto) else onnx.numpy_helper.from_array(np.asarray(array))
            )
            tensor.name = value.name
        del proto.graph.input[:]
        model = ir.from_proto(proto)
        try:
            expected = run(model, {})
        except ExecutionError:
            continue
        if FoldConstants(max_growth=1 << 30)(model).report["folded"]:
            folded += 1
            assert compare.first_mismatch(expected, run(model, {}), 1e-5) is None, case.name
    assert folded > 500
