"""Slices of slices become one, where no axis is cut twice."""

from __future__ import annotations

import pytest

from graphopt.passes.structural.merge_slices import MergeSlices

BOUNDS = (
    "int64[1] a0 = {0}, int64[1] a1 = {1}, int64[1] last = {-1}, int64[1] s0 = {0}, int64[1] s1 = {1}, "
    "int64[1] end = {9223372036854775807}, int64[1] two = {2}"
)


def graph(body, inputs="float[N,6,8] x", outputs="float[A,B,C] y"):
    return f"g ({inputs}) => ({outputs}) <{BOUNDS}> {{ {body} }}"


def test_two_axes(apply, parse, ops):
    model = parse(graph("t = Slice(x, s1, end, a1, two)  y = Slice(t, s0, two, last)"))
    result = apply(MergeSlices(), model)
    assert result.report == {"merged": 1}
    assert ops(model).count("Slice") == 1


def test_a_chain_becomes_one(apply, parse, ops):
    model = parse(graph("t = Slice(x, s1, end, a0)  u = Slice(t, s1, end, a1, two)  y = Slice(u, s0, two, last)"))
    assert apply(MergeSlices(), model).report == {"merged": 2}
    assert ops(model).count("Slice") == 1


def test_without_axes_and_steps(apply, parse, ops):
    model = parse(graph("t = Slice(x, s1, two)  y = Slice(t, s1, two, a1)"))
    assert apply(MergeSlices(), model).modified
    assert ops(model).count("Slice") == 1


@pytest.mark.parametrize(
    ("body", "inputs", "outputs", "reason"),
    [
        ("t = Slice(x, s1, end, a1)  y = Slice(t, s0, two, a1)", "float[N,6,8] x", "float[A,B,C] y", "both cut the same axis"),
        ("t = Slice(x, s1, end, last)  y = Slice(t, s0, two, last)", "float[N,6,8] x", "float[A,B,C] y", "both cut the same"),
        ("t = Slice(x, s1, end, a1)  y = Slice(t, s0, two, a0)  z = Neg(t)", "float[N,6,8] x",
         "float[A,B,C] y, float[D,E,F] z", "is used elsewhere too"),
        ("t = Slice(x, s1, end, a1)  y = Slice(t, s0, two, a0)", "float[N,6,8] x", "float[A,B,C] y, float[D,E,F] t",
         "is used elsewhere too"),
        ("t = Slice(x, s1, end, a1)  y = Slice(t, k, two, a0)", "float[N,6,8] x, int64[1] k", "float[A,B,C] y", "not constants"),
        ("t = Slice(x, s1, end, a1)  y = Slice(t, s0, two, k)", "float[N,6,8] x, int64[1] k", "float[A,B,C] y", "not constants"),
    ],
)  # fmt: skip
def test_what_stays(apply, parse, body, inputs, outputs, reason):
    result = apply(MergeSlices(), parse(graph(body, inputs, outputs)))
    assert not result.modified
    assert reason in result.skipped[0][1]


def test_in_a_function(apply, parse, ops):
    model = parse(
        '<ir_version: 9, opset_import: ["": 18, "local": 1]> g (float[N,6,8] x) => (float[A,B,C] y) { y = local.f(x) } '
        '<domain: "local", opset_import: ["": 18]> f (x) => (y) { '
        "s = Constant<value = int64[1] {1}>() e = Constant<value = int64[1] {5}>() a = Constant<value = int64[1] {2}>() "
        "t = Slice(x, s, e, s) y = Slice(t, s, e, a) }"
    )
    assert apply(MergeSlices(), model).report == {"merged": 1}


def test_no_node_is_added(apply, parse):
    model = parse(graph("t = Slice(x, s1, end, a1, two)  y = Slice(t, s0, two, last)"))
    apply(MergeSlices(), model)
    assert model.graph.num_nodes() == 1
