"""Models in other versions of the standard operator set compute the same, or the node that has no equal is named."""

from __future__ import annotations

import copy
import importlib
import itertools
import re
import warnings

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt import compare, runtime, target
from graphopt.errors import UserError
from graphopt.passbase import PreconditionError
from graphopt.passes.precision._opset import schemas
from graphopt.passes.precision._opset.adapters import DOWN, UP
from graphopt.passes.precision.convert_opset import ConvertOpset

KNOWN = 28
"""The operator set that the table of adapters was last compared with."""


def run(model, feeds):
    return runtime.open_session(model, target.find("cpu")).run(feeds)


def feeds_of(model):
    rng = np.random.default_rng(0)
    feeds = {}
    for port in runtime.model_inputs(model):
        shape = [2, 3, 4] if port.shape is None else [dim if isinstance(dim, int) else 3 for dim in port.shape]
        floats = port.dtype.is_floating_point()
        feeds[port.name] = np.asarray(rng.standard_normal(shape) if floats else rng.integers(0, 3, shape)).astype(
            port.dtype.numpy()
        )
    return feeds


def text_of(model):
    return ir.to_proto(model).SerializeToString(deterministic=True)


def ops(model):
    return [node.op_type for node in model.graph.all_nodes()]


@pytest.fixture
def convert(parse):
    """Convert a model, or ONNX text, from version to version, and check everything that must hold after each step."""

    def once(model, *versions, feeds=None, rtol=1e-5):
        model = parse(model) if isinstance(model, str) else model
        feeds = feeds_of(model) if feeds is None else feeds
        expected = run(model, feeds)
        interface = runtime.model_inputs(model), runtime.ports(model.graph.outputs)
        for version in versions:
            before = text_of(model)
            result = ConvertOpset(version)(model)
            assert result.modified == (text_of(model) != before)
            assert model.opset_imports[""] == version
            assert (runtime.model_inputs(model), runtime.ports(model.graph.outputs)) == interface
            if all(value.shape is not None for value in model.graph.inputs):  # the checker wants ranks of inputs
                onnx.checker.check_model(ir.to_proto(model), full_check=True)
            wrong = compare.first_mismatch(expected, run(model, feeds), rtol)
            assert wrong is None, (version, wrong)
            after = text_of(model)
            assert not ConvertOpset(version)(model).modified
            assert text_of(model) == after
        return model

    return once


def graph(opset, body, inputs="float[2,3,4] x", outputs="float[A,B,C] y", constants=""):
    return (
        f'<ir_version: 8, opset_import: ["": {opset}]> g ({inputs}) => ({outputs}) '
        f"{f'<{constants}>' if constants else ''} {{ {body} }}"
    )


CASES = {
    "squeeze": ((11, "a = Unsqueeze<axes = [0, -1]>(x) b = Squeeze<axes = [0]>(a) y = Squeeze<axes = [-1]>(b)"), (13, 21, 12, 9)),
    "squeeze all": ((13, "a = Reshape(x, s) y = Squeeze(a)", "float[2,3,4] x", "float[A,B,C] y", "int64[5] s = {1,2,1,3,4}"), (11,)),
    "reductions": ((11, "a = ReduceSum<axes = [1]>(x) b = ReduceMax<axes = [-1]>(x) y = Mul(a, b)"), (13, 18, 21, 10, 8)),
    "reduce all": ((18, "a = ReduceMean(x) b = ReduceL2<keepdims = 1>(x) y = Mul(a, b)"), (11, 21)),
    "reduce none": ((18, "y = ReduceSum<noop_with_empty_axes = 1>(x)"), (11, 21)),
    "reduce no axes": ((18, "y = ReduceMax(x, none)", "float[2,3,4] x", "float[A,B,C] y", "int64[0] none = {}"), (13, 20)),
    "split": ((11, "a, y = Split<axis = 1, split = [1, 2]>(x)"), (13, 18, 12, 9)),
    "equal split": ((13, "a, y = Split<axis = -1>(x)"), (18, 21, 11)),
    "uneven split": ((18, "a, b, y = Split<axis = -1, num_outputs = 3>(x)", "float[2,3,5] x"), (13, 11)),
    "split of a dynamic axis": ((18, "a, y = Split<axis = 1, num_outputs = 2>(x)", "float[2,N,5] x"), (13, 18)),
    "softmax": ((11, "a = Softmax(x) b = LogSoftmax<axis = 2>(x) c = Hardmax<axis = -1>(x) d = Add(a, b) y = Add(d, c)"), (13, 21, 11, 9)),
    "softmax of any axis": ((13, "a = Softmax<axis = 1>(x) b = Hardmax<axis = 0>(x) c = Softmax(x) d = Add(a, b) y = Add(c, d)"), (12, 9, 15)),
    "softmax of unknown rank": ((11, "a = Softmax<axis = 1>(x) b = Softmax<axis = 2>(a) y = Softmax<axis = -1>(b)", "float[] x"), (13,)),
    "softmax of any axis of unknown rank": ((13, "y = Softmax<axis = 1>(x)", "float[] x"), (12,)),
    "clip": ((7, "a = Clip<min = 0.1>(x) b = Clip(a) y = Clip<max = 0.4>(b)"), (11, 13, 9)),
    "clip of integers": ((12, "y = Clip(x, low, high)", "int64[2,3,4] x", "int64[A,B,C] y", "int64 low = {1}, int64 high = {2}"), (11, 9, 13)),
    "clip that varies": ((13, "y = Clip(x, low, high)", "float[2,3,4] x, float low, float high"), (10, 8, 13)),
    "max of integers": ((13, "a = Max(x, k) b = Min(a, x, k) y = Mul(a, b)", "int64[2,3,4] x", "int64[A,B,C] y", "int64[4] k = {0,1,2,3}"), (11, 9)),
    "relu of integers": ((14, "y = Relu(x)", "int32[2,3,4] x", "int32[A,B,C] y"), (13, 9)),
    "power": ((12, "y = Pow(x, k)", "float[2,3,4] x", "float[A,B,C] y", "int64 k = {3}"), (11, 7, 15)),
    "dropout": ((7, "y = Dropout<ratio = 0.3>(x)"), (10, 12, 22, 11, 7)),
    "pad": ((10, "y = Pad<pads = [0,1,0,0,0,2], value = 1.5>(x)"), (11, 19, 10)),
    "pad some axes": ((18, "y = Pad(x, p, , a)", "float[2,3,4] x", "float[A,B,C] y", "int64[2] p = {1,2}, int64[1] a = {-2}"), (17, 10)),
    "pad by a computed amount": ((18, "y = Pad(x, p, , a)", "float[2,3,4] x, int64[2] p", "float[A,B,C] y", "int64[1] a = {-2}"), (13,)),
    "slice": ((9, "y = Slice<axes = [1], starts = [1], ends = [9]>(x)"), (10, 13, 9)),
    "slice from the back": ((13, "y = Slice(x, s, e, a)", "float[2,3,4] x", "float[A,B,C] y", "int64[1] s = {1}, int64[1] e = {9}, int64[1] a = {-2}"), (10, 9)),
    "topk": ((9, "y, i = TopK<axis = -1, k = 2>(x)"), (10, 11, 24, 9)),
    "smallest k": ((11, "y, i = TopK<axis = 1, largest = 0>(x, k)", "float[2,3,4] x", "float[A,B,C] y, int64[A,B,C] i", "int64[1] k = {2}"), (9, 11)),
    "reshape": ((14, "y = Reshape<allowzero = 1>(x, s)", "float[2,3,4] x", "float[A,B,C] y", "int64[3] s = {3,-1,2}"), (13,)),
    "shape": ((15, "s = Shape<start = 1, end = -1>(x) e = Shape<start = -1>(x) t = Concat<axis = 0>(s, m, e) y = Reshape(x, t)",
               "float[2,3,4] x", "float[A,B,C] y", "int64[1] m = {-1}"), (13, 21)),
    "constants": ((12, "a = Constant<value_floats = [1.0, 2.0, 3.0, 4.0]>() b = Constant<value_int = 1>() c = Cast<to = 1>(b) d = Mul(a, c) y = Mul(x, d)"), (11, 9)),
    "gather from the back": ((11, "y = Gather<axis = -2>(x, i)", "float[2,3,4] x, int64[2] i"), (10, 13)),
    "triangle": ((14, "a = Trilu<upper = 0>(x, k) b = Trilu(x) y = Add(a, b)", "float[2,3,4] x", "float[A,B,C] y", "int64 k = {-1}"), (13, 12)),
    "matrix product without sum": ((11, "y = Gemm<transB = 1>(a, b)", "float[2,3] a, float[4,3] b", "float[A,B] y"), (9, 13)),
    "sum": ((8, "y = Sum(x, b, x)", "float[2,3,4] x, float[4] b"), (7, 13)),
    "scatter": ((9, "y = Scatter<axis = 1>(x, i, u)", "float[2,3,4] x, int64[2,1,4] i, float[2,1,4] u"), (11, 16, 10)),
    "layer normalization": ((17, "y = LayerNormalization<axis = -1, epsilon = 0.01>(x, s, b)", "float[2,3,4] x, float[4] s, float[4] b"), (16, 11, 21)),
    "layer normalization of two axes": ((17, "y = LayerNormalization<axis = 1>(x, s)", "float[2,3,4] x, float[3,4] s"), (13,)),
    "statistics of layer normalization": ((17, "y, m, d = LayerNormalization(x, s)", "float[2,3,4] x, float[4] s", "float[A,B,C] y, float[A,B,D] m, float[A,B,D] d"), (13,)),
    "rms normalization": ((23, "y = RMSNormalization(x, s)", "float[2,3,4] x, float[4] s"), (22, 17, 11)),
    "group normalization": ((18, "y = GroupNormalization<num_groups = 2>(x, s, b)", "float[2,4,5] x, float[2] s, float[2] b"), (21, 20, 17)),
    "group normalization as the first version has it": ((18, "y = GroupNormalization<num_groups = 2>(x, s, b)", "float[2,4,5] x, float[2] s, float[2] b"), (17,)),
    "group normalization of channels": ((21, "y = GroupNormalization<num_groups = 2>(x, s, b)", "float[2,4,5] x, float[4] s, float[4] b"), (20, 17, 11)),
    "batch normalization": ((7, "y = BatchNormalization(x, s, b, m, v)", "float[2,3,4] x, float[3] s, float[3] b, float[3] m", "float[A,B,C] y", "float[3] v = {1.0,2.0,3.0}"), (9, 15, 7)),
    "gelu": ((20, "a = Gelu(x) b = Gelu<approximate = 'tanh'>(x) y = Add(a, b)".replace("'", '"')), (19, 13, 9)),
    "activations": ((22, "a = HardSwish(x) b = Mish(a) y = Celu(b)"), (17, 13, 11)),
    "cast like": ((19, "a = CastLike(i, x) y = Add(x, a)", "float[2,3,4] x, int64[4] i"), (14, 9)),
    "comparisons": ((16, "a = GreaterOrEqual(x, k) b = Cast<to = 1>(a) y = Add(x, b)", "float[2,3,4] x, float[4] k"), (11, 16)),
    "range": ((11, "a = Range(n, m, n) b = Cast<to = 1>(a) y = Mul(x, b)", "float[2,3,4] x", "float[A,B,C] y", "int64 n = {1}, int64 m = {5}"), (10,)),
    "attention": ((23, "y = Attention<is_causal = 1>(q, k, v)", "float[2,2,3,4] q, float[2,2,3,4] k, float[2,2,3,4] v", "float[A,B,C,D] y"), (22, 17, 13)),
    "rotary embedding": ((23, "y = RotaryEmbedding(x, c, s)", "float[1,2,3,4] x, float[1,3,2] c, float[1,3,2] s", "float[A,B,C,D] y"), (22, 14)),
    "grid sample": ((16, "y = GridSample<mode = 'bicubic'>(x, g)".replace("'", '"'), "float[1,1,4,4] x, float[1,3,3,2] g", "float[A,B,C,D] y"), (20, 16)),
    "regions": ((10, "y = RoiAlign<output_height = 2, output_width = 2>(x, r, i)", "float[1,1,8,8] x, float[3,4] r", "float[A,B,C,D] y", "int64[3] i = {0,0,0}"), (16, 10)),
    "fourier transform": ((17, "y = DFT<axis = 1>(x)", "float[1,8,1] x"), (20, 17)),
    "average pooling": ((19, "y = AveragePool<kernel_shape = [2], dilations = [1], ceil_mode = 0>(x)"), (9, 22)),
    "quantized": ((10, "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)", "float[2,3,4] x", "float[A,B,C] y", "float s = {0.05}, uint8 z = {3}"), (13, 21, 10)),
    "quantized without a zero point": ((21, "q = QuantizeLinear<output_dtype = 3>(x, s) y = DequantizeLinear(q, s)", "float[2,3,4] x", "float[A,B,C] y", "float s = {0.05}"), (19, 13)),
    "weights quantized per channel": (
        (
            13,
            "w = DequantizeLinear<axis = 0>(q, s, z) y = Add(x, w)",
            "float[2,3,4] x",
            "float[A,B,C] y",
            "int8[3,1] q = {1,-2,3}, float[3] s = {0.5,0.25,0.125}, int8[3] z = {1,0,5}",
        ),
        (21, 13),
    ),
    "booleans": ((20, "a = Cast<to = 9>(x) b = ReduceMax<keepdims = 1>(a, k) y = Cast<to = 1>(b)", "float[2,3,4] x", "float[A,B,C] y", "int64[1] k = {1}"), (18, 13)),
    "upsample": ((7, "y = Upsample<scales = [1.0, 1.0, 2.0]>(x)"), (9, 10, 11, 13, 19, 9, 7)),
    "linear upsample": ((9, "y = Upsample<mode = 'linear'>(x, s)".replace("'", '"'), "float[1,1,3,4] x", "float[A,B,C,D] y", "float[4] s = {1.0,1.0,2.0,3.0}"), (11, 19, 9)),
    "downsample": ((10, "y = Resize(x, s)", "float[1,1,2,4] x", "float[A,B,C,D] y", "float[4] s = {1.0,1.0,0.6,0.6}"), (11, 18, 10)),
    "resize": ((11, "y = Resize<mode = 'linear'>(x, e, e, s)".replace("'", '"'), "float[1,1,3,4] x", "float[A,B,C,D] y", "float[0] e = {}, int64[4] s = {1,1,6,8}"), (13, 19, 11)),
    "resize some axes": ((18, "a = Resize<axes = [3, 2]>(x, , s) y = Resize<axes = [2]>(a, , , n)", "float[N,1,3,4] x", "float[A,B,C,D] y",
                          "float[2] s = {2.0, 3.0}, int64[1] n = {4}"), (17, 13, 11)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_equal(convert, name):
    arguments, versions = CASES[name]
    convert(graph(*arguments), *versions)


@pytest.mark.parametrize(
    ("arguments", "to", "node", "reason"),
    [
        ((13, "y = Squeeze(x, a)", "float[2,1,4] x, int64[1] a", "float[] y"), 12, "Squeeze", "axes input must be constant"),
        ((13, "y = BitShift<direction = \"LEFT\">(x, x)", "uint8[3] x", "uint8[A] y"), 10, "BitShift", "no such operator"),
        ((18, "y = Resize<antialias = 1, mode = \"linear\">(x, , s)", "float[1,1,4,4] x", "float[A,B,C,D] y", "float[4] s = {1.0,1.0,0.5,0.5}"),
         13, "Resize", "antialias"),
        ((16, "y = ScatterElements<reduction = \"add\">(x, i, x)", "float[4] x, int64[4] i", "float[A] y"), 13, "ScatterElements", "reduce"),
        ((19, "y = AveragePool<kernel_shape = [2], dilations = [2]>(x)",), 13, "AveragePool", "attribute 'dilations' ((2,)) is unknown"),
        ((14, "y = Reshape<allowzero = 1>(x, s)", "float[0,3] x", "float[A,B] y", "int64[2] s = {3,0}"), 13, "Reshape", "holds a 0"),
        ((13, "y = QuantizeLinear<axis = 1>(x, s)", "float[2,3,4] x", "uint8[A,B,C] y", "float[3] s = {0.1,0.2,0.3}"), 11, "QuantizeLinear", "per axis"),
        ((13, "y = Softmax<axis = -2>(x)", "float[] x", "float[] y"), 10, "it is made of ReduceSum; the rank of", "infer-shapes") ,
        ((12, "y, m = Dropout(x)", "float[3] x", "float[A] y, bool[A] m"), 11, "Dropout", "mask is used"),
        ((14, "y = BatchNormalization<training_mode = 1>(x, s, s, s, s)", "float[2,3] x, float[3] s", "float[A,B] y"), 13,
         "BatchNormalization", "training mode"),
        ((9, "y = Scan<num_scan_inputs = 1, body = b (float[4] i) => (float[4] o) { o = Neg(i) }>(x)", "float[3,4] x", "float[A,B] y"), 8,
         "Scan", "runs over batches"),
        ((11, "y = Scan<num_scan_inputs = 1, scan_input_axes = [-1], body = b (float[3] i) => (float[3] o) { o = Neg(i) }>(x)",
          "float[3,4] x", "float[A,B] y"), 9, "Scan", "from the front"),
        ((23, "y = DequantizeLinear<output_dtype = 10>(x, s)", "int8[3] x, float s", "float16[A] y"), 21, "DequantizeLinear", "output_dtype"),
        ((28, "y = Mod(x, x)"), 13, "Mod", "fmod=1"),
        ((6, "y = Dropout(x)"), 13, "Dropout", "training mode"),
        ((13, "y = LayerNormalization<stash = 1>(x, x)",), 17, "LayerNormalization", "attribute 'stash' (1) is unknown"),
    ],
)  # fmt: skip
def test_refused(parse, arguments, to, node, reason):
    model = parse(graph(*arguments))
    before = text_of(model)
    with pytest.raises(PreconditionError, match=f"no equal in opset {to}: .*{re.escape(node)}.*{re.escape(reason)}"):
        ConvertOpset(to)(model)
    assert text_of(model) == before, "a refused model is left alone"


def test_before_numpy_broadcasting(parse):
    """ONNX Runtime does not run these operators before they are converted."""
    body = """a = Add<broadcast = 1, axis = 1>(x, b) e = Exp<consumed_inputs = [0]>(a)
        n = BatchNormalization<is_test = 1, epsilon = 0.0, consumed_inputs = [0, 0, 0, 1, 1]>(e, one, one, one, one)
        f = Reshape(n, s) d = Dropout<is_test = 1>(f) g = Gemm<broadcast = 1, transB = 1>(d, w, z)
        y = Cast<to = "FLOAT">(g)"""
    constants = (
        "float[3] one = {1.0,1.0,1.0}, int64[2] s = {2,6}, float[1,6] w = {1.0,2.0,3.0,1.0,2.0,3.0}, float[1] z = {0.5}"
    )
    model = parse(graph(5, body, "float[2,3,2] x, float[3] b", "float[A,B] y", constants))
    x, b = np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 3, 2), np.arange(3, dtype=np.float32)
    expected = np.exp(x + b[:, None]).reshape(2, 6) @ [1, 2, 3, 1, 2, 3] + 0.5
    for version in (7, 13, 21):
        ConvertOpset(version)(model)
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
        np.testing.assert_allclose(run(model, {"x": x, "b": b})["y"][:, 0], expected, rtol=1e-5)


def test_every_refusal_is_counted(parse):
    body = " ".join(f"v{i} = Squeeze(x, a)" for i in range(5)) + " y = Add(v0, v1)"
    with pytest.raises(PreconditionError, match="and 2 more nodes"):
        ConvertOpset(12)(parse(graph(13, body, "float[2,1,4] x, int64[1] a", "float[] y")))


def test_control_flow(convert):
    text = """<ir_version: 8, opset_import: ["": 11]> g (float[2,3] x, bool c, int64 n) => (float[2,3] y, float[N,2,3] s) {
        a = If(c) <then_branch = t () => (float[2,3] p) { u = Unsqueeze<axes = [0]>(x)  p = Squeeze<axes = [0]>(u) },
                   else_branch = e () => (float[2,3] q) { q = Softmax<axis = 0>(x) }>
        y, s = Loop(n, c, a) <body = b (int64 i, bool go, float[2,3] v) => (bool on, float[2,3] w, float[2,3] scan) {
            on = Identity(go)  r = ReduceSum<axes = [1]>(v)  w = Add(v, r)  scan = Clip(w, , k)
            k = Constant<value = float {5.0}>() }>
    }""".replace(
        "scan = Clip(w, , k)\n            k = Constant<value = float {5.0}>()",
        "k = Constant<value = float {5.0}>()  scan = Clip(w, , k)",
    )
    feeds = {"x": np.ones((2, 3), np.float32), "n": np.asarray(2)}
    for condition in (True, False):
        model = convert(text, 13, 21, 10, feeds={**feeds, "c": np.asarray(condition)})
    assert ops(model).count("Clip") == 1


def test_functions_have_versions_of_their_own(parse):
    """ONNX Runtime takes no functions of another version than the model's, so the first conversion mends this one."""
    model = parse("""<ir_version: 8, opset_import: ["": 17, "local": 1]> g (float[2,3] x) => (float[2,3] y) {
        a = local.sums<axis = [1]>(x)  y = local.old(a)
    }
    <domain: "local", opset_import: ["": 12]> sums <axis> (x) => (y) { s = ReduceSum<axes: ints = @axis>(x)  y = Mul(x, s) }
    <domain: "local", opset_import: ["": 11]> old (x) => (y) { u = Unsqueeze<axes = [0]>(x)  y = Squeeze<axes = [0]>(u) }""")
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for version in (17, 21):
        assert ConvertOpset(version)(model).modified
        assert {f.opset_imports[""] for f in model.functions.values()} == {version}
        np.testing.assert_allclose(run(model, {"x": x})["y"], x * x.sum(1, keepdims=True))
    sums = next(f for f in model.functions.values() if f.name == "sums")
    assert [node.op_type for node in sums] == ["Constant", "ReduceSum", "Mul"]
    assert not sums.graph.initializers
    assert not ConvertOpset(21)(model).modified


def test_a_parameter_of_a_function_has_no_other_place(parse):
    model = parse("""<ir_version: 9, opset_import: ["": 17, "local": 1]> g (float[2,3] x) => (float[2,3] y) { y = local.f<a = 1>(x) }
    <domain: "local", opset_import: ["": 17]> f <a> (x) => (y) { y = Softmax<axis: int = @a>(x) }""")
    with pytest.raises(PreconditionError, match="'axis' is a parameter of the function around it; inline"):
        ConvertOpset(11)(model)


def test_operators_of_onnx_runtime_under_the_standard_name(convert, parse):
    """ONNX Runtime takes LayerNormalization, and writes it, in opsets that have none."""
    text = graph(12, "a = Softmax<axis = 2>(x) y = LayerNormalization(a, s)", "float[2,3,4] x, float[4] s")
    model, feeds = parse(text), {"x": np.ones((2, 3, 4), np.float32), "s": np.ones(4, np.float32)}
    expected = run(model, feeds)
    result = ConvertOpset(14)(model)
    assert result.skipped == [("LayerNormalization of 'y'", "opset 12 has no operator LayerNormalization")]
    assert compare.first_mismatch(expected, run(model, feeds), 1e-6) is None
    result = ConvertOpset(21)(model)
    assert not result.skipped
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert compare.first_mismatch(expected, run(model, feeds), 1e-6) is None


def test_domains_that_stay(convert):
    text = """<ir_version: 8, opset_import: ["": 12, "com.microsoft": 1]> g (float[2,3] x) => (float[2,3] y) {
        a = com.microsoft.Gelu(x)  y = Softmax<axis = 0>(a) }"""
    model = convert(text, 21)
    assert model.opset_imports == {"": 21, "com.microsoft": 1}


def test_the_other_name_of_the_standard_domain(convert):
    model = convert(
        '<ir_version: 8, opset_import: ["ai.onnx": 12]> g (float[2,3] x) => (float[2,3] y) { y = Softmax<axis = 0>(x) }',
        21,
    )
    assert model.opset_imports == {"": 21}


def test_without_standard_operators(parse):
    text = '<ir_version: 8, opset_import: ["com.microsoft": 1]> g (float[2,3] x) => (float[2,3] y) { y = com.microsoft.Gelu(x) }'
    with pytest.raises(PreconditionError, match="no standard operators"):
        ConvertOpset(13)(parse(text))


def test_names_and_weights_stay(parse):
    model = parse(
        graph(
            11,
            "a = Unsqueeze<axes = [0]>(w) b = Squeeze<axes = [0]>(a) y = Add(x, b)",
            constants="float[4] w = {1.0,2.0,3.0,4.0}",
        )
    )
    for node, name in zip(model.graph, "abc", strict=True):
        node.name = name
        node.metadata_props["origin"] = name
    weights = model.graph.initializers["w"].const_value
    ConvertOpset(21)(model)
    assert model.graph.initializers["w"].const_value is weights
    assert [(node.name, node.metadata_props["origin"], node.outputs[0].name) for node in model.graph] == [
        ("a", "a", "a"), ("b", "b", "b"), ("c", "c", "y"),
    ]  # fmt: skip
    assert "a_axes" in model.graph.initializers
    ConvertOpset(11)(model)
    assert list(model.graph.initializers) == ["w"], "constants that became attributes go"


def test_what_replaces_a_node_has_its_name_and_origin(parse):
    model = parse(graph(20, "g = Gelu(x) y = Neg(g)"))
    model.graph[0].name, model.graph[0].metadata_props["origin"] = "act", "layer.0"
    ConvertOpset(13)(model)
    producer = next(node for node in model.graph if node.outputs[0].name == "g")
    assert (producer.op_type, producer.name) == ("Mul", "act")
    assert all(node.metadata_props["origin"] == "layer.0" for node in model.graph if node.op_type != "Neg")


def test_no_two_nodes_share_a_name(parse):
    model = parse(
        graph(
            20,
            "a = Gelu(x) s = Shape<start = 1>(a) b = Gelu(a) c = Mish(b) y = Reshape(c, t)",
            constants="int64[3] t = {0,0,-1}",
        )
    )
    for number, node in enumerate(model.graph):
        node.name = f"node_{node.op_type}_{number}"
    for version in (13, 11, 9):
        ConvertOpset(version)(model)
        names = [node.name for node in model.graph]
        assert len(set(names)) == len(names)
        assert all(names)


def test_shared_constants_stay_where_they_are_needed(convert):
    body = "a = Unsqueeze(x, k) b = Squeeze(a, k) s = Cast<to = 1>(k) y = Mul(b, s)"
    model = convert(graph(13, body, constants="int64[1] k = {1}"), 11)
    assert "k" in model.graph.initializers


def test_defaults_that_callers_may_override_are_not_constants(parse):
    model = parse(graph(13, "y = Squeeze(x, a)", "float[2,1,4] x, int64[1] a", "float[] y", "int64[1] a = {1}"))
    with pytest.raises(PreconditionError, match="default that callers may override"):
        ConvertOpset(11)(model)
    model = parse(graph(13, "y = Mul(x, w)", "float[2,3] x, float[3] w", "float[A,B] y", "float[3] w = {1.0,2.0,3.0}"))
    ConvertOpset(21)(model)
    assert [value.name for value in model.graph.inputs] == ["x", "w"]


def test_an_output_that_a_function_body_computes_keeps_its_name(convert):
    convert(graph(18, "y = Mish(x) z = Neg(y)", outputs="float[A,B,C] y, float[A,B,C] z"), 17, 13)


@pytest.mark.parametrize(
    ("ir_version", "opset", "to", "expected", "text"),
    [
        (7, 13, 21, 10, "float[2] x"),
        (10, 21, 13, 7, "float[2] x"),
        (13, 16, 16, 8, "float[2] x"),
        (9, 19, 13, 7, "float[2] x"),
        (3, 7, 8, 3, "float[2] x"),
    ],
)
def test_file_format(parse, ir_version, opset, to, expected, text):
    model = parse(
        f'<ir_version: {ir_version}, opset_import: ["": {opset}]> g ({text}) => (float[A] y) {{ y = Neg(x) }}'
    )
    result = ConvertOpset(to)(model)
    assert model.ir_version == expected
    assert result.report["ir_version"] == [ir_version, expected]


def test_file_format_that_a_model_needs(parse):
    model = parse("""<ir_version: 10, opset_import: ["": 21, "local": 1]> g (float[2] x) => (float[2] y) { y = local.f(x) }
    <domain: "local", opset_import: ["": 21]> f (x) => (y) { y = Neg(x) }""")
    ConvertOpset(13)(model)
    assert model.ir_version == 8
    model = parse(graph(13, "y = Mul(x, w)", "float[2] x", "float[A] y", "float[2] w = {1.0,2.0}"))
    ConvertOpset(8)(model)
    assert model.ir_version == 4


def test_constants_of_old_files_are_no_inputs(convert):
    text = """<ir_version: 3, opset_import: ["": 9]> g (float[1,1,2,2] x, float[4] s) => (float[A,B,C,D] y)
        <float[4] s = {1.0,1.0,2.0,2.0}> { y = Upsample(x, s) }"""
    model = convert(text, 13, 9)
    assert [value.name for value in model.graph.inputs] == ["x"]


def test_nothing_to_do(parse):
    model = parse('<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y) { y = Neg(x) }')
    assert not ConvertOpset(17)(model).modified


def test_nodes_need_no_change_where_the_operator_has_none(parse):
    result = ConvertOpset(21)(
        parse(graph(13, "a = Relu(x) b = Exp(a) y = Reshape(b, s)", constants="int64[3] s = {2,4,3}"))
    )
    assert result.report["nodes"] == 0


@pytest.mark.parametrize("to", [1, 6, 99, -13])
def test_versions_that_do_not_exist(parse, to):
    with pytest.raises(UserError, match=f"opset {to} does not exist here; take 7 to"):
        ConvertOpset(to)(parse(graph(13, "y = Neg(x)")))


def test_a_model_newer_than_onnx(parse):
    model = parse(graph(13, "y = Neg(x)"))
    model.opset_imports[""] = schemas.LATEST + 1
    with pytest.raises(PreconditionError, match="upgrade onnx"):
        ConvertOpset(13)(model)


def test_a_condition_is_told(parse):
    model = parse(graph(14, "y = Reshape<allowzero = 1>(x, s)", "float[2,3,4] x, int64[3] s"))
    result = ConvertOpset(13)(model)
    ((condition, count),) = result.report["equal_unless"].items()
    assert "holds a 0 that is a size" in condition
    assert count == 1


def test_command_line(graphopt, model_file, tmp_path):
    path, out = model_file(graph(11, "y = Softmax<axis = 1>(x)")), tmp_path / "out.onnx"
    ran = graphopt("convert-opset", path, "-o", out, "--to", 21, "--json")
    assert ran.json["steps"][0]["status"] == "kept"
    assert ran.json["steps"][0]["report"]["opset"] == [11, 21]
    assert onnx.load(out).opset_import[0].version == 21
    assert "give it one, such as --to 21" in graphopt("convert-opset", path, "-o", tmp_path / "b.onnx").error
    assert "opset 99 does not exist" in graphopt("convert-opset", path, "-o", tmp_path / "b.onnx", "--to", 99).error
    assert not (tmp_path / "b.onnx").exists()


def test_command_line_names_the_node(graphopt, model_file, tmp_path):
    path = model_file(graph(13, "y = Squeeze(x, a)", "float[2,1,4] x, int64[1] a", "float[] y"))
    ran = graphopt("convert-opset", path, "-o", tmp_path / "b.onnx", "--to", 11)
    assert ran.code == 1
    assert ran.error.startswith(
        "convert-opset: no equal in opset 11: Squeeze of 'y' (Squeeze): its axes input must be constant"
    )
    assert not (tmp_path / "b.onnx").exists()


def changes():
    """Yield what schemas changed since opset 7 besides types: operator, version, and whether going up or down loses something."""
    for op_type, versions in schemas.history().items():
        known = sorted(v for v in versions if v <= KNOWN)
        for old, new in itertools.pairwise(known):
            before, after = versions[old], versions[new]
            if new <= 7:
                continue
            lost = before.attributes.keys() - after.attributes.keys()
            needs = [name for name, a in after.attributes.items() if a.required and name not in before.attributes]
            if lost or needs or after.min_input > before.min_input or after.deprecated:
                yield op_type, new, UP
            if before.max_input < after.max_input and before.attributes.keys() - after.attributes.keys():
                yield op_type, new, DOWN


@pytest.mark.parametrize(("op_type", "since", "table"), list(changes()))
def test_every_change_that_schemas_cannot_explain_has_an_adapter(op_type, since, table):
    assert (op_type, since) in table


@pytest.mark.parametrize(("op_type", "since"), sorted({*UP, *DOWN}))
def test_adapters_sit_at_changes(op_type, since):
    assert since in schemas.history()[op_type]


FILES = (
    "add", "attention", "castlike", "celu", "clip", "dequantizelinear", "div", "dropout", "gelu", "gemm", "groupnormalization", "gru",
    "hardmax", "hardswish", "layernormalization", "logsoftmax", "lstm", "max", "min", "mish", "mul", "quantizelinear", "reducemax",
    "reducesum", "reshape", "resize", "rmsnormalization", "rnn", "roialign", "rotaryembedding", "scatterelements", "shape",
    "slice", "softmax", "split", "squeeze", "sub", "swish", "topk", "trilu", "unsqueeze", "upsample",
)  # fmt: skip
"""Files of onnx's own tests of operators that have adapters or function bodies."""
EXCEPT = {
    "test_attention_4d_with_past_and_present_qk_matmul_bias_3d_mask_causal": "ONNX Runtime writes -3.4e38 for -inf",
    "test_attention_4d_with_past_and_present_qk_matmul_bias_4d_mask_causal": "ONNX Runtime writes -3.4e38 for -inf",
    "test_max_uint64": "ONNX Runtime chooses from no uint64",
    "test_min_uint64": "ONNX Runtime chooses from no uint64",
    "test_swish": "ONNX Runtime has it in opset 24 only",
    "test_reshape_allowzero_reordered": "an empty tensor of a computed shape, which a note tells",
}


@pytest.fixture(scope="module")
def onnx_cases():
    """Models that onnx tests operators with, by name, with inputs and outputs."""
    node = importlib.import_module("onnx.backend.test.case.node")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in FILES:
            importlib.import_module(f"onnx.backend.test.case.node.{name}")
    cases = {case.name: case for case in node._NodeTestCases}  # another test may have loaded all files
    return {
        name: case for name, case in cases.items() if any(n.op_type.lower() in FILES for n in case.model.graph.node)
    }


def feeds_in(case):
    return dict(zip([value.name for value in case.model.graph.input], case.data_sets[0][0], strict=True))


@pytest.mark.parametrize("to", [10, 12, 13, 17, 21, 25])
def test_tests_of_onnx(onnx_cases, to):
    """Every fifth is refused with a reason, or computes the same as before."""
    equal = 0
    for name in sorted(name for name in onnx_cases if "_expanded" not in name and name not in EXCEPT)[::5]:
        case = onnx_cases[name]
        model, feeds = ir.from_proto(copy.deepcopy(case.model)), feeds_in(case)
        if model.opset_imports[""] == to:
            continue
        try:
            expected = run(model, feeds)
        except runtime.ExecutionError:
            continue  # this ONNX Runtime lacks the operator
        refusal = refused(model, to)
        if refusal is None:
            wrong = compare.first_mismatch(expected, run(model, feeds), 1e-4)
            assert wrong is None, (name, wrong)
            equal += 1
        else:
            assert refusal.startswith(f"no equal in opset {to}: "), name
    assert equal > 20


@pytest.mark.parametrize(
    ("name", "to"),
    [
        ("test_lstm_batchwise", 13),
        ("test_gru_batchwise", 13),
        ("test_simple_rnn_batchwise", 13),
        ("test_add_int8", 13),
        ("test_max_int8", 11),
        ("test_min_uint16", 10),
        ("test_max_uint32", 9),
        ("test_sub_uint8", 13),
        ("test_mul_int16", 13),
        ("test_div_uint16", 13),
    ],
)
def test_outputs_that_onnx_tells(onnx_cases, name, to):
    case = onnx_cases[name]
    model, feeds = ir.from_proto(copy.deepcopy(case.model)), feeds_in(case)
    ConvertOpset(to)(model)
    names = [value.name for value in model.graph.outputs]
    expected = dict(zip(names, case.data_sets[0][1], strict=True))
    assert compare.first_mismatch(expected, run(model, feeds), 1e-5) is None


def refused(model, to):
    try:
        ConvertOpset(to)(model)
    except PreconditionError as refusal:
        return str(refusal)
    return None
