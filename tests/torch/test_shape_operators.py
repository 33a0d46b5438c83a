"""Operators that shape, index, join, multiply and loop: what onnx's node cases leave out."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import parser

pytest.importorskip("torch")

import torch

from graphopt.runtime import ExecutionError
from graphopt.runtimes._torch import values
from graphopt.runtimes._torch.module import OnnxModule

X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)

SMALL = np.array([[3, 0, 1], [2, 1, 0]])

LOOP = (
    "(int64 n, float[2] x) => (float[2] z, float[A,2] y) { z, y = Loop(n, , x) <body = b (int64 i, bool c, float[2] s) "
    "=> (bool d, float[2] t, float[2] u) { l = Constant<value_int = 1>()  d = Less(i, l)  t = Add(s, s)  u = Neg(t) }> }"
)

SCAN_8 = (
    "(int64[2] n, float[2,4] a, float[2,3,4] x) => (float[2,4] z, float[2,3,4] y) { z, y = Scan<num_scan_inputs = 1, "
    "directions = [1], body = b (float[4] s, float[4] p) => (float[4] t, float[4] q) { t = Add(s, p)  q = Neg(t) }>"
    "(n, a, x) }"
)

SCAN = (
    "(float[4] a, float[N,4] x) => (float[4] z, float[4,N] y) { z, y = Scan<num_scan_inputs = 1, "
    "scan_output_axes = [1], body = b (float[4] s, float[4] p) => (float[4] t, float[4] q) "
    "{ t = Add(s, p)  q = Neg(t) }>(a, x) }"
)


def padding(mode, *pads):
    text = f"(float[2,3,4] x) => (float[A,B,C] y) <int64[6] p = {{{', '.join(map(str, pads))}}}> "
    return 18, text + f'{{ y = Pad<mode = "{mode}">(x, p) }}', {"x": X}


SAME = {
    "Slice from far below, backwards": (
        13,
        "(float[2,3,4] x) => (float[A,B,C] y) <int64[1] s = {-99}, int64[1] e = {-999}, int64[1] a = {-1}, "
        "int64[1] p = {-1}> { y = Slice(x, s, e, a, p) }",
        {"x": X},
    ),
    "Slice of nothing, backwards": (
        13,
        "(float[2,3,4] x) => (float[A,B,C] y) <int64[1] s = {1}, int64[1] e = {2}, int64[1] a = {2}, "
        "int64[1] p = {-2}> { y = Slice(x, s, e, a, p) }",
        {"x": X},
    ),
    "Slice of opset 9": (
        9,
        "(float[2,3,4] x) => (float[A,B,C] y) { y = Slice<starts = [-9, 1], ends = [9, -1]>(x) }",
        {"x": X},
    ),
    "Range in tenths": (
        18,
        "(float a, float b, float c) => (float[N] y) { y = Range(a, b, c) }",
        {"a": np.float32(0), "b": np.float32(0.3), "c": np.float32(0.1)},
    ),
    "Range of many tenths": (
        18,
        "(float a, float b, float c) => (int64[1] y) { r = Range(a, b, c)  y = Shape(r) }",
        {"a": np.float32(0.1), "b": np.float32(100), "c": np.float32(0.1)},
    ),
    "Range downwards": (
        18,
        "(int64 a, int64 b, int64 c) => (int64[N] y) { y = Range(a, b, c) }",
        {"a": np.int64(9), "b": np.int64(-2), "c": np.int64(-3)},
    ),
    "Range of nothing": (
        18,
        "(int32 a, int32 b, int32 c) => (int32[N] y) { y = Range(a, b, c) }",
        {"a": np.int32(9), "b": np.int32(10), "c": np.int32(-3)},
    ),
    "a loop without steps": (13, LOOP, {"n": np.int64(0), "x": X[0, 0, :2]}),
    "a loop that its body ends": (13, LOOP, {"n": np.int64(7), "x": X[0, 0, :2]}),
    "a scan": (16, SCAN, {"a": X[0, 0], "x": X[0]}),
    "MatMul of whole numbers": (
        13,
        "(int64[2,2] x) => (int64[2,2] y) { y = MatMul(x, x) }",
        {"x": np.array([[2**31 + 1, 3], [5, 7]])},
    ),
    "MatMul of unsigned numbers": (
        13,
        "(uint64[2,2] x) => (uint64[2,2] y) { y = MatMul(x, x) }",
        {"x": np.array([[2**31 + 1, 3], [5, 7]], np.uint64)},
    ),
    "Gemm with a column": (
        7,
        "(float[2,3] a, float[3,4] b, float[2,1] c) => (float[A,B] y) { y = Gemm<alpha = 0.5, beta = 2.0>(a, b, c) }",
        {"a": X[:, :, 0], "b": X[0], "c": X[:, 0, :1]},
    ),
    "Gemm with a number": (
        11,
        "(float[2,3] a, float[4,3] b, float c) => (float[A,B] y) { y = Gemm<transB = 1, beta = 2.0>(a, b, c) }",
        {"a": X[:, :, 0], "b": X[0].T, "c": np.float32(3)},
    ),
    "MatMulInteger with a zero point per row and column": (
        13,
        "(uint8[2,3] a, int8[3,4] b, uint8 p, int8[4] q) => (int32[2,4] y) { y = MatMulInteger(a, b, p, q) }",
        {
            "a": np.array([[255, 0, 3], [9, 128, 200]], np.uint8),
            "b": np.arange(-128, -116, dtype=np.int8).reshape(3, 4),
            "p": np.uint8(128),
            "q": np.array([-128, 0, 1, 127], np.int8),
        },
    ),
    "Einsum with upper case": (
        12,
        '(float[2,3,4] x, float[4,3] w) => (float[A,B] y) { y = Einsum<equation = "bAc, cA">(x, w) }',
        {"x": X, "w": X[0].T.copy()},
    ),
    "Pad reflect": padding("reflect", 0, 0, 3, 0, 0, 2),
    "Pad reflect the channels too": padding("reflect", 0, 2, 3, 0, 1, 2),
    "Pad edge and crop": padding("edge", 0, 0, 3, 0, 0, -1),
    "Pad edge": padding("edge", 0, 0, 2, 0, 0, 3),
    "Pad edge by more than there is": padding("edge", 0, 0, 9, 0, 4, 0),
    "Pad and crop": padding("constant", 0, 1, -2, 0, -1, 3),
    "Pad large numbers": (
        13,
        "(int64[2] x, int64 v) => (int64[A] y) <int64[2] p = {1, 2}> { y = Pad(x, p, v) }",
        {"x": np.array([1, 2]), "v": np.int64(2**60 + 1)},
    ),
    "Split of opset 11": (
        11,
        "(float[2,3,4] x) => (float[A,B,C] y, float[D,E,F] z) { y, z = Split<axis = -1>(x) }",
        {"x": X},
    ),
    "Squeeze of opset 11": (
        11,
        "(float[2,3,4] x) => (float[A,B,C] y) { a = Unsqueeze<axes = [0, -1]>(x)  y = Squeeze(a) }",
        {"x": X},
    ),
    "OneHot off the edge": (
        11,
        "(int64[4] i, float[2] v) => (float[A,B] y) <int64 d = {3}> { y = OneHot<axis = 0>(i, d, v) }",
        {"i": np.array([0, -3, 3, -4]), "v": np.array([5, 9], np.float32)},
    ),
    "ScatterND of nothing": (
        16,
        "(float[2,3,4] x, int64[0,2] i, float[0,4] u) => (float[A,B,C] y) { y = ScatterND(x, i, u) }",
        {"x": X, "i": np.zeros((0, 2), np.int64), "u": np.zeros((0, 4), np.float32)},
    ),
    "GatherND of nothing": (
        13,
        "(float[2,3,4] x, int64[0,2] i) => (float[A,B] y) { y = GatherND(x, i) }",
        {"x": X, "i": np.zeros((0, 2), np.int64)},
    ),
    "Gather from nothing": (
        13,
        "(float[2,0,4] x, int64[1] i) => (float[A,B,C] y) { y = Gather(x, i) }",
        {"x": np.zeros((2, 0, 4), np.float32), "i": np.array([-1])},
    ),
    "Reshape of nothing": (
        14,
        "(float[0,3] x) => (float[A,B] y) <int64[2] s = {-1, 3}> { y = Reshape(x, s) }",
        {"x": np.zeros((0, 3), np.float32)},
    ),
    "Flatten a number": (13, "(float x) => (float[A,B] y) { y = Flatten<axis = 0>(x) }", {"x": np.float32(3)}),
    "SplitToSequence of text": (
        13,
        "(string[3] x) => (string y) <int64 p = {-1}> { s = SplitToSequence<keepdims = 0>(x)  y = SequenceAt(s, p) }",
        {"x": np.array(["a", "b", "c"], object)},
    ),
}
"""An opset, a graph and feeds, which ONNX Runtime computes likewise."""

MOVED = {
    "Reshape and Transpose": "<int64[1] s = {-1}> { a = Transpose(x)  y = Reshape(a, s) }",
    "Flatten, Squeeze, Unsqueeze": "<int64[1] a = {0}> { t = Transpose(x)  b = Unsqueeze(t, a)  c = Flatten(b)  "
    "y = Squeeze(c) }",
    "Expand and Tile": "<int64[3] s = {2, 1, 1}> { a = Expand(x, s)  y = Tile(a, s) }",
    "Concat and Split": "<int64[2] s = {1, 5}> { a = Concat<axis = 1>(x, x)  b, y = Split<axis = 1>(a, s) }",
    "Slice": "<int64[1] s = {5}, int64[1] e = {-9}, int64[1] a = {1}, int64[1] p = {-2}> { y = Slice(x, s, e, a, p) }",
    "Gather": "<int64[2] i = {-1, 0}> { y = Gather<axis = 1>(x, i) }",
    "GatherElements": "<int64[1,3] i = {-1, 0, 1}> { y = GatherElements(x, i) }",
    "GatherND": "<int64[2,2] i = {-1, 0, 0, 0}> { y = GatherND(x, i) }",
    "ScatterElements": "<int64[1,3] i = {-1, 0, 1}, int64[1] r = {0}> "
    "{ u = Gather(x, r)  y = ScatterElements(x, i, u) }",
    "ScatterND": "<int64[1,1] i = {-1}, int64[1] r = {0}> { u = Gather(x, r)  y = ScatterND(x, i, u) }",
    "Compress": "<bool[3] c = {0, 1, 1}> { y = Compress<axis = -1>(x, c) }",
    "ReverseSequence": "<int64[2] n = {2, 3}> { y = ReverseSequence<batch_axis = 0, time_axis = 1>(x, n) }",
    "Pad edge": '<int64[4] p = {0, 1, 2, 0}> { y = Pad<mode = "edge">(x, p) }',
    "SplitToSequence": "<int64 k = {2}> { s = SplitToSequence<axis = 1>(x, k)  y = ConcatFromSequence<axis = 1>(s) }",
}
"""Graphs of `x`, [2,3], that only move elements."""

TYPES = ["bfloat16", "bool", "uint8", "uint16", "uint32", "uint64", "int4", "uint4", "float8e4m3fn", "string"]


def model_of(opset, text):
    return parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}]> g {text}')


def run(model, feeds):
    module = OnnxModule(ir.from_proto(model))
    return {
        name: values.to_numpy(value)
        for name, value in module({name: values.from_numpy(np.asarray(array)) for name, array in feeds.items()}).items()
    }


@pytest.mark.parametrize("name", SAME)
def test_like_onnx_runtime(name):
    onnxruntime = pytest.importorskip("onnxruntime")
    opset, text, feeds = SAME[name]
    model = model_of(opset, text)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, {name: np.asarray(array) for name, array in feeds.items()})
    for (key, actual), wanted in zip(run(model, feeds).items(), expected, strict=True):
        wanted = np.asarray(wanted)
        assert (key, actual.shape, actual.dtype) == (key, wanted.shape, wanted.dtype)
        if wanted.dtype == object:
            assert actual.tolist() == wanted.tolist()
        else:
            np.testing.assert_allclose(actual, wanted, rtol=1e-6)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", MOVED)
def test_every_type_is_moved(name, kind):
    wanted = run(model_of(23, f"(float[2,3] x) => (float[] y) {MOVED[name]}"), {"x": SMALL.astype(np.float32)})["y"]
    dtype = object if kind == "string" else ir.DataType[kind.upper()].numpy()

    def of(array):
        return array.astype(int).astype(str).astype(object) if dtype is object else array.astype(dtype)

    actual = run(model_of(23, f"({kind}[2,3] x) => ({kind}[] y) {MOVED[name]}"), {"x": of(SMALL)})["y"]
    assert actual.dtype == dtype
    assert actual.tolist() == of(wanted).tolist()


@pytest.mark.parametrize("kind", ["uint16", "uint32", "uint64", "int8", "float16", "bfloat16"])
@pytest.mark.parametrize(("reduction", "wanted"), [("add", [6, 2]), ("mul", [6, 2]), ("max", [3, 2]), ("min", [1, 2])])
def test_scatter_reduces_every_type(kind, reduction, wanted):
    text = (
        f"({kind}[2] x, {kind}[2] u) => ({kind}[2] y) <int64[2] i = {{0, -2}}> "
        f'{{ y = ScatterElements<reduction = "{reduction}">(x, i, u) }}'
    )
    dtype = ir.DataType[kind.upper()].numpy()
    actual = run(model_of(18, text), {"x": np.array([1, 2]).astype(dtype), "u": np.array([2, 3]).astype(dtype)})["y"]
    assert actual.dtype == dtype
    assert actual.tolist() == wanted


def test_scatter_ranks_numbers_beyond_63_bits():
    text = (
        "(uint64[1] x, uint64[1] u) => (uint64[1] y) <int64[1] i = {0}> "
        '{ y = ScatterElements<reduction = "max">(x, i, u) }'
    )
    actual = run(model_of(18, text), {"x": np.array([2**63], np.uint64), "u": np.array([1], np.uint64)})
    assert actual["y"].tolist() == [2**63]


def test_scatter_reduces_bools():
    text = (
        '(bool[2] x, bool[2] u) => (bool[2] y) <int64[2] i = {0, 1}> { y = ScatterElements<reduction = "%s">(x, i, u) }'
    )
    feeds = {"x": np.array([True, False]), "u": np.array([False, False])}
    for reduction, wanted in {"add": [True, False], "mul": [False, False], "max": [True, False]}.items():
        assert run(model_of(18, text % reduction), feeds)["y"].tolist() == wanted


@pytest.mark.parametrize("kind", ["uint16", "uint64", "int4", "float8e5m2", "bfloat16", "bool"])
def test_nonzero_of_every_type(kind):
    dtype = ir.DataType[kind.upper()].numpy()
    actual = run(model_of(21, f"({kind}[2,3] x) => (int64[2,N] y) {{ y = NonZero(x) }}"), {"x": SMALL.astype(dtype)})
    assert actual["y"].tolist() == np.array(np.nonzero(SMALL)).tolist()


def test_text_is_padded_with_nothing():
    text = "(string[2] x) => (string[4] y) <int64[2] p = {1, 1}> { y = Pad(x, p) }"
    assert run(model_of(23, text), {"x": np.array(["a", "b"], object)})["y"].tolist() == ["", "a", "b", ""]


def test_one_hot_of_text():
    text = "(int64[2] i, string[2] v) => (string[2,2] y) <int64 d = {2}> { y = OneHot(i, d, v) }"
    feeds = {"i": np.array([1, 0]), "v": np.array(["no", "yes"], object)}
    assert run(model_of(13, text), feeds)["y"].tolist() == [["no", "yes"], ["yes", "no"]]


def test_zero_points_in_the_shape_of_the_matrix():
    a, b = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3), np.arange(12, dtype=np.uint8).reshape(1, 2, 3, 2)
    p, q = np.arange(4, dtype=np.uint8).reshape(1, 2, 2, 1), np.arange(4, dtype=np.uint8).reshape(1, 2, 1, 2)
    wanted = np.matmul(a.astype(np.int32) - p, b.astype(np.int32) - q)
    text = (
        "(uint8[1,2,2,3] a, uint8[1,2,3,2] b, uint8[1,2,2,1] p, uint8[1,2,1,2] q) => (int32[1,2,2,2] y) "
        "{ y = MatMulInteger(a, b, p, q) }"
    )
    np.testing.assert_array_equal(run(model_of(13, text), {"a": a, "b": b, "p": p, "q": q})["y"], wanted)


def test_whole_numbers_in_floats_stay_floats():
    text = "(float[2,3] a, uint8[3,2] b) => (float[2,2] y) { y = MatMulInteger(a, b) }"
    feeds = {"a": SMALL.astype(np.float32), "b": SMALL.T.astype(np.uint8)}
    actual = run(model_of(13, text), feeds)["y"]
    assert actual.dtype == np.float32
    np.testing.assert_array_equal(actual, SMALL @ SMALL.T)


def test_gemm_of_large_whole_numbers():
    text = "(int64[1,1] a, int64[1,1] c) => (int64[1,1] y) { y = Gemm(a, a, c) }"
    actual = run(model_of(13, text), {"a": np.array([[2**27 + 1]]), "c": np.array([[1]])})["y"]
    assert actual.tolist() == [[(2**27 + 1) ** 2 + 1]]


def test_scan_of_opset_8_with_lengths():
    feeds = {"n": np.array([3, 1]), "a": np.ones((2, 4), np.float32), "x": X}
    actual = run(model_of(8, SCAN_8), feeds)
    long, short = np.cumsum(X[0, ::-1], 0) + 1, X[1, :1] + 1
    np.testing.assert_array_equal(actual["z"], [long[-1], short[-1]])
    np.testing.assert_array_equal(actual["y"], [-long, np.concatenate([-short, np.zeros((2, 4))])])


def test_a_scan_without_steps():
    actual = run(model_of(16, SCAN), {"a": X[0, 0], "x": np.zeros((0, 4), np.float32)})
    np.testing.assert_array_equal(actual["z"], X[0, 0])
    assert actual["y"].shape == (4, 0)


def test_a_map_of_no_tensors():
    text = (
        "(float[2] x) => (int64 y) { s = SequenceEmpty()  t = SequenceMap(s) "
        "<body = b (float[2] p) => (float[2] q) { q = Neg(p) }>  y = SequenceLength(t) }"
    )
    assert run(model_of(17, text), {"x": X[0, 0, :2]})["y"] == 0


def test_a_loop_without_steps_whose_body_cannot_run():
    text = (
        "(int64 n, float[0] x) => (float[A] y) { y = Loop(n, ) <body = b (int64 i, bool c) => (bool d, float u) "
        "{ d = Identity(c)  u = Gather(x, i) }> }"
    )
    with pytest.raises(ExecutionError, match="no step"):
        run(model_of(13, text), {"n": np.int64(0), "x": np.zeros(0, np.float32)})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{ y = Pad<mode = "mirror">(x, p) }', "mode 'mirror'"),
        ('{ y = ScatterND<reduction = "mean">(x, i, x) }', "reduction 'mean'"),
    ],
)
def test_what_the_specification_lacks_is_refused(text, message):
    model = model_of(18, f"(float[2] x) => (float[A] y) <int64[2] p = {{1, 1}}, int64[2,1] i = {{0, 1}}> {text}")
    with pytest.raises(ExecutionError, match=message):
        run(model, {"x": X[0, 0, :2]})


def test_half_precision_updates_under_autocast():
    text = (
        "(float[2,2] x, float[2,2] w) => (float[2,2] y) <int64[1,1] i = {0}, int64[1,2] j = {0, 1}, int64[1] r = {0}> "
        '{ m = MatMul(x, w)  u = Gather(m, r)  a = ScatterND(x, i, u)  y = ScatterElements<reduction = "add">(a, j, u) }'
    )
    module = OnnxModule(ir.from_proto(model_of(18, text)))
    x = torch.eye(2)
    with torch.autocast("cpu", torch.bfloat16):
        y = module({"x": x, "w": x})["y"]
    assert y.tolist() == [[2, 0], [0, 1]]


def test_constants_are_not_copied():
    module = OnnxModule(
        ir.from_proto(model_of(18, "(float x) => (float[2] y) { y = Constant<value = float[2] {1, 2}>() }"))
    )
    one, other = (module({"x": torch.tensor(0.0)})["y"] for _ in range(2))
    assert one.data_ptr() == other.data_ptr()
