"""Gradients of operators that shape, index, join, multiply and loop."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import parser

pytest.importorskip("torch")

import torch

from graphopt.runtimes._torch.module import OnnxModule

SHAPED = {
    "Reshape": "int64[3] s = {0, -1, 2}> { y = Reshape(x, s) }",
    "Transpose": "float unused = {0.0}> { y = Transpose<perm = [2, 0, 1]>(x) }",
    "Transpose by default": "float unused = {0.0}> { y = Transpose(x) }",
    "Flatten": "float unused = {0.0}> { y = Flatten<axis = -1>(x) }",
    "Unsqueeze and Squeeze": "int64[2] a = {0, -1}> { b = Unsqueeze(x, a)  y = Squeeze(b, a) }",
    "Expand": "int64[4] s = {2, 1, 3, 1}> { y = Expand(x, s) }",
    "Tile": "int64[3] r = {2, 1, 3}> { y = Tile(x, r) }",
    "Identity": "float unused = {0.0}> { y = Identity(x) }",
    "Concat": "float unused = {0.0}> { y = Concat<axis = -2>(x, x) }",
    "Split": "int64[2] s = {1, 3}> { a, y = Split<axis = 2>(x, s) }",
    "Split into equal parts": "float unused = {0.0}> { a, y = Split<axis = 1, num_outputs = 2>(x) }",
    "Slice": "int64[2] b = {1, 0}, int64[2] e = {9, -1}, int64[2] a = {-1, 1}, int64[2] p = {2, 1}> "
    "{ y = Slice(x, b, e, a, p) }",
    "Slice backwards": "int64[2] b = {-1, 3}, int64[2] e = {-9, 0}, int64[2] a = {1, 2}, int64[2] p = {-2, -1}> "
    "{ y = Slice(x, b, e, a, p) }",
    "Pad": "int64[6] p = {0, 1, 0, 1, -1, 2}> { y = Pad(x, p) }",
    "Pad of an axis": "int64[2] p = {1, 2}, double v = {3.0}, int64[1] a = {-1}> { y = Pad(x, p, v, a) }",
    "Pad with the tensor's own constant": "int64[6] p = {0, 1, 0, 1, -1, 2}, int64[1] i = {0}, int64[1] o = {1}, "
    "int64[3] a = {0, 1, 2}> { v = ReduceSum(x, a)  s = Squeeze(v)  y = Pad(x, p, s) }",
    "Pad reflect": 'int64[6] p = {0, 0, 2, 0, 0, 3}> { y = Pad<mode = "reflect">(x, p) }',
    "Pad reflect every axis": 'int64[6] p = {1, 3, 2, 0, -1, 4}> { y = Pad<mode = "reflect">(x, p) }',
    "Pad edge": 'int64[6] p = {0, 0, 1, 0, 0, 2}> { y = Pad<mode = "edge">(x, p) }',
    "Pad edge every axis": 'int64[6] p = {1, 0, 5, 0, 2, -1}> { y = Pad<mode = "edge">(x, p) }',
    "Pad wrap": 'int64[6] p = {1, 0, 5, 0, 2, 0}> { y = Pad<mode = "wrap">(x, p) }',
    "CenterCropPad": "int64[2] s = {5, 2}> { y = CenterCropPad<axes = [1, -1]>(x, s) }",
    "Gather": "int64[2,2] i = {0, -1, 2, 2}> { y = Gather<axis = 1>(x, i) }",
    "Gather one": "int64 i = {-1}> { y = Gather<axis = -1>(x, i) }",
    "GatherElements": "int32[2,3,1] i = {0, -1, 3, 3, 2, 1}> { y = GatherElements<axis = 2>(x, i) }",
    "GatherND": "int64[3,2] i = {0, -1, 1, 2, 1, 2}> { y = GatherND(x, i) }",
    "GatherND in batches": "int64[2,2,1] i = {0, -1, 1, 1}> { y = GatherND<batch_dims = 1>(x, i) }",
    "Compress": "bool[3] c = {1, 0, 1}> { y = Compress<axis = 1>(x, c) }",
    "Compress of all": "bool[5] c = {1, 0, 1, 0, 1}> { y = Compress(x, c) }",
    "Unique": "float unused = {0.0}> { y = Unique<axis = 2>(x) }",
    "Unique unsorted": "float unused = {0.0}> { y = Unique<sorted = 0>(x) }",
    "Trilu": "int64 k = {1}> { y = Trilu(x, k) }",
    "Trilu lower": "int64 k = {-1}> { y = Trilu<upper = 0>(x, k) }",
    "ReverseSequence": "int64[3] n = {1, 4, 2}> { y = ReverseSequence<batch_axis = 1, time_axis = 2>(x, n) }",
    "SplitToSequence": "int64 k = {2}, int64 i = {-1}> "
    "{ s = SplitToSequence<axis = 2>(x, k)  a = SequenceAt(s, i)  t = SequenceInsert(s, a) "
    "y = ConcatFromSequence<axis = 2>(t) }",
    "SequenceConstruct and SequenceErase": "int64 i = {0}> { n = Neg(x)  s = SequenceConstruct(x, n)  "
    "t = SequenceErase(s, i)  y = ConcatFromSequence<axis = 0>(t) }",
    "SequenceMap": "float unused = {0.0}> { s = SplitToSequence<keepdims = 0>(x)  "
    "t = SequenceMap(s) <body = b (double[3,4] p) => (double[3,4] q) { q = Mul(p, p) }>  "
    "y = ConcatFromSequence<axis = 0, new_axis = 1>(t) }",
    "Optional": "float unused = {0.0}> { o = Optional(x)  y = OptionalGetElement(o) }",
    "If": "bool c = {1}> { y = If(c) <then_branch = t () => (double[2,3,4] p) { p = Mul(x, x) }, "
    "else_branch = e () => (double[2,3,4] q) { q = Neg(x) }> }",
    "Einsum of a diagonal": 'int64[3] s = {2, 3, 4}> { a = Einsum<equation = "...i -> i...">(x)  '
    'y = Einsum<equation = "aij, bij">(a, a) }',
}
"""Graphs of `x`, double[2,3,4], at opset 18."""

X = np.random.default_rng(0).normal(size=(2, 3, 4)) * 2

OTHERS = {
    "MatMul": (18, "(double[2,3,4] x, double[4,2] w) => (double[A,B,C] y) { y = MatMul(x, w) }", {"w": (4, 2)}),
    "MatMul of a vector": (18, "(double[2,3,4] x, double[4] w) => (double[A,B] y) { y = MatMul(x, w) }", {"w": (4,)}),
    "Gemm": (
        18,
        "(double[3,2] a, double[3,4] b, double[4] c) => (double[A,B] y) "
        "{ y = Gemm<alpha = 0.5, beta = 2.0, transA = 1>(a, b, c) }",
        {"a": (3, 2), "b": (3, 4), "c": (4,)},
    ),
    "Gemm without a bias": (
        11,
        "(double[3,2] a, double[4,2] b) => (double[A,B] y) { y = Gemm<alpha = 0.5, transB = 1>(a, b) }",
        {"a": (3, 2), "b": (4, 2)},
    ),
    "MatMulInteger of floats": (
        18,
        "(double[3,2] a, double[2,4] b, double[3] p, double[4] q) => (double[A,B] y) { y = MatMulInteger(a, b, p, q) }",
        {"a": (3, 2), "b": (2, 4), "p": (3,), "q": (4,)},
    ),
    "Einsum": (
        12,
        '(double[2,3] a, double[3,4] b) => (double[A,B] y) { y = Einsum<equation = "ij, jk -> ki">(a, b) }',
        {"a": (2, 3), "b": (3, 4)},
    ),
    "Det": (18, "(double[2,3,3] a) => (double[A] y) { y = Det(a) }", {"a": (2, 3, 3)}),
    "DepthToSpace": (
        18,
        "(double[1,8,1,2] a) => (double[A,B,C,D] y) { y = DepthToSpace<blocksize = 2>(a) }",
        {"a": (1, 8, 1, 2)},
    ),
    "DepthToSpace CRD": (
        18,
        '(double[1,8,1,2] a) => (double[A,B,C,D] y) { y = DepthToSpace<blocksize = 2, mode = "CRD">(a) }',
        {"a": (1, 8, 1, 2)},
    ),
    "SpaceToDepth": (
        18,
        "(double[1,2,2,4] a) => (double[A,B,C,D] y) { y = SpaceToDepth<blocksize = 2>(a) }",
        {"a": (1, 2, 2, 4)},
    ),
    **{
        f"ScatterElements {way}": (
            18,
            "(double[3,4] a, double[3,3] u) => (double[A,B] y) <int64[3,3] i = {0, 1, -1, 0, 1, 2, 3, 2, 0}> "
            f'{{ y = ScatterElements<axis = -1, reduction = "{way}">(a, i, u) }}',
            {"a": (3, 4), "u": (3, 3)},
        )
        for way in ("none", "add", "mul", "max", "min")
    },
    "ScatterElements, an index twice": (
        18,
        "(double[3] a, double[4] u) => (double[A] y) <int64[4] i = {0, 1, 0, 0}> "
        '{ y = ScatterElements<reduction = "mul">(a, i, u) }',
        {"a": (3,), "u": (4,)},
    ),
    "Scatter": (
        9,
        "(double[3] a, double[2] u) => (double[A] y) <int64[2] i = {0, 2}> { y = Scatter(a, i, u) }",
        {"a": (3,), "u": (2,)},
    ),
    **{
        f"ScatterND {way}": (
            18,
            "(double[2,3,4] x, double[2,4] u) => (double[A,B,C] y) <int64[2,2] i = {0, -1, 1, 0}> "
            f'{{ y = ScatterND<reduction = "{way}">(x, i, u) }}',
            {"u": (2, 4)},
        )
        for way in ("none", "add", "mul", "max", "min")
    },
    **{
        f"TensorScatter {mode}": (
            24,
            "(double[2,3,4] x, double[2,2,4] u) => (double[A,B,C] y) <int64[2] i = {1, 0}> "
            f'{{ y = TensorScatter<mode = "{mode}">(x, u, i) }}',
            {"u": (2, 2, 4)},
        )
        for mode in ("linear", "circular")
    },
    "OneHot": (
        18,
        "(double[2] v) => (double[A,B] y) <int64[3] i = {0, -1, 5}, int64 d = {3}> { y = OneHot(i, d, v) }",
        {"v": (2,)},
    ),
    "Range": (
        18,
        "(double a, double d) => (double[A] y) <double l = {9.0}, double o = {1.0}> { b = Abs(d)  e = Add(b, o)  y = Range(a, l, e) }",
        {"a": (), "d": ()},
    ),
    "Loop": (
        18,
        "(double[2] a, double[2] w) => (double[2] z, double[A,2] y) <int64 n = {3}> { z, y = Loop(n, , a) <body = b "
        "(int64 i, bool c, double[2] s) => (bool d, double[2] t, double[2] u) "
        "{ d = Identity(c)  t = Mul(s, w)  u = Add(s, s) }> }",
        {"a": (2,), "w": (2,)},
    ),
    "Scan": (
        18,
        "(double[2] a, double[2,3,4] x, double[2] w) => (double[2] z, double[A,B,C] y) "
        "{ z, y = Scan<num_scan_inputs = 1, scan_input_axes = [2], scan_input_directions = [1], "
        "scan_output_axes = [-1], scan_output_directions = [1], body = b (double[2] s, double[2,3] p) "
        "=> (double[2] t, double[2,3] q) { t = Mul(s, w)  m = Transpose(p)  n = Mul(m, t)  q = Transpose(n) }>(a, x) }",
        {"a": (2,), "w": (2,)},
    ),
    "Scan of opset 8": (
        8,
        "(double[2,4] a, double[2,3,4] x) => (double[2,4] z, double[A,B,C] y) <int64[2] n = {3, 1}> "
        "{ z, y = Scan<num_scan_inputs = 1, body = b (double[4] s, double[4] p) => (double[4] t, double[4] q) "
        "{ t = Mul(s, p)  q = Add(s, p) }>(n, a, x) }",
        {"a": (2, 4)},
    ),
    "Slice of opset 9": (
        9,
        "(double[2,3,4] x) => (double[A,B,C] y) { y = Slice<starts = [1, -3], ends = [9, -1], axes = [1, 2]>(x) }",
        {},
    ),
    "Pad of opset 10": (
        10,
        "(double[2,3,4] x) => (double[A,B,C] y) { y = Pad<pads = [0, 1, 0, 1, -1, 2], value = 2.0>(x) }",
        {},
    ),
    "Split of opset 11": (
        11,
        "(double[2,3,4] x) => (double[A,B,C] y) { a, y = Split<axis = 2, split = [1, 3]>(x) }",
        {},
    ),
    "Squeeze of opset 11": (
        11,
        "(double[2,3,4] x) => (double[A,B,C] y) { a = Unsqueeze<axes = [0, -1]>(x)  y = Squeeze<axes = [0]>(a) }",
        {},
    ),
}
"""The opset, a graph, and the shapes of its inputs besides `x`."""


def check(opset, text, feeds):
    """Compare the gradients of `y` by the floats among the feeds with finite differences, in float64."""
    module = OnnxModule(ir.from_proto(parser.parse_model(f'<ir_version: 9, opset_import: ["": {opset}]> g {text}')))
    inputs = [torch.from_numpy(np.array(array)).requires_grad_() for array in feeds.values()]
    assert torch.autograd.gradcheck(lambda *moved: module(dict(zip(feeds, moved, strict=True)))["y"], inputs)


@pytest.mark.parametrize("name", SHAPED)
def test_gradients_of_one_tensor(name):
    check(18, f"(double[2,3,4] x) => (double[] y) <{SHAPED[name]}", {"x": X})


@pytest.mark.parametrize("name", OTHERS)
def test_gradients_of_several_tensors(name):
    opset, text, shapes = OTHERS[name]
    generator = np.random.default_rng(1)
    feeds = {key: generator.normal(size=shape) * 2 for key, shape in shapes.items()}
    check(opset, text, feeds | ({"x": X} if " x" in text.partition("=>")[0] else {}))
