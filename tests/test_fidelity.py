"""Signal-to-noise ratios on samples that are kept."""

from __future__ import annotations

import math

import numpy as np
import pytest

from graphopt import runtime, target
from graphopt.data import open_data
from graphopt.errors import UserError
from graphopt.fidelity import Fidelity

CPU = target.find("cpu", 1)
X = {"x": np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)}


@pytest.fixture
def net(parse):
    def make(noise: str = "0.0", scale: str = "1.0"):
        return runtime.open_session(
            parse(
                f"""
                <ir_version: 8, opset_import: ["": 17]>
                g (float[N,8] x) => (float[N,8] y, float[N,8] z, int64[N] best)
                  <float noise = {{{noise}}}, float two = {{2.0}}, float scale = {{{scale}}}>
                {{
                  moved = Add(x, noise)
                  y = Mul(moved, scale)
                  z = Mul(x, two)
                  best = ArgMax<axis=1, keepdims=0>(x)
                }}
                """
            ),
            CPU,
        )

    return make


def kept(session, samples=16, skip=0, data=X, batch=4):
    ports = (runtime.Port("x", None, ("N", 8)),)
    return Fidelity(session, open_data(data), ports, samples=samples, skip=skip, batch=batch)


def test_the_same_model_has_no_noise(net):
    assert kept(net()).sqnr(net()) == {"y": math.inf, "z": math.inf}


def test_noise_is_measured_for_each_output(net):
    found = kept(net(), samples=40).sqnr(net(noise="0.1"))
    assert found["y"] == pytest.approx(
        10 * math.log10(float(np.sum(X["x"].astype(np.float64) ** 2)) / (320 * 0.01)), abs=1e-3
    )
    assert found["z"] == math.inf
    assert kept(net(), samples=40).worst(net(noise="0.1")) == found["y"]


def test_nan_is_unusable(net):
    assert kept(net()).worst(net(scale="nan")) == -math.inf


def test_samples_are_held_out_where_there_are_enough(net):
    held = {"x": np.concatenate([np.ones((16, 8)), 100 * np.ones((24, 8))]).astype(np.float32)}
    noisy = net(noise="1.0")
    assert kept(net(), 16, 16, held).worst(noisy) == pytest.approx(40, abs=0.1)
    assert kept(net(), 16, 32, held).worst(noisy) == pytest.approx(0, abs=0.1), "8 are left, too few"


def test_few_samples_are_used_for_both(net):
    assert kept(net(), samples=64, skip=64).worst(net(noise="0.1")) < 30


def test_data_that_does_not_fit(net):
    with pytest.raises(UserError, match="does not run on this data"):
        kept(net(), data={"x": np.zeros((4, 5), np.float32)})
