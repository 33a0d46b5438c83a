"""simplify: known networks come out small, random ones come out equal."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import compare, runtime, target
from graphopt.errors import UsageError
from graphopt.passes.structural.simplify import Simplify
from graphopt.spec import parse as parse_spec

PLAIN = target.find("cpu{level=none}")


def test_what_exporters_write_around_a_linear_layer(apply, parse, ops):
    model = parse("""
    g (float[N,2,3] x) => (float[N,4] y) <int64 zero = {0}, int64[1] first = {0}, int64[1] rest = {-1},
        float[6,4] w = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9,1,2,3,4,5,6}, float[4] b = {1,2,3,4}, float[4] s = {2,2,1,1}> {
        d = Shape(x)  n = Gather(d, zero)  u = Unsqueeze(n, first)  t = Concat<axis = 0>(u, rest)
        f = Reshape(x, t)  i = Identity(f)  m = MatMul(i, w)  a = Add(m, b)  c = Mul(a, s)  r = Relu(c)  y = Relu(r)
    }
    """)
    apply(Simplify(), model, rtol=1e-5)
    assert ops(model) == ["Reshape", "Gemm", "Relu"]


def test_quantization_is_left_as_it_is(apply, parse, ops):
    model = parse("""
    g (float[N,2] x) => (float[N,2] y) <float s = {0.1}, uint8 z = {128}, int8[2,2] w = {1,2,3,4}, float t = {0.5}> {
        q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  wd = DequantizeLinear(w, t)
        m = MatMul(d, wd)  r = Relu(m)  p = QuantizeLinear(r, s, z)  y = DequantizeLinear(p, s, z)
    }
    """)
    before = ops(model)
    apply(Simplify(), model)
    assert ops(model) == before


def test_a_part_can_be_left_out(parse, ops):
    model = parse("g (float[N,2] x) => (float[N,2] y) { r = Relu(x)  y = Relu(r) }")
    Simplify(without=("fold-arithmetic",))(model)
    assert ops(model) == ["Relu", "Relu"]
    with pytest.raises(UsageError, match="'fold-scale' is not part of it; did you mean 'fold-scales'"):
        parse_spec("simplify{without=fold-scale}")


def test_parts_are_those_that_ran(parse):
    result = Simplify()(parse("g (float[N,2] x) => (float[N,2] y) { r = Relu(x)  y = Relu(r) }"))
    names = [part.pass_name() for part in result.parts]
    assert "fold-arithmetic" in names
    assert "merge-transposes" not in names


UNARY = ("Relu", "Neg", "Sigmoid", "Identity", "Abs")


def random_model(rng: np.random.Generator) -> str:
    """Return a chain of operators with branches, over a tensor of shape [N, 4, 6] at first."""
    shape: list[int] = [4, 6]  # after the axis that varies
    lines, constants, current = [], [], "x"
    for step in range(int(rng.integers(4, 12))):
        out = f"v{step}"
        kind = rng.choice(
            ["unary", "scalar", "row", "reshape", "transpose", "squeeze", "slice", "concat", "reduce", "self"]
        )
        if kind == "unary":
            lines.append(f"{out} = {rng.choice(UNARY)}({current})")
        elif kind in ("scalar", "row"):
            op, size = rng.choice(["Add", "Sub", "Mul", "Div"]), 1 if kind == "scalar" else shape[-1]
            numbers = ",".join(str(round(float(n), 2)) for n in rng.uniform(0.5, 2, size))
            constants.append(f"float[{size}] c{step} = {{{numbers}}}")
            operands = (current, f"c{step}") if op == "Div" or rng.random() < 0.5 else (f"c{step}", current)
            lines.append(f"{out} = {op}({', '.join(operands)})")
        elif kind == "reshape":
            total = int(np.prod(shape))
            width = int(rng.choice([d for d in (1, 2, 3, 4, 6, 12) if total % d == 0]))
            shape = [total // width, width]
            constants.append(f"int64[3] c{step} = {{-1, {shape[0]}, {shape[1]}}}")
            lines.append(f"{out} = Reshape({current}, c{step})")
        elif kind == "transpose":
            lines.append(f"{out} = Transpose<perm = [0, 2, 1]>({current})")
            shape = shape[::-1]
        elif kind == "squeeze":
            constants.append(f"int64[1] c{step} = {{{int(rng.integers(0, 3))}}}")
            lines += [f"u{step} = Unsqueeze({current}, c{step})", f"{out} = Squeeze(u{step}, c{step})"]
        elif kind == "slice" and shape[-1] > 1:
            cut = int(rng.integers(1, shape[-1]))
            constants += [
                f"int64[1] {n}{step} = {{{v}}}" for n, v in (("a", 0), ("b", cut), ("c", shape[-1]), ("d", 2))
            ]
            lines += [
                f"p{step} = Slice({current}, a{step}, b{step}, d{step})",
                f"q{step} = Slice({current}, b{step}, c{step}, d{step})",
                f"{out} = Concat<axis = 2>(q{step}, p{step})",
            ]
        elif kind == "reduce":
            constants.append(f"int64[1] c{step} = {{2}}")
            lines += [f"r{step} = ReduceMax<keepdims = 0>({current}, c{step})", f"{out} = Unsqueeze(r{step}, c{step})"]
            shape = [shape[0], 1]
        elif kind == "self":
            lines += [f"s{step} = Relu({current})", f"{out} = Add(s{step}, {current})"]
        else:
            lines.append(f"{out} = Concat<axis = 1>({current}, {current})")
            shape = [2 * shape[0], shape[1]]
        current = out
    lines.append(f"y = Tanh({current})")
    head = f"<{', '.join(constants)}>" if constants else ""
    return f"g (float[N,4,6] x) => (float[A,B,C] y) {head} {{ {'  '.join(lines)} }}"


@pytest.mark.parametrize("seed", range(60))
def test_random_graphs(parse, seed):
    text = random_model(np.random.default_rng(seed))
    before, after = parse(text), parse(text)
    Simplify()(after)
    assert len(list(after.graph)) <= len(list(before.graph)), text
    sessions = [runtime.open_session(model, PLAIN) for model in (before, after)]
    for samples in (1, 3):
        x = np.random.default_rng(seed).standard_normal((samples, 4, 6)).astype(np.float32)
        reference, result = (session.run({"x": x}) for session in sessions)
        reason = compare.first_mismatch(reference, result, 1e-5)
        assert reason is None, f"{reason}\n{text}"
    again = ir.to_proto(after).SerializeToString(deterministic=True)
    Simplify()(after)
    assert ir.to_proto(after).SerializeToString(deterministic=True) == again
