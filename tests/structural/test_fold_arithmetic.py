"""Chains of element-wise operators get shorter, with the same numbers."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.passes.structural.fold_arithmetic import FoldArithmetic

CONSTANTS = (
    "float c = {3.0}, float d = {0.5}, float[3] row = {1.0, 2.0, 4.0}, float[2,1] column = {2.0, 5.0}, float zero = {0.0}, "
    "float six = {6.0}, float one = {1.0}, bool yes = {1}, bool no = {0}, int64 i = {7}, float huge = {3e38}"
)


def graph(body, inputs="float[2,3] x", outputs="float[2,3] y"):
    return f"g ({inputs}) => ({outputs}) <{CONSTANTS}> {{ {body} }}"


CHAINS = [
    f"t = {first}  y = {second}"
    for kinds in (("Add", "Sub"), ("Mul", "Div"))
    for inner in kinds
    for outer in kinds
    for first in (f"{inner}(x, c)", f"{inner}(c, x)")
    for second in (f"{outer}(t, row)", f"{outer}(row, t)")
]


@pytest.mark.parametrize("body", CHAINS)
def test_two_constants_become_one(apply, parse, ops, body):
    model = parse(graph(body))
    assert apply(FoldArithmetic(), model).modified
    assert len(ops(model)) == 1


SHORTER = {
    "Relu twice": ("t = Relu(x)  y = Relu(t)", ["Relu"]),
    "Neg twice": ("t = Neg(x)  u = Neg(t)  y = Exp(u)", ["Exp"]),
    "Relu, Clip": ("t = Relu(x)  y = Clip(t, , six)", ["Clip"]),
    "Clip, Relu": ("t = Clip(x, d, six)  y = Relu(t)", ["Clip"]),
    "Max, Min": ("t = Max(x, zero)  y = Min(six, t)", ["Clip"]),
    "Cast there and back": ("t = Cast<to = 11>(x)  u = Cast<to = 1>(t)  y = Cast<to = 1>(u)", ["Cast"]),
    "CastLike": ("y = CastLike(x, c)", ["Cast"]),
    "Where": ("t = Neg(x)  y = Where(yes, t, x)", ["Neg"]),
    "Concat of Concat": ("t = Concat<axis = 0>(x, x)  u = Concat<axis = 0>(t, x)  v = ReduceMax(u)  y = Add(x, v)",
                         ["Concat", "ReduceMax", "Add"]),
    "Split, Concat": ("a, b = Split<axis = 1, num_outputs = 2>(x)  t = Concat<axis = 1>(a, b)  y = Exp(t)", ["Split", "Exp"]),
}  # fmt: skip


@pytest.mark.parametrize(("body", "left"), SHORTER.values(), ids=SHORTER)
def test_shorter(apply, parse, ops, body, left):
    model = parse(graph(body))
    assert apply(FoldArithmetic(), model).modified
    assert [op for op in ops(model) if op != "Split"] == [op for op in left if op != "Split"]


STAYS = {
    "used elsewhere": ("t = Add(x, c)  y = Add(t, d)  z = Neg(t)", "float[2,3] y, float[2,3] z"),
    "a constant that grows": ("t = Add(x, row)  y = Add(t, column)", "float[2,3] y"),
    "overflow": ("t = Mul(x, huge)  y = Mul(t, c)", "float[2,3] y"),
    "Cast that loses": ("t = Cast<to = 7>(x)  u = Cast<to = 1>(t)  y = Neg(u)", "float[2,3] y"),
    "Where that broadcasts": ("t = ReduceMax<keepdims = 0>(x)  y = Where(yes, t, x)", "float[2,3] y"),
    "parts out of order": (
        "a, b = Split<axis = 1, num_outputs = 2>(w)  t = Concat<axis = 1>(b, a)  y = Exp(t)",
        "float[2,4] y",
    ),
}


@pytest.mark.parametrize(("body", "outputs"), STAYS.values(), ids=STAYS)
def test_what_stays(apply, parse, body, outputs):
    inputs = "float[2,4] w" if "(w)" in body else "float[2,3] x"
    assert not apply(FoldArithmetic(), parse(graph(body, inputs, outputs))).modified


def test_integers_keep_their_division(apply, parse):
    text = "g (int64[3] x) => (int64[3] y) <int64 two = {2}, int64 three = {3}> { t = Div(x, two)  y = Mul(t, three) }"
    assert not apply(FoldArithmetic(), parse(text), {"x": np.array([1, 5, -7])}).modified


def test_limits_that_exclude_each_other(apply, parse):
    """min(max(x, 6), 0.5) is 0.5 everywhere."""
    apply(FoldArithmetic(), parse(graph("t = Clip(x, six, )  y = Clip(t, , d)")))
    apply(FoldArithmetic(), parse(graph("t = Min(x, d)  y = Max(t, six)")))
