"""Training quantized graphs: masters, gradients, learned scales, and what is stored in the end."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from graphopt import data, io, runtime, target
from graphopt.runtimes._torch.module import OnnxModule
from graphopt.runtimes._torch.quantizers import FakeQuantize
from graphopt.training import roles
from graphopt.training.evaluation import write_back
from graphopt.training.loop import fit
from graphopt.training.settings import Settings

RNG = np.random.default_rng(0)
X = RNG.standard_normal((64, 8)).astype(np.float32)


def numbers(array):
    return "{" + ", ".join(map(str, np.asarray(array).ravel().tolist())) + "}"


def quantized(parse, kind="int8", **layout):
    """Return that model; four bits are written anew, since the parser does not pack them."""
    model = parse(qdq(kind, **layout))
    value = model.graph.initializers["w"]
    if kind == "int4":
        codes = RNG.integers(-7, 8, (8, 3)).astype(ir.DataType.INT4.numpy())
        value.const_value = ir.Tensor(codes, dtype=ir.DataType.INT4, name="w")
    return model


def qdq(kind="int8", low=-127, high=127, scale=0.02, axis=None, block=0, cast=False, opset=21):
    """Return a product with a stored weight [8, 3] and quantized input, as ONNX text."""
    codes = RNG.integers(low, high + 1, (8, 3))
    if block:
        scales, shape, attributes = (
            np.full((8 // block, 3), scale),
            f"{8 // block},3",
            f"<axis = 0, block_size = {block}>",
        )
    elif axis is not None:
        scales, shape, attributes = scale * np.array([1, 2, 3]), "3", f"<axis = {axis}>"
    else:
        scales, shape, attributes = np.array(scale), "", ""
    typed = f"float[{shape}]" if shape else "float"
    widen = "k = Cast<to = 3>(w)" if cast else "k = Identity(w)"
    reader = "k" if cast else "w"
    return f"""<ir_version: 10, opset_import: ["": {opset}]>
    g (float[N,8] x) => (float[N,3] y)
    <{kind}[8,3] w = {numbers(codes)}, {typed} s = {numbers(scales)}, float a = {{0.03}}, uint8 z = {{128}}>
    {{ q = QuantizeLinear(x, a, z)  d = DequantizeLinear(q, a, z)  {widen if cast else ""}
    v = DequantizeLinear{attributes}({reader}, s)  y = MatMul(d, v) }}"""


LAYOUTS = {
    "per tensor": {},
    "per channel": {"axis": 1},
    "blocks of 4": {"block": 4},
    "int4 with a cast": {"kind": "int4", "low": -7, "high": 7, "scale": 0.1, "cast": True},
    "int4 in blocks": {"kind": "int4", "low": -7, "high": 7, "scale": 0.1, "block": 4},
    "uint8": {"kind": "uint8", "low": 0, "high": 255},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_before_training_it_computes_what_is_stored(parse, layout):
    model = quantized(parse, **LAYOUTS[layout])
    module = OnnxModule(model, roles.trainable(model))
    assert list(module.weights()) == ["w"]
    expected = runtime.open_session(model, target.find("cpu{level=none}")).run({"x": X})["y"]
    np.testing.assert_allclose(module({"x": torch.from_numpy(X)})["y"].detach(), expected, rtol=1e-5, atol=1e-5)
    stored = module.arrays()["w"]
    np.testing.assert_array_equal(stored.astype(int), model.graph.initializers["w"].const_value.numpy().astype(int))


@pytest.mark.parametrize("scales", ["fixed", "learned"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_stored_in_the_end_computes_what_was_trained(parse, layout, scales):
    model = quantized(parse, **LAYOUTS[layout])
    before = io.to_proto(model)
    wanted = X @ RNG.standard_normal((8, 3)).astype(np.float32)
    settings = Settings(epochs=5, batch=16, loss="mse", scales=scales, learning_rate=0.02)
    done = fit(model, settings, data=data.open_data({"x": X, "labels": wanted}))
    assert done.history[-1].loss < done.history[0].loss
    module = OnnxModule(model)
    made = module({"x": torch.from_numpy(X)})["y"]
    file = runtime.open_session(model, target.find("cpu{level=none}")).run({"x": X})["y"]
    np.testing.assert_allclose(made, file, rtol=1e-5, atol=1e-5)
    error = float(np.square(file - wanted).mean())
    assert error < 1.2 * done.history[-1].loss + 0.02, "rounding in the end costs nothing that training did not see"
    after = io.to_proto(model)
    changed = {b.name for a, b in zip(before.graph.initializer, after.graph.initializer, strict=True) if a != b}
    assert changed == ({"w", "s", "a"} if scales == "learned" else {"w"})


def test_straight_through_gradients():
    x = torch.tensor([-3.0, -0.26, 0.24, 0.9, 3.0], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    y = FakeQuantize.apply(x, scale, torch.zeros((), dtype=torch.float64), torch.int4, 1.0)
    assert y.tolist() == [-3.0, -0.5, 0.0, 1.0, 3.0]
    y.backward(torch.ones(5, dtype=torch.float64))
    assert x.grad.tolist() == [1, 1, 1, 1, 1]
    inside = [v / 0.5 for v in (-3.0, -0.26, 0.24, 0.9, 3.0)]
    assert float(scale.grad) == pytest.approx(sum(round(v) - v for v in inside))


def test_beyond_the_range_there_is_no_gradient_for_the_number_and_the_bound_for_the_scale():
    x = torch.tensor([-9.0, 9.0], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    y = FakeQuantize.apply(x, scale, torch.zeros((), dtype=torch.float64), torch.int4, 0.25)
    assert y.tolist() == [-4.0, 3.5]
    y.backward(torch.tensor([1.0, 10.0], dtype=torch.float64))
    assert x.grad.tolist() == [0, 0]
    assert float(scale.grad) == pytest.approx(0.25 * (-8 + 70))


def test_the_scale_of_a_bias_follows_learned_ones(parse):
    text = f"""<ir_version: 10, opset_import: ["": 21]> g (float[N,8] x) => (float[N,3] y)
    <int8[3,8] w = {numbers(RNG.integers(-99, 99, (3, 8)))}, float s = {{0.02}}, float a = {{0.03}}, uint8 z = {{128}},
    int32[3] b = {{100, -200, 300}}, float t = {{0.0006}}>
    {{ q = QuantizeLinear(x, a, z)  d = DequantizeLinear(q, a, z)  v = DequantizeLinear(w, s)
    c = DequantizeLinear(b, t)  y = Gemm<transB = 1>(d, v, c) }}"""
    model = parse(text)
    wanted = X @ RNG.standard_normal((8, 3)).astype(np.float32) + 1
    settings = Settings(epochs=5, batch=16, loss="mse", scales="learned", learning_rate=0.02)
    fit(model, settings, data=data.open_data({"x": X, "labels": wanted}))
    held = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    assert held["s"] != np.float32(0.02)
    assert held["t"] == held["a"] * held["s"]
    assert (held["b"] != [100, -200, 300]).all()


def test_gradients_pass_operators_that_move_quantized_numbers(parse):
    text = """<ir_version: 10, opset_import: ["": 21]> g (float[N,8] x) => (float[8,N] y)
    <float a = {0.03}, uint8 z = {128}, float b = {0.06}>
    { q = QuantizeLinear(x, a, z)  t = Transpose(q)  y = DequantizeLinear(t, b, z) }"""
    module = OnnxModule(
        parse(
            text.replace("float b", "float[8] u = {1,2,3,4,5,6,7,8}, float b").replace(
                "q = QuantizeLinear(x", "m = Mul(x, u)  q = QuantizeLinear(m"
            )
        ),
        ["u"],
    )
    x = torch.from_numpy(X).requires_grad_()
    module({"x": x})["y"].sum().backward()
    weights = torch.arange(1.0, 9.0)
    inside = ((x.detach() * weights / 0.03).round() + 128).clamp(0, 255) == (x.detach() * weights / 0.03).round() + 128
    torch.testing.assert_close(x.grad, inside * weights * 2)


def test_weights_that_cannot_train_say_why(parse):
    text = """<ir_version: 10, opset_import: ["": 21]> g (float[N,2] x) => (float[N,2] y, int8[2,2] o)
    <int8[2,2] w = {1,2,3,4}, float s = {0.1}, float[2,2] v = {1,2,3,4}>
    { o = Identity(w)  d = DequantizeLinear(w, s)  a = MatMul(x, d)  y = MatMul(a, v) }"""
    model = parse(text)
    settings = Settings(epochs=1, batch=8, loss="mse")
    done = fit(model, settings, data=data.open_data({"x": X[:, :2], "labels": X[:, 2:4]}))
    assert done.trained == ["v"]
    assert done.refused == [("w", "is a whole number that not only DequantizeLinear reads")]


def test_integers_of_four_bits_come_back_as_such(parse):
    model = quantized(parse, **LAYOUTS["int4 in blocks"])
    module = OnnxModule(model, ["w"])
    with torch.no_grad():
        module.weights()["w"].mul_(-1)
    write_back(model, {"w": module.arrays()["w"]})
    value = model.graph.initializers["w"]
    assert value.const_value.dtype == ir.DataType.INT4
    assert value.const_value.nbytes == 12


def test_earlier_weights_train_through_dynamic_quantization(parse):
    text = f"""<ir_version: 10, opset_import: ["": 21]> g (float[N,8] x) => (float[N,3] y)
    <float[8,8] u = {numbers(np.eye(8))}, int8[8,3] w = {numbers(RNG.integers(-99, 99, (8, 3)))}, float s = {{0.02}}>
    {{ h = MatMul(x, u)  q, a, z = DynamicQuantizeLinear(h)  p = MatMulInteger(q, w, z)  f = Cast<to = 1>(p)
    t = Mul(a, s)  y = Mul(f, t) }}"""
    model = parse(text)
    module = OnnxModule(model, ["u"])
    made = module({"x": torch.from_numpy(X)})["y"]
    expected = runtime.open_session(model, target.find("cpu{level=none}")).run({"x": X})["y"]
    np.testing.assert_allclose(made.detach(), expected, rtol=1e-5, atol=1e-5)
    made.sum().backward()
    weights = torch.from_numpy(model.graph.initializers["w"].const_value.numpy()).float() * 0.02
    wanted = torch.from_numpy(X).T @ weights.sum(1).expand(len(X), 8)
    torch.testing.assert_close(module.weights()["u"].grad, wanted, rtol=1e-4, atol=1e-3)
    before = float(made.detach().square().mean())
    fit(
        model,
        Settings(epochs=3, batch=16, loss="mse", learning_rate=0.05),
        data=data.open_data({"x": X, "labels": X[:, :3] * 0}),
    )
    after = runtime.open_session(model, target.find("cpu")).run({"x": X})["y"]
    assert float(np.square(after).mean()) < 0.8 * before
