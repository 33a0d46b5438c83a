"""Gradients of what computes element by element, and of casts."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

HEAD = '<ir_version: 9, opset_import: ["": {}]> '

ANY = np.array([[-2.3, -1.2, -0.7, -0.3], [0.2, 0.6, 1.1, 1.9], [2.4, -1.7, 0.9, -0.15]])
UNIT = ANY / 3
ABOVE_ONE = np.abs(ANY) + 1.1
POSITIVE = np.abs(ANY) + 0.3
ROW = np.array([[0.5, -1.4, 0.8, 2.2]])

ONE = {
    **{
        name: (22, f"{{ y = {name}(x) }}", ANY)
        for name in [
            "Abs",
            "Neg",
            "Exp",
            "Sin",
            "Cos",
            "Tan",
            "Sinh",
            "Cosh",
            "Asinh",
            "Atan",
            "Tanh",
            "Erf",
            "Sigmoid",
            "Relu",
            "LeakyRelu",
            "Elu",
            "Selu",
            "Celu",
            "Gelu",
            "HardSigmoid",
            "HardSwish",
            "Mish",
            "Softplus",
            "Softsign",
            "Shrink",
            "ThresholdedRelu",
        ]
    },
    **{name: (22, f"{{ y = {name}(x) }}", POSITIVE) for name in ("Sqrt", "Log", "Reciprocal")},
    **{name: (22, f"{{ y = {name}(x) }}", UNIT) for name in ("Acos", "Asin", "Atanh")},
    "Acosh": (22, "{ y = Acosh(x) }", ABOVE_ONE),
    "Swish": (24, "{ y = Swish(x) }", ANY),
    "Swish of another slope": (24, "{ y = Swish<alpha = 0.5>(x) }", ANY),
    "Gelu by tanh": (20, '{ y = Gelu<approximate = "tanh">(x) }', ANY),
    "LeakyRelu of another slope": (16, "{ y = LeakyRelu<alpha = 0.3>(x) }", ANY),
    "Elu of another size": (7, "{ y = Elu<alpha = 0.5>(x) }", ANY),
    "Celu of another size": (12, "{ y = Celu<alpha = 0.5>(x) }", ANY),
    "Selu of another size": (7, "{ y = Selu<alpha = 1.5, gamma = 0.5>(x) }", ANY),
    "HardSigmoid of another slope": (7, "{ y = HardSigmoid<alpha = 0.4, beta = 0.3>(x) }", ANY),
    "Shrink with a bias": (9, "{ y = Shrink<bias = 0.2, lambd = 0.4>(x) }", ANY),
    "Clip of opset 7": (7, "{ y = Clip<min = -1.0, max = 1.0>(x) }", ANY),
    "Clip by numbers": (13, "<double a = {-1.0}, double b = {1.0}> { y = Clip(x, a, b) }", ANY),
    "Clip from below": (13, "<double a = {-1.0}> { y = Clip(x, a) }", ANY),
    "Clip from above": (13, "<double b = {1.0}> { y = Clip(x, , b) }", ANY),
    "Pow by a number": (15, "<double a = {2.5}> { y = Pow(x, a) }", POSITIVE),
    "Pow by a whole number": (15, "<int64 a = {3}> { y = Pow(x, a) }", ANY),
    "Pow by whole numbers": (15, "<int64[4] a = {3, 2, 1, 0}> { y = Pow(x, a) }", ANY),
    "Where": (16, "<bool[4] c = {1, 0, 1, 0}> { n = Exp(x)  y = Where(c, x, n) }", ANY),
    "Sum of one": (8, "{ y = Sum(x) }", ANY),
    "Dropout": (13, "{ y = Dropout(x) }", ANY),
    "Dropout of opset 7": (7, "{ y, m = Dropout(x) }", ANY),
    "CastLike": (19, "{ d = CastLike(x, x)  y = Exp(d) }", ANY),
    "Cast": (13, "{ d = Cast<to = 11>(x)  y = Exp(d) }", ANY),
}
"""The opset, what is computed of `x`, and `x`."""

TWO = {
    **{name: (14, f"{{ y = {name}(a, b) }}", ANY, ROW) for name in ("Add", "Sub", "Mul", "Div")},
    "Pow": (15, "{ y = Pow(a, b) }", POSITIVE, ROW),
    "fmod": (13, "{ y = Mod<fmod = 1>(a, b) }", ANY, ROW),
    "Mod": (28, "{ y = Mod(a, b) }", ANY, ROW),
    "PRelu": (16, "{ y = PRelu(a, b) }", ANY, ROW),
    "SwiGLU": (28, "{ y = SwiGLU<alpha = 0.7>(a, b) }", ANY, ABOVE_ONE),
    "Clip between what is trained": (13, "{ n = Neg(b)  y = Clip(a, n, b) }", ANY, np.array(1.0)),
    "Clip between what is trained and a number": (13, "<double c = {1.5}> { y = Clip(a, b, c) }", ANY, np.array(-1.0)),
    **{
        f"{name} of opset {opset}": (opset, f"{{ n = Tanh(b)  y = {name}(a, b, n) }}", ANY, ABOVE_ONE - 2.5)
        for name in ("Max", "Min", "Sum", "Mean")
        for opset in (7, 13)
    },
}
"""The opset, what is computed of `a` and `b`, and these."""


@pytest.mark.parametrize("name", ONE)
def test_gradients_of_one_tensor(check_gradients, name):
    opset, text, x = ONE[name]
    check_gradients(f"{HEAD.format(opset)} g (double[3,4] x) => (double[3,4] y) {text}", {"x": x}, "y")


@pytest.mark.parametrize("name", TWO)
def test_gradients_of_two_tensors(check_gradients, name):
    opset, text, a, b = TWO[name]
    kinds = ", ".join(f"double{list(x.shape) or ''} {key}" for key, x in (("a", a), ("b", b)))
    check_gradients(f"{HEAD.format(opset)} g ({kinds}) => (double[3,4] y) {text}", {"a": a, "b": b}, "y")
