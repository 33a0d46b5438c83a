"""Arithmetic, logic, casts, reductions, softmax and chance: what onnx's node cases leave out."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import parser

pytest.importorskip("torch")

import torch

from graphopt.runtime import ExecutionError
from graphopt.runtimes._torch import table, values
from graphopt.runtimes._torch.module import OnnxModule

X = np.random.default_rng(5).normal(size=(2, 3, 4)).astype(np.float32)
TIES = np.round(X)

SAME = {
    **{
        f"{name} of three, opset {opset}": (opset, f"{{ n = Neg(x)  e = Exp(x)  y = {name}(x, n, e) }}")
        for name in ("Max", "Min", "Sum", "Mean")
        for opset in (7, 8)
    },
    **{
        f"{name} over axes from {axis} on, opset {opset}": (opset, f"{{ y = {name}<axis = {axis}>(x) }}")
        for name in ("Softmax", "LogSoftmax", "Hardmax")
        for opset, axis in ((7, 0), (7, 1), (11, -2))
    },
    **{
        f"{name} of opset {opset}": (opset, f"{{ y = {name}<axes = [0, 2], keepdims = {opset % 2}>(x) }}")
        for name in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceL1", "ReduceL2", "ReduceLogSumExp")
        for opset in (7, 12)
    },
    "ReduceSum by axes of a tensor": (13, "<int64[1] a = {-1}> { y = ReduceSum(x, a) }"),
    "Clip of opset 7": (7, "{ y = Clip<min = -0.5>(x) }"),
    "Clip of opset 11": (11, "<float b = {0.5}> { y = Clip(x, , b) }"),
    "Clip with the bounds swapped": (13, "<float a = {0.5}, float b = {-0.5}> { y = Clip(x, a, b) }"),
    "TopK of opset 9": (9, "{ y, z = TopK<k = 2, axis = 1>(x) }"),
    "TopK of opset 10": (10, "<int64[1] k = {2}> { y, z = TopK<axis = 1>(x, k) }"),
    "TopK of the smallest": (11, "<int64[1] k = {2}> { y, z = TopK<largest = 0>(x, k) }"),
    "ArgMax of opset 7": (7, "{ y = ArgMax<axis = 2, keepdims = 0>(x) }"),
    "ArgMin, the last one": (12, "{ y = ArgMin<axis = 1, select_last_index = 1>(x) }"),
    "CumSum of opset 11": (11, "<int32 a = {-2}> { y = CumSum<exclusive = 1, reverse = 1>(x, a) }"),
    "LpNormalization by absolute values": (7, "{ y = LpNormalization<p = 1, axis = 1>(x) }"),
    "PRelu of opset 7": (7, "<float[4] s = {0.1, 0.2, 0.3, 0.4}> { y = PRelu(x, s) }"),
    "Pow by another type": (12, "<int64[4] p = {0, 1, 2, 3}> { y = Pow(x, p) }"),
    "Pow by a wider type": (12, "<double[4] p = {0.0, 1.0, 2.0, 3.0}> { y = Pow(x, p) }"),
    "Pow by a vector of one": (13, "<float[1,1,1,1] p = {2.0}> { y = Pow(x, p) }"),
    "Equal of opset 7": (7, "{ a = Cast<to = 6>(x)  y = Equal(a, a) }"),
    "Dropout of opset 7": (7, "{ y = Dropout<ratio = 0.3>(x) }"),
    "Dropout of opset 12": (12, "{ y, z = Dropout(x) }"),
    "whole numbers as text": (13, "{ a = Cast<to = 7>(x)  y = Cast<to = 8>(a) }"),
    "losses of opset 12": (
        12,
        "<int32[2,4] t = {0, 1, 2, 2, 1, 0, 1, 0}, float[3] w = {1.0, 2.0, 3.0}> "
        "{ y, z = SoftmaxCrossEntropyLoss<ignore_index = 1>(x, t, w) }",
    ),
}
"""The opset, and what is computed of `x`."""

LARGE = [2**64 - 1, 2**63, 2**63 - 1, 7]
"""Numbers that int64 does not hold all."""

RANKED = {
    "Greater": [True, True, False, False],
    "LessOrEqual": [False, False, True, True],
    "Max": [2**64 - 1, 2**63, 2**63 - 1, 2**63 - 1],
    "Min": [2**63 - 1, 2**63 - 1, 2**63 - 1, 7],
    "Div": [2, 1, 1, 0],
    "Mod": [1, 1, 0, 7],
    "Add": [2**63 - 2, 2**64 - 1, 2**64 - 2, 2**63 + 6],
    "BitwiseAnd": [2**63 - 1, 0, 2**63 - 1, 7],
}
"""What becomes of them with 2^63 - 1."""


def model_of(opset, text):
    return parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}]> g {text}')


def run(opset, text, **feeds):
    module = OnnxModule(ir.from_proto(model_of(opset, text)))
    made = module({name: values.from_numpy(np.asarray(array)) for name, array in feeds.items()})
    return {name: values.to_numpy(value) for name, value in made.items()}


@pytest.mark.parametrize("name", SAME)
def test_like_onnx_runtime(name):
    onnxruntime = pytest.importorskip("onnxruntime")
    opset, text = SAME[name]
    graph = f"(float[2,3,4] x) => (float[] y{', float[] z' if ' z ' in text else ''}) {text}"
    model = onnx.shape_inference.infer_shapes(untyped(model_of(opset, graph)))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for x in (X, TIES):
        for wanted, actual in zip(session.run(None, {"x": x}), run(opset, graph, x=x).values(), strict=True):
            wanted = np.asarray(wanted)
            assert (actual.shape, actual.dtype) == (wanted.shape, wanted.dtype)
            if wanted.dtype == object:
                assert actual.tolist() == wanted.tolist()
            else:
                np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-6)


def untyped(model):
    """Return a model that leaves the types of its outputs to inference."""
    for output in model.graph.output:
        output.ClearField("type")
    return model


def test_every_operator_is_known_at_every_opset():
    wrong = []
    for name in [name for domain, name in table.entries() if not domain and onnx.defs.has(name)]:
        first = min(schema.since_version for schema in history(name))
        for opset in range(max(first, table.FIRST), table.LAST + 1):
            schema, found = onnx.defs.get_schema(name, opset), table.find("", name, opset)
            if not schema.deprecated and (found is None or lacking(found, schema)):
                wrong.append((name, opset))
    assert not wrong


def history(name):
    return [schema for schema in onnx.defs.get_all_schemas_with_history() if (schema.domain, schema.name) == ("", name)]


def lacking(found, schema):
    """Tell whether a function takes fewer attributes or inputs than the specification names, or wants more."""
    attributes = set(schema.attributes) - {"sparse_value"} - found.attributes
    inputs = not found.variadic and len(found.hosts) < len(schema.inputs)
    return attributes or inputs or found.least > schema.min_input


@pytest.mark.parametrize("name", RANKED)
def test_numbers_beyond_63_bits(name):
    kind = "bool" if isinstance(RANKED[name][0], bool) else "uint64"
    text = f"(uint64[4] x, uint64[1] m) => ({kind}[4] y) {{ y = {name}(x, m) }}"
    made = run(18, text, x=np.array(LARGE, np.uint64), m=np.array([2**63 - 1], np.uint64))
    assert made["y"].tolist() == RANKED[name]


def test_the_largest_numbers_beyond_63_bits():
    text = (
        "(uint64[4] x) => (uint64[1] a, uint64[1] b, int64[1] i, uint64[2] t, int64[2] u) <int64[1] k = {2}> "
        "{ a = ReduceMax(x)  b = ReduceMin(x)  i = ArgMax(x)  t, u = TopK(x, k) }"
    )
    made = run(18, text, x=np.array(LARGE[::-1], np.uint64))
    assert {name: array.tolist() for name, array in made.items()} == {
        "a": [2**64 - 1],
        "b": [7],
        "i": [3],
        "t": [2**64 - 1, 2**63],
        "u": [3, 2],
    }


@pytest.mark.parametrize("kind", ["uint16", "uint32", "uint64", "int8", "int32"])
@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("<int64 a = {0}> { y = CumSum<reverse = 1>(x, a) }", [6, 5, 3]),
        ("{ y = ReduceSum<keepdims = 0>(x) }", 6),
        ("{ y = ReduceMean<keepdims = 0>(x) }", 2),
        ("{ y = ReduceL2<keepdims = 0>(x) }", 3),
        ("{ y = Sign(x) }", [1, 1, 1]),
        ("{ y = Abs(x) }", [1, 2, 3]),
        ("{ y = Clip(x, x) }", [1, 2, 3]),
    ],
)
def test_every_integer_is_computed(kind, text, wanted):
    dtype = ir.DataType[kind.upper()].numpy()
    x = np.array([1, 2, 3], dtype)
    if "Clip" in text:
        text = f"<{kind} b = {{3}}> {{ y = Clip(x, , b) }}"
    made = run(18, f"({kind}[3] x) => ({kind}[] y) {text}", x=x)["y"]
    assert made.dtype == dtype
    assert made.tolist() == wanted


@pytest.mark.parametrize(
    ("kind", "direction", "wanted"),
    [
        ("int8", "RIGHT", [-1, -1, -4]),
        ("int8", "LEFT", [0, 0, -16]),
        ("int64", "RIGHT", [-1, -1, -4]),
    ],
)
def test_shifts_by_too_much_or_less_than_nothing(kind, direction, wanted):
    dtype = ir.DataType[kind.upper()].numpy()
    text = f'({kind}[3] x, {kind}[3] n) => ({kind}[3] y) {{ y = BitShift<direction = "{direction}">(x, n) }}'
    made = run(28, text, x=np.array([-8, -8, -8], dtype), n=np.array([-1, 100, 1], dtype))
    assert made["y"].tolist() == wanted


def test_softplus_is_exact_in_double_precision():
    x = np.array([19.0, 21.0, 30.0, 45.0, -30.0])
    made = run(18, "(double[5] x) => (double[5] y) { y = Softplus(x) }", x=x)["y"]
    np.testing.assert_allclose(made, np.logaddexp(0, x), rtol=1e-15)


def test_text_becomes_whole_numbers_exactly():
    text = "(string[3] x) => (int64[3] y) { y = Cast<to = 7>(x) }"
    made = run(18, text, x=np.array([str(2**63 - 1), "-5", "1e3"], object))
    assert made["y"].tolist() == [2**63 - 1, -5, 1000]


@pytest.mark.parametrize(
    ("attributes", "wanted"),
    [
        ('saturate = 1, round_mode = "up"', [2.0**-127, 2.0**127, np.nan, 2.0, 4.0]),
        ('saturate = 1, round_mode = "down"', [2.0**-127, 2.0**127, np.nan, 1.0, 2.0]),
        ('saturate = 0, round_mode = "nearest"', [np.nan, np.nan, np.nan, 2.0, 4.0]),
    ],
)
def test_casts_to_exponents(attributes, wanted):
    x = np.array([0.0, np.inf, np.nan, 1.5, 3.0], np.float32)
    text = f"(float[5] x) => (float[5] y) {{ e = Cast<to = 24, {attributes}>(x)  y = Cast<to = 1>(e) }}"
    np.testing.assert_array_equal(run(25, text, x=x)["y"], np.array(wanted, np.float32))


def test_bits_of_half_a_byte():
    model = model_of(26, "(int4[4] x) => (uint4[4] y) { y = BitCast<to = 21>(x) }")
    module = OnnxModule(ir.from_proto(model))
    x = values.tagged(torch.tensor([-1, -8, 7, 0]), torch.int4)
    assert values.to_numpy(module({"x": x})["y"]).tolist() == [15, 8, 7, 0]


def test_a_type_that_torch_lacks_is_refused():
    with pytest.raises(ExecutionError, match="no type FLOAT6E2M3"):
        run(28, "(float[1] x) => (float[1] y) { a = Cast<to = 27>(x)  y = Cast<to = 1>(a) }", x=np.ones(1, np.float32))


def test_truths_and_masks_of_dropout():
    for opset, kind in ((7, np.float32), (10, np.bool_), (12, np.bool_)):
        name = "bool" if kind is np.bool_ else "float"
        made = run(opset, f"(float[2,3,4] x) => (float[] y, {name}[] m) {{ y, m = Dropout(x) }}", x=X)
        np.testing.assert_array_equal(made["y"], X)
        assert made["m"].dtype == kind
        assert made["m"].all()


@pytest.mark.parametrize("seed", ["", "<seed = 3>"])
def test_dropout_in_training_drops_anew_at_each_step(seed):
    text = (
        "(float[4000] x) => (float[4000] y, bool[4000] m) <float r = {0.25}, bool t = {1}> "
        f"{{ y, m = Dropout{seed}(x, r, t) }}"
    )
    module = OnnxModule(ir.from_proto(model_of(13, text)))
    x = torch.full((4000,), 3.0, requires_grad=True)
    drawn = []
    with torch.random.fork_rng(devices=[]):
        for step in (1, 2, 1):
            torch.manual_seed(step)
            drawn.append(module({"x": x}))
    first, second, again = (made["m"] for made in drawn)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert 0.7 < first.float().mean() < 0.8
    assert torch.equal(drawn[0]["y"], x * first / 0.75)
    drawn[0]["y"].sum().backward()
    assert torch.equal(x.grad, first / 0.75)


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("RandomUniform<shape = [50, 60], low = 2.0, high = 4.0, seed = 1.0>()", 2.95, 3.05),
        ("RandomUniformLike<low = 2.0, high = 4.0, seed = 1.0>(x)", 2.95, 3.05),
        ("RandomNormal<shape = [50, 60], mean = 5.0, scale = 0.1, seed = 1.0>()", 4.98, 5.02),
        ("RandomNormalLike<mean = 5.0, scale = 0.1, seed = 1.0>(x)", 4.98, 5.02),
        ("Bernoulli<seed = 1.0>(x)", 0.65, 0.75),
    ],
)
def test_what_is_drawn(text, low, high):
    x = np.full((50, 60), 0.7, np.float32)
    made, again = (run(18, f"(float[50,60] x) => (float[50,60] y) {{ y = {text} }}", x=x)["y"] for _ in range(2))
    assert made.shape == (50, 60)
    assert made.dtype == np.float32
    assert low < made.mean() < high
    assert made.std() > 0.05
    np.testing.assert_array_equal(made, again)


def test_classes_are_drawn_by_their_logarithms():
    x = np.log(np.array([[0.1, 0.9], [0.5, 0.5]], np.float32))
    text = "(float[2,2] x) => (int64[2,2000] y) { y = Multinomial<dtype = 7, sample_size = 2000, seed = 2.0>(x) }"
    made = run(18, text, x=x)["y"]
    assert made.dtype == np.int64
    np.testing.assert_allclose(made.mean(1), [0.9, 0.5], atol=0.05)


def test_empty_axes():
    x = np.zeros((2, 0, 3), np.float32)
    text = "(float[2,0,3] x) => (float[] a, float[] b, float[] c) <int64[1] i = {1}, int64 j = {1}> "
    text += "{ a = ReduceMax<keepdims = 0>(x, i)  b = ReduceSum<keepdims = 0>(x, i)  c = CumSum<exclusive = 1>(x, j) }"
    made = run(18, text, x=x)
    assert made["a"].tolist() == [[-np.inf] * 3] * 2
    assert made["b"].tolist() == [[0] * 3] * 2
    assert made["c"].shape == (2, 0, 3)
    assert run(11, "(float[0,2,3] x) => (float[] y) { y = Softmax(x) }", x=x.reshape(0, 2, 3))["y"].shape == (0, 2, 3)


def test_products_of_half_precision_under_autocast_do_not_overflow():
    text = "(float[1,2] x, float[2,2] w) => (float[1,1] y) { m = MatMul(x, w)  y = ReduceProd(m) }"
    module = OnnxModule(ir.from_proto(model_of(18, text)))
    with torch.autocast("cpu", torch.float16):
        made = module({"x": torch.full((1, 2), 300.0), "w": torch.eye(2)})["y"]
    assert made.item() == 90000


def test_halves_become_text():
    text = "(float16[3] x) => (string[3] y) { y = Cast<to = 8>(x) }"
    assert run(18, text, x=np.array([1.5, -2, 0.25], np.float16))["y"].tolist() == ["1.5", "-2.0", "0.25"]
