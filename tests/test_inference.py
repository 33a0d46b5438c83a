"""What is known about values: types, symbolic sizes, elements; and what is not."""

from __future__ import annotations

import pytest

from graphopt import inference


def sizes(model):
    return {value.name: known.dims() for value, known in inference.infer(model).items()}


def test_sizes_are_expressions_of_the_inputs(parse):
    known = sizes(
        parse("""
    g (float[batch,4] x, float[n,4] z) => (float[a,4] y) { t = Concat<axis = 0>(x, x)  y = Concat<axis = 0>(t, z) }
    """)
    )
    assert known["t"] == ("2*batch", 4)
    assert "batch" in known["y"][0]
    assert "n" in known["y"][0]


def test_elements_of_a_shape(parse):
    model = parse(
        "g (float[batch,4] x) => (int64[2] s, int64[1] n) <int64[1] i = {0}> { s = Shape(x)  n = Gather(s, i) }"
    )
    known = {value.name: k.elements for value, k in inference.infer(model).items()}
    assert known["s"] == ("batch", 4)
    assert known["n"] == ("batch",)


def test_only_what_may_be_written_is_a_shape(parse):
    model = parse("g (float[batch,4] x) => (float[a,4] y) { y = Concat<axis = 0>(x, x) }")
    known = {value.name: k for value, k in inference.infer(model).items()}
    assert inference.dims(known["y"].shape) == (None, 4)


def test_sizes_that_broadcast_prove_nothing(parse):
    known = sizes(
        parse("""
    g (float[K,4] x, float[N,4] z) => (float[P,4] y) { a = Add(x, z)  y = Relu(a) }
    """)
    )
    assert known["a"] == (None, 4)
    assert known["y"] == (None, 4)


def test_what_a_loop_carries_may_change_its_shape(parse):
    model = parse("""
    g (float[1,4] x) => (float[a,4] y) <int64 n = {3}, bool go = {1}> {
        y = Loop(n, go, x) <body = b (int64 i, bool c, float[p,4] v) => (bool on, float[q,4] w) {
            on = Identity(c)  w = Concat<axis = 0>(v, v)
        }>
    }
    """)
    known = sizes(model)
    assert known["y"] is None or known["y"][0] is None
    assert known["w"] is None or not isinstance(known["w"][0], int)


@pytest.mark.parametrize("declared", ["float[7,4]", "float[q,4]"])
def test_declarations_of_inner_values_are_not_believed(parse, declared):
    model = parse(f"g (float[batch,4] x) => (float[batch,4] y) <{declared} t> {{ t = Relu(x)  y = Neg(t) }}")
    assert sizes(model)["t"] == ("batch", 4)


def test_a_broken_node_leaves_the_inputs(parse):
    model = parse("g (float[2,3] x) => (float[a] y) <int64[2] s = {4, 4}> { r = Reshape(x, s)  y = Relu(r) }")
    assert sizes(model)["x"] == (2, 3)
