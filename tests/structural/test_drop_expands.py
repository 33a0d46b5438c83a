"""Expands go where users broadcast, and stay where the result would shrink."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.passes.structural.drop_expands import DropExpands

CONSTANTS = (
    "int64[3] s = {2,3,4}, int64[3] r = {1,3,1}, int64[3] twice = {1,3,2}, float c = {2.0}, float[2,3,4] full = {"
    + ", ".join(f"{i}.0" for i in range(24))
    + "}"
)


def graph(body, inputs="float[2,1,4] x, float[2,3,4] y", outputs="float[A,B,C] z", opset=18):
    return f'<ir_version: 9, opset_import: ["": {opset}]> g ({inputs}) => ({outputs}) <{CONSTANTS}> {{ {body} }}'


@pytest.mark.parametrize(
    ("body", "inputs"),
    [
        ("e = Expand(x, s)  z = Add(e, y)", "float[2,1,4] x, float[2,3,4] y"),
        ("e = Expand(x, s)  z = Add(y, e)", "float[4] x, float[2,3,4] y"),
        ("e = Expand(x, s)  z = Mul(e, full)", "float[2,1,4] x"),
        ("e = Tile(x, r)  z = Sub(e, y)", "float[2,1,4] x, float[2,3,4] y"),
        ("e = Expand(x, s)  m = Greater(e, y)  z = Where(m, e, y)", "float[2,1,4] x, float[2,3,4] y"),
        ("e = Expand(x, s)  n = Neg(e)  k = Mul(n, c)  z = Add(k, y)", "float[2,1,4] x, float[2,3,4] y"),
        ("e = Expand(x, s)  n = Neg(e)  k = Mul(n, e)  o = Sub(k, n)  z = Add(o, y)", "float[2,1,4] x, float[2,3,4] y"),
        ("e = Expand(x, s)  z = MatMul(e, y)", "float[1,3,4] x, float[2,4,3] y"),
        ("h = Shape(y)  e = Expand(x, h)  z = Add(e, y)", "float[1,1,4] x, float[N,M,4] y"),
    ],
)
def test_dropped(apply, parse, ops, body, inputs):
    model = parse(graph(body, inputs))
    assert apply(DropExpands(), model).modified
    assert not {"Expand", "Tile"} & set(ops(model))


@pytest.mark.parametrize(
    ("body", "inputs", "outputs", "reason"),
    [
        ("e = Expand(x, s)  z = Neg(e)", "float[2,1,4] x", "float[A,B,C] z", "'z' is a graph output"),
        ("e = Expand(x, s)  z = Add(e, y)", "float[2,1,4] x, float[2,1,4] y", "float[A,B,C] z", "'z' is a graph output"),
        ("e = Expand(x, s)  z = Add(e, y)", "float[2,1,4] x, float[2,3,4] y", "float[A,B,C] z, float[D,E,F] e", "'e' is a graph"),
        ("e = Expand(x, s)  z = Softmax(e)", "float[2,1,4] x", "float[A,B,C] z", "needs it"),
        ("e = Expand(x, s)  z = Add(e, y)  w = Softmax(e)", "float[2,1,4] x, float[2,3,4] y",
         "float[A,B,C] z, float[D,E,F] w", "needs it"),
        ("e = Expand(x, s)  z = MatMul(e, y)", "float[2,1,4] x, float[2,4,3] y", "float[A,B,C] z", "needs it"),
        ("e = Tile(x, twice)  z = Add(e, y)", "float[2,1,4] x, float[2,3,8] y", "float[A,B,C] z", "repeats more"),
        ("e = Expand(x, k)  z = Add(e, y)", "float[2,1,4] x, float[2,3,4] y, int64[3] k", "float[A,B,C] z", "graph output"),
        ("h = Shape(w)  e = Expand(x, h)  z = Add(e, y)", "float[1,1,4] x, float[N,M,4] y, float[K,L,4] w",
         "float[A,B,C] z", "graph output"),
    ],
)  # fmt: skip
def test_what_stays(apply, parse, body, inputs, outputs, reason):
    feeds = {"x": np.ones((2, 1, 4), np.float32), "y": np.ones((2, 3, 4), np.float32), "k": np.array([2, 3, 4])}
    model = parse(graph(body, inputs, outputs))
    result = apply(DropExpands(), model, feeds if " k" in inputs else None)
    assert not result.modified
    assert reason in result.skipped[0][1]


def test_two_that_rely_on_each_other(apply, parse, ops):
    """One of the two must stretch the result."""
    body = "e = Expand(x, s)  f = Expand(y, s)  z = Add(e, f)"
    model = parse(graph(body, "float[2,1,4] x, float[2,3,1] y"))
    assert apply(DropExpands(), model).modified
    model = parse(graph(body, "float[2,1,4] x, float[2,1,4] y"))
    apply(DropExpands(), model)
    assert ops(model).count("Expand") == 1


def test_a_subgraph_that_uses_it(apply, parse, ops):
    text = graph(
        "e = Expand(x, s)  z = If(k) <then_branch = t () => (float[D,E,F] p) { p = Add(e, y) }, "
        "else_branch = o () => (float[G,H,I] q) { q = Sub(e, y) }>",
        "float[2,1,4] x, float[2,3,4] y, bool k",
    )
    feeds = {"x": np.ones((2, 1, 4), np.float32), "y": np.ones((2, 3, 4), np.float32), "k": np.array(True)}
    result = apply(DropExpands(), parse(text), feeds)
    assert "a subgraph uses" in result.skipped[0][1]


def test_inside_a_subgraph(apply, parse, ops):
    text = graph(
        "z = If(k) <then_branch = t () => (float[D,E,F] p) { e = Expand(x, s)  n = Neg(e)  p = Add(n, y) }, "
        "else_branch = o () => (float[G,H,I] q) { q = Sub(x, y) }>",
        "float[2,1,4] x, float[2,3,4] y, bool k",
    )
    feeds = {"x": np.ones((2, 1, 4), np.float32), "y": np.ones((2, 3, 4), np.float32), "k": np.array(True)}
    model = parse(text)
    assert apply(DropExpands(), model, feeds).report == {"Expand": 1}
    assert "Expand" not in ops(model)
