import re

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.passes.structural.eliminate_identity import EliminateIdentity


def one(node: str, inputs: str = "float[2,3,4] x", constants: str = "", header: str = "") -> str:
    """A graph with a node that makes `t` of `x`, between two others."""
    node = re.sub(r"\bx\b", "h", node)
    return f"""{header}
    g ({inputs}) => (float[A,B,C] y) <{constants}> {{
        h = Neg(x)
        {node}
        y = Abs(t)
    }}"""


REMOVED = [
    "t = Identity(x)",
    "t = Dropout(x)",
    "t, mask = Dropout(x, ratio)",
    "t = Dropout(x, ratio, off)",
    "k = Constant<value_int = 1>() t = Cast<to = 1>(x)",
    "t = CastLike(x, x)",
    "t = Transpose<perm = [0, 1, 2]>(x)",
    "s = Constant<value_ints = [2, 3, 4]>() t = Reshape(x, s)",
    "s = Constant<value_ints = [2, -1, 4]>() t = Reshape(x, s)",
    "s = Constant<value_ints = [0, 3, -1]>() t = Reshape(x, s)",
    "s = Shape(x) t = Reshape(x, s)",
    "s = Shape(x) t = Expand(x, s)",
    "s = Constant<value_ints = [3, 1]>() t = Expand(x, s)",
    "s = Constant<value_ints = [1, 1, 1]>() t = Tile(x, s)",
    "s = Constant<value_ints = [0, 0, 0, 0, 0, 0]>() t = Pad(x, s)",
    "b = Constant<value_ints = [0]>() e = Constant<value_ints = [9223372036854775807]>() t = Slice(x, b, e)",
    "b = Constant<value_ints = [0]>() e = Constant<value_ints = [4]>() a = Constant<value_ints = [-1]>() t = Slice(x, b, e, a)",
    "t = Concat<axis = 1>(x)",
    "t = Sum(x)",
    "t = Mean(x)",
    "t = Max(x)",
    "t = Min(x)",
    "t = Split<num_outputs = 1>(x)",
    "t = Add(x, zero)",
    "t = Add(zero, x)",
    "t = Sub(x, zero)",
    "t = Mul(x, ones)",
    "t = Mul(ones, x)",
    "t = Div(x, ones)",
]
KEPT = [
    "t = Transpose<perm = [2, 1, 0]>(x)",
    "t = Transpose(x)",
    "t = Cast<to = 1>(i)",
    "s = Constant<value_ints = [3, 2, 4]>() t = Reshape(x, s)",
    "s = Constant<value_ints = [2, 12]>() r = Reshape(x, s) a = Constant<value_ints = [0]>() t = Unsqueeze(r, a)",
    "s = Constant<value_ints = [2, 1, 1, 1]>() r = Expand(x, s) a = Constant<value_ints = [0]>() t = ReduceSum<keepdims = 0>(r, a)",
    "s = Constant<value_ints = [1, 1, 2]>() t = Tile(x, s)",
    "s = Constant<value_ints = [0, 0, 1, 0, 0, 0]>() t = Pad(x, s)",
    "b = Constant<value_ints = [1]>() e = Constant<value_ints = [9223372036854775807]>() t = Slice(x, b, e)",
    "b = Constant<value_ints = [0]>() e = Constant<value_ints = [1]>() t = Slice(x, b, e)",
    "b = Constant<value_ints = [0]>() e = Constant<value_ints = [99]>() a = Constant<value_ints = [0]>() st = Constant<value_ints = [2]>() t = Slice(x, b, e, a, st)",
    "t = Concat<axis = 1>(x, x)",
    "t = Max(x, zero)",
    "t = Sub(zero, x)",
    "t = Div(ones, x)",
    "t = Add(x, ones)",
    "t = Mul(x, zero)",
    "r = Mul(x, ones4) a = Constant<value_ints = [0]>() t = Squeeze(r, a)",
]
CONSTANTS = (
    "float ratio = {0.5}, bool off = {0}, float zero = {0}, float[1,4] ones = {1, 1, 1, 1}, float[1,1,1,1] ones4 = {1}"
)


@pytest.mark.parametrize("node", REMOVED)
def test_removed(apply, ops, parse, node):
    model = parse(one(node, constants=CONSTANTS))
    result = apply(EliminateIdentity(), model)
    assert sum(result.report.values()) == 1
    assert [op for op in ops(model) if op != "Constant"] == ["Neg", "Abs"]


@pytest.mark.parametrize("node", KEPT)
def test_kept(apply, parse, node):
    text = one(node, "float[2,3,4] x, int64[2,3,4] i", CONSTANTS)
    assert not apply(EliminateIdentity(), text).modified


def test_training_dropout_is_kept(parse):
    model = parse(one("t = Dropout(x, ratio, on)", constants="float ratio = {0.5}, bool on = {1}"))
    assert not EliminateIdentity()(model).modified


def test_dropout_whose_mask_is_used_is_kept(apply):
    text = "g (float[2] x) => (float[2] y, bool[2] m) { t, m = Dropout(x) y = Neg(t) }"
    assert not apply(EliminateIdentity(), text).modified


@pytest.mark.parametrize(("attribute", "removed"), [("", False), ("<is_test = 0>", False), ("<is_test = 1>", True)])
def test_dropout_below_opset_7_trains_unless_told_otherwise(parse, attribute, removed):
    model = parse(one(f"t = Dropout{attribute}(x)", header='<ir_version: 3, opset_import: ["": 6]>'))
    assert EliminateIdentity()(model).modified == removed


@pytest.mark.parametrize(
    ("node", "removed"),
    [
        ("t = Pad<pads = [0, 0, 0, 0, 0, 0]>(x)", True),
        ("t = Pad<pads = [0, 0, 0, 0, 0, 1]>(x)", False),
        ("t = Slice<starts = [0], ends = [2147483647]>(x)", True),
        ("t = Slice<axes = [2], starts = [0], ends = [3]>(x)", False),
        ("t = Dropout(x)", True),
    ],
)
def test_older_operator_sets(apply, parse, node, removed):
    text = one(node, header='<ir_version: 8, opset_import: ["": 9]>')
    assert apply(EliminateIdentity(), text).modified == removed


@pytest.mark.parametrize(
    ("node", "removed"),
    [
        ("s = Constant<value_ints = [0, 3, 4]>() t = Reshape(x, s)", True),
        ("s = Constant<value_ints = [-1, 3, 4]>() t = Reshape(x, s)", True),
        ("s = Constant<value_ints = [0, -1, 4]>() t = Reshape(x, s)", True),
        ("s = Constant<value_ints = [-1, 4, 3]>() t = Reshape(x, s)", False),
        ("s = Constant<value_ints = [3, 3, 4]>() t = Reshape(x, s)", False),
        ("s = Constant<value_ints = [1, 3, 4]>() t = Expand(x, s)", True),
        ("s = Constant<value_ints = [3, 3, 4]>() t = Expand(x, s)", False),
        ("b = Constant<value_ints = [0]>() e = Constant<value_ints = [1000]>() t = Slice(x, b, e)", False),
    ],
)
def test_dynamic_axes(apply, node, removed):
    assert apply(EliminateIdentity(), one(node, "float[N,3,4] x")).modified == removed


def test_zero_means_zero_with_allowzero(apply, run, parse):
    model = parse(one("s = Constant<value_ints = [0, 3, 4]>() t = Reshape<allowzero = 1>(x, s)", "float[N,3,4] x"))
    assert not apply(EliminateIdentity(), model, {"x": np.zeros((0, 3, 4), np.float32)}).modified


def test_transposing_axes_of_size_one(apply, ops, parse):
    model = parse(one("t = Transpose<perm = [1, 0, 2]>(x)", "float[1,1,4] x"))
    assert apply(EliminateIdentity(), model).modified
    assert not apply(EliminateIdentity(), one("t = Transpose<perm = [1, 0, 2]>(x)", "float[1,2,4] x")).modified
    assert not apply(EliminateIdentity(), one("t = Transpose<perm = [1, 0, 2]>(x)", "float[2,2,4] x")).modified


@pytest.mark.parametrize("shape", ["Shape<start = 1>(x)", "Shape(other)"])
def test_the_shape_of_something_else(apply, shape):
    text = f"""
    g (float[1,2,6] x, float[4,3] other) => (float[A,B] y) {{
        s = {shape}
        t = Reshape(x, s)
        y = Abs(t)
    }}
    """
    assert not apply(EliminateIdentity(), text).modified


def test_addition_below_opset_7_is_left_alone(parse):
    model = parse(
        one(
            "t = Add<broadcast = 1>(x, zero)",
            constants="float zero = {0}",
            header='<ir_version: 3, opset_import: ["": 6]>',
        )
    )
    assert not EliminateIdentity()(model).modified


def test_flatten(apply):
    assert apply(
        EliminateIdentity(), "g (float[N,4] x) => (float[N,4] y) { h = Neg(x) t = Flatten(h) y = Abs(t) }"
    ).modified
    assert not apply(
        EliminateIdentity(), one("f = Flatten(x) a = Constant<value_ints = [0]>() t = Unsqueeze(f, a)")
    ).modified


def test_stale_shapes_are_not_believed(apply):
    text = """
    g (float[N,4] x) => (float[1,4] y) <float[1,4] h> {
        h = Neg(x)
        s = Constant<value_ints = [1, 4]>()
        t = Reshape(h, s)
        y = Abs(t)
    }
    """
    assert not apply(EliminateIdentity(), text, {"x": np.ones((1, 4), np.float32)}).modified


def test_types_of_function_bodies_are_unknown(apply):
    text = """<ir_version: 9, opset_import: ["": 18, "f": 1]>
    g (double[2] x, float[2] z) => (float[2] y) { y = f.f<to = 1>(x, z) }
    <domain: "f", opset_import: ["": 18]> f <to> (a, z) => (b) {
        c = Cast<to = 1>(a)
        d = Cast<to: int = @to>(c)
        e = CastLike(a, z)
        b = Add(d, e)
    }
    """
    assert not apply(EliminateIdentity(), text).modified


def test_functions(apply, ops, parse):
    model = parse("""<ir_version: 9, opset_import: ["": 18, "f": 1]>
    g (float[2] x) => (float[2] y, float[2] z) { y, z = f.f(x) }
    <domain: "f", opset_import: ["": 18]> f (a) => (b, d) { c = Identity(a) e = Neg(c) b = Identity(e) d = Identity(a) }
    """)
    result = apply(EliminateIdentity(), model)
    assert ops(model.functions["f", "f", ""].graph) == ["Neg", "Identity"]
    assert result.skipped == [
        ("Identity of 'd'", "it gives graph output 'd' its name; no node of this graph computes 'a'")
    ]


def test_an_output_takes_over_the_name(apply, ops, parse):
    model = parse("g (float[2] x) => (float[M] y, float[2] z) <float[2] a> { a = Neg(x) y = Identity(a) z = Exp(a) }")
    apply(EliminateIdentity(), model)
    assert ops(model) == ["Neg", "Exp"]
    assert [v.name for v in model.graph.outputs] == ["y", "z"]
    assert str(model.graph.outputs[0].shape) == "[M]"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = Identity(x) z = Neg(x)", "no node of this graph computes 'x'"),
        ("y = Identity(w) z = Neg(x)", "no node of this graph computes 'w'"),
        ("y = Neg(x) z = Identity(y)", "'z' and 'y' are both graph outputs"),
    ],
)
def test_an_output_that_cannot_be_renamed_is_kept(apply, body, reason):
    result = apply(
        EliminateIdentity(), f"g (float[2] x) => (float[2] y, float[2] z) <float[2] w = {{1, 2}}> {{ {body} }}"
    )
    assert not result.modified
    assert result.skipped[0][1].endswith(reason)


def test_a_branch_that_returns_an_outer_value_is_kept(apply, ops, parse):
    model = parse("""
    g (float[2] x, bool c) => (float[2] y, float[2] z) {
        a = Exp(x)
        y = If(c) <
            then_branch = t () => (float[2] p) { p = Identity(a) },
            else_branch = e () => (float[2] q) { b = Identity(a) d = Neg(b) q = Identity(d) }>
        z = Neg(a)
    }
    """)
    assert apply(EliminateIdentity(), model).report == {"Identity": 2}
    assert ops(model) == ["Exp", "If", "Identity", "Neg", "Neg"]


def test_loop_bodies(apply, ops, parse):
    model = parse("""
    g (float[2] x, int64 n, bool c) => (float[2] y) {
        y = Loop(n, c, x) <body = b (int64 i, bool go, float[2] s) => (bool on, float[2] o) {
            on = Identity(go)
            t = Identity(s)
            o = Add(t, t)
        }>
    }
    """)
    assert apply(EliminateIdentity(), model).report == {"Identity": 1}
    assert ops(model) == ["Loop", "Identity", "Add"]


def test_a_name_that_several_scopes_use_does_not_cross_them(apply, parse):
    model = parse("""
    g (float[2] x, bool c) => (float[2] y, float[2] z) {
        a = Exp(x)
        b = Identity(a)
        y = If(c) <
            then_branch = t () => (float[2] p) { k = Neg(x) p = Add(b, k) },
            else_branch = e () => (float[2] q) { q = Abs(x) }>
        z = Neg(b)
    }
    """)
    inner = next(v for node in model.graph.all_nodes() for v in node.outputs if v.name == "k")
    inner.name = "a"  # shadows: p would take it for the outer one
    result = EliminateIdentity()(model)
    assert not result.modified
    assert result.skipped == [("Identity of 'b'", "several scopes use the name 'a'")]


def test_an_output_name_that_a_subgraph_shadows_is_not_given_away(parse):
    model = parse("""
    g (float[2] x, bool c) => (float[2] y, float[2] z) {
        a = Exp(x)
        z = If(c) <
            then_branch = t () => (float[2] p) { k = Neg(x) p = Add(a, k) },
            else_branch = e () => (float[2] q) { q = Abs(x) }>
        y = Identity(a)
    }
    """)
    next(v for node in model.graph.all_nodes() for v in node.outputs if v.name == "k").name = "y"
    result = EliminateIdentity()(model)
    assert not result.modified
    assert result.skipped == [("Identity of 'y'", "several scopes use the name 'y'")]


def test_facts_move_on(parse):
    model = parse("g (float[2] x) => (float[2] y) { a = Neg(x) b = Identity(a) y = Abs(b) }")
    model.graph.node(1).outputs[0].metadata_props["graphopt.range"] = "0 1"
    EliminateIdentity()(model)
    assert model.graph.node(0).outputs[0].metadata_props == {"graphopt.range": "0 1"}


def test_sequences(apply, ops, parse):
    model = parse(
        "g (float[2] x) => (float[2] y) { s = SequenceConstruct(x, x) t = Identity(s) i = Constant<value_int = 1>() y = SequenceAt(t, i) }"
    )
    assert apply(EliminateIdentity(), model).modified
    assert "Identity" not in ops(model)


def test_custom_identity_is_unknown(parse):
    model = parse(
        '<ir_version: 9, opset_import: ["": 18, "c": 1]> g (float[2] x) => (float[2] y) { a = c.Identity(x) y = Neg(a) }'
    )
    assert not EliminateIdentity()(model).modified


def test_narrow_types(apply, parse):
    model = parse(one("t = Mul(x, k)", "float16[2] x", "float16 k = {1}").replace("float[A,B,C] y", "float16[2] y"))
    model.graph.initializers["k"].const_value = ir.tensor(np.float16(1))  # ONNX text takes {1} for its bits
    assert apply(EliminateIdentity(), model).modified
    assert model.graph.outputs[0].type == ir.TensorType(ir.DataType.FLOAT16)
