"""Gradients of reductions, running totals, softmax and the losses built on it."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

HEAD = '<ir_version: 9, opset_import: ["": {}]> '

X = np.random.default_rng(3).normal(size=(2, 3, 4)) * 2
POSITIVE = np.abs(X) + 0.2

REDUCTIONS = [
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
]

GRAPHS = {
    **{
        f"{name} over axes": (18, f"<int64[2] a = {{0, -1}}> {{ y = {name}<keepdims = 0>(x, a) }}")
        for name in REDUCTIONS
    },
    **{f"{name} over all": (18, f"{{ y = {name}(x) }}") for name in REDUCTIONS},
    **{f"{name} over none": (18, f"{{ y = {name}<noop_with_empty_axes = 1>(x) }}") for name in REDUCTIONS},
    **{f"{name} of opset 11": (11, f"{{ y = {name}<axes = [-2], keepdims = 0>(x) }}") for name in REDUCTIONS},
    "CumSum": (14, "<int64 a = {1}> { y = CumSum(x, a) }"),
    "CumSum of what came before, backwards": (
        14,
        "<int64 a = {-1}> { y = CumSum<exclusive = 1, reverse = 1>(x, a) }",
    ),
    "CumProd": (26, "<int64 a = {1}> { y = CumProd(x, a) }"),
    "CumProd of what came before, backwards": (
        26,
        "<int64 a = {-1}> { y = CumProd<exclusive = 1, reverse = 1>(x, a) }",
    ),
    "TopK": (11, "<int64[1] k = {2}> { y, i = TopK<axis = 1>(x, k) }"),
    "TopK of the smallest": (11, "<int64[1] k = {2}> { y, i = TopK<largest = 0>(x, k) }"),
    "TopK of opset 10": (10, "<int64[1] k = {3}> { y, i = TopK(x, k) }"),
    "TopK of opset 9": (9, "{ y, i = TopK<k = 2, axis = 0>(x) }"),
    **{f"{name} along an axis": (13, f"{{ y = {name}<axis = 1>(x) }}") for name in ("Softmax", "LogSoftmax")},
    **{f"{name} over axes from one on": (11, f"{{ y = {name}(x) }}") for name in ("Softmax", "LogSoftmax")},
    "LpNormalization": (22, "{ y = LpNormalization<axis = 1>(x) }"),
    "LpNormalization by absolute values": (7, "{ y = LpNormalization<p = 1>(x) }"),
    **{
        f"{name}, {reduction}": (
            13,
            "<int64[2,4] t = {0, 1, 2, 2, -1, 0, 1, 0}, double[3] w = {0.5, 1.0, 2.0}> "
            f'{{ y = {name}<reduction = "{reduction}", ignore_index = -1>(x, t, w) }}',
        )
        for name in ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss")
        for reduction in ("none", "sum", "mean")
    },
    "SoftmaxCrossEntropyLoss without weights, and its logarithms": (
        12,
        "<int32[2,4] t = {0, 1, 2, 2, 1, 0, 1, 0}> { l, p = SoftmaxCrossEntropyLoss(x, t)  y = Mul(l, p) }",
    ),
}
"""The opset, and what is computed of `x`."""


@pytest.mark.parametrize("name", GRAPHS)
def test_gradients(check_gradients, name):
    opset, text = GRAPHS[name]
    x = POSITIVE if "LogSum" in name else X
    check_gradients(f"{HEAD.format(opset)} g (double[2,3,4] x) => (double[] y) {text}", {"x": x}, "y")


@pytest.mark.parametrize("name", ["LpNormalization", "ReduceL2"])
def test_gradients_of_zeros_are_finite(parse, name):
    import torch

    from graphopt.runtimes._torch.module import OnnxModule

    x = torch.zeros(2, 3, requires_grad=True)
    y = OnnxModule(parse(f"g (float[2,3] x) => (float[] y) {{ y = {name}(x) }}"))({"x": x})["y"]
    y.sum().backward()
    assert x.grad.tolist() == [[0, 0, 0], [0, 0, 0]]


def test_gradients_at_the_bounds_of_clip_are_whole(parse):
    import torch

    from graphopt.runtimes._torch.module import OnnxModule

    x = torch.tensor([-1.0, 0.0, 3.0, 6.0, 7.0], requires_grad=True)
    text = "g (float[5] x) => (float[5] y) <float a = {0.0}, float b = {6.0}> { y = Clip(x, a, b) }"
    OnnxModule(parse(text))({"x": x})["y"].sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 0]
