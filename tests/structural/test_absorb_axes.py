"""Operators drop or keep an axis themselves."""

from __future__ import annotations

import pytest

from graphopt.passes.structural.absorb_axes import AbsorbAxes

CONSTANTS = (
    "int64[1] a0 = {0}, int64[1] a1 = {1}, int64[2] a12 = {1, 2}, int64[1] two = {2}, int64[1] three = {3}, int64 one = {1}, "
    "int64[1] vec = {1}, int64[1] minus = {-1}"
)
ABSORBED = {
    "ReduceSum, Squeeze": ("t = ReduceSum(x, a12)  y = Squeeze(t, a12)", "float[N] y", "ReduceSum"),
    "ReduceMax, Squeeze": ("t = ReduceMax(x, a1)  y = Squeeze(t, a1)", "float[N,B] y", "ReduceMax"),
    "ReduceMean, Unsqueeze": (
        "t = ReduceMean<keepdims = 0>(x, a1)  y = Unsqueeze(t, a1)",
        "float[N,A,B] y",
        "ReduceMean",
    ),
    "ArgMax, Squeeze": ("t = ArgMax<axis = 2>(x)  y = Squeeze(t, two)", "int64[N,A] y", "ArgMax"),
    "Gather, Squeeze": ("t = Gather<axis = 1>(x, vec)  y = Squeeze(t, a1)", "float[N,B] y", "Gather"),
    "Gather, Unsqueeze": ("t = Gather<axis = 1>(x, one)  y = Unsqueeze(t, a1)", "float[N,A,B] y", "Gather"),
    "Slice, Squeeze": ("t = Slice(x, two, three, a1)  y = Squeeze(t, a1)", "float[N,B] y", "Gather"),
    "Slice from the end": ("t = Slice(x, minus, three, a1)  y = Squeeze(t, a1)", "float[N,B] y", "Gather"),
}


@pytest.mark.parametrize(("body", "outputs", "left"), ABSORBED.values(), ids=ABSORBED)
def test_absorbed(apply, parse, ops, body, outputs, left):
    model = parse(f"g (float[N,3,4] x) => ({outputs}) <{CONSTANTS}> {{ {body} }}")
    assert apply(AbsorbAxes(), model).report == {"absorbed": 1}
    assert ops(model) == [left]


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ("t = ReduceSum(x, a1)  y = Squeeze(t, a1)  z = Neg(t)", "float[N,B] y, float[N,A,B] z"),
        ("t = ReduceSum(x, a12)  y = Squeeze(t, a1)", "float[N,B] y"),
        ("t = Slice(x, a0, two, a1)  y = Unsqueeze(t, a0)", "float[O,N,A,B] y"),
    ],
    ids=["used elsewhere", "another axis", "two elements"],
)
def test_what_stays(apply, parse, body, outputs):
    model = parse(f"g (float[N,3,4] x) => ({outputs}) <{CONSTANTS}> {{ {body} }}")
    assert not apply(AbsorbAxes(), model).modified
