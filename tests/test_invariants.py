"""The checks on the graph alone reach subgraphs and functions, and accept what ONNX accepts."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from graphopt import invariants

TEXT = """<ir_version: 9, opset_import: ["": 18, "local": 1]>
g (float[N] x, bool c) => (float[N] y, float[N] a) <float[1] w = {2.0}> {
    a = local.f(x)
    y = If(c) <then_branch = t () => (float[N] p) {
                   [inner] h = Add(a, w)
                   p = If(c) <then_branch = tt () => (float[N] r) { r = Mul(h, w) },
                              else_branch = ee () => (float[N] u) { u = Neg(a) }>
               },
               else_branch = e () => (float[N] q) <float[1] v = {3.0}> { q = Clip(a, , v) }>
}
<domain: "local", opset_import: ["": 18]>
f (i) => (o) { j = Relu(i)  o = Abs(j) }
"""


@pytest.fixture
def models(parse):
    return parse(TEXT), parse(TEXT)


def branch(model, name):
    return model.graph.node(1).attributes[name].as_graph()


def test_what_onnx_accepts_is_accepted(models):
    assert invariants.violation(*models) is None


def test_an_undefined_value_in_a_subgraph(models):
    before, after = models
    branch(after, "then_branch").node(0).replace_input_with(1, ir.Value(name="nowhere"))
    assert invariants.violation(before, after) == "node 'inner' uses 'nowhere' before it is defined"


def test_a_value_of_another_branch_is_not_visible(models):
    before, after = models
    hidden = branch(after, "then_branch").node(0).outputs[0]
    branch(after, "else_branch").node(0).replace_input_with(0, hidden)
    assert "uses 'h' before it is defined" in invariants.violation(before, after)


def test_an_undefined_value_in_a_function(models):
    before, after = models
    (function,) = after.functions.values()
    function.graph.node(1).replace_input_with(0, ir.Value(name="nowhere"))
    assert "uses 'nowhere' before it is defined" in invariants.violation(before, after)


def test_a_subgraph_that_does_not_compute_its_output(models):
    before, after = models
    branch(after, "then_branch").outputs[0] = ir.Value(name="gone")
    assert invariants.violation(before, after) == "output 'gone' is not computed"


def test_a_value_in_a_subgraph_named_like_an_outer_one(models):
    before, after = models
    branch(after, "then_branch").node(0).outputs[0].name = "a"
    assert invariants.violation(before, after) == "value 'a' is defined twice"


def test_a_private_operator_in_a_function(models):
    before, after = models
    (function,) = after.functions.values()
    function.graph.node(0).domain = "acme"
    assert invariants.violation(before, after) == "operators of private domain 'acme' appeared"


def test_a_private_operator_that_was_there_before_may_stay(models):
    before, after = models
    for model in models:
        model.opset_imports["acme"] = 1
        branch(model, "then_branch").node(0).domain = "acme"
    assert invariants.violation(before, after) is None


def test_contrib_operators_of_onnxruntime_may_appear(models):
    before, after = models
    after.opset_imports["com.microsoft"] = 1
    branch(after, "else_branch").node(0).domain = "com.microsoft"
    assert invariants.violation(before, after) is None


def test_a_type_that_changed(models):
    before, after = models
    after.graph.outputs[0].type = ir.TensorType(ir.DataType.DOUBLE)
    assert invariants.violation(before, after).startswith("outputs changed from ['y:FLOAT', 'a:FLOAT'] to ['y:DOUBLE'")
