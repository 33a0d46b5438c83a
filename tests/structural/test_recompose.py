"""Decomposed operators are recognized in every spelling, and nothing else is."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.passes.structural.recompose import Recompose

NUMBERS = {
    "zero": 0.0, "half": 0.5, "one": 1.0, "two": 2.0, "three": 3.0, "six": 6.0, "fifth": 0.2, "root": 2**0.5,
    "slope": (2 / np.pi) ** 0.5, "slope2": 2 * (2 / np.pi) ** 0.5, "cubic": 0.044715, "eps": 1e-5, "minus": -1.0,
    "inverse": 0.5**0.5, "sixth": 1 / 6, "quick": 1.702, "minushalf": -0.5, "four": 4.0,
}  # fmt: skip
INTS = {"last": -1, "first": 1, "second": 2}


def graph(body, opset=20, inputs="float[N,3,4] x", outputs="float[N,3,4] y", weights="", type_="float"):
    constants = ", ".join(f"{type_} {name} = {{{value!r}}}" for name, value in NUMBERS.items())
    constants += "".join(f", int64[1] {name} = {{{value}}}" for name, value in INTS.items())
    constants += ", int64[2] planes = {2,3}, int64[2] tail = {1,2}"
    head = f'<ir_version: 10, opset_import: ["": {opset}]>'
    constants += ", int64[3] groups = {0,2,-1}, int64[4] heads = {0,0,2,4}, int64[3] merged = {0,0,8}"
    constants += ", int64[3] flat = {-1,7,4}, int64[4] order = {0,1,3,2}"
    return f"{head} g ({inputs}) => ({outputs}) <{constants}{weights and ', ' + weights}> {{ {body} }}"


def vector(name, size, shape=None):
    values = ",".join(f"{0.3 * i - 0.7}" for i in range(size))
    return f"float[{shape or size}] {name} = {{{values}}}"


GAMMA = vector("w", 4) + ", " + vector("v", 4)
CUBE = "q = Pow(x, three)  r = Mul(q, cubic)  s = Add(x, r)  t = Mul(s, slope)  u = Tanh(t)"

ACTIVATIONS = [
    ("Gelu", "a = Div(x, root)  b = Erf(a)  c = Add(b, one)  d = Mul(x, c)  y = Mul(d, half)"),
    ("Gelu", "a = Mul(x, inverse)  b = Erf(a)  c = Add(one, b)  d = Mul(half, x)  y = Mul(d, c)"),
    ("Gelu", "a = Div(x, root)  b = Erf(a)  c = Add(b, one)  d = Mul(c, half)  y = Mul(x, d)"),
    ("Gelu", "a = Div(x, root)  b = Erf(a)  c = Add(b, one)  d = Div(c, two)  y = Mul(d, x)"),
    ("Gelu", "a = Div(x, root)  b = Erf(a)  c = Mul(b, half)  d = Add(c, half)  y = Mul(d, x)"),
    ("Gelu", "a = Mul(minus, x) e = Div(a, root)  b = Erf(e)  c = Sub(one, b)  d = Mul(c, x)  y = Div(d, two)"),
    ("Gelu", CUBE + "  c = Add(u, one)  d = Mul(x, half)  y = Mul(d, c)"),
    ("Gelu", CUBE + "  c = Add(one, u)  d = Mul(half, c)  y = Mul(x, d)"),
    ("Gelu", "p = Mul(x, x)  q = Mul(x, p)  r = Mul(cubic, q)  s = Add(x, r)  t = Mul(slope, s)  u = Tanh(t)"
             "  c = Add(u, one)  d = Mul(x, c)  y = Mul(d, half)"),
    ("Gelu", "p = Mul(x, x)  q = Mul(p, cubic)  r = Add(q, one)  s = Mul(x, r)  t = Mul(slope, s)  u = Tanh(t)"
             "  c = Add(u, one)  d = Mul(x, c)  y = Mul(d, half)"),
    ("Gelu", "q = Pow(x, three)  r = Mul(q, cubic)  s = Add(x, r)  t = Mul(s, slope2)  u = Sigmoid(t)  y = Mul(x, u)"),
    ("HardSwish", "a = Add(x, three)  b = Clip(a, zero, six)  c = Mul(x, b)  y = Div(c, six)"),
    ("HardSwish", "a = Add(x, three)  b = Clip(a, zero, six)  c = Div(b, six)  y = Mul(x, c)"),
    ("HardSwish", "a = Add(x, three)  b = Clip(a, zero, six)  c = Mul(b, sixth)  y = Mul(c, x)"),
    ("HardSwish", "a = Mul(x, sixth)  b = Add(a, half)  c = Clip(b, zero, one)  y = Mul(c, x)"),
    ("HardSwish", "a = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x)  y = Mul(x, a)"),
    ("HardSigmoid", "a = Add(x, three)  b = Clip(a, zero, six)  y = Div(b, six)"),
    ("HardSigmoid", "a = Mul(x, fifth)  b = Add(a, half)  y = Clip(b, zero, one)"),
    ("Mish", "a = Softplus(x)  b = Tanh(a)  y = Mul(x, b)"),
    ("Sigmoid", "a = Neg(x)  b = Exp(a)  c = Add(b, one)  y = Div(one, c)"),
    ("Sigmoid", "a = Mul(x, minus)  b = Exp(a)  c = Add(one, b)  y = Reciprocal(c)"),
    ("Sigmoid", "b = Exp(x)  c = Add(b, one)  y = Div(b, c)"),
    ("Softsign", "a = Abs(x)  b = Add(one, a)  y = Div(x, b)"),
    ("Relu", "y = Max(zero, x)"),
    ("LeakyRelu", "c = Greater(x, zero)  a = Mul(x, fifth)  y = Where(c, x, a)"),
    ("LeakyRelu", "c = Less(x, zero)  a = Mul(x, fifth)  y = Where(c, a, x)"),
    ("LeakyRelu", "c = LessOrEqual(zero, x)  a = Mul(x, three)  y = Where(c, x, a)"),
    ("LeakyRelu", "a = Mul(fifth, x)  y = Max(a, x)"),
    ("LeakyRelu", "p = Relu(x)  n = Neg(x)  q = Relu(n)  a = Mul(q, fifth)  y = Sub(p, a)"),
    ("LeakyRelu", "p = Relu(x)  n = Neg(x)  q = Relu(n)  a = Mul(q, minushalf)  y = Add(a, p)"),
    ("Elu", "c = Greater(x, zero)  e = Exp(x)  a = Sub(e, one)  b = Mul(a, two)  y = Where(c, x, b)"),
    ("Elu", "c = Greater(x, zero)  m = Where(c, zero, x)  e = Exp(m)  a = Sub(e, one)  y = Where(c, x, a)"),
    ("Elu", "p = Relu(x)  m = Min(x, zero)  e = Exp(m)  a = Sub(e, one)  b = Mul(a, half)  y = Add(p, b)"),
    ("Elu", "p = Max(x, zero)  e = Exp(x)  a = Sub(e, one)  m = Min(zero, a)  y = Add(m, p)"),
    ("Celu", "p = Max(x, zero)  d = Div(x, two)  e = Exp(d)  a = Sub(e, one)  b = Mul(a, two)  m = Min(b, zero)  y = Add(p, m)"),
    ("Selu", "e = Exp(x)  a = Mul(e, two)  b = Sub(a, two)  d = Mul(b, three)  p = Mul(x, three)  c = Less(x, zero)  y = Where(c, d, p)"),
    ("Selu", "c = Greater(x, zero)  e = Exp(x)  a = Sub(e, one)  b = Mul(a, two)  d = Where(c, x, b)  y = Mul(d, three)"),
]  # fmt: skip

SLOWER = [
    ("Softplus", "a = Exp(x)  b = Add(a, one)  y = Log(b)"),
    ("Mish", "a = Exp(x)  b = Add(a, one)  c = Log(b)  d = Tanh(c)  y = Mul(d, x)"),
    ("PRelu", "c = Greater(x, zero)  a = Mul(w, x)  y = Where(c, x, a)"),
    ("PRelu", "p = Relu(x)  n = Neg(x)  q = Relu(n)  a = Mul(q, w)  y = Add(p, a)"),
    ("PRelu", "p = Relu(x)  n = Neg(x)  q = Relu(n)  a = Mul(q, w)  y = Sub(p, a)"),
]

ROOT = "e = Add(u, eps)  s = Sqrt(e)"
CENTRED = "m = ReduceMean(x, last)  d = Sub(x, m)  q = Pow(d, two)  u = ReduceMean(q, last)  " + ROOT
NORMS = [
    ("LayerNormalization", CENTRED + "  n = Div(d, s)  z = Mul(n, w)  y = Add(z, v)"),
    ("LayerNormalization", CENTRED + "  i = Reciprocal(s)  n = Mul(d, i)  z = Mul(w, n)  y = Add(v, z)"),
    ("LayerNormalization", CENTRED + "  i = Div(one, s)  n = Mul(i, d)  y = Mul(n, w)"),
    ("LayerNormalization", CENTRED + "  y = Div(d, s)"),
    ("LayerNormalization", CENTRED + "  n = Div(d, s)  y = Add(n, v)"),
    ("LayerNormalization", CENTRED + "  k = Div(w, s)  z = Mul(d, k)  y = Add(v, z)"),
    ("LayerNormalization", "m = ReduceMean(x, last)  d = Sub(x, m)  q = Mul(d, d)  u = ReduceMean(q, last)  e = Add(eps, u)"
                           "  i = Pow(e, minushalf)  n = Mul(d, i)  z = Mul(n, w)  y = Add(z, v)"),
    ("LayerNormalization", "m = ReduceMean(x, last)  d = Sub(x, m)  q = Mul(d, d)  u = ReduceMean(q, last)  " + ROOT +
                           "  i = Reciprocal(s)  k = Mul(i, w)  a = Mul(x, k)  b = Mul(m, k)  c = Sub(v, b)  y = Add(a, c)"),
    ("LayerNormalization", "m = ReduceMean(x, last)  d = Sub(x, m)  q = Mul(d, d)  u = ReduceMean(q, last)  " + ROOT +
                           "  i = Reciprocal(s)  a = Mul(x, i)  b = Mul(m, i)  y = Sub(a, b)"),
    ("LayerNormalization", "m = ReduceMean(x, last)  p = ReduceMean(x, last)  c = Sub(x, p)  d = Sub(x, m)  q = Mul(d, d)"
                           "  u = ReduceMean(q, last)  " + ROOT + "  n = Div(c, s)  z = Mul(n, w)  y = Add(z, v)"),
    ("LayerNormalization", "m = ReduceMean(x, last)  o = Mul(x, x)  h = ReduceMean(o, last)  q = Mul(m, m)  f = Sub(h, q)"
                           "  u = Max(f, zero)  " + ROOT + "  d = Sub(x, m)  i = Reciprocal(s)  k = Mul(i, w)"
                           "  z = Mul(d, k)  y = Add(z, v)"),
    ("LayerNormalization", "a = ReduceSum(x, last)  m = Div(a, four)  d = Sub(x, m)  q = Mul(d, d)  b = ReduceSum(q, last)"
                           "  u = Div(b, four)  " + ROOT + "  n = Div(d, s)  z = Mul(n, w)  y = Add(z, v)"),
    ("LayerNormalization", "m = ReduceMean(x, tail)  d = Sub(x, m)  q = Mul(d, d)  u = ReduceMean(q, tail)  " + ROOT +
                           "  n = Div(d, s)  z = Mul(n, w34)  y = Add(z, v34)"),
    ("LayerNormalization", CENTRED + "  n = Div(d, s)  z = Mul(n, w114)  y = Add(z, v)"),
]  # fmt: skip
MATRICES = ", ".join((GAMMA, vector("w34", 12, "3,4"), vector("v34", 12, "3,4"), vector("w114", 4, "1,1,4")))


@pytest.mark.parametrize(("wanted", "body"), ACTIVATIONS)
def test_activations(apply, parse, ops, wanted, body):
    model = parse(graph(body))
    assert apply(Recompose(), model, rtol=1e-5).report[wanted] == 1
    assert ops(model) == [wanted]


@pytest.mark.parametrize(("wanted", "body"), SLOWER)
def test_slower_operators_on_demand(apply, parse, ops, wanted, body):
    model = parse(graph(body, weights=vector("w", 4)))
    result = apply(Recompose(), model)
    assert not result.modified
    assert apply(Recompose(slower=True), model, rtol=1e-5).report[wanted] == 1
    assert ops(model) == [wanted]


@pytest.mark.parametrize("opset", [18, 20])
@pytest.mark.parametrize(("wanted", "body"), NORMS)
def test_layer_normalization(apply, parse, ops, wanted, body, opset):
    model = parse(graph(body, opset, weights=MATRICES))
    assert apply(Recompose(), model, rtol=1e-4).report[wanted] == 1
    assert ops(model) == [wanted]


INSTANCES = [
    CENTRED.replace("last", "planes") + "  n = Div(d, s)  z = Mul(n, w)  y = Add(z, v)",
    CENTRED.replace("last", "planes") + "  n = Div(d, s)  y = Mul(n, w)",
    CENTRED.replace("last", "planes") + "  y = Div(d, s)",
    "m = GlobalAveragePool(x)  d = Sub(x, m)  q = Mul(d, d)  u = GlobalAveragePool(q)  " + ROOT + "  y = Div(d, s)",
    "m = ReduceMean(x, planes)  d = Sub(x, m)  q = Mul(d, d)  u = ReduceMean(q, planes)  "
    + ROOT
    + "  i = Reciprocal(s)  k = Mul(i, w)  a = Mul(x, k)  b = Mul(m, k)  c = Sub(v, b)  y = Add(a, c)",
]


@pytest.mark.parametrize("body", INSTANCES)
def test_instance_normalization(apply, parse, ops, body):
    text = graph(
        body, 18, "float[N,2,5,6] x", "float[N,2,5,6] y", vector("w", 2, "2,1,1") + ", " + vector("v", 2, "1,2,1,1")
    )
    model = parse(text)
    assert apply(Recompose(), model, rtol=1e-4).report == {"InstanceNormalization": 1}
    assert ops(model) == ["InstanceNormalization"]


def test_instance_normalization_before_reductions_had_inputs(apply, parse, ops):
    body = (
        "m = ReduceMean<axes = [2, 3]>(x)  d = Sub(x, m)  q = Mul(d, d)  u = ReduceMean<axes = [-1, -2]>(q)  "
        + ROOT + "  n = Div(d, s)  z = Mul(n, w)  y = Add(z, v)"
    )  # fmt: skip
    model = parse(
        graph(
            body, 11, "float[N,2,5,6] x", "float[N,2,5,6] y", vector("w", 2, "2,1,1") + ", " + vector("v", 2, "2,1,1")
        )
    )
    assert apply(Recompose(), model, rtol=1e-4).report == {"InstanceNormalization": 1}


SQUARE = "q = Pow(x, two)  u = ReduceMean(q, last)  " + ROOT


@pytest.mark.parametrize(
    "body",
    [
        SQUARE + "  i = Reciprocal(s)  n = Mul(x, i)  y = Mul(w, n)",
        SQUARE + "  n = Div(x, s)  y = Mul(n, w)",
        SQUARE + "  y = Div(x, s)",
        "q = Mul(x, x)  u = ReduceMean(q, last)  e = Add(u, eps)  i = Pow(e, minushalf)  n = Mul(x, i)  y = Mul(w, n)",
        "q = Mul(x, x)  u = ReduceMean(q, last)  " + ROOT + "  i = Div(one, s)  k = Mul(i, w)  y = Mul(x, k)",
    ],
)
def test_root_mean_square_normalization(apply, parse, ops, body):
    model = parse(graph(body, 23, weights=GAMMA))
    assert apply(Recompose(), model, rtol=1e-5).report == {"RMSNormalization": 1}
    assert ops(model) == ["RMSNormalization"]


def test_casts_around_a_normalization(apply, parse, ops):
    text = graph(
        "f = Cast<to = 1>(x)  q = Mul(f, f)  u = ReduceMean(q, last)  " + ROOT
        + "  i = Reciprocal(s)  n = Mul(f, i)  h = Cast<to = 10>(n)  y = Mul(w, h)",
        23, "float16[N,3,4] x, float16[4] w", "float16[N,3,4] y",
    )  # fmt: skip
    model = parse(text)
    assert apply(Recompose(), model).report == {"RMSNormalization": 1}
    assert ops(model) == ["RMSNormalization"]


def test_casts_that_others_need_stay(apply, parse, ops):
    text = graph(
        "f = Cast<to = 1>(x)  q = Mul(f, f)  u = ReduceMean(q, last)  " + ROOT
        + "  i = Reciprocal(s)  n = Mul(f, i)  y = Cast<to = 10>(n)  z = Neg(f)",
        23, "float16[N,3,4] x", "float16[N,3,4] y, float[N,3,4] z",
    )  # fmt: skip
    model = parse(text)
    assert apply(Recompose(), model).modified
    assert ops(model) == ["Cast", "RMSNormalization", "Cast", "Neg"]


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize(
    ("wanted", "body"),
    [
        ("Softmax", "e = Exp(x)  s = ReduceSum{}(e{})  y = Div(e, s)"),
        ("Softmax", "m = ReduceMax[](x[])  d = Sub(x, m)  e = Exp(d)  s = ReduceSum{}(e{})  y = Div(e, s)"),
        ("Softmax", "e = Exp(x)  s = ReduceSum{}(e{})  r = Reciprocal(s)  y = Mul(r, e)"),
        ("LogSoftmax", "e = Softmax<axis = 2>(x)  y = Log(e)"),
        (
            "LogSoftmax",
            "m = ReduceMax[](x[])  d = Sub(x, m)  e = Exp(d)  s = ReduceSum{}(e{})  l = Log(s)  y = Sub(d, l)",
        ),
        ("LogSoftmax", "l = ReduceLogSumExp[](x[])  y = Sub(x, l)"),
    ],
)
def test_softmax(apply, parse, ops, wanted, body, opset):
    model = parse(graph(_reductions(body, opset), opset))
    assert apply(Recompose(), model, rtol=1e-5).report == {wanted: 1}
    assert ops(model) == [wanted]


def _reductions(body, opset):
    """Write axes as the opset has them: {} of ReduceSum, [] of the other reductions."""
    for brackets, since in (("{}", 13), ("[]", 18)):
        for replacement in (("", ", last") if opset >= since else ("<axes = [-1]>", "")) * body.count(brackets):
            body = body.replace(brackets, replacement, 1)
    return body


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize(
    ("wanted", "body"),
    [
        ("ReduceSumSquare", "q = Mul(x, x)  y = ReduceSum{}(q{})"),
        ("ReduceL1", "q = Abs(x)  y = ReduceSum{}(q{})"),
        ("ReduceL2", "q = Pow(x, two)  s = ReduceSum{}(q{})  y = Sqrt(s)"),
        ("ReduceL2", "s = ReduceSumSquare[](x[])  y = Pow(s, half)"),
        ("ReduceLogSum", "q = Mul(x, x)  o = Add(q, one)  s = ReduceSum{}(o{})  y = Log(s)"),
        ("ReduceLogSumExp", "q = Exp(x)  s = ReduceSum{}(q{})  y = Log(s)"),
        (
            "ReduceLogSumExp",
            "m = ReduceMax[](x[])  d = Sub(x, m)  q = Exp(d)  s = ReduceSum{}(q{})  l = Log(s)  y = Add(l, m)",
        ),
    ],
)
def test_reductions_on_demand(apply, parse, ops, wanted, body, opset):
    model = parse(graph(_reductions(body, opset), opset, outputs="float[N,3,1] y"))
    assert not apply(Recompose(), model).modified
    assert apply(Recompose(slower=True), model, rtol=1e-5).report[wanted] == 1
    assert ops(model)[-1] == wanted
    assert "Exp" not in ops(model)


@pytest.mark.parametrize(
    "body", ["s = ReduceSum(x, last)  y = Div(s, four)", "s = ReduceSum<keepdims = 1>(x, last)  y = Mul(quarter, s)"]
)
def test_mean(apply, parse, ops, body):
    model = parse(graph(body, 18, outputs="float[N,3,1] y", weights="float quarter = {0.25}"))
    assert apply(Recompose(), model).report == {"ReduceMean": 1}
    assert ops(model) == ["ReduceMean"]


def test_a_sigmoid_inside_a_quotient(apply, parse, ops):
    model = parse(graph("a = Neg(x)  b = Exp(a)  c = Add(b, one)  y = Div(x, c)"))
    assert apply(Recompose(), model, rtol=1e-5).report == {"Sigmoid": 1}
    assert ops(model) == ["Sigmoid", "Mul"]


def test_hard_sigmoid_inside_a_product_where_there_is_no_hard_swish(apply, parse, ops):
    model = parse(graph("a = Add(x, three)  b = Clip(a, zero, six)  c = Mul(x, b)  y = Div(c, six)", 13))
    assert apply(Recompose(), model, rtol=1e-5).report == {"HardSigmoid": 1}
    assert ops(model) == ["HardSigmoid", "Mul"]


def test_swish(apply, parse, ops):
    model = parse(graph("a = Mul(x, quick)  b = Sigmoid(a)  y = Mul(x, b)", 24))
    assert apply(Recompose(), model).skipped[0][1].startswith("Swish is slower on a CPU")
    assert apply(Recompose(slower=True), model, rtol=1e-5).report == {"Swish": 1}
    assert ops(model) == ["Swish"]


GELU = "a = Div(x, root)  b = Erf(a)  c = Add(b, one)  d = Mul(x, c)  y = Mul(d, half)"


@pytest.mark.parametrize(
    ("body", "opset", "inputs", "outputs"),
    [
        pytest.param(GELU, 19, "float[N,4] x", "float[N,4] y", id="opset"),
        pytest.param(GELU, 20, "float[N,4] x", "float[N,4] y, float[N,4] c", id="an inner value is an output"),
        pytest.param(GELU + "  z = Neg(b)", 20, "float[N,4] x", "float[N,4] y, float[N,4] z", id="an inner value is used"),
        pytest.param(GELU.replace("root", "two"), 20, "float[N,4] x", "float[N,4] y", id="not the root of 2"),
        pytest.param(GELU.replace("half", "three"), 20, "float[N,4] x", "float[N,4] y", id="not a half"),
        pytest.param(GELU.replace("Mul(x, c)", "Mul(z, c)"), 20, "float[N,4] x, float[N,4] z", "float[N,4] y", id="two inputs"),
        pytest.param(GELU.replace("root", "k"), 20, "float[N,4] x, float k", "float[N,4] y", id="a number that varies"),
        pytest.param(GELU.replace("half", "vec"), 20, "float x", "float[1] y", id="a constant adds an axis"),
        pytest.param("a = Add(x, three)  b = Clip(a, one, six)  c = Mul(x, b)  y = Div(c, six)", 20, "float[N,4] x", "float[N,4] y", id="clip"),
        pytest.param("y = Clip(x, zero, one)", 20, "float[N,4] x", "float[N,4] y", id="a clip alone"),
        pytest.param("c = Greater(x, zero)  y = Where(c, x, zero)", 20, "float[N,4] x", "float[N,4] y", id="this hides NaN"),
        pytest.param("c = Greater(x, one)  a = Mul(x, fifth)  y = Where(c, x, a)", 20, "float[N,4] x", "float[N,4] y", id="threshold"),
        pytest.param("a = Mul(x, two)  y = Max(x, a)", 20, "float[N,4] x", "float[N,4] y", id="slope above 1"),
        pytest.param("p = Relu(x)  e = Exp(x)  a = Sub(e, one)  y = Add(p, a)", 20, "float[N,4] x", "float[N,4] y", id="unbounded tail"),
        pytest.param("e = Exp(x)  s = ReduceSum(e, last)  y = Div(s, e)", 20, "float[N,4] x", "float[N,4] y", id="upside down"),
        pytest.param("e = Exp(x)  s = ReduceSum(e)  y = Div(e, s)", 20, "float[N,4] x", "float[N,4] y", id="all axes"),
        pytest.param("e = Exp(x)  s = ReduceSum<axes = [0]>(e)  y = Div(e, s)", 12, "float[N,4] x", "float[N,4] y", id="first axis"),
        pytest.param(CENTRED + "  y = Mul(d, s)", 20, "float[N,4] x", "float[N,4] y", id="times the deviation"),
        pytest.param(CENTRED.replace("x, last", "x, first0") + "  y = Div(d, s)", 20, "float[4,4] x", "float[4,4] y", id="different axes"),
        pytest.param(CENTRED + "  y = Div(d, s)", 20, "float[N,M] x", "float[N,M] y", id="unknown size of gamma"),
    ],
)  # fmt: skip
def test_what_stays(apply, parse, body, opset, inputs, outputs):
    text = graph(body, opset, inputs, outputs, "float[1] vec = {0.5}, int64[1] first0 = {0}")
    assert not apply(Recompose(), parse(text)).modified


def test_reasons(apply, parse):
    assert apply(Recompose(), parse(graph(GELU, 19))).skipped == [
        ("Mul of 'y'", "Gelu needs opset 20, and the model has 19")
    ]


def test_quantized_inner_values_stay(apply, parse):
    body = (
        "a = Div(x, root)  b = Erf(a)  q = QuantizeLinear(b, fifth)  r = DequantizeLinear(q, fifth)"
        "  c = Add(r, one)  d = Mul(x, c)  y = Mul(d, half)"
    )
    assert not apply(Recompose(), parse(graph(body))).modified


def test_doubles_stay(apply, parse):
    """ONNX Runtime has no Gelu of double, but Tanh."""
    body = CUBE + "  c = Add(u, one)  d = Mul(x, half)  y = Mul(d, c)"
    assert not apply(Recompose(), parse(graph(body, 20, "double[N,4] x", "double[N,4] y", type_="double"))).modified


@pytest.mark.parametrize(
    ("wanted", "body"), [ACTIVATIONS[0], ACTIVATIONS[6], ACTIVATIONS[11], ACTIVATIONS[17], NORMS[0]]
)
def test_half_precision(apply, parse, ops, wanted, body):
    model = parse(graph(body, 20, "float16[N,3,4] x", "float16[N,3,4] y", GAMMA))
    for value in model.graph.initializers.values():
        if value.dtype == ir.DataType.FLOAT:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float16), name=value.name)
            value.type = ir.TensorType(ir.DataType.FLOAT16)
    assert apply(Recompose(), model).report == {wanted: 1}
    assert ops(model) == [wanted]


def test_in_a_subgraph_that_captures(apply, parse, ops):
    text = graph(
        "z = Neg(x)  y = If(k) <then_branch = t () => (float[N,4] p) { a = Div(z, root)  b = Erf(a)  c = Add(b, one)"
        "  d = Mul(z, c)  p = Mul(d, half) }, else_branch = e () => (float[N,4] r) { r = Neg(z) }>",
        20, "float[N,4] x, bool k", "float[N,4] y",
    )  # fmt: skip
    model = parse(text)
    assert apply(Recompose(), model, rtol=1e-5).report == {"Gelu": 1}
    assert ops(model) == ["Neg", "If", "Gelu", "Neg"]


def test_new_weights_in_an_old_file(apply, parse):
    """Of IR version 3, which listed every initializer among the inputs."""
    body = (
        "eps = Constant<value = float {0.1}>()  m = GlobalAveragePool(x)  d = Sub(x, m)  q = Mul(d, d)"
        "  u = GlobalAveragePool(q)  e = Add(u, eps)  s = Sqrt(e)  y = Div(d, s)"
    )
    model = parse(f'<ir_version: 3, opset_import: ["": 9]> g (float[1,2,5,6] x) => (float[1,2,5,6] y) {{ {body} }}')
    assert apply(Recompose(), model, rtol=1e-4).report == {"InstanceNormalization": 1}
    assert model.ir_version == 4


def test_constants_that_callers_may_override_are_none(apply, parse):
    model = parse(graph(GELU, 20, "float[N,4] x, float half", "float[N,4] y"))
    assert not apply(Recompose(), model).modified


def test_layers_in_a_row(apply, parse, ops):
    layer = "a{0} = Div(x{0}, root)  b{0} = Erf(a{0})  c{0} = Add(b{0}, one)  d{0} = Mul(x{0}, c{0})  x{1} = Mul(d{0}, half)"
    body = "x0 = Mul(x, two)  " + "  ".join(layer.format(i, i + 1) for i in range(3)) + "  y = Neg(x3)"
    model = parse(graph(body))
    assert apply(Recompose(), model, rtol=1e-5).report == {"Gelu": 3}
    assert ops(model) == ["Mul", "Gelu", "Gelu", "Gelu", "Neg"]


def test_no_layer_normalization_of_an_earlier_opset(graphopt, model_file, tmp_path):
    path = model_file(graph(CENTRED + "  y = Div(d, s)", 18), "m.onnx")
    ran = graphopt("recompose", path, "-o", tmp_path / "out.onnx", "--json")
    assert ran.code == 0
    assert ran.json["steps"][0]["nodes"] == [7, 1]
    assert ir.load(tmp_path / "out.onnx").graph.num_nodes() == 1


@pytest.mark.parametrize("affine", ["y = Identity(b)", "z = Mul(b, w)  y = Add(z, v)"])
def test_group_normalization(apply, parse, ops, affine):
    body = (
        "a = Reshape(x, groups)  i = InstanceNormalization(a, ones, zeros)  h = Shape(x)  b = Reshape(i, h)  " + affine
    )
    weights = f"float[2] ones = {{1.0,1.0}}, float[2] zeros = {{0.0,0.0}}, {vector('w', 4, '4,1,1')}, {vector('v', 4, '4,1,1')}"
    model = parse(graph(body, 21, "float[N,4,5,6] x", "float[N,4,5,6] y", weights))
    assert not apply(Recompose(), model).modified
    assert apply(Recompose(slower=True), model, rtol=1e-4).report == {"GroupNormalization": 1}
    assert "InstanceNormalization" not in ops(model)


QKV = "float[N,2,S,4] q, float[N,2,7,4] k, float[N,2,7,4] v"
CAUSAL = (
    "float[1,1,3,7] m = {"
    + ",".join("0.0" if key <= query else "-3.4e38" for query in range(3) for key in range(7))
    + "}"
)
ATTENTION = [
    "t = Transpose<perm = [0,1,3,2]>(k)  a = MatMul(q, t)  b = Mul(a, half)  p = Softmax(b)  y = MatMul(p, v)",
    "t = Transpose<perm = [0,1,3,2]>(k)  a = MatMul(q, t)  b = Div(a, two)  c = Add(m, b)  p = Softmax<axis = -1>(c)  y = MatMul(p, v)",
    "t = Transpose<perm = [0,1,3,2]>(k)  o = Mul(q, inverse)  u = Mul(t, inverse)  a = MatMul(o, u)  b = Add(a, m)  p = Softmax<axis = 3>(b)  y = MatMul(p, v)",
    "h = Reshape(k, flat)  i = Transpose<perm = [0,2,1]>(h)  j = Shape(k)  l = Gather(j, order)  t = Reshape(i, l)  a = MatMul(q, t)  p = Softmax(a)  y = MatMul(p, v)",
    "u = Mul(k, fifth)  t = Transpose<perm = [0,1,3,2]>(u)  a = MatMul(q, t)  p = Softmax(a)  y = MatMul(p, v)",
]  # fmt: skip


@pytest.mark.parametrize("body", ATTENTION)
def test_attention(apply, parse, ops, body):
    model = parse(graph(body, 23, QKV.replace("S", "3"), "float[N,2,3,4] y", CAUSAL))
    assert apply(Recompose(), model, rtol=1e-5).report == {"Attention": 1}
    assert ops(model)[-1] == "Attention"
    assert "Softmax" not in ops(model)


def test_attention_with_a_softmax_spelled_out(apply, parse, ops):
    softmax = "f = ReduceMax(b, last)  g = Sub(b, f)  e = Exp(g)  s = ReduceSum(e, last)  p = Div(e, s)"
    model = parse(graph(ATTENTION[0].replace("p = Softmax(b)", softmax), 23, QKV, "float[N,2,S,4] y"))
    assert apply(Recompose(), model, rtol=1e-5).report == {"Attention": 1, "Softmax": 1}
    assert ops(model) == ["Attention"]


GUARDED = ATTENTION[1].replace("y = MatMul(p, v)", "n = IsNaN(p)  w = Where(n, zero, p)  y = MatMul(w, v)")


@pytest.mark.parametrize(("lowest", "body", "modified"), [("-inf", GUARDED, True), ("-inf", ATTENTION[1], False), ("-1e9", ATTENTION[1], True),
                                                          ("-3.4028235e38", GUARDED, False)])  # fmt: skip
def test_queries_without_keys(apply, parse, ops, lowest, body, modified):
    """Attention gives them 0, which is what PyTorch spells out if the mask is minus infinity; a mask of large numbers leaves them all keys."""
    model = parse(graph("m = Where(keep, zero, low)  " + body, 23, f"{QKV}, bool[N,1,S,7] keep", "float[N,2,S,4] y"
                        , "float low = {0.0}"))  # fmt: skip
    low = model.graph.initializers["low"]
    low.const_value = ir.tensor(np.asarray(lowest, np.float32), name="low")
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal((2, 2, 3 if name == "q" else 7, 4)).astype(np.float32) for name in "qkv"}
    keep = np.ones((2, 1, 3, 7), np.bool_)
    keep[0, 0, 1], keep[1, 0, 0, 1:] = False, False
    assert apply(Recompose(), model, feeds | {"keep": keep}, rtol=1e-5).modified == modified
    assert ("Softmax" in ops(model)) != modified


SPLIT = (
    "r0 = Reshape(q, heads)  q0 = Transpose<perm = [0,2,1,3]>(r0)  r1 = Reshape(k, heads)  {}  r2 = Reshape(v, heads)"
    "  v0 = Transpose<perm = [0,2,1,3]>(r2)  a = MatMul(q0, t)  b = Mul(a, half)  p = Softmax(b)  c = MatMul(p, v0)"
)
KEYS = [
    "k0 = Transpose<perm = [0,2,1,3]>(r1)  t = Transpose<perm = [0,1,3,2]>(k0)",
    "t = Transpose<perm = [0,2,3,1]>(r1)",
]


@pytest.mark.parametrize("keys", KEYS)
def test_attention_with_its_heads(apply, parse, ops, keys):
    body = SPLIT.format(keys) + "  d = Transpose<perm = [0,2,1,3]>(c)  y = Reshape(d, merged)"
    model = parse(graph(body, 23, "float[N,S,8] q, float[N,T,8] k, float[N,T,8] v", "float[N,S,8] y"))
    assert apply(Recompose(), model, rtol=1e-5).report == {"Attention": 1}
    assert ops(model) == ["Attention"]


@pytest.mark.parametrize("keys", KEYS)
def test_attention_without_merging_its_heads(apply, parse, ops, keys):
    body = SPLIT.format(keys) + "  y = Neg(c)"
    model = parse(graph(body, 23, "float[N,S,8] q, float[N,T,8] k, float[N,T,8] v", "float[N,2,S,4] y"))
    assert apply(Recompose(), model, rtol=1e-5).report == {"Attention": 1}
    assert ops(model)[-2:] == ["Attention", "Neg"]
    assert ops(model).count("Transpose") == 3


@pytest.mark.parametrize(
    ("body", "opset", "inputs"),
    [
        pytest.param(ATTENTION[0], 22, QKV, id="opset"),
        pytest.param(ATTENTION[0], 23, QKV.replace("N,2,7,4] v", "N,1,7,4] v"), id="heads that share values"),
        pytest.param(ATTENTION[0].replace("Softmax", "Softmax<axis = 2>"), 23, QKV, id="axis"),
        pytest.param(ATTENTION[1], 23, f"{QKV}, float[N,1,S,7] m", id="a mask of which nothing is known"),
        pytest.param("m = Where(i, zero, two)  " + GUARDED, 23, f"{QKV}, bool[N,1,1,7] i", id="a mask without queries"),
        pytest.param(ATTENTION[0] + "  z = Neg(p)", 23, QKV, id="weights that are used"),
    ],
)
def test_attention_that_stays(apply, parse, body, opset, inputs):
    outputs = "float[N,2,S,4] y" + (", float[N,2,S,7] z" if "z =" in body else "")
    assert not apply(Recompose(), parse(graph(body, opset, inputs, outputs))).modified
