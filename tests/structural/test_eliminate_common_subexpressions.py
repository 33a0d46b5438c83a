import numpy as np
import pytest

from graphopt.passes.structural.eliminate_common_subexpressions import EliminateCommonSubexpressions as Cse


def test_equal_nodes_merge_transitively(apply, ops, parse):
    model = parse("""
    g (float[2] x) => (float[2] y) {
        a = Neg(x)
        b = Neg(x)
        c = Exp(a)
        d = Exp(b)
        y = Add(c, d)
    }
    """)
    assert apply(Cse(), model).report == {"merged": 2}
    assert ops(model) == ["Neg", "Exp", "Add"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("LeakyRelu<alpha = 0.5>(x)", "LeakyRelu<alpha = 0.25>(x)"),
        ("Elu<alpha = 0.0>(x)", "Elu<alpha = -0.0>(x)"),
        ("Sub(x, w)", "Sub(w, x)"),
        ("Clip(x, zero)", "Clip(x, , zero)"),
        ("Constant<value = float[2] {1, 2}>()", "Constant<value = float[2] {1, 3}>()"),
        ("Constant<value = float[2] {0, 0}>()", "Cast<to = 1>(i)"),
        ("Neg(x)", "Abs(x)"),
    ],
)
def test_different_nodes_stay(apply, first, second):
    text = f"""
    g (float[2] x) => (float[2] y) <float[2] w = {{1, 2}}, float zero = {{0}}, int32[2] i = {{0, 0}}> {{
        a = {first}
        b = {second}
        y = Add(a, b)
    }}
    """
    assert not apply(Cse(), text).modified


@pytest.mark.parametrize(
    "node",
    [
        "LeakyRelu<alpha = 0.5>(x)",
        "Transpose<perm = [0]>(x)",
        "Constant<value = float[2] {1, 2}>()",
        "Clip(x, zero)",
        "QuickGelu(x)",
    ],
)
def test_attributes_and_constants_are_compared_by_value(apply, node):
    node = node.replace("QuickGelu", "Relu")
    text = f"g (float[2] x) => (float[2] y) <float zero = {{0}}> {{ a = {node} b = {node} c = Neg(a) y = Add(c, b) }}"
    assert apply(Cse(), text).report == {"merged": 1}


def test_a_left_out_trailing_input_is_the_same_as_none(apply, parse):
    model = parse(
        "g (float[2] x) => (float[2] y) <float zero = {0}> { a = Clip(x, zero) b = Clip(x, zero) y = Add(a, b) }"
    )
    model.graph.node(1).resize_inputs(3)
    assert apply(Cse(), model).modified


@pytest.mark.parametrize(
    "node",
    [
        "Bernoulli(x)",
        "RandomNormalLike(x)",
        "RandomUniform<shape = [2]>()",
        "Dropout(x, half, on)",
        "f.f(x)",
        "f.nested(x)",
    ],
)
def test_random_nodes_stay(parse, node):
    model = parse(f"""<ir_version: 9, opset_import: ["": 18, "f": 1]>
    g (float[2] x) => (float[2] y) <float half = {{0.5}}, bool on = {{1}}> {{ a = {node} b = {node} y = Add(a, b) }}
    <domain: "f", opset_import: ["": 18]> f (a) => (b) {{ b = RandomNormalLike(a) }}
    <domain: "f", opset_import: ["": 18, "f": 1]> nested (a) => (b) {{ c = Neg(a) b = f.f(c) }}
    """)
    assert not Cse()(model).modified


def test_unknown_operators_stay(parse):
    model = parse(
        '<ir_version: 9, opset_import: ["": 18, "c": 1]> g (float[2] x) => (float[2] y) { a = c.Op(x) b = c.Op(x) y = Add(a, b) }'
    )
    assert not Cse()(model).modified


def test_control_flow_stays_and_its_bodies_are_cleaned(apply, ops, parse):
    branch = "If(c) <then_branch = t () => (float[2] p) { a1 = Neg(x) a2 = Neg(x) p = Add(a1, a2) }, else_branch = e () => (float[2] q) { q = Abs(x) }>"
    model = parse(
        f"g (float[2] x, bool c) => (float[2] y) {{ a = {branch} b = {branch.replace('a1', 'b1').replace('a2', 'b2')} y = Add(a, b) }}"
    )
    assert apply(Cse(), model).report == {"merged": 2}
    assert ops(model).count("If") == 2


def test_a_subgraph_reads_what_is_computed_before_it(apply, ops, parse):
    model = parse("""
    g (float[2] x, int64 n, bool c) => (float[2] y) {
        k = Neg(x)
        l = Abs(k)
        y = Loop(n, c, l) <body = b (int64 i, bool go, float[2] s) => (bool on, float[2] o) {
            on = Identity(go)
            k2 = Neg(x)
            l2 = Abs(k2)
            o = Add(s, l2)
        }>
    }
    """)
    assert apply(Cse(), model, {"x": np.float32([1, 2]), "n": np.array(3), "c": np.array(True)}).report == {"merged": 2}
    assert ops(model) == ["Neg", "Abs", "Loop", "Identity", "Add"]


def test_branches_do_not_see_each_other(apply):
    text = """
    g (float[2] x, bool c) => (float[2] y) {
        b = If(c) <
            then_branch = t () => (float[2] p) { a = Neg(x) p = Exp(a) },
            else_branch = e () => (float[2] q) { a2 = Neg(x) q = Abs(a2) }>
        d = Neg(x)
        y = Add(b, d)
    }
    """
    assert not apply(Cse(), text).modified


def test_a_branch_output_equal_to_an_outer_value_becomes_its_identity(apply, ops, parse):
    model = parse("""
    g (float[2] x, bool c) => (float[2] y, float[2] z) {
        z = Neg(x)
        y = If(c) <then_branch = t () => (float[2] p) { p = Neg(x) }, else_branch = e () => (float[2] q) { q = Abs(x) }>
    }
    """)
    assert apply(Cse(), model).modified
    assert ops(model) == ["Neg", "If", "Identity", "Abs"]


@pytest.mark.parametrize("outputs", ["y", "z"])
def test_the_kept_node_takes_the_name_of_an_output(apply, ops, parse, outputs):
    model = parse(f"g (float[2] x) => (float[M] {outputs}, float[2] u) {{ y = Neg(x) z = Neg(x) u = Add(y, z) }}")
    apply(Cse(), model)
    assert ops(model) == ["Neg", "Add"]
    assert [v.name for v in model.graph.outputs] == [outputs, "u"]


def test_two_equal_outputs_both_stay(apply, ops, parse):
    model = parse("g (float[2] x) => (float[2] y, float[2] z, float[2] u) { y = Neg(x) z = Neg(x) u = Exp(z) }")
    assert apply(Cse(), model).report == {"merged": 1}
    assert ops(model) == ["Neg", "Identity", "Exp"]


def test_two_identities_that_are_outputs_stay(apply):
    assert not apply(Cse(), "g (float[2] x) => (float[2] y, float[2] z) { y = Identity(x) z = Identity(x) }").modified


def test_optional_outputs_that_one_node_leaves_out(apply, ops, parse):
    model = parse("""
    g (float[2,1,2] x) => (float[1,1,1] p, float[2,1,1,1] q)
        <float[1,4,2] w = {1, 1, 1, 1, 1, 1, 1, 1}, float[1,4,1] r = {1, 1, 1, 1}> {
        "", h = LSTM<hidden_size = 1>(x, w, r)
        y, "" = LSTM<hidden_size = 1>(x, w, r)
        p = Neg(h)
        q = Neg(y)
    }
    """)
    assert not apply(Cse(), model).modified


def test_another_number_of_outputs(apply):
    text = """
    g (float[2,1,2] x) => (float[1,1,1] p, float[2,1,1,1] q)
        <float[1,4,2] w = {1, 1, 1, 1, 1, 1, 1, 1}, float[1,4,1] r = {1, 1, 1, 1}> {
        y = LSTM<hidden_size = 1>(x, w, r)
        y2, h = LSTM<hidden_size = 1>(x, w, r)
        p = Neg(h)
        q = Neg(y)
    }
    """
    assert not apply(Cse(), text).modified


def test_functions(apply, ops, parse):
    model = parse("""<ir_version: 9, opset_import: ["": 18, "f": 1]>
    g (float[2,3] x) => (float[2,3] y) { a = f.f<p = 1, q = 6>(x) b = f.f<p = 1, q = 6>(x) y = Add(a, b) }
    <domain: "f", opset_import: ["": 18]> f <p, q> (a) => (b) {
        n = Neg(a)
        m = Neg(a)
        c = Cast<to: int = @p>(n)
        d = Cast<to: int = @q>(m)
        e = Cast<to = 1>(d)
        b = Add(c, e)
    }
    """)
    assert apply(Cse(), model).report == {"merged": 2}
    assert ops(model) == ["f", "Add"]
    assert ops(model.functions["f", "f", ""].graph) == ["Neg", "Cast", "Cast", "Cast", "Add"]


def test_equal_parameters_of_functions_merge(apply, ops, parse):
    model = parse("""<ir_version: 9, opset_import: ["": 18, "f": 1]>
    g (float[2] x) => (float[2] y) { y = f.f<p = 6>(x) }
    <domain: "f", opset_import: ["": 18]> f <p> (a) => (b) {
        c = Cast<to: int = @p>(a)
        d = Cast<to: int = @p>(a)
        e = Add(c, d)
        b = Cast<to = 1>(e)
    }
    """)
    assert apply(Cse(), model).report == {"merged": 1}


def test_a_name_that_a_subgraph_shadows_is_not_used_there(parse):
    model = parse("""
    g (float[2] x, bool c) => (float[2] y, float[2] z) {
        a = Neg(x)
        z = Exp(a)
        y = If(c) <
            then_branch = t () => (float[2] p) { k = Abs(x) b = Neg(x) p = Add(b, k) },
            else_branch = e () => (float[2] q) { q = Abs(x) }>
    }
    """)
    next(v for node in model.graph.all_nodes() for v in node.outputs if v.name == "k").name = "a"
    result = Cse()(model)
    assert not result.modified
    assert result.skipped[0][0] == "Neg of 'b'"
    assert "several scopes use the name 'a'" in result.skipped[0][1]
