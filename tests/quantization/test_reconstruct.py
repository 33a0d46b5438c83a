"""Sections of a quantized graph are trained to compute what the float model computes there."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import compare, io, runtime, target
from graphopt.errors import UserError
from graphopt.passbase import PreconditionError
from graphopt.passes.quantization._sections import sections
from graphopt.passes.quantization.reconstruct import Reconstruct
from graphopt.pipeline import duplicate

CPU = target.find("cpu", 1)
NETWORK = """g (float[N,4,8,8] x, float[8,4,3,3] w1, float[8] b1, float[8,8,3,3] w2, float[8] b2, float[8,8,1,1] w3, float[8,5] w4,
                float[5] b4) => (float[N,5] y) {
    [one] a = Conv<pads=[1,1,1,1]>(x, w1, b1)
    r = Relu(a)
    [two] b = Conv<pads=[1,1,1,1]>(r, w2, b2)
    [three] c = Conv(r, w3)
    s = Add(b, c)
    t = Relu(s)
    p = GlobalAveragePool(t)
    f = Flatten(p)
    [four] y = Gemm(f, w4, b4)
}"""
WEIGHTS = {
    "w1": (8, 4, 3, 3), "b1": (8,), "w2": (8, 8, 3, 3), "b2": (8,), "w3": (8, 8, 1, 1), "w4": (8, 5), "b4": (5,),
}  # fmt: skip


def smooth(count, seed=0):
    """Pictures whose neighbours are alike."""
    noise = np.random.default_rng(seed).normal(size=(count, 4, 10, 10))
    return sum(noise[:, :, i : i + 8, j : j + 8] for i in range(3) for j in range(3)).astype(np.float32) / 3


X = smooth(64)
TEST = smooth(64, 1)


@pytest.fixture
def pair(narrowed):
    """The network, and the same with 4-bit weights."""
    return narrowed(NETWORK, WEIGHTS, X)


def sqnr(reference, model):
    return compare.sqnr(*(runtime.open_session(m, CPU).run({"x": TEST})["y"] for m in (reference, model)))


@pytest.mark.parametrize(
    ("least", "expected"),
    [
        (1, [(["one"], "r"), (["two", "three"], "t"), (["four"], "y")]),
        (2, [(["one", "two", "three"], "t"), (["four"], "y")]),
        (9, [(["one", "two", "three", "four"], "y")]),
    ],
)
def test_sections_end_where_one_tensor_is_all(pair, least, expected):
    """The branches of a residual connection stay together; what saturates is compared behind the float model's Relu."""
    reference, model = pair
    found = sections(model, reference, least)
    assert [([node.name for node in s.nodes], s.target.name) for s in found] == expected
    assert found[0].starts[0].name == "x"


def test_it_comes_closer(pair):
    pytest.importorskip("torch")
    reference, model = pair
    before, kernels = sqnr(reference, model), [node.op_type for node in model.graph]
    result = Reconstruct(reference, {"x": X}, batch=16, steps=150)(model)
    assert result.report["sections"] == 2
    assert result.report["mean_gain_db"] > 1
    assert sqnr(reference, model) > before + 1
    assert [node.op_type for node in model.graph] == kernels
    narrow = [v for v in model.graph.initializers.values() if v.dtype == ir.DataType.INT4]
    assert len(narrow) == 4


def test_the_same_bytes_twice(pair):
    pytest.importorskip("torch")
    reference, model = pair
    made = []
    for copy in (duplicate(model), duplicate(model)):
        Reconstruct(reference, {"x": X}, batch=16, steps=20)(copy)
        made.append(io.to_proto(copy).SerializeToString(deterministic=True))
    assert made[0] == made[1]


@pytest.mark.parametrize("gain", [0.05, -3.0])
def test_a_section_that_comes_no_closer_stays(pair, monkeypatch, gain):
    pytest.importorskip("torch")
    from graphopt.training import rounding

    reference, model = pair
    before = io.to_proto(model).SerializeToString(deterministic=True)
    monkeypatch.setattr(rounding, "fit", lambda *asked: gain)
    result = Reconstruct(reference, {"x": X})(model)
    assert not result.modified
    assert result.report == {"sections": 2, "mean_gain_db": 0.0}
    assert io.to_proto(model).SerializeToString(deterministic=True) == before


def test_refusals(pair, build, monkeypatch):
    reference, model = pair
    with pytest.raises(PreconditionError, match="no reference"):
        Reconstruct()(model)
    with pytest.raises(PreconditionError, match="no layer has integer weights"):
        Reconstruct(reference, {"x": X})(reference)
    with pytest.raises(ValueError, match="layers is 0"):
        Reconstruct(layers=0)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PreconditionError, match="install 'graphopt\\[torch\\]', or use round-weights"):
        Reconstruct(reference, {"x": X})(model)


@pytest.mark.parametrize("output", ["y", "z"])
def test_another_reference(pair, build, output):
    pytest.importorskip("torch")
    _, model = pair
    text = f"g (float[N,4,8,8] x, float[8,4,3,3] w) => (float[N,8,6,6] {output}) {{ {output} = Conv(x, w) }}"
    run = Reconstruct(build(text, w=(8, 4, 3, 3)), {"x": X})
    if output == "z":
        with pytest.raises(UserError, match="the reference has none of the model's layers"):
            run(model)
    else:
        assert "of another shape" in dict(run(model).skipped)["y"]


def test_few_samples(pair):
    pytest.importorskip("torch")
    reference, model = pair
    result = Reconstruct(reference, {"x": X[:4]})(model)
    assert not result.modified
    assert "there are fewer than 8 samples" in dict(result.skipped)["y"]
