"""Loops that run a known number of times are written out, with the same results and no more operators than asked for."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.passes.structural.unroll_loops import UnrollLoops

WEIGHTS = (
    "int64 none = {0}, int64 one = {1}, int64 three = {3}, int64[1] two = {2}, int64 many = {9223372036854775807}, "
    "bool yes = {1}, bool no = {0}, float[4] w = {1.0,2.0,3.0,4.0}"
)


def graph(body, inputs="float[N,4] x", outputs="float[N,4] y", opset=18):
    return f'<ir_version: 9, opset_import: ["": {opset}]> g ({inputs}) => ({outputs}) <{WEIGHTS}> {{ {body} }}'


def loop(count, condition, on="on = Identity(go)"):
    return (
        f"k = Mul(x, w)  y, s = Loop({count}, {condition}, x) <body = b (int64 i, bool go, float[N,4] a) =>"
        f" (bool on, float[N,4] o, float[N,4] scan) {{ {on}  z = Add(a, k)  o = Tanh(z)  f = Cast<to = 1>(i)  scan = Mul(o, f) }}>"
    )


BOTH = "float[N,4] y, float[T,N,4] s"


@pytest.mark.parametrize("count", ["one", "three", "two"])
def test_written_out(apply, parse, ops, count):
    model = parse(graph(loop(count, "yes"), outputs=BOTH))
    assert apply(UnrollLoops(max_growth=100), model).report == {"unrolled": 1}
    trips = {"one": 1, "two": 2, "three": 3}[count]
    assert "Loop" not in ops(model)
    assert ops(model).count("Tanh") == trips
    assert "Identity" not in ops(model), "the condition is not computed"


def test_once_by_default(apply, parse, ops):
    model = parse(graph(loop("one", "yes"), outputs=BOTH))
    before = len(ops(model))
    assert apply(UnrollLoops(), model).modified
    assert len(ops(model)) <= before


def test_the_limit(apply, parse):
    result = apply(UnrollLoops(), parse(graph(loop("three", "yes"), outputs=BOTH)))
    assert not result.modified
    assert result.skipped == [("Loop of 'y'", "its 3 iterations would take 10 operators more; see max_growth")]
    assert apply(UnrollLoops(max_growth=10), parse(graph(loop("three", "yes"), outputs=BOTH))).modified


@pytest.mark.parametrize(("count", "condition"), [("none", "yes"), ("three", "no"), ("many", "no")])
def test_never(apply, parse, ops, count, condition):
    text = graph(loop(count, condition).replace("N", "2"), "float[2,4] x", "float[2,4] y, float[T,2,4] s")
    model = parse(text)
    assert apply(UnrollLoops(), model).report == {"unrolled": 1}
    assert "Loop" not in ops(model)


def test_never_with_a_scan_output_of_unknown_shape(apply, parse):
    result = apply(UnrollLoops(), parse(graph(loop("none", "yes"), outputs=BOTH)))
    assert result.skipped[0][1] == "it never runs, and the shape of an empty scan output is not known"


@pytest.mark.parametrize(
    ("on", "trips"),
    [
        ("on = Constant<value = bool {1}>()", 3),
        ("on = Constant<value = bool {0}>()", 1),
        ("c = Identity(go)  on = Identity(c)", 3),
    ],
)
def test_constant_conditions(apply, parse, ops, on, trips):
    model = parse(graph(loop("three", "yes", on), outputs=BOTH))
    assert apply(UnrollLoops(max_growth=100), model).modified
    assert ops(model).count("Tanh") == trips


def test_do_once_without_a_count(apply, parse, ops):
    model = parse(graph(loop("", "yes", "on = Constant<value = bool {0}>()"), outputs=BOTH))
    assert apply(UnrollLoops(), model).modified
    assert ops(model).count("Tanh") == 1


def test_a_condition_that_cannot_matter(apply, parse, ops):
    text = loop("one", "yes", "r = ReduceSum<keepdims = 0>(a)  m = Cast<to = 9>(r)  on = Not(m)")
    model = parse(graph(text, outputs=BOTH))
    assert apply(UnrollLoops(), model).modified
    assert "Not" not in ops(model)


@pytest.mark.parametrize(
    ("text", "inputs", "reason"),
    [
        (loop("n", "yes"), "float[N,4] x, int64 n", "its trip count is not constant"),
        (loop("three", "c"), "float[N,4] x, bool c", "its condition is not constant"),
        (loop("three", "yes", "r = ReduceSum<keepdims = 0>(a)  on = Cast<to = 9>(r)"), "float[N,4] x",
         "its body computes whether to go on"),
        (loop("three", "yes"), "float[N,4] x, int64 three", "its trip count is not constant"),
    ],
)  # fmt: skip
def test_what_stays(apply, parse, text, inputs, reason):
    result = apply(UnrollLoops(max_growth=1000), parse(graph(text, inputs, BOTH)))
    assert not result.modified
    assert result.skipped[0][1] == reason


def test_no_end(parse):
    result = UnrollLoops(max_growth=1000)(parse(graph(loop("", "yes"), outputs=BOTH)))
    assert not result.modified
    assert result.skipped[0][1] == "it has no end"


def test_carried_values_that_pass_through_and_change_places(apply, parse, ops):
    text = (
        "z = Neg(x)  p, q, r = Loop(three, , x, z, w) <body = b (int64 i, bool go, float[N,4] a, float[N,4] c, float[4] v)"
        " => (bool go, float[N,4] c, float[N,4] d, float[4] v) { d = Sub(a, v) }>  t = Add(p, q)  y = Mul(t, r)"
    )
    model = parse(graph(text))
    assert apply(UnrollLoops(max_growth=10), model).modified
    assert ops(model) == ["Neg", "Sub", "Sub", "Sub", "Add", "Mul"]


def test_results_that_are_outputs_twice(apply, parse, ops):
    text = "y, z = Loop(one, yes, x, x) <body = b (int64 i, bool go, float[N,4] a, float[N,4] c) => (bool go, float[N,4] d, float[N,4] d) { d = Sub(a, c) }>"
    model = parse(graph(text, outputs="float[N,4] y, float[N,4] z"))
    assert apply(UnrollLoops(), model).modified
    assert ops(model) == ["Sub", "Identity"]


def test_initial_values_that_are_inputs_become_outputs(apply, parse, ops):
    text = "y = Loop(none, yes, x) <body = b (int64 i, bool go, float[N,4] a) => (bool go, float[N,4] d) { e = Neg(a)  d = Abs(e) }>"
    model = parse(graph(text))
    assert apply(UnrollLoops(), model).modified
    assert ops(model) == ["Identity"]


def test_weights_of_the_body_are_stored_once(apply, parse):
    text = (
        "y = Loop(three, yes, x) <body = b (int64 i, bool go, float[N,4] a) => (bool go, float[N,4] d)"
        " <float[4] w = {4.0,3.0,2.0,1.0}> { d = Mul(a, w) }>"
    )
    model = parse(graph(text))
    assert apply(UnrollLoops(max_growth=10), model).modified
    assert sum(value.shape == [4] for value in model.graph.initializers.values()) == 2


def test_nested_loops(apply, parse, ops):
    text = (
        "y = Loop(two, yes, x) <body = b (int64 i, bool go, float[N,4] a) => (bool go, float[N,4] d) {"
        " e = Loop(three, go, a) <body = c (int64 j, bool on, float[N,4] f) => (bool on, float[N,4] h) {"
        "  h = Add(f, a) }>  d = Mul(e, w) }>"
    )
    model = parse(graph(text))
    assert apply(UnrollLoops(max_growth=1000), model, rtol=1e-5).report == {"unrolled": 3}
    assert ops(model).count("Add") == 6


def test_a_branch_inside_a_body(apply, parse, ops):
    text = (
        "y = Loop(three, yes, x) <body = b (int64 i, bool go, float[N,4] a) => (bool go, float[N,4] d) {"
        " l = Less(i, one)  d = If(l) <then_branch = t () => (float[N,4] p) { q = Neg(a)  p = Mul(q, w) },"
        " else_branch = e () => (float[N,4] r) { r = Add(a, w) }> }>"
    )
    model = parse(graph(text))
    assert apply(UnrollLoops(max_growth=1000), model).modified
    assert ops(model).count("If") == 3
    assert ops(model).count("Neg") == 3


def test_a_loop_inside_a_branch(apply, parse, ops):
    text = (
        "k = Abs(x)  y = If(c) <then_branch = t () => (float[N,4] p) {"
        " p = Loop(one, yes, x) <body = b (int64 i, bool go, float[N,4] a) => (bool go, float[N,4] d) { d = Mul(a, k) }> },"
        " else_branch = e () => (float[N,4] r) { r = Neg(k) }>"
    )
    model = parse(graph(text, "float[N,4] x, bool c"))
    assert apply(UnrollLoops(), model).modified
    assert ops(model) == ["Abs", "If", "Mul", "Neg"]


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize(
    "options",
    [
        "",
        "scan_input_directions = [1], ",
        "scan_output_directions = [1], ",
        "scan_input_axes = [1], ",
        "scan_output_axes = [-1], ",
    ],
)
def test_scan(apply, parse, ops, options, opset):
    text = (
        f"y, s = Scan<num_scan_inputs = 1, {options}body = b (float[3] a, float[3] e) => (float[3] o, float[3] p)"
        " { o = Add(a, e)  p = Mul(o, e) }>(z, x)"
    )
    model = parse(graph(text, "float[3] z, float[3,3] x", "float[3] y, float[3,3] s", opset))
    assert apply(UnrollLoops(max_growth=100), model).report == {"unrolled": 1}
    assert "Scan" not in ops(model)


def test_scan_of_varying_length(apply, parse):
    text = "y = Scan<num_scan_inputs = 1, body = b (float[3] a, float[3] e) => (float[3] o) { o = Add(a, e) }>(z, x)"
    result = apply(UnrollLoops(max_growth=100), parse(graph(text, "float[3] z, float[T,3] x", "float[3] y")))
    assert result.skipped[0][1] == "how long the scanned axis is varies"


def test_a_result_that_nothing_uses(apply, parse, ops):
    model = parse(graph(loop("one", "yes")))
    assert apply(UnrollLoops(), model).modified
    assert ops(model) == ["Mul", "Add", "Tanh"]


def test_from_the_command_line(graphopt, model_file, tmp_path):
    path = model_file(graph(loop("three", "yes"), outputs=BOTH))
    ran = graphopt("unroll-loops", path, "-o", tmp_path / "out.onnx", "--max-growth", 20, "--json")
    assert ran.code == 0, ran.err
    assert all(node.op_type != "Loop" for node in ir.load(tmp_path / "out.onnx").graph)


def test_numbers_of_iterations(run, parse):
    model = parse(graph(loop("three", "yes"), outputs=BOTH))
    UnrollLoops(max_growth=100)(model)
    feeds = {"x": np.ones((2, 4), np.float32)}
    assert not run(model, feeds)["s"][0].any(), "the first iteration is number 0"
