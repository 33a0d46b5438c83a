"""Weight-only quantization."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt import compare, io, runtime, target
from graphopt.errors import UsageError
from graphopt.passes.quantization import _block_bytes, _blocks
from graphopt.passes.quantization._block_kinds import KINDS
from graphopt.passes.quantization._blocks import decode, encode
from graphopt.passes.quantization.quantize_weights import QuantizeWeights

CPU = target.find("cpu", 1)
K, N = 200, 33
UNIFORM = [name for name, kind in KINDS.items() if kind.uniform]


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
        ({"weights": "ternary", "block": 16}, 6),
        ({"weights": "float8", "block": 32}, 30),
        ({"form": "fold"}, 20),
        ({"form": "fold", "weights": "uint4", "block": 16}, 21),
        ({"form": "fold", "weights": "uint8", "block": 0}, 40),
        ({"form": "fold", "weights": "binary", "block": 0}, 4),
        ({"form": "fold", "weights": "float8", "block": 24}, 30),
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
    decoded = decode(encode(weight, 32, KINDS[weights], np.dtype(np.float32)), 32)
    expected = feeds()["x"] @ decoded
    reference = target.find("reference")
    assert compare.same(expected, run(standard, place=reference), 1e-5)
    assert compare.same(expected, run(packed), 1e-5)


@given(st.integers(1, 90), st.integers(1, 9), st.sampled_from(UNIFORM), st.booleans())
@settings(deadline=None, max_examples=40)
def test_encoding_errs_by_half_a_step_at_most(rows, columns, name, search):
    rng = np.random.default_rng(rows * 31 + columns)
    weight = rng.normal(size=(rows, columns)).astype(np.float32)
    kind = KINDS[name]
    found = encode(weight, 32, kind, np.dtype(np.float32), search=search)
    assert found.numbers.min() >= kind.low
    assert found.numbers.max() <= kind.high
    error = np.abs(decode(found, 32) - weight)
    steps = np.repeat(np.abs(found.scales), 32, axis=0)[:rows]
    assert (error <= steps * (3 if search else 1.05) + 1e-6).all()


@pytest.mark.parametrize("name", UNIFORM)
def test_searching_errs_less(name):
    weight = np.random.default_rng(0).standard_t(4, size=(256, 40)).astype(np.float32)

    def error(*, search):
        found = encode(weight, 32, KINDS[name], np.dtype(np.float32), search=search)
        return np.sum((decode(found, 32) - weight) ** 2)

    assert error(search=True) <= error(search=False)


PLACES = {
    "vector": ("g (float[M,70] x, float[70] w) => (float[M] y) { y = MatMul(x, w) }", (70,), (0, None)),
    "batch": ("g (float[M,70] x, float[3,70,5] w) => (float[3,M,5] y) { y = MatMul(x, w) }", (3, 70, 5), (1, None)),
    "left": ("g (float[70,M] x, float[5,70] w) => (float[5,M] y) { y = MatMul(w, x) }", (5, 70), (1, 0)),
    "gemm": (
        "g (float[M,70] x, float[70,5] w) => (float[M,5] y) { y = Gemm<alpha=0.5>(x, w) }",
        (70, 5),
        (0, 1),
    ),
    "turned": ("g (float[M,70] x, float[5,70] w) => (float[M,5] y) { y = Gemm<transB=1>(x, w) }", (5, 70), (1, 0)),
    "left of gemm": (
        "g (float[70,M] x, float[70,5] w) => (float[5,M] y) { y = Gemm<transA=1>(w, x) }",
        (70, 5),
        (0, 1),
    ),
    "conv": (
        "g (float[1,40,M,M] x, float[6,40,3,3] w) => (float[1,6,A,A] y) { y = Conv(x, w) }",
        (6, 40, 3, 3),
        (1, 0),
    ),
    "groups": (
        "g (float[1,40,M] x, float[6,20,3] w) => (float[1,6,A] y) { y = Conv<group=2>(x, w) }",
        (6, 20, 3),
        (1, 0),
    ),
    "embedding": ("g (int64[2,M] x, float[9,70] w) => (float[2,M,70] y) { y = Gather(w, x) }", (9, 70), (1, None)),
    "one row": ("g (int64 x, float[9,70] w) => (float[70] y) { y = Gather<axis=-2>(w, x) }", (9, 70), (1, None)),
}
"""Models that use a weight, its shape, the axis that is summed over, and the only other axis, if there is only one."""


def decoded(weight, name, layout, block):
    """What a weight becomes, by loops over blocks: along `layout[0]`, or without a block the whole of a channel."""
    axis, channel = layout
    kind = KINDS[name]
    if channel is not None and not block:
        rows = np.moveaxis(weight, channel, 0).reshape(weight.shape[channel], -1)
    else:
        rows = np.moveaxis(weight, axis, -1).reshape(-1, weight.shape[axis])
    size = block or rows.shape[1]
    made = np.empty_like(rows)
    for index, row in enumerate(rows):
        for start in range(0, len(row), size):
            part = row[start : start + size, None]
            made[index, start : start + size] = decode(encode(part, len(part), kind, part.dtype), len(part))[:, 0]
    if channel is not None and not block:
        shape = [size for i, size in enumerate(weight.shape) if i != channel]
        return np.moveaxis(made.reshape(-1, *shape), 0, channel)
    shape = [size for i, size in enumerate(weight.shape) if i != axis]
    return np.moveaxis(made.reshape(*shape, -1), -1, axis)


@pytest.mark.parametrize("place", list(PLACES))
@pytest.mark.parametrize(
    ("weights", "block"),
    [("int4", 32), ("uint4", 16), ("int8", 0), ("uint8", 7), ("ternary", 0), ("float8", 32)],
)
@pytest.mark.parametrize("form", ["dequantize", "fold"])
def test_every_place_computes_what_its_blocks_stand_for(build, parse, place, weights, block, form):
    text, shape, layout = PLACES[place]
    model = build(text, w=shape)
    float_weight = model.graph.initializers["w"].const_value.numpy()
    rng = np.random.default_rng(3)
    sizes = [size if isinstance(size, int) else 4 for size in model.graph.inputs[0].shape]
    is_index = model.graph.inputs[0].dtype == ir.DataType.INT64
    x = rng.integers(-9, 9, sizes) if is_index else rng.normal(size=sizes).astype(np.float32)
    expected = parse(text)
    with_weight = {"x": x, "w": decoded(float_weight, weights, layout, block)}
    (wanted,) = runtime.open_session(expected, CPU).run(with_weight).values()
    result = QuantizeWeights(
        weights=weights, block=block, form=form, min_size=0, ops=("MatMul", "Gemm", "Conv", "Gather")
    )(model)
    if place in ("embedding", "one row") and weights == "float8" and form == "dequantize":
        assert "no float8" in result.skipped[0][1]
        return
    if not result.modified:
        assert "would not get smaller" in result.skipped[0][1]
        return
    assert "w" not in model.graph.initializers
    basic = dataclasses.replace(CPU, level="basic")  # MatMulNBits would quantize the activations
    (got,) = runtime.open_session(model, basic).run({"x": x}).values()
    assert compare.same(wanted, got, 1e-5)


@pytest.mark.parametrize("weights", UNIFORM)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("width", [64, 70])
def test_embeddings_of_onnxruntime(build, weights, dtype, width):
    name = {np.float32: "float", np.float16: "float16"}[dtype]
    text = f"g (int64[2,M] x, {name}[9,{width}] w) => ({name}[2,M,{width}] y) {{ y = Gather(w, x) }}"
    weight = np.random.default_rng(0).normal(size=(9, width)).astype(dtype)
    model = build(text, w=weight)
    QuantizeWeights(weights=weights, min_size=0, form="matmulnbits", ops=("Gather",))(model)
    assert [node.op_type for node in model.graph] == ["GatherBlockQuantized"]
    x = np.array([[0, 8, -1], [3, 3, 2]])
    (got,) = runtime.open_session(model, CPU).run({"x": x}).values()
    assert compare.same(decoded(weight, weights, (1, None), 32)[x], got, 1e-3 if dtype == np.float16 else 1e-6)


@given(st.integers(1, 6), st.integers(0, 2**31), st.sampled_from(["ternary", "binary"]))
@settings(deadline=None, max_examples=60)
def test_coarse_weights_err_least(rows, seed, name):
    """Against every choice of numbers, each with the scale that suits it best."""
    weight = np.random.default_rng(seed).standard_t(3, size=(rows, 1)).astype(np.float32)
    digits = (-1, 0, 1) if name == "ternary" else (-1, 1)
    errors = []
    for numbers in itertools.product(digits, repeat=rows):
        chosen = np.array(numbers, np.float64)
        scale = max(chosen @ weight[:, 0].astype(np.float64) / max(chosen @ chosen, 1), 0)
        errors.append(np.sum((weight[:, 0] - scale * chosen) ** 2))
    found = decode(encode(weight, rows, KINDS[name], np.dtype(np.float32)), rows)
    assert np.sum((found - weight) ** 2, dtype=np.float64) <= min(errors) * (1 + 1e-5) + 1e-12


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_encoding_does_not_depend_on_how_it_is_cut(monkeypatch, dtype, pack, turned):
    weight = np.random.default_rng(0).normal(size=(150, 130)).astype(dtype)
    if turned:
        weight = np.ascontiguousarray(weight.T).T
    made = []
    for part, wide in ((1 << 17, 1024), (64, 7)):
        monkeypatch.setattr(_blocks, "_PART", part)
        monkeypatch.setattr(_blocks, "_WIDE", wide)
        monkeypatch.setattr(_blocks, "_NARROW", wide)
        found = encode(weight, 32, KINDS["uint4"], weight.dtype, pack=pack)
        made.append([found.numbers.tobytes(), found.scales.tobytes(), found.zeros.tobytes()])
    assert made[0] == made[1]


def test_half_precision_is_read_exactly():
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)]
    made = np.empty(finite.shape, np.float32)
    _block_bytes.widen(finite, made)
    assert np.array_equal(made.view(np.uint32), finite.astype(np.float32).view(np.uint32))
    assert _block_bytes.all_finite(finite)
    assert not any(_block_bytes.all_finite(every[i : i + 1]) for i in np.flatnonzero(~np.isfinite(every)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_weights_that_are_no_numbers(net, bad, dtype):
    model = net(dtype)
    weight = model.graph.initializers["w"].const_value.numpy().copy()
    weight[3, 3] = bad
    model.graph.initializers["w"].const_value = ir.tensor(weight, name="w")
    result = QuantizeWeights()(model)
    assert not result.modified
    assert result.skipped == [("product", "its weight holds infinity or NaN")]


@pytest.mark.parametrize(
    ("name", "symmetric", "bits"), [("int4", True, 4), ("uint4", False, 4), ("int8", True, 8), ("uint8", False, 8)]
)
def test_no_worse_than_onnxruntime(name, symmetric, bits):
    """Squared error, beside that of the kernels behind onnxruntime's own quantizer; search beside its k-quants."""
    state = pytest.importorskip("onnxruntime.capi._pybind_state")
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(256, 64)).astype(np.float32)
    weight[rng.integers(0, 256, 20), rng.integers(0, 64, 20)] *= 15
    packed = np.zeros((64, 8, 32 * bits // 8), np.uint8)
    scales, zeros = np.zeros((64, 8), np.float32), np.zeros((64, 8 * bits // 8), np.uint8)
    getattr(state, f"quantize_matmul_{bits}bits")(packed, weight, scales, zeros, 32, 64, 256, symmetric)
    if bits == 4:
        packed, zeros = (np.stack([array & 15, array >> 4], -1) for array in (packed, zeros))
    offset = 1 << (bits - 1) if symmetric else zeros.reshape(64, 8, 1).astype(np.float32)
    theirs = ((packed.reshape(64, 8, 32) - np.float32(offset)) * scales[..., None]).reshape(64, 256).T

    def error(made):
        return np.sum((made - weight) ** 2)

    ours, sought = (
        error(decode(encode(weight, 32, KINDS[name], weight.dtype, search=search), 32)) for search in (False, True)
    )
    assert sought < ours < error(theirs)
    if name == "uint4":
        neural = pytest.importorskip("onnxruntime.quantization.neural_compressor.weight_only")
        steps, scale, zero = neural.quant_tensor_k_quant_cpu(weight.T.reshape(-1, 32).copy(), 4, 32)
        k_quants = ((steps - zero.astype(np.float32)) * scale).reshape(64, 256).T
        assert sought <= error(k_quants)


def test_zero_blocks_stay_zero():
    weight = np.zeros((64, 3), np.float16)
    weight[40:, 1] = 1
    for name in UNIFORM:
        found = encode(weight, 32, KINDS[name], np.dtype(np.float16), search=True)
        assert np.isfinite(found.scales.astype(np.float32)).all()
        assert np.allclose(decode(found, 32), weight, atol=1e-3)


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


def test_constants_in_bodies_become_initializers_there(build):
    model = build(
        """
        g (float[2,8] x, bool flag) => (float[2,4] y) {
          y = If (flag) <
            then_branch = t () => (float[2,4] p) {
              c = Constant <value = float[8,4] {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,1,2,3,4,5,6,7,8,9,1,1,1,1,1,1,1}> ()
              p = MatMul(x, c) },
            else_branch = e () => (float[2,4] q) { c = Constant <value_float=1.0> () q = Expand(c, s) }>
        }
        """.replace("(float[2,8] x, bool flag)", "(float[2,8] x, bool flag, int64[2] s)"),
        s=np.array([2, 4]),
    )
    x = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
    for form in ("dequantize", "fold"):
        copy = model.clone()
        reference = runtime.open_session(copy, CPU).run({"x": x, "flag": np.array(True)})["y"]
        result = QuantizeWeights(weights="int8", block=0, form=form, min_size=0)(copy)
        assert result.report["quantized"] == {"MatMul": 1}
        got = runtime.open_session(copy, CPU).run({"x": x, "flag": np.array(True)})["y"]
        assert compare.sqnr(reference, got) > 35


def test_one_weight_used_outside_and_in_a_body(build):
    text = """
        g (float[2,64] x, bool flag, float[64,64] w) => (float[2,64] y) {
          z = MatMul(x, w)
          y = If (flag) <then_branch = t () => (float[2,64] p) { p = MatMul(z, w) },
                         else_branch = e () => (float[2,64] q) { q = Neg(z) }>
        }
        """
    feeds = {"x": np.random.default_rng(0).normal(size=(2, 64)).astype(np.float32), "flag": np.array(True)}
    for form in ("dequantize", "fold", "matmulnbits"):
        model = build(text, w=np.eye(64, dtype=np.float32))
        result = QuantizeWeights(form=form, min_size=0)(model)
        assert result.report["quantized"] == {"MatMul": 2}
        assert sum(value.dtype == ir.DataType.FLOAT for value in model.graph.initializers.values()) == 1  # the scales
        assert compare.sqnr(feeds["x"], runtime.open_session(model, CPU).run(feeds)["y"]) > 30


@pytest.mark.parametrize(("weights", "smaller"), [("int4", True), ("int8", False)])
def test_a_weight_in_two_layouts(build, weights, smaller):
    """A table of half-precision embeddings that is looked up, and multiplied by at the end."""
    text = """
        g (int64[M] x, float16[40,64] w) => (float16[M,40] y) {
          a = Gather(w, x)
          [head] y = Gemm<transB=1>(a, w)
        }
        """
    weight = np.random.default_rng(0).normal(size=(40, 64)).astype(np.float16)
    model, x = build(text, w=weight), {"x": np.array([3, 39, 0])}
    reference = runtime.open_session(model, CPU).run(x)["y"]
    result = QuantizeWeights(weights=weights, min_size=0, ops=("Gemm", "Gather"))(model)
    assert result.modified is smaller
    if smaller:
        assert compare.sqnr(reference, runtime.open_session(model, CPU).run(x)["y"]) > 15
    else:
        assert "several layouts" in dict(result.skipped)["head"]
    shared = build(text, w=weight)
    QuantizeWeights(weights=weights, min_size=0, form="fold", ops=("Gemm", "Gather"))(shared)
    assert [value.dtype for value in shared.graph.initializers.values()].count(ir.DataType[weights.upper()]) == 1


def test_per_channel_int8_needs_no_new_opset(net):
    for fields in ({"weights": "int8", "block": 0}, {"weights": "int8", "form": "fold"}, {"form": "matmulnbits"}):
        model = net(opset=17)
        reference = run(model)
        QuantizeWeights(min_size=0, **fields)(model)
        assert model.opset_imports[""] == 17
        assert compare.sqnr(reference, run(model)) > 20


@pytest.mark.parametrize("gemm", [False, True])
@pytest.mark.parametrize("weights", ["int4", "uint8"])
@pytest.mark.parametrize("block", [0, 32])
def test_onnxruntime_multiplies_packed_weights_of_the_standard_form(net, gemm, weights, block):
    model = net(gemm=gemm)
    QuantizeWeights(min_size=0, weights=weights, block=block)(model)
    assert [node.op_type for node in model.graph] == ["DequantizeLinear", "Gemm" if gemm else "MatMul"]
    optimized = runtime.find(CPU).optimized(model, CPU)
    assert [node.op_type for node in optimized.graph] == ["MatMulNBits"]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("weights", ["int4", "uint8", "ternary", "float8"])
def test_onnxruntime_folds_the_form_for_it(net, dtype, weights):
    model = net(dtype)
    QuantizeWeights(min_size=0, weights=weights, form="fold")(model)
    optimized = runtime.find(CPU).optimized(model, CPU)
    assert {node.op_type for node in optimized.graph} <= {"MatMul", "Cast"}
    assert [node.op_type for node in optimized.graph].count("Cast") == (2 if dtype == np.float16 else 0)


def test_reasons(net, build, parse):
    model = net()
    assert QuantizeWeights()(net()).modified is True
    assert QuantizeWeights(exclude=("product",))(model).skipped == [("product", "excluded")]
    assert "6600 elements only" in QuantizeWeights(min_size=10_000)(model).skipped[0][1]
    two = parse(
        '<ir_version: 8, opset_import: ["": 21]> g (float[4,4] a, float[4,4] b) => (float[4,4] y) { y = MatMul(a, b) }'
    )
    assert "no constant weight" in QuantizeWeights()(two).skipped[0][1]
    with pytest.raises(UsageError, match="did you mean 'product'"):
        QuantizeWeights(exclude=("prodct",))(model)
    with pytest.raises(UsageError, match="did you mean 'MatMul'"):
        QuantizeWeights(ops=("Matmul",))(model)


@pytest.mark.parametrize(
    ("text", "fields", "reason"),
    [
        ("{ [n] y = MatMul(x, w) z = Neg(w) }", {}, "also used by Neg of 'z' (Neg), in floats"),
        ("{ [n] y = MatMul(x, w) z = Gemm(x, w) }", {"ops": ("MatMul",)}, "also used by Gemm of 'z' (Gemm), in floats"),
        ("{ [n] y = MatMul(x, w) [m] z = MatMul(x, w) }", {"exclude": ("m",)}, "also used by m (MatMul), in floats"),
        ("{ [n] y = Gemm<alpha=2.0>(x, w) z = Neg(x) }", {"form": "matmulnbits"}, "no alpha"),
        ("{ [n] y = MatMul(w, x) z = Neg(x) }", {"form": "matmulnbits"}, "on the right only"),
        ("{ [n] y = Gather<axis=1>(w, i) z = Neg(x) }", {"ops": ("Gather",)}, "an axis that is not handled"),
        ("{ [n] y = MatMul(x, w) z = Neg(x) }", {"weights": "int8", "block": 1}, "would not get smaller"),
        ("{ [n] y = MatMul(x, w) z = Neg(x) }", {"min_size": 65}, "64 elements only"),
    ],
)
def test_why_weights_stay(build, text, fields, reason):
    model = build(f"g (float[8,8] x, int64[2] i, float[8,8] w) => (float[8,A] y, float[8,8] z) {text}", w=(8, 8))
    result = QuantizeWeights(**{"min_size": 0, **fields})(model)
    assert not result.modified
    assert [why for node, why in result.skipped if node == "n" and reason in why], result.skipped


def test_weights_that_callers_may_override_stay(parse):
    model = parse(
        """
        <ir_version: 8, opset_import: ["": 21]>
        g (float[2,2] x, float[2,2] w = {1, 2, 3, 4}) => (float[2,2] y) { [n] y = MatMul(x, w) }
        """
    )
    assert "callers may override" in dict(QuantizeWeights(min_size=0)(model).skipped)["n"]


def test_functions_stay(parse):
    model = parse(
        """
        <ir_version: 8, opset_import: ["": 21, "own": 1]>
        g (float[2,2] x) => (float[2,2] y) { y = own.f(x) }
        <domain: "own", opset_import: ["": 21]>
        f (x) => (y) { c = Constant <value = float[2,2] {1, 2, 3, 4}> () [n] y = MatMul(x, c) }
        """
    )
    assert "belongs to a function" in dict(QuantizeWeights(min_size=0)(model).skipped)["n"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"block": -1}, "block is -1"),
        ({"form": "matmulnbits", "block": 0}, "powers of two"),
        ({"form": "matmulnbits", "block": 24}, "powers of two"),
        ({"form": "matmulnbits", "weights": "float8"}, "no float8 weights"),
        ({"accuracy_level": 5}, "from 0 to 4"),
    ],
)
def test_fields_that_do_not_go_together(fields, reason):
    with pytest.raises(ValueError, match=reason):
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
