"""Shapes are computed once, and as constants where that is possible."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.passes.structural.eliminate_dead_code import EliminateDeadCode
from graphopt.passes.structural.fold_shapes import FoldShapes

CHAIN = """
    g (float[N,3,4] x) => (float[N,12] y) <int64 zero = {0}, int64[1] front = {0}, int64[1] rest = {-1}> {
        s = Shape(x)
        n = Gather(s, zero)
        u = Unsqueeze(n, front)
        t = Concat<axis = 0>(u, rest)
        y = Reshape(x, t)
    }
"""


def test_a_target_with_one_free_size_is_a_constant(apply, parse, ops):
    model = parse(CHAIN)
    assert apply(FoldShapes(), model).report["targets"] == 1
    EliminateDeadCode()(model)
    assert ops(model) == ["Reshape"]
    assert model.graph.initializers["y_shape"].const_value.numpy().tolist() == [0, 12]


def test_two_free_sizes_that_are_not_those_of_the_input_stay(apply, parse):
    model = parse("""
    g (float[N,M] x, float[K,L] like) => (float[K,L] y) { s = Shape(like)  y = Reshape(x, s) }
    """)
    feeds = {"x": np.ones((2, 6), np.float32), "like": np.ones((4, 3), np.float32)}
    assert apply(FoldShapes(), model, feeds).report["targets"] == 0


def test_equal_sizes_are_computed_once(apply, parse, ops):
    model = parse("""
    g (float[N,3] x) => (float[N,3] y) <int64[1] zero = {0}, int64[1] three = {3}> {
        a = Shape(x)  n = Gather(a, zero)  s = Concat<axis = 0>(n, three)  e = ConstantOfShape(s)
        r = Relu(x)
        b = Shape(r)  m = Gather(b, zero)  t = Concat<axis = 0>(m, three)  f = ConstantOfShape(t)
        g = Add(e, f)  y = Add(r, g)
    }
    """)
    apply(FoldShapes(), model)
    EliminateDeadCode()(model)
    assert ops(model).count("Shape") == 1
    assert ops(model).count("Concat") == 0, "the vector is the shape of x"


@pytest.mark.parametrize(("opset", "concats"), [(15, 0), (14, 1)])
def test_a_part_of_a_shape_needs_opset_15(apply, parse, ops, opset, concats):
    model = parse(f"""<ir_version: 8, opset_import: ["": {opset}]>
    g (float[N,M,5] x) => (float[N,M] y) <int64[1] zero = {{0}}, int64[1] one = {{1}}> {{
        s = Shape(x)  n = Gather(s, zero)  m = Gather(s, one)  t = Concat<axis = 0>(n, m)  y = ConstantOfShape(t)
    }}
    """)
    apply(FoldShapes(), model)
    assert ops(model).count("Concat") == concats


def test_axes_that_broadcast_prove_nothing(apply, parse):
    """Add of [K] and [N] is [K] only where K is not 1."""
    text = """
    g (float[K,4] x, float[N,4] z) => (float[P,4] y) {
        a = Add(x, z)  s = Shape(x)  b = Add(a, a)  e = Expand(b, s)  y = Neg(e)
    }
    """
    for rows in ((1, 3), (3, 1), (3, 3)):
        feeds = {name: np.ones((n, 4), np.float32) for name, n in zip(("x", "z"), rows, strict=True)}
        apply(FoldShapes(), parse(text), feeds)
