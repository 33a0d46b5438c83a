"""Chains of reshaping operators become one."""

from __future__ import annotations

import pytest

from graphopt.passes.structural.merge_reshapes import MergeReshapes

CONSTANTS = (
    "int64[2] pair = {-1, 12}, int64[3] triple = {-1, 3, 4}, int64[1] a0 = {0}, int64[1] a1 = {1}, int64[1] a2 = {2}, "
    "int64[1] last = {-1}, float half = {0.5}, float[1] two = {2.0}, float[1,1,1,1] four = {4.0}"
)


def graph(body, inputs="float[N,3,4] x", outputs="float[A,B,C] y"):
    return f"g ({inputs}) => ({outputs}) <{CONSTANTS}> {{ {body} }}"


MERGED = {
    "Reshape of Reshape": ("t = Reshape(x, pair)  y = Reshape(t, triple)", ["Reshape"]),
    "Flatten": ("t = Flatten(x)  y = Reshape(t, triple)", ["Reshape"]),
    "Unsqueeze twice": (
        "t = Unsqueeze(x, a0)  u = Unsqueeze(t, a2)  v = Squeeze(u, a2)  y = Squeeze(v, a0)",
        ["Reshape"],
    ),
    "through element-wise operators": (
        "t = Reshape(x, pair)  u = Relu(t)  v = Mul(u, half)  w = Sub(two, v)  y = Reshape(w, triple)",
        ["Relu", "Mul", "Sub", "Reshape"],
    ),
}


@pytest.mark.parametrize(("body", "left"), MERGED.values(), ids=MERGED)
def test_merged(apply, parse, ops, body, left):
    model = parse(graph(body))
    assert apply(MergeReshapes(), model).modified
    assert ops(model) == left


def test_squeezes_and_unsqueezes_of_sizes_that_vary(apply, parse, ops):
    model = parse(graph("t = Unsqueeze(x, a0)  y = Unsqueeze(t, last)", "float[N,M] x", "float[A,B,C,D] y"))
    apply(MergeReshapes(), model)
    assert ops(model) == ["Unsqueeze"]
    model = parse(graph("t = Squeeze(x, a1)  y = Squeeze(t, last)", "float[N,1,M,1] x", "float[A,B] y"))
    apply(MergeReshapes(), model, None)
    assert ops(model) == ["Squeeze"]


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ("t = Reshape(x, pair)  y = Reshape(t, triple)  z = Neg(t)", "float[A,B,C] y, float[D,E] z"),
        ("t = Reshape(x, pair)  y = Reshape(t, triple)", "float[A,B,C] y, float[D,E] t"),
        ("t = Reshape(x, pair)  u = Add(t, four)  y = Reshape(u, triple)", "float[A,B,C] y"),
        ("t = Reshape(x, pair)  u = Softmax(t)  y = Reshape(u, triple)", "float[A,B,C] y"),
    ],
    ids=["used elsewhere", "an output", "a constant that adds axes", "not element-wise"],
)
def test_what_stays(apply, parse, ops, body, outputs):
    model = parse(graph(body, outputs=outputs))
    apply(MergeReshapes(), model)
    assert ops(model).count("Reshape") == 2


def test_before_opset_13(apply, parse, ops):
    model = parse("""<ir_version: 6, opset_import: ["": 11]>
    g (float[N,M] x) => (float[A,B,C,D] y) { t = Unsqueeze<axes = [0]>(x)  y = Unsqueeze<axes = [3]>(t) }""")
    apply(MergeReshapes(), model)
    assert ops(model) == ["Unsqueeze"]
    assert list(model.graph[0].attributes["axes"].as_ints()) == [0, 3]
