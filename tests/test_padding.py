"""Padding is what other positions do not see; it is found by running the model."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt import io, runtime, target
from graphopt.data import ArrayData
from graphopt.fidelity import Fidelity
from graphopt.padding import Padding

CPU = target.find("cpu")
ATTENTION = """g (float[N,T,4] x, int64[N,T] mask) => (float[N,T,4] y, float[N,4] z) <int64[1] one = {1}, int64[1] two = {2}, float far = {-1e4}> {
  m = Cast<to = 1>(mask)
  ones = CastLike(one, m)
  n = Sub(ones, m)
  n1 = Mul(n, far)
  n2 = Unsqueeze(n1, one)
  t = Transpose<perm = [0, 2, 1]>(x)
  s = MatMul(x, t)
  u = Add(s, n2)
  p = Softmax(u)
  y = MatMul(p, x)
  w = Unsqueeze(m, two)
  c = Mul(y, w)
  z = ReduceSum<keepdims = 0>(c, one)
}"""
OTHER = """v = MatMul(p, x)
  f = Cast<to = 9>(mask)
  f1 = Unsqueeze(f, two)
  e = Exp(v)
  y = Where(f1, v, e)"""
ELEMENTWISE = """g (float[N,T,4] x, int64[N,T] mask) => (float[N,T,4] y) <int64[1] two = {2}> {
  m = Cast<to = 1>(mask)
  n = Unsqueeze(m, two)
  y = Add(x, n)
}"""
SUM = """g (float[N,T,4] x, int64[N,T] mask) => (float[N,T,4] y) <int64 one = {1}, int64[1] two = {2}> {
  m = Cast<to = 1>(mask)
  n = Unsqueeze(m, two)
  a = Add(x, n)
  s = CumSum<reverse = 1>(a, one)
  y = Add(s, a)
}"""


@pytest.fixture
def feeds():
    mask = np.ones((3, 5), np.int64)
    mask[0, 3:] = mask[2, 1:] = 0
    return {"x": np.random.default_rng(0).normal(0, 1, (3, 5, 4)).astype(np.float32), "mask": mask}


@pytest.mark.parametrize(
    ("text", "found"),
    [(ATTENTION, "mask"), (ELEMENTWISE, None), (SUM, None)],
)
def test_a_mask_is_what_hides_positions_from_the_others(parse, feeds, text, found):
    session = runtime.open_session(parse(text), CPU)
    padding = Padding(session)
    whole = {**feeds, "mask": np.ones_like(feeds["mask"])}
    padding.observe(whole, session.run(whole))
    assert padding.mask is None
    padding.observe(feeds, session.run(feeds))
    assert padding.mask == found


def test_it_is_looked_for_once(parse, feeds):
    """What turned out to be no mask is not tried on every batch."""
    session = runtime.open_session(parse(ELEMENTWISE), CPU)
    padding, outputs = Padding(session), session.run(feeds)
    padding.observe(feeds, outputs)
    padding._session = None
    padding.observe(feeds, outputs)
    assert padding.mask is None


def test_padding_is_no_error(parse, feeds):
    """Noise at padded positions leaves the outputs as good as they are; elsewhere it does not."""
    model = parse(ATTENTION)
    session = runtime.open_session(model, CPU)
    fidelity = Fidelity(session, ArrayData("arrays", feeds), runtime.model_inputs(model), samples=3, batch=2)

    class Noisy:
        def __init__(self, where):
            self.where = where

        def run(self, given):
            made = session.run(given)
            hit = given["mask"] == self.where
            made["y"][hit] += 1
            return made

    assert fidelity.sqnr(Noisy(0)) == {"y": np.inf, "z": np.inf}
    assert fidelity.sqnr(Noisy(1))["y"] < 10


def test_padding_is_not_compared(parse, feeds, tmp_path, graphopt):
    """Two networks that differ at padded positions only are the same, by every measure."""
    for name, text in (("one", ATTENTION), ("two", ATTENTION.replace("y = MatMul(p, x)", OTHER))):
        io.save(parse(text), tmp_path / f"{name}.onnx")
    np.savez(tmp_path / "d.npz", **feeds)
    asked = (
        "validate",
        tmp_path / "two.onnx",
        "--reference",
        tmp_path / "one.onnx",
        "--data",
        tmp_path / "d.npz",
        "--metric",
        "cosine",
    )
    done = graphopt(*asked, "--max-drop", "0.001", "--min-sqnr", "60", "--json")
    assert done.code == 0
    assert done.json["padding"] == "mask"
    assert done.json["outputs"][0]["mismatch"] is None
    assert "positions where 'mask' is 0 are padding" in graphopt(*asked, "--max-drop", "0.001").out
