"""Weights in blocks that are rounded by what comes of products with them."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt import compare, io, runtime, target
from graphopt.errors import UserError
from graphopt.passbase import PreconditionError
from graphopt.passes.quantization import _block_gptq
from graphopt.passes.quantization._block_gptq import encode_by_output, products
from graphopt.passes.quantization._block_kinds import KINDS
from graphopt.passes.quantization._blocks import decode, encode
from graphopt.passes.quantization.quantize_weights import QuantizeWeights
from graphopt.pipeline import duplicate

CPU = target.find("cpu", 1)
NET = """g (float[N,T,96] x, float[96,160] w, float[160,64] v, float[64] c, float[70,32] u)
  => (float[N,T,64] y, float[70,T2] z) { h = MatMul(x, w)  r = Relu(h)  p = MatMul(r, v)  y = Add(p, c)
  k = Constant<value_ints = [-1, 32]>()  q = Reshape(y, k)  t = Transpose(q)  z = MatMul(u, t) }"""
SHAPES = {"w": (96, 160), "v": (160, 64), "c": (64,), "u": (70, 32)}


def correlated(rows, columns, seed=0):
    """What a layer reads: a few directions carry most."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(9).normal(size=(columns // 4, columns))
    return (rng.normal(size=(rows, columns // 4)) @ mixing + 0.3 * rng.normal(size=(rows, columns))).astype(np.float32)


@pytest.fixture
def net(build):
    return build(NET, **SHAPES)


DATA = {"x": correlated(64 * 5, 96).reshape(64, 5, 96)}
TEST = {"x": correlated(64 * 5, 96, 1).reshape(64, 5, 96)}


def sqnr(reference, model, name="y"):
    return compare.sqnr(*(runtime.open_session(m, CPU).run(TEST)[name] for m in (reference, model)))


@pytest.mark.parametrize("kind", ["int4", "uint4", "int8"])
@pytest.mark.parametrize(("rows", "block"), [(96, 32), (80, 32), (96, 96)])
def test_products_come_out_better(kind, rows, block):
    """Also where the last block is short."""
    x, weight = correlated(500, rows), np.random.default_rng(2).normal(size=(rows, 40)).astype(np.float32)
    moments = x.T.astype(np.float64) @ x / len(x)
    kind = KINDS[kind]
    searched = encode(weight, block, kind, np.dtype(np.float32), search=True)
    made = encode_by_output(weight, block, kind, np.dtype(np.float32), moments=moments, pack=False)
    assert made.numbers.dtype == searched.numbers.dtype
    errors = [np.square(x @ (decode(e, block) - weight)).sum(0) for e in (made, searched)]
    assert errors[0].sum() < 0.7 * errors[1].sum()
    assert np.all(errors[0] <= errors[1] * 1.1)


@pytest.mark.parametrize("weights", ["int4", "uint4", "int8"])
@pytest.mark.parametrize("form", ["dequantize", "matmulnbits", "fold"])
def test_every_form(net, weights, form):
    made = {}
    for method in ("search", "gptq"):
        model = duplicate(net)
        fields = {"data": DATA, "min_size": 1, "weights": weights, "form": form, "accuracy_level": 1}
        result = QuantizeWeights(method=method, **fields)(model)
        made[method] = sqnr(net, model)
    assert made["gptq"] > made["search"] + (1 if weights != "int8" else 0.2)
    reason = "MatMulNBits takes a matrix on the right only" if form == "matmulnbits" else "searched instead"
    assert any(reason in why for _, why in result.skipped)


def test_packed_and_plain_are_the_same_numbers(net):
    models = [duplicate(net) for _ in range(2)]
    for model, form in zip(models, ("matmulnbits", "dequantize"), strict=True):
        QuantizeWeights(method="gptq", data=DATA, form=form, accuracy_level=1)(model)
    one, two = (runtime.open_session(model, target.find("cpu{level=none}", 1)).run(TEST)["y"] for model in models)
    assert compare.sqnr(one, two) > 60


def test_groups_of_activations(net, monkeypatch):
    """What does not fit into memory together is read in several runs."""
    values = [node.inputs[0] for node in net.graph if node.op_type == "MatMul"][:2]

    def read(model=net):
        from graphopt.data import ArrayData

        return dict(products(model, values, ArrayData("d", DATA), CPU, 64, 16))

    together = read()
    monkeypatch.setattr(_block_gptq, "_LIMIT", 1)
    apart = read()
    assert list(apart) == values
    for value in values:
        np.testing.assert_array_equal(together[value], apart[value])
    x = DATA["x"].reshape(-1, 96).astype(np.float64)
    np.testing.assert_allclose(together[values[0]], x.T @ x / len(x), rtol=1e-6, atol=1e-6)


def test_the_file_is_the_same_however_often_it_is_written(net, tmp_path):
    QuantizeWeights(method="gptq", data=DATA)(net)
    for name in ("a", "b"):
        io.save(net, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_refusals(net):
    with pytest.raises(PreconditionError, match="gptq needs data"):
        QuantizeWeights(method="gptq")(net)
    with pytest.raises(ValueError, match="gptq rounds to integers, not to ternary"):
        QuantizeWeights(method="gptq", weights="ternary")
    with pytest.raises(ValueError, match="samples is 0"):
        QuantizeWeights(samples=0)
    with pytest.raises(PreconditionError) as refusal:
        QuantizeWeights(method="gptq", data={"other": DATA["x"]})(net)
    assert isinstance(refusal.value.__cause__, UserError)
