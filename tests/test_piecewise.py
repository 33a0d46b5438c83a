"""Models are compared piece by piece: roundings that a network amplifies are forgiven, errors are not."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import piecewise, runtime, spec, target
from graphopt.pipeline import Pipeline, Start, duplicate

CPU = target.find("cpu")
LAYERS = 6
DEEP = '<ir_version: 9, opset_import: ["": 20]> g (float[N,T,64] x) => (float[N,T,64] y) {' + "".join(
    f"""
      a{i} = MatMul({f"h{i - 1}" if i else "x"}, w{i})
      b{i} = Add(a{i}, c{i})
      e{i} = Gelu(b{i})
      s{i} = Add(e{i}, {f"h{i - 1}" if i else "x"})
      {"y" if i == LAYERS - 1 else f"h{i}"} = LayerNormalization(s{i}, one, zero)
    """
    for i in range(LAYERS)
)


@pytest.fixture
def deep(parse):
    """A network of dense layers on scales of run time, before they are fused, and inputs."""
    rng = np.random.default_rng(0)
    weights = "".join(f", float[64,64] w{i}, float[64] c{i}" for i in range(LAYERS))
    text = DEEP.replace("x)", "x" + weights + ", float[64] one, float[64] zero)", 1) + "}"
    model = parse(text)
    arrays = {f"w{i}": rng.normal(0, 0.5, (64, 64)) for i in range(LAYERS)}
    arrays |= {f"c{i}": rng.normal(0, 1, 64) for i in range(LAYERS)} | {"one": np.ones(64), "zero": np.zeros(64)}
    for value in list(model.graph.inputs):
        if value.name in arrays:
            model.graph.inputs.remove(value)
            value.const_value = ir.tensor(arrays[value.name].astype(np.float32), name=value.name)
            model.graph.register_initializer(value)
    spec.build("quantize-dynamic", {})(model)
    return model, {"x": rng.normal(0, 1, (16, 32, 64)).astype(np.float32)}


def mismatch(reference, candidate, feeds):
    return piecewise.first_mismatch(reference, candidate, feeds, CPU, 1e-4, 0)


def fused(model):
    made = duplicate(model)
    spec.build("fuse", {})(made)
    return made


def test_fused_layers_on_scales_of_run_time(deep):
    """Fused, the outputs of the whole differ by more than the contract allows; every piece is right."""
    model, feeds = deep
    made = fused(model)
    whole = [runtime.open_session(m, CPU).run(feeds)["y"] for m in (model, made)]
    assert np.abs(whole[0] - whole[1]).max() > 1e-3
    assert mismatch(model, made, feeds) is None
    pipe = Pipeline(Start(model, runtime.open_session(model, CPU)), CPU, [feeds])
    assert pipe.run(spec.build("fuse", {})).status == "kept"


def scale_a_bias(model):
    value = model.graph.initializers["c3"]
    value.const_value = ir.tensor(np.float32(value.const_value.numpy() * 1.003), name="c3")


def round_otherwise(model):
    node = next(node for node in model.graph if node.op_type == "Gelu" and node.outputs[0].name == "e4")
    node.attributes.add(ir.AttrString("approximate", "tanh"))


def change_an_integer(model):
    value = model.graph.initializers["w2_q"]
    array = value.const_value.numpy().copy()
    array[:, 5] = np.clip(array[:, 5].astype(int) + 1, -127, 127)
    value.const_value = ir.tensor(array, name="w2_q")


def drop_a_row(model):
    """Only one element in 16 x 32 rows is wrong."""
    node = next(node for node in model.graph if node.op_type == "Gelu" and node.outputs[0].name == "e1")
    spot = np.ones((1, 32, 64), np.float32)
    spot[0, 7, 9] = 1.01
    value = ir.Value(name="spot", const_value=ir.tensor(spot, name="spot"))
    model.graph.register_initializer(value)
    made = ir.node("Mul", [node.inputs[0], value])
    made.outputs[0].name = "spotted"
    model.graph.insert_before(node, made)
    node.replace_input_with(0, made.outputs[0])


@pytest.mark.parametrize("edit", [scale_a_bias, round_otherwise, change_an_integer, drop_a_row])
def test_a_wrong_piece_is_found(deep, edit):
    """Each is smaller than what roundings make of the outputs."""
    model, feeds = deep
    made = duplicate(model)
    edit(made)
    assert mismatch(model, made, feeds) is not None
    assert mismatch(model, fused(made), feeds) is not None


@pytest.mark.parametrize(("factor", "is_right"), [(1 + 2**-23, True), (1 + 2**-10, False)])
def test_a_piece_that_amplifies(parse, factor, is_right):
    """Nothing corresponds inside, and the last bit of x moves the sine by more than the contract allows."""
    one = parse("g (float[N,3] x) => (float[N,3] y) <float k = {3e3}> { a = Mul(x, k)  y = Sin(a) }")
    two = parse("g (float[N,3] x) => (float[N,3] y) <float l = {1e3}, float m = {3.0}> {\n"
                "  b = Mul(x, l)  c = Mul(b, m)  y = Sin(c) }")  # fmt: skip
    value = two.graph.initializers["m"]
    value.const_value = ir.tensor(np.float32(3 * factor), name="m")
    feeds = {"x": np.random.default_rng(0).normal(0, 1, (4, 3)).astype(np.float32)}
    assert (mismatch(one, two, feeds) is None) == is_right


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("y = Neg(x)", "y = Relu(x)", "largest error"),
        ("y = Sqrt(x)", "a = Abs(x) y = Sqrt(a)", "NaN or infinity in other places"),
        ("y = Neg(x)", "a = Neg(x) y = Concat<axis = 0>(a, a)", "shape [8, 3] instead of [4, 3]"),
    ],
)
def test_messages(parse, before, after, message):
    one = parse(f"g (float[N,3] x) => (float[M,3] y) {{ {before} }}")
    two = parse(f"g (float[N,3] x) => (float[M,3] y) {{ {after} }}")
    feeds = {"x": np.random.default_rng(0).normal(0, 1, (4, 3)).astype(np.float32)}
    assert message in mismatch(one, two, feeds)


def test_integers_must_be_equal(parse):
    one = parse("g (float[N,3] x) => (int64[N,1] y) { a = Neg(x)  y = ArgMax<axis = 1>(a) }")
    two = parse("g (float[N,3] x) => (int64[N,1] y) { a = Neg(x)  y = ArgMin<axis = 1>(a) }")
    feeds = {"x": np.random.default_rng(0).normal(0, 1, (4, 3)).astype(np.float32)}
    assert "of 4 elements differ" in mismatch(one, two, feeds)
    assert mismatch(one, one, feeds) is None


def test_bodies_read_what_is_given(parse):
    """A value that only the branches of an If read is cut, too."""
    text = """g (float[N,3] x, bool flag) => (float[N,3] y) {
      a = Neg(x)
      y = If (flag) <then_branch = t () => (float[N,3] p) { p = Exp(a) },
                     else_branch = e () => (float[N,3] q) { q = Abs(a) }>
    }"""
    feeds = {"x": np.random.default_rng(0).normal(0, 1, (4, 3)).astype(np.float32), "flag": np.array(True)}
    assert mismatch(parse(text), parse(text), feeds) is None
    assert "'y'" in mismatch(parse(text), parse(text.replace("Exp", "Tanh")), feeds)


def test_outputs_that_depend_on_no_input_are_compared_too(parse):
    text = "g (float[N,3] x) => (float[N,3] y, float[3] z) <float[3] k = {1.0, 2.0, 3.0}> { y = Mul(x, k)  z = Exp(k) }"
    feeds = {"x": np.random.default_rng(0).normal(0, 1, (4, 3)).astype(np.float32)}
    assert mismatch(parse(text), parse(text), feeds) is None
    assert "output 'z'" in mismatch(parse(text), parse(text.replace("Exp", "Neg")), feeds)
