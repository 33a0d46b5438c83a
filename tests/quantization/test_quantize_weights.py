"""Weight-only quantization."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt import compare, io, runtime, target
from graphopt.errors import UsageError
from graphopt.passes.quantization import _blocks
from graphopt.passes.quantization.quantize_weights import QuantizeWeights

CPU = target.find("cpu", 1)
K, N = 200, 33


@pytest.fixture
def net(parse):
    """A model `y = x W`, or `x W^T + b` with `gemm`."""

    def make(dtype=np.float32, *, gemm=False, opset=21):
        name = {np.float32: "float", np.float16: "float16"}[dtype]
        body = "y = Gemm<transB=1>(x, w, b)" if gemm else "y = MatMul(x, w)"
        shape = f"{N},{K}" if gemm else f"{K},{N}"
        model = parse(
            f"""
            <ir_version: 8, opset_import: ["": {opset}]>
            g ({name}[M,{K}] x, {name}[{shape}] w, {name}[{N}] b) => ({name}[M,{N}] y) {{ [product] {body} }}
            """
        )
        rng = np.random.default_rng(0)
        for value in list(model.graph.inputs)[1:]:
            model.graph.inputs.remove(value)
            array = rng.normal(size=value.shape.numpy()).astype(dtype)
            value.const_value = ir.tensor(array, name=value.name)
            if value.uses():
                model.graph.register_initializer(value)
        return model

    return make


def feeds(dtype=np.float32):
    return {"x": np.random.default_rng(1).normal(size=(5, K)).astype(dtype)}


def run(model, dtype=np.float32, place=CPU):
    return runtime.open_session(model, place).run(feeds(dtype))["y"]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("gemm", [False, True])
@pytest.mark.parametrize(
    ("fields", "least"),
    [
        ({}, 20),
        ({"weights": "uint4"}, 21),
        ({"weights": "int8"}, 40),
        ({"weights": "uint8"}, 40),
        ({"weights": "int8", "block": 0}, 40),
        ({"weights": "int4", "block": 0}, 18),
        ({"method": "search"}, 21),
        ({"weights": "ternary", "block": 0}, 6),
        ({"weights": "binary", "block": 0}, 4),
        ({"weights": "float8", "block": 0}, 30),
        ({"form": "matmulnbits"}, 20),
        ({"form": "matmulnbits", "weights": "uint4", "block": 16}, 21),
        ({"form": "matmulnbits", "weights": "int8", "block": 128}, 40),
        ({"form": "matmulnbits", "weights": "uint8", "accuracy_level": 1}, 42),
    ],
)
def test_every_form_computes_nearly_the_same(net, tmp_path, dtype, gemm, fields, least):
    model = net(dtype, gemm=gemm)
    reference = run(model, dtype)
    result = QuantizeWeights(min_size=0, **fields)(model)
    assert result.modified
    io.save(model, tmp_path / "m.onnx")
    assert compare.sqnr(reference, run(io.load(tmp_path / "m.onnx"), dtype)) > least


@pytest.mark.parametrize("weights", ["int4", "uint4", "int8", "uint8"])
def test_packing_is_what_dequantizing_gives(net, weights):
    """MatMulNBits in float against the product with decoded weights, and against the standard form."""
    standard, packed = net(), net()
    QuantizeWeights(weights=weights, min_size=0)(standard)
    QuantizeWeights(weights=weights, min_size=0, form="matmulnbits", accuracy_level=1)(packed)
    weight = net().graph.initializers["w"].const_value.numpy()
    decoded = _blocks.decode(
        *_blocks.encode(weight, 32, _blocks.KINDS[weights], np.dtype(np.float32), search=False), 32
    )
    expected = feeds()["x"] @ decoded
    reference = target.find("reference")
    assert compare.same(expected, run(standard, place=reference), 1e-5)
    assert compare.same(expected, run(packed), 1e-5)


@given(st.integers(1, 90), st.integers(1, 9), st.sampled_from(list(_blocks.KINDS)), st.booleans())
@settings(deadline=None, max_examples=40)
def test_encoding_errs_by_half_a_step_at_most(rows, columns, name, search):
    rng = np.random.default_rng(rows * 31 + columns)
    weight = rng.normal(size=(rows, columns)).astype(np.float32)
    kind = _blocks.KINDS[name]
    integers, scales, zeros = _blocks.encode(weight, 32, kind, np.dtype(np.float32), search=search)
    assert integers.min() >= kind.low
    assert integers.max() <= kind.high
    error = np.abs(_blocks.decode(integers, scales, zeros, 32) - weight)
    steps = np.repeat(np.abs(scales), 32, axis=0)[:rows]
    assert (error <= steps * (3 if search else 1.05) + 1e-6).all()


@pytest.mark.parametrize("name", list(_blocks.KINDS))
def test_searching_errs_less(name):
    weight = np.random.default_rng(0).standard_t(4, size=(256, 40)).astype(np.float32)

    def error(*, search):
        found = _blocks.encode(weight, 32, _blocks.KINDS[name], np.dtype(np.float32), search=search)
        return np.sum((_blocks.decode(*found, 32) - weight) ** 2)

    assert error(search=True) <= error(search=False)


def test_zero_blocks_stay_zero():
    weight = np.zeros((64, 3), np.float16)
    weight[40:, 1] = 1
    for kind in _blocks.KINDS.values():
        found = _blocks.encode(weight, 32, kind, np.dtype(np.float16), search=True)
        assert np.isfinite(found[1].astype(np.float32)).all()
        assert np.allclose(_blocks.decode(*found, 32), weight, atol=1e-3)


def test_old_opsets_are_raised(net):
    model = net(opset=17)
    reference = run(model)
    QuantizeWeights(min_size=0)(model)
    assert model.opset_imports[""] == 21
    assert compare.sqnr(reference, run(model)) > 20


def test_a_shared_weight_is_stored_once(build):
    text = "g (float[M,64] x, float[64,64] w) => (float[M,64] y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, w) }"
    model = build(text, w=(64, 64))
    QuantizeWeights(min_size=0)(model)
    assert [v.dtype for v in model.graph.initializers.values()].count(ir.DataType.INT4) == 1
    assert "w" not in model.graph.initializers


def test_bodies_are_quantized(build):
    model = build(
        """
        g (float[2,64] x, bool flag, float[64,64] w) => (float[2,64] y) {
          y = If (flag) <then_branch = t () => (float[2,64] p) { p = MatMul(x, w) },
                         else_branch = e () => (float[2,64] q) { q = Neg(x) }>
        }
        """,
        w=np.eye(64, dtype=np.float32),
    )
    result = QuantizeWeights(min_size=0, form="matmulnbits")(model)
    assert result.report["quantized"] == {"MatMul": 1}
    x = feeds()["x"][:2, :64]
    done = runtime.open_session(model, CPU).run({"x": x, "flag": np.array(True)})
    assert compare.sqnr(x, done["y"]) > 30


def test_reasons(net, parse):
    model = net()
    assert QuantizeWeights()(net()).modified is True
    assert QuantizeWeights(exclude=("product",))(model).skipped == [("product", "excluded")]
    assert "6600 elements only" in QuantizeWeights(min_size=10_000)(model).skipped[0][1]
    two = parse(
        '<ir_version: 8, opset_import: ["": 21]> g (float[4,4] a, float[4,4] b) => (float[4,4] y) { y = MatMul(a, b) }'
    )
    assert "two activations" in QuantizeWeights()(two).skipped[0][1]
    with pytest.raises(UsageError, match="did you mean 'product'"):
        QuantizeWeights(exclude=("prodct",))(model)


@pytest.mark.parametrize(
    "fields",
    [
        {"block": -1},
        {"weights": "ternary"},
        {"form": "matmulnbits", "block": 0},
        {"form": "matmulnbits", "block": 24},
        {"form": "matmulnbits", "weights": "float8", "block": 0},
    ],
)
def test_fields_that_do_not_go_together(fields):
    with pytest.raises(ValueError, match="block"):
        QuantizeWeights(**fields)


def test_weights_beside_a_model_stay_there(net, tmp_path, graphopt):
    model = net(np.float16)
    model.meta[io.EXTERNAL] = 100
    io.save(model, tmp_path / "m.onnx")
    done = graphopt(
        "quantize-weights", tmp_path / "m.onnx", "-o", tmp_path / "q.onnx", "--no-verify", "--min-size", "0", "--json"
    )
    assert done.code == 0, done.err
    assert done.json["steps"][0]["reason"] == "not verified"
    assert (tmp_path / "q.onnx.data").exists()
    assert compare.sqnr(run(net(np.float16), np.float16), run(io.load(tmp_path / "q.onnx"), np.float16)) > 20


def test_the_same_bytes_twice(net):
    made = []
    for _ in range(2):
        model = net()
        QuantizeWeights(min_size=0, method="search")(model)
        made.append(io.to_proto(model).SerializeToString(deterministic=True))
    assert made[0] == made[1]
