"""Outliers move from activations into weights, and no result changes."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt import runtime, target
from graphopt.passbase import PreconditionError
from graphopt.passes.quantization.smooth import Smooth
from graphopt.pipeline import duplicate

CPU = target.find("cpu{threads=1 level=none}")
OUTLIERS = np.array([1, 1, 40, 1, 0.5, 1, 1, 20], np.float32)


def run(model, feeds):
    return runtime.open_session(model, CPU).run(feeds)


def check(model, feeds, **fields):
    """Smooth: outputs stay the same to the last bit, and there is nothing left to do."""
    reference, nodes = run(model, feeds), len(model.graph)
    result = Smooth(data=feeds, **fields)(model)
    assert result.modified == bool(result.report["channels"])
    assert len(model.graph) == nodes + result.report["inserted"]
    for name, array in run(model, feeds).items():
        np.testing.assert_array_equal(array, reference[name])
    again = Smooth(data=feeds, **fields)(duplicate(model))
    assert not again.modified, again.report
    assert again.report["inserted"] == 0
    return result


def weight(model, name):
    return model.graph.initializers[name].const_value.numpy()


NORMALIZATIONS = {
    "LayerNormalization": "n = LayerNormalization(x, gamma, beta)",
    "LayerNormalization without bias": "n = LayerNormalization<axis = 2>(x, gamma)",
    "parts of a LayerNormalization": """m = ReduceMean(x, last)  h = Sub(x, m)  p = Mul(h, h)  v = ReduceMean(p, last)
        e = Add(v, eps)  s = Sqrt(e)  q = Div(h, s)  g = Mul(q, gamma)  n = Add(g, beta)""",
    "parts of an RMSNormalization": """p = Mul(x, x)  v = ReduceMean(p, last)  e = Add(v, eps)  s = Sqrt(e)
        q = Div(x, s)  n = Mul(gamma, q)""",
    "SimplifiedLayerNormalization": "n = SimplifiedLayerNormalization<axis = -1>(x, gamma)",
    "SkipLayerNormalization": "n = com.microsoft.SkipLayerNormalization(x, x, gamma, beta)",
    "SkipSimplifiedLayerNormalization": "n = com.microsoft.SkipSimplifiedLayerNormalization(x, x, gamma, beta)",
}
HEAD = """<ir_version: 9, opset_import: ["": 18, "com.microsoft": 1]>
g (float[B,S,8] x, float[8] gamma, float[8] beta, float[8,8] a, float[8] bias, float[8,4] b, float[4,3] c, float[3] d,
   int64[1] last, float eps)"""


def network(build, body, result="float[B,S,3] y", **more):
    constants = {
        "gamma": OUTLIERS, "beta": [8], "a": [8, 8], "bias": [8], "b": [8, 4], "c": [4, 3], "d": [3],
        "last": np.array([-1]), "eps": np.float32(1e-5),
    }  # fmt: skip
    return build(f"{HEAD} => ({result}) {{ {body} }}", **{**constants, **more})


@pytest.mark.parametrize("search", [False, True])
@pytest.mark.parametrize("body", NORMALIZATIONS.values(), ids=NORMALIZATIONS)
def test_normalization_takes_the_factors(build, sample, body, search):
    """Two products read the same activation; both take the inverse."""
    model = network(build, f"{body}  k = MatMul(n, a)  y = MatMul(n, b)", "float[B,S,8] k, float[B,S,4] y")
    before = {name: weight(model, name).copy() for name in ("gamma", "a", "b")}
    result = check(model, sample(x=[4, 5, 8]), search=search)
    factors = weight(model, "gamma") / before["gamma"]
    assert factors[2] < 1
    for name in ("a", "b"):
        np.testing.assert_array_equal(weight(model, name) * factors[:, None], before[name])
    assert not result.skipped


def test_the_formula(build, sample):
    """s_j = max|X_j|^alpha / max|W_j|^(1 - alpha), as the nearest power of two, but for a common factor."""
    model = network(build, "n = LayerNormalization(x, gamma, beta)  y = MatMul(n, b)", "float[B,S,4] y")
    feeds = sample(x=[4, 5, 8])
    seen = network(build, "y = LayerNormalization(x, gamma, beta)", "float[B,S,8] y")
    activation = np.abs(run(seen, feeds)["y"]).max(axis=(0, 1))
    for alpha in (0.3, 0.7):
        smoothed = duplicate(model)
        check(smoothed, feeds, search=False, alpha=alpha)
        expected = alpha * np.log2(activation) - (1 - alpha) * np.log2(np.abs(weight(model, "b")).max(axis=1))
        actual = np.log2(weight(model, "gamma") / weight(smoothed, "gamma"))
        distance = expected - actual
        assert np.ptp(distance) < 1.3, "0.6 either way, and a common whole number"


def test_a_linear_layer_before_takes_the_factors(build, sample):
    model = network(
        build, "p = MatMul(x, a)  q = Add(p, bias)  r = Relu(q)  s = MatMul(r, b)  t = Relu(s)  y = Gemm(z, c, d)"
        .replace("y = Gemm(z, c, d)", "u = MatMul(t, c)  y = Add(u, d)"),
        a=(np.random.default_rng(1).normal(0, 0.2, (8, 8)) * OUTLIERS).astype(np.float32),
    )  # fmt: skip
    before = weight(model, "a").copy()
    assert check(model, sample(x=[4, 5, 8]), search=False).modified
    assert (weight(model, "a")[:, 2] == before[:, 2] / 8).all() or (weight(model, "a")[:, 2] < before[:, 2]).any()


RESIDUAL = """n = LayerNormalization(x, gamma, beta)  p = MatMul(n, a)  q = Add(p, n)
    y0 = LayerNormalization(q, gamma, beta)  y = MatMul(y0, b)"""


def test_a_residual_connection_is_refused(build, sample):
    model = network(build, RESIDUAL, "float[B,S,4] y")
    before = weight(model, "a").copy()
    result = check(model, sample(x=[4, 5, 8]))
    np.testing.assert_array_equal(weight(model, "a"), before)
    assert result.skipped == [
        (
            "n",
            "it goes into LayerNormalization of 'y0' (LayerNormalization): it normalizes over channels; "
            "insert_mul would put a Mul there",
        )
    ]


@pytest.mark.parametrize("search", [False, True])
def test_mul_before_a_product(build, sample, search):
    model = network(build, RESIDUAL, "float[B,S,4] y")
    assert check(model, sample(x=[4, 5, 8]), insert_mul=True, search=search).report["inserted"] == 1
    (mul,) = (node for node in model.graph if node.op_type == "Mul")
    assert [user.op_type for user in mul.outputs[0].consumers()] == ["MatMul"]


def test_gelu_and_inputs(build, sample):
    body = "h = MatMul(x, a)  n = com.microsoft.Gelu(h)  y = MatMul(n, b)"
    feeds = sample(x=[4, 5, 8])
    feeds["x"] *= OUTLIERS
    model = network(build, body, "float[B,S,4] y")
    result = check(duplicate(model), feeds)
    assert not result.modified
    assert [name for name, _ in result.skipped] == ["x", "n"]
    assert "input of the model" in result.skipped[0][1]
    assert "comes from Gelu" in result.skipped[1][1]
    assert check(model, feeds, insert_mul=True).report["inserted"] >= 1


def test_a_mul_that_brings_nothing_is_not_left_behind(build, sample):
    model = network(build, "y = MatMul(x, b)", "float[B,S,4] y", b=np.ones((8, 4), np.float32))
    feeds = {"x": np.ones((4, 5, 8), np.float32)}
    assert not check(model, feeds, insert_mul=True).modified
    assert [node.op_type for node in model.graph] == ["MatMul"]
    assert "x_factors" not in model.graph.initializers


def test_another_consumer_forbids_it(build, sample):
    model = network(
        build,
        "n = LayerNormalization(x, gamma, beta)  y = MatMul(n, b)  z = Sigmoid(n)",
        "float[B,S,4] y, float[B,S,8] z",
    )
    result = check(model, sample(x=[4, 5, 8]))
    assert not result.modified
    assert "Sigmoid" in result.skipped[0][1]


def test_bodies_are_left_alone(build, sample):
    model = network(
        build,
        """n = LayerNormalization(x, gamma, beta)  yes = Constant<value = bool {1}>()
        y = If(yes) <then_branch = t () => (float[B,S,4] p) { p = MatMul(n, b) },
                   else_branch = e () => (float[B,S,4] q) { r = MatMul(n, b)  q = Neg(r) }>""",
        "float[B,S,4] y",
    )
    assert not check(model, sample(x=[4, 5, 8])).modified


def test_shared_weights(build, sample):
    body = """n = LayerNormalization(x, gamma, beta)  p = MatMul(n, a)  q = Relu(p)
        m = LayerNormalization(q, gamma, beta)  r = MatMul(m, a)  y = MatMul(r, b)"""
    assert check(network(build, body, "float[B,S,4] y"), sample(x=[4, 5, 8])).modified


def test_smoothing_helps_8_bit_products(build, sample, quantize):
    feeds = sample(x=[16, 5, 8])
    rng = np.random.default_rng(4)
    even = (rng.normal(0, 0.3, (8, 4)) / OUTLIERS[:, None]).astype(np.float32)
    model = network(build, "n = LayerNormalization(x, gamma)  y = MatMul(n, b)", "float[B,S,4] y", b=even)
    plain = quantize(duplicate(model), feeds, ops=("MatMul",)).sqnr["y"]
    assert check(model, feeds).modified
    assert quantize(model, feeds, ops=("MatMul",)).sqnr["y"] > plain + 6


def test_without_data():
    with pytest.raises(PreconditionError, match="no data"):
        Smooth().requires(None)


@pytest.mark.parametrize("fields", [{"alpha": 0.0}, {"alpha": 1.0}, {"samples": 0}, {"batch": 0}])
def test_bad_fields(fields):
    with pytest.raises(ValueError, match="must"):
        Smooth(**fields)


def test_command(graphopt, model_file, tmp_path):
    text = ",".join(str(round(0.1 * i, 1)) for i in range(8))
    path = model_file(
        f"g (float[N,4] x) => (float[N,2] y) <float[4] g = {{1,30,2,1}}, float[4,2] w = {{{text}}}> "
        "{ n = LayerNormalization(x, g)  y = MatMul(n, w) }"
    )
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32))
    ran = graphopt("smooth", path, "-o", tmp_path / "o.onnx", "--data", tmp_path / "data.npz", "--json")
    assert (ran.code, ran.json["steps"][0]["status"]) == (0, "kept")
    assert graphopt("smooth", path, "-o", tmp_path / "p.onnx").error.startswith("smooth: no data")
