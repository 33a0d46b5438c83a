"""Weights are told from other constants by where they are used."""

from __future__ import annotations

import pytest

from graphopt.errors import UserError
from graphopt.training import roles


def names(parse, text, **options):
    return roles.trainable(parse(text), **options)


def test_weights_of_operators_that_have_weights(parse, network):
    assert roles.trainable(network()) == ["w", "b", "v", "c"]


def test_constants_of_formulas_are_none(parse):
    text = """g (float[N,4] x) => (float[N,4] y) <float[4,4] w = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7}, float half = {0.5},
    float[4] shift = {1,2,3,4}> { a = MatMul(x, w)  b = Mul(a, half)  c = Add(b, shift)  y = Div(c, shift) }"""
    assert names(parse, text) == ["w", "shift"]


def test_mean_and_deviation_of_the_input_are_none(parse):
    text = """g (float[N,2,4,4] x) => (float[N,2,4,4] y) <float[2,1,1] m = {1,2}, float[2,1,1] s = {3,4},
    float[2,2,1,1] w = {1,2,3,4}> { a = Add(x, m)  b = Mul(a, s)  y = Conv(b, w) }"""
    assert names(parse, text) == ["w"]


def test_a_mask_of_scores_is_none(parse):
    text = """g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1,2,3,4}, float[1,2] m = {0,-10000}>
    { a = MatMul(x, w)  b = Add(a, m)  y = Softmax(b) }"""
    assert names(parse, text) == ["w"]


def test_statistics_of_batches_are_none(parse):
    text = """g (float[N,2] x) => (float[N,2] y) <float[2] s = {1,2}, float[2] b = {1,2}, float[2] m = {1,2},
    float[2] v = {1,2}> { y = BatchNormalization(x, s, b, m, v) }"""
    assert names(parse, text) == ["s", "b"]


def test_a_quantized_weight_is_one(parse):
    text = """g (float[N,2] x) => (float[N,2] y) <int8[2,2] w = {1,2,3,4}, float s = {0.1}, int8 z = {0}>
    { d = DequantizeLinear(w, s, z)  y = MatMul(x, d) }"""
    assert names(parse, text) == ["w"]


def test_patterns(network):
    model = network()
    assert roles.trainable(model, train=("w", "c")) == ["w", "c"]
    assert roles.trainable(model, freeze=("[bc]",)) == ["w", "v"]
    with pytest.raises(UserError, match="no weight is called 'head"):
        roles.trainable(model, train=("head.*",))
