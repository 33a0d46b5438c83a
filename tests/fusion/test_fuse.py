"""The other kinds of fusion, and the pass as a whole."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt import target
from graphopt.passbase import PreconditionError
from graphopt.passes.fusion import _gelu, _normalization
from graphopt.passes.fusion._site import Site
from graphopt.passes.fusion.fuse import Fuse

CPU = target.capabilities(target.find("cpu")).fused
D = 16
NUMBERS = {
    "half": 0.5, "one": 1.0, "two": 2.0, "three": 3.0, "root2": 2**0.5, "inverse": 0.5**0.5, "cubic": 0.044715,
    "tanhs": (2 / np.pi) ** 0.5, "alpha": 1.702, "eps": 1e-5, "wrong": 0.51,
}  # fmt: skip


def noise(draw, **more):
    made = {name: np.array(number, np.float32) for name, number in NUMBERS.items()}
    made |= {"w": draw("w", (D, D), 0.3), "last": np.array([-1]), "kernel": draw("kernel", (4, 3, 3, 3), 0.3)}
    made |= {name: draw(name, (D,)) for name in ("gamma", "beta", "bias")}
    return made | more


def text(body, inputs=f"float[B,S,{D}] x", outputs=f"float[B,S,{D}] y"):
    return f"g ({inputs}) => ({outputs}) {{ {body} }}"


@pytest.fixture
def x(draw):
    return {"x": draw("x", (2, 5, D))}


@pytest.fixture
def elsewhere(graph, draw):
    """Fuse one kind as on a target that is no CPU; what it makes runs on the CPU all the same."""

    def apply(kind, model):
        site = Site(model, CPU, on_cpu=False)
        kind.fuse(site)
        model.graph.sort()
        return dict(site.fused)

    return apply


# GELU and its kin

ERF = "e = Erf(s) o = Add(e, one)"
TANH = "l = Mul(p, cubic) a = Add(x, l) m = Mul(a, tanhs) t = Tanh(m) o = Add(one, t)"


@pytest.mark.parametrize(
    ("body", "operator"),
    [
        (f"s = Div(x, root2) {ERF} m = Mul(x, o) y = Mul(m, half)", "Gelu"),
        (f"s = Mul(x, inverse) {ERF} m = Mul(half, x) y = Mul(o, m)", "Gelu"),
        (f"s = Mul(inverse, x) {ERF} m = Mul(half, o) y = Mul(x, m)", "Gelu"),
        (f"s = Div(x, root2) {ERF} m = Mul(x, o) y = Div(m, two)", "Gelu"),
        (f"p = Pow(x, three) {TANH} h = Mul(half, x) y = Mul(h, o)", "FastGelu"),
        (f"s = Mul(x, x) p = Mul(s, x) {TANH} h = Mul(o, half) y = Mul(x, h)", "FastGelu"),
        ("a = Mul(x, alpha) s = Sigmoid(a) y = Mul(x, s)", "QuickGelu"),
        ("s = Sigmoid(x) y = Mul(s, x)", "QuickGelu"),
    ],
)
def test_gelu_in_any_order(graph, fuse, draw, ops, x, body, operator):
    model = graph(text(body), **noise(draw))
    assert fuse(model, x).report == {operator: 1}
    assert ops(model) == [operator]


@pytest.mark.parametrize(
    "body",
    [
        f"s = Div(x, two) {ERF} m = Mul(x, o) y = Mul(m, half)",
        f"s = Div(x, root2) {ERF} m = Mul(x, o) y = Mul(m, wrong)",
        "s = Div(x, root2) e = Erf(s) o = Add(e, half) m = Mul(x, o) y = Mul(m, half)",
        f"n = Neg(x) s = Div(n, root2) {ERF} m = Mul(x, o) y = Mul(m, half)",
        "a = Mul(x, alpha) s = Sigmoid(a) h = Mul(x, half) y = Mul(h, s)",
        "a = Add(x, alpha) s = Sigmoid(a) y = Mul(x, s)",
    ],
)
def test_what_is_almost_gelu_stays(graph, fuse, draw, x, body):
    assert not fuse(graph(text(body), **noise(draw)), x, only=("gelu",)).modified


def test_a_bias_before_gelu(graph, fuse, draw, ops, x, elsewhere, run_model):
    """FastGelu takes it everywhere, Gelu where BiasGelu is not slower than a sum."""
    body = f"v = Add(bias, x) s = Div(v, root2) {ERF} m = Mul(v, o) y = Mul(m, half)"
    model = graph(text(body), **noise(draw))
    fuse(model, x)
    assert ops(model) == ["Sum", "Gelu"]
    model = graph(text(body), **noise(draw))
    expected = run_model(model, x)
    assert elsewhere(_gelu, model) == {"Gelu": 1, "BiasGelu": 1}
    assert ops(model) == ["BiasGelu"]
    np.testing.assert_allclose(run_model(model, x)["y"], expected["y"], rtol=1e-5, atol=1e-6)
    model = graph(text('v = Add(bias, x) y = Gelu<approximate = "tanh">(v)'), opset=20, **noise(draw))
    assert fuse(model, x).report == {"FastGelu": 1}
    assert ops(model) == ["FastGelu"]


# Normalization

LAYER = "y = LayerNormalization<axis = -1, epsilon = 0.001>(t, gamma, beta)"
SPELLED = (
    "e = ReduceMean<keepdims = 1>(t, last) d = Sub(t, e) d2 = Pow(d, two) v = ReduceMean<keepdims = 1>(d2, last) ve = Add(v, eps) "
    "r = Sqrt(ve) n = Div(d, r) g = Mul(n, gamma) y = Add(g, beta)"
)
ROOT = "t2 = Mul(t, t) v = ReduceMean<keepdims = 1>(t2, last) ve = Add(eps, v) r = Sqrt(ve) i = Reciprocal(r) n = Mul(t, i)"
TWO = f"float[B,S,{D}] x, float[B,S,{D}] z"


@pytest.fixture
def both(draw, x):
    return x | {"z": draw("z", (2, 5, D))}


def test_on_the_cpu_a_sum_is_normalized(graph, fuse, draw, ops, both):
    """Because ONNX Runtime makes a slow operator of an Add that is normalized."""
    model = graph(text(f"m = MatMul(x, w) a = Add(m, bias) t = Add(a, z) {LAYER}", TWO), **noise(draw))
    assert fuse(model, both).report == {"Sum": 1}
    assert ops(model) == ["MatMul", "Sum", "LayerNormalization"]
    assert [value.name for value in model.graph[1].inputs] == ["m", "bias", "z"]
    model = graph(text(f"t = Add(x, z) {SPELLED}", TWO), **noise(draw))
    assert fuse(model, both).report == {"LayerNormalization": 1, "Sum": 1}
    assert ops(model) == ["Sum", "LayerNormalization"]


def test_a_sum_with_other_uses_is_kept(graph, fuse, draw, ops, both):
    body = f"t = Add(x, z) {LAYER} u = Neg(t)"
    model = graph(text(body, TWO, f"float[B,S,{D}] y, float[B,S,{D}] t, float[B,S,{D}] u"), **noise(draw))
    assert fuse(model, both).report == {"Sum": 1}
    assert sorted(ops(model)) == ["LayerNormalization", "Neg", "Sum"]


def test_dequantized_summands_are_left_to_integer_operators(graph, draw):
    body = f"d = DequantizeLinear(q, one) t = Add(d, x) {LAYER}"
    model = graph(text(body, f"float[B,S,{D}] x, uint8[B,S,{D}] q"), **noise(draw))
    assert not Fuse()(model).modified


@pytest.mark.parametrize("norm", [LAYER, SPELLED])
@pytest.mark.parametrize("skip", ["z", "table", "one_for_all"])
def test_elsewhere_skip_and_normalization_are_one(graph, draw, ops, both, elsewhere, run_model, norm, skip):
    constants = noise(draw, table=draw("t", (5, D)), one_for_all=draw("o", (1, 5, D)))
    body = f"m = MatMul(x, w) a = Add(m, bias) t = Add({skip}, a) {norm} u = Neg(t)"
    inputs = f"float[B,5,{D}] x" + (f", float[B,5,{D}] z" if skip == "z" else "")
    feeds = both if skip == "z" else {"x": both["x"]}
    model = graph(text(body, inputs, f"float[B,5,{D}] y, float[B,5,{D}] u"), **constants)
    expected = run_model(model, feeds)
    assert elsewhere(_normalization, model) == {"SkipLayerNormalization": 1}
    assert sorted(ops(model)) == ["MatMul", "Neg", "SkipLayerNormalization"]
    for name, array in run_model(model, feeds).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gamma", ["y = Mul(n, gamma)", "y = Mul(gamma, n)", "y = MatMul(n, w)"])
def test_root_mean_square(graph, fuse, draw, ops, both, gamma):
    """Also without gamma, which `fold-scales` puts into the matrix after it."""
    outputs = f"float[B,S,{D}] y, float[B,S,{D}] t"
    model = graph(text(f"t = Add(x, z) {ROOT} {gamma}", TWO, outputs), **noise(draw))
    assert fuse(model, both).report == {"SkipSimplifiedLayerNormalization": 1}
    assert len(ops(model)) == 1 + ("MatMul" in gamma)


def test_a_gamma_that_depends_on_the_sum_is_no_gamma(graph, fuse, draw, ops, both):
    body = f"t = Add(x, z) mean = ReduceMean<keepdims = 0>(t, axes) {ROOT} y = Mul(n, mean)"
    model = graph(text(body, TWO), **noise(draw, axes=np.array([0, 1])))
    assert fuse(model, both).report == {"SkipSimplifiedLayerNormalization": 1}
    assert ops(model) == ["SkipSimplifiedLayerNormalization", "ReduceMean", "Mul"]


# Rotary positions

HEADS = "r = Reshape(x, four) h = Transpose<perm = [0,2,1,3]>(r)"
SPLIT = "first, second = Split<axis = -1>(h, halves)"
SLICES = "first = Slice(h, at0, at4, at3) second = Slice(h, at4, far, at3)"
TURN = (
    "minus = Neg(second) turned = Concat<axis = -1>(minus, first) "
    "c = Mul(h, cosines) s = Mul(turned, sines) y = Add(c, s)"
)
ANGLES = "all = Concat<axis = -1>(angles, angles) cosines = Cos(all) sines = Sin(all)"
LIFTED = "both = Concat<axis = -1>(angles, angles) all = Unsqueeze(both, at1) cosines = Cos(all) sines = Sin(all)"


@pytest.fixture
def rotary(graph):
    """Make a graph that turns heads by angles."""
    constants = {
        "four": [0, 0, 2, 8], "halves": [4, 4], "at0": [0], "at1": [1], "at3": [3], "at4": [4], "at5": [5], "far": [2**62],
    }  # fmt: skip

    def make(angles, body):
        inputs = f"float[B,S,{D}] x, float[{angles}] angles"
        arrays = {name: np.array(values, np.int64) for name, values in constants.items()}
        return graph(text(f"{HEADS} {body}", inputs, "float[B,2,S,8] y"), **arrays)

    return make


@pytest.mark.parametrize(
    ("angles", "shape", "table"),
    [("S,4", (5, 4), ANGLES), ("1,S,4", (1, 5, 4), LIFTED), ("B,S,4", (2, 5, 4), LIFTED)],
    ids=["one table", "one for all samples", "of each sample"],
)
@pytest.mark.parametrize("cut", [SPLIT, SLICES], ids=["split", "slices"])
def test_rotary_positions(rotary, fuse, draw, ops, x, angles, shape, table, cut):
    model = rotary(angles, f"{table} {cut} {TURN}")
    assert fuse(model, x | {"angles": draw("angles", shape)}).report == {"RotaryEmbedding": 1}
    assert "Neg" not in ops(model)


@pytest.mark.parametrize(
    ("angles", "body", "reason"),
    [
        ("S,8", f"cosines = Cos(angles) sines = Sin(angles) {SPLIT} {TURN}", "the halves of the angles are not proven to be equal"),
        ("T,4", f"{ANGLES} {SPLIT} {TURN}", "the shape of what is turned is not proven"),
        ("S,4", f"{ANGLES} {SLICES.replace('at4, far', 'at5, far')} {TURN}", None),
        ("S,4", f"{ANGLES} {SPLIT} {TURN.replace('(minus, first)', '(first, minus)')}", None),
    ],
)  # fmt: skip
def test_what_is_no_rotation_stays(rotary, draw, angles, body, reason):
    result = Fuse(only=("rotary",))(rotary(angles, body))
    assert not result.modified
    assert [why for _, why in result.skipped] == ([reason] if reason else [])


# Convolution, matrix products, integers


@pytest.mark.parametrize(
    "activation",
    ["Relu(c)", "Sigmoid(c)", "Tanh(c)", "LeakyRelu<alpha = 0.2>(c)", "HardSigmoid<alpha = 0.3>(c)", "Clip(c, half, one)", "Clip(c)",
     "Clip(c, , half)"],
)  # fmt: skip
def test_convolution_and_activation(graph, fuse, draw, ops, activation):
    body = f"c = Conv<pads = [1,1,1,1], strides = [2,2]>(i, kernel) y = {activation}"
    model = graph(text(body, "float[N,3,8,8] i", "float[N,4,4,4] y"), **noise(draw))
    assert fuse(model, {"i": draw("i", (2, 3, 8, 8))}).report == {"FusedConv": 1}
    assert ops(model) == ["FusedConv"]


def test_a_convolution_with_other_uses_stays(graph, fuse, draw):
    model = graph(
        text("c = Conv(i, kernel) y = Relu(c)", "float[N,3,8,8] i", "float[N,4,6,6] y, float[N,4,6,6] c"), **noise(draw)
    )
    assert not fuse(model, {"i": draw("i", (2, 3, 8, 8))}).modified
    dequantized = "d = DequantizeLinear(i, one) c = Conv(d, kernel) y = Relu(c)"
    assert not Fuse()(graph(text(dequantized, "uint8[N,3,8,8] i", "float[N,4,6,6] y"), **noise(draw))).modified


@pytest.mark.parametrize(
    "body",
    [
        "t = Transpose<perm = [0,2,1]>(z) y = MatMul(x, t)",
        "t = Transpose<perm = [0,2,1]>(z) p = MatMul(x, t) y = Mul(half, p)",
        "t = Transpose<perm = [0,2,1]>(x) u = Transpose<perm = [0,2,1]>(z) p = MatMul(t, z) q = MatMul(p, u) y = Div(q, two)",
    ],
)
def test_products_take_in_transposes_and_scales(graph, fuse, draw, ops, both, body):
    model = graph(text(body, TWO, "float[B,P,Q] y"), **noise(draw))
    assert fuse(model, both).report["FusedMatMul"] >= 1
    assert set(ops(model)) == {"FusedMatMul"}


@pytest.mark.parametrize(
    "body",
    [
        "t = Transpose<perm = [1,0,2]>(z) p = Transpose<perm = [1,0,2]>(t) y = MatMul(x, w)",
        "p = MatMul(x, w) y = Div(two, p)",
    ],
)
def test_products_that_have_nothing_to_take_in(graph, fuse, draw, both, body):
    assert not fuse(graph(text(body, TWO), **noise(draw)), both).modified


@pytest.mark.parametrize(("shared", "bias"), [(False, False), (False, True), (True, False), (True, True)])
def test_products_of_integers(graph, fuse, draw, ops, x, shared, bias):
    rng = np.random.default_rng(0)
    constants = {
        "wi": rng.integers(0, 255, (D, D)).astype(np.uint8), "ws": np.array(0.01, np.float32), "wz": np.array(120, np.uint8),
    }  # fmt: skip
    end = "r = Mul(f, ss) y = Add(r, bias)" if bias else "y = Mul(f, ss)"
    body = (
        f"q, s, z = DynamicQuantizeLinear(x) m = MatMulInteger(q, wi, z, wz) f = Cast<to = 1>(m) ss = Mul(s, ws) {end}"
    )
    outputs = f"float[B,S,{D}] y" + (f", uint8[B,S,{D}] q" if shared else "")
    model = graph(text(body, outputs=outputs), **noise(draw, **constants))
    operator = "MatMulIntegerToFloat" if shared else "DynamicQuantizeMatMul"
    assert fuse(model, x).report == {operator: 1}
    assert len(ops(model)) == 1 + shared


# The pass as a whole

TWO_KINDS = f"t = Add(x, z) {LAYER} a = Mul(y, alpha) s = Sigmoid(a) u = Mul(y, s)"


def test_kinds_can_be_chosen(graph, draw, both):
    outputs = f"float[B,S,{D}] u"
    whole = Fuse()(graph(text(TWO_KINDS, TWO, outputs), **noise(draw)))
    assert whole.report == {"QuickGelu": 1, "Sum": 1}
    assert list(whole.parts) == [Fuse(only=("normalization",)), Fuse(only=("gelu",))]
    part = Fuse(only=("gelu",))(graph(text(TWO_KINDS, TWO, outputs), **noise(draw)))
    assert part.report == {"QuickGelu": 1}
    assert not part.parts


def test_parts_keep_the_target(graph, draw):
    whole = Fuse(target="cpu{threads=1}")(graph(text(TWO_KINDS, TWO, f"float[B,S,{D}] u"), **noise(draw)))
    assert {part.target for part in whole.parts} == {"cpu{threads=1}"}


def test_an_unknown_kind_is_the_users_error(graphopt, model_file, tmp_path):
    path = model_file("g (float[N,4] x) => (float[N,4] y) { y = Neg(x) }")
    ran = graphopt("fuse", path, "-o", tmp_path / "y.onnx", "--only", "atention")
    assert ran.code == 2 or ran.code == 1
    assert "there is no kind 'atention'; choose rotary, quantized, attention" in ran.err
    assert not (tmp_path / "y.onnx").exists()


def test_where_nothing_can_be_fused(graph, parse):
    model = graph(text("y = Neg(x)"))
    with pytest.raises(PreconditionError, match="target 'reference' tells of no kernels beyond standard ONNX"):
        Fuse(target="reference")(model)
    old = parse('<ir_version: 3, opset_import: ["": 9]> g (float[N,4] x) => (float[N,4] y) { y = Neg(x) }')
    with pytest.raises(PreconditionError, match="needs opset 11 or newer, this model has 9"):
        Fuse()(old)


def test_by_command(graphopt, model_file, tmp_path):
    path = model_file(
        "g (float[N,4,8] x, float[N,4,8] z) => (float[N,4,8] y) <float[8] g = {1,1,1,1,1,1,1,1}> "
        "{ t = Add(x, z) s = Sigmoid(t) q = Mul(t, s) u = Add(q, z) y = LayerNormalization(u, g) }"
    )
    ran = graphopt("fuse", path, "-o", tmp_path / "y.onnx", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["steps"][0]["report"] == {"QuickGelu": 1, "Sum": 1}
    assert "parts" not in ran.json["steps"][0]
