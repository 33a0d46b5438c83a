"""Constant scaling and shifting goes into the weights next to it."""

from __future__ import annotations

import pytest

from graphopt.passes.structural.fold_scales import FoldScales

NUMBERS = ",".join(str(round(0.37 * i - 2.1, 2)) for i in range(24))
CONSTANTS = (
    f"float[4,3,1,2] w = {{{NUMBERS}}}, float[4] bias = {{1, -2, 3, 0.5}}, float[3,4,1,2] wt = {{{NUMBERS}}}, "
    "float[1,4,1,1] s = {0.5, 2, -1, 3}, float[4,1,1] t = {1, 2, 3, 4}, float k = {2.0}, float[3,1,1] before = {0.5, 2, 4}, "
    "float[3] g = {1, 2, 0.5}, float[3] b = {0.1, 0.2, 0.3}, float[3] m = {0.5, 0, -0.5}, float[3] v = {1, 2, 4}, "
    f"float[6,4] mat = {{{NUMBERS}}}, float[4] row = {{1, 2, -3, 0.5}}, float[6] wide = {{1, 2, 3, -1, 0.5, 2}}"
)
CONV = {
    "Mul": "c = Conv(x, w, bias)  y = Mul(c, s)",
    "Div": "c = Conv(x, w)  y = Div(c, s)",
    "Add": "c = Conv(x, w)  y = Add(c, t)",
    "Sub from a constant": "c = Conv(x, w, bias)  y = Sub(t, c)",
    "a chain": "c = Conv(x, w)  d = Mul(k, c)  e = Add(d, t)  y = Mul(e, s)",
    "padded": "c = Conv<pads = [1,1,1,1]>(x, w)  y = Mul(c, s)",
    "before": "c = Mul(x, before)  y = Conv(c, w, bias)",
    "shifted before": "c = Sub(x, before)  y = Conv(c, w)",
    "normalized before": "c = BatchNormalization(x, g, b, m, v)  y = Conv(c, w)",
    "scaled before padding": "c = Mul(x, before)  y = Conv<pads = [1,1,1,1]>(c, w)",
    "transposed": "c = ConvTranspose(x, wt)  y = Mul(c, s)",
}
MATRIX = {
    "MatMul": "c = MatMul(x, mat)  y = Mul(c, row)",
    "before MatMul": "c = Mul(x, wide)  y = MatMul(c, mat)",
    "Gemm": "c = Gemm<alpha = 2.0, beta = 0.5>(x, mat, row)  d = Mul(c, row)  y = Add(d, row)",
    "before Gemm": "c = Add(x, wide)  y = Gemm(c, mat, row)",
}


@pytest.mark.parametrize("body", CONV.values(), ids=CONV)
def test_convolutions(apply, parse, ops, body):
    model = parse(f"g (float[N,3,5,5] x) => (float[N,4,A,B] y) <{CONSTANTS}> {{ {body} }}")
    assert apply(FoldScales(), model, rtol=1e-5).modified
    assert len(ops(model)) == 1


@pytest.mark.parametrize("body", MATRIX.values(), ids=MATRIX)
def test_matrices(apply, parse, ops, body):
    model = parse(f"g (float[N,6] x) => (float[N,4] y) <{CONSTANTS}> {{ {body} }}")
    assert apply(FoldScales(), model, rtol=1e-5).modified
    assert len(ops(model)) == 1


def test_groups(apply, parse, ops):
    weights = ",".join(str(0.3 * i - 1) for i in range(16))
    for body in ("c = Conv<group = 2>(x, w)  y = Mul(c, s)", "c = Mul(x, s)  y = Conv<group = 2>(c, w)",
                 "c = ConvTranspose<group = 2>(x, w)  y = Mul(c, s)"):  # fmt: skip
        model = parse(
            f"g (float[N,4,5,5] x) => (float[N,4,A,B] y) <float[4,2,1,2] w = {{{weights}}}, {CONSTANTS.split('float[3,4,1,2]')[0].split('float[4] bias')[0].replace('float[4,3,1,2] w = {' + NUMBERS + '}, ', '')} float[1,4,1,1] s = {{0.5, 2, -1, 3}}> {{ {body} }}"
        )
        assert apply(FoldScales(), model, rtol=1e-5).modified
        assert len(ops(model)) == 1


STAYS = {
    "shifted before padding": "c = Add(x, before)  y = Conv<pads = [1,1,1,1]>(c, w)",
    "used elsewhere": "c = Conv(x, w)  y = Mul(c, s)  z = Neg(c)",
    "weights of two": "c = Conv(x, w)  d = Mul(c, s)  e = Conv(x, w)  y = Add(d, e)",
    "one divided by it": "c = Conv(x, w)  y = Div(s, c)",
}


@pytest.mark.parametrize("body", STAYS.values(), ids=STAYS)
def test_what_stays(apply, parse, body):
    outputs = "float[N,4,A,B] y" + (", float[N,4,C,D] z" if "z =" in body else "")
    assert not apply(FoldScales(), parse(f"g (float[N,3,5,5] x) => ({outputs}) <{CONSTANTS}> {{ {body} }}")).modified


def test_quantized_weights_stay(apply, parse, ops):
    model = parse(f"""g (float[N,6] x) => (float[N,4] y) <int8[6,4] q = {{{",".join("1" * 24)}}}, float q_s = {{0.1}}, {CONSTANTS}> {{
        w2 = DequantizeLinear(q, q_s)  c = MatMul(x, w2)  y = Mul(c, row)
    }}""")
    assert not apply(FoldScales(), model).modified
