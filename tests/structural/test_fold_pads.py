"""Pads go into what pads itself, where that means the same."""

from __future__ import annotations

import pytest

from graphopt.passes.structural.fold_pads import FoldPads

CONSTANTS = (
    "float[3,2,2,2] w = {"
    + ", ".join(f"{(7 * i) % 5 - 2}.0" for i in range(24))
    + "}, int64[8] p = {0,0,1,0,0,0,0,1}, "
    "int64[8] corner = {0,0,1,1,0,0,0,0}, int64[8] channels = {0,1,0,0,0,0,0,0}, int64[8] cut = {0,0,-1,0,0,0,0,0}, "
    "int64[8] wide = {0,0,3,0,0,0,0,0}, int64[4] hw = {1,1,0,1}, int64[2] axes = {-2,3}, float half = {0.5}, "
    "float nothing = {0.0}, float below = {-1.0}, float[1,2,1,1] k = {2.0,3.0}"
)


def graph(body, opset=18, outputs="float[A,B,C,D] y"):
    lowest = "m = Constant<value_float = -inf>()"
    head = lowest if "m)" in body or "m," in body else ""
    return f'<ir_version: 9, opset_import: ["": {opset}]> g (float[N,2,7,6] x) => ({outputs}) <{CONSTANTS}> {{ {head} {body} }}'


@pytest.mark.parametrize(
    ("body", "pads"),
    [
        ("q = Pad(x, p)  y = Conv(q, w)", [1, 0, 0, 1]),
        ("q = Pad(x, p, nothing)  y = Conv<pads = [0,1,1,0]>(q, w)", [1, 1, 1, 1]),
        ("q = Pad(x, hw, , axes)  y = Conv(q, w)", [1, 1, 0, 1]),
        ("q = Pad(x, p)  y = Conv<auto_pad = \"VALID\", strides = [2,2]>(q, w)", [1, 0, 0, 1]),
        ("q = Pad(x, p)  y = Conv<auto_pad = \"SAME_UPPER\", strides = [2,1]>(q, w)", [1, 0, 0, 2]),
        ("q = Pad(x, p)  y = Conv<auto_pad = \"SAME_LOWER\", strides = [1,2]>(q, w)", [2, 1, 0, 1]),
        ("q = Pad(x, p)  r = Pad(q, p)  y = Conv(r, w)", [2, 0, 0, 2]),
        ("q = Pad(x, p)  y = AveragePool<kernel_shape = [2,2]>(q)", [1, 0, 0, 1]),
        ("q = Pad(x, p)  y = AveragePool<kernel_shape = [3,3], count_include_pad = 1, pads = [0,1,1,0]>(q)", [1, 1, 1, 1]),
        ("r = Relu(x)  q = Pad(r, p)  y = MaxPool<kernel_shape = [2,2]>(q)", [1, 0, 0, 1]),
        ("r = Sigmoid(x)  t = MaxPool<kernel_shape = [1,1]>(r)  q = Pad(t, p, below)  y = MaxPool<kernel_shape = [2,2]>(q)", [1, 0, 0, 1]),
        ("r = Clip(x, half)  q = Pad(r, p)  y = MaxPool<kernel_shape = [2,2]>(q)", [1, 0, 0, 1]),
    ],
)  # fmt: skip
def test_folded(apply, parse, ops, body, pads):
    model = parse(graph(body))
    apply(FoldPads(), model, rtol=1e-5)
    assert "Pad" not in ops(model)
    last = next(node for node in reversed(model.graph) if node.op_type != "Pad")
    assert list(last.attributes["pads"].as_ints()) == pads


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("q = Pad(x, p, half)  y = Conv(q, w)", "does not pad with zeros"),
        ("q = Pad<mode = \"edge\">(x, p)  y = Conv(q, w)", "mode edge"),
        ("q = Pad(x, channels)  t = Slice(q, c1, c3, c1)  y = Conv(t, w)", "no pads"),
        ("t = Slice(x, c0, c1, c1)  q = Pad(t, channels)  y = Conv(q, w)", "batch or the channels"),
        ("q = Pad(x, cut)  y = Conv(q, w)", "cuts something off"),
        ("q = Pad(x, p)  y = AveragePool<kernel_shape = [3,3], pads = [1,1,1,1]>(q)", "leaves its own padding out"),
        ("q = Pad(x, p, half)  y = AveragePool<kernel_shape = [2,2]>(q)", "does not pad with zeros"),
        ("q = Pad(x, p)  y = AveragePool<kernel_shape = [2,2], strides = [2,2], ceil_mode = 1>(q)", "rounds"),
        ("q = Pad(x, p)  y = MaxPool<kernel_shape = [2,2]>(q)", "might be of the padding"),
        ("r = Relu(x)  q = Pad(r, p, half)  y = MaxPool<kernel_shape = [2,2]>(q)", "might be of the padding"),
        ("r = Relu(x)  q = Pad(r, p)  y = MaxPool<kernel_shape = [2,2], dilations = [2,2]>(q)", "gaps"),
        ("q = Pad(x, p)  y = Relu(q)", "no pads"),
    ],
)  # fmt: skip
def test_what_stays(apply, parse, body, reason):
    slices = ", int64[1] c0 = {0}, int64[1] c1 = {1}, int64[1] c3 = {3}"
    text = graph(body).replace(CONSTANTS, CONSTANTS + slices)
    result = apply(FoldPads(), parse(text))
    assert not result.modified
    assert reason in result.skipped[0][1]


def test_padding_by_minus_infinity(apply, parse, ops):
    model = parse(graph("q = Pad(x, p, m)  y = MaxPool<kernel_shape = [2,2], pads = [0,1,0,0]>(q)"))
    assert apply(FoldPads(), model).report == {"MaxPool": 1}
    assert "Pad" not in ops(model)


def test_places_count_the_padding(apply, parse):
    text = graph(
        "r = Relu(x)  q = Pad(r, p)  y, i = MaxPool<kernel_shape = [2,2]>(q)",
        outputs="float[A,B,C,D] y, int64[E,F,G,H] i",
    )
    assert "returns places" in apply(FoldPads(), parse(text)).skipped[0][1]


def test_attributes_before_opset_11(apply, parse, ops):
    model = parse(graph("q = Pad<pads = [0,0,1,0,0,0,0,1]>(x)  y = Conv(q, w)", opset=10))
    apply(FoldPads(), model, rtol=1e-5)
    assert ops(model) == ["Conv"]


def test_others_may_use_the_padded_value(apply, parse, ops):
    model = parse(graph("q = Pad(x, p)  y = Conv(q, w)  z = Neg(q)", outputs="float[A,B,C,D] y, float[E,F,G,H] z"))
    apply(FoldPads(), model, rtol=1e-5)
    assert ops(model).count("Pad") == 1


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("q = Pad(k, corner)  y = Conv(x, q)", "pads the weights"),
        ("r = Relu(x)  q = Pad(r, wide)  y = MaxPool<kernel_shape = [2,2]>(q)", "not smaller than the kernel"),
    ],
)
def test_what_onnx_runtime_folds_by_mistake(parse, body, reason):
    """Its own fusion breaks these models, so they cannot be run for comparison."""
    result = FoldPads()(parse(graph(body)))
    assert not result.modified
    assert reason in result.skipped[0][1]
