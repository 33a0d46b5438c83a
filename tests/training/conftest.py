"""What tests of training share."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

INSTALLED = importlib.util.find_spec("torch") is not None
collect_ignore_glob = [] if INSTALLED else ["test_*.py"]
"""Without torch there is nothing to test here."""


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Compute on one thread: small tensors gain nothing from more, and lose much on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    torch.set_num_threads(before)


SHAPES = {"w": (8, 16), "b": (16,), "v": (16, 3), "c": (3,)}


@pytest.fixture
def network(parse):
    """Return a function that makes a small classifier with drawn weights."""

    def make(seed=0):
        rng = np.random.default_rng(seed)
        weights = []
        for name, shape in SHAPES.items():
            numbers = rng.standard_normal(shape).ravel() * (0.5 if len(shape) > 1 else 0.1)
            sizes = ",".join(map(str, shape))
            weights.append(f"float[{sizes}] {name} = {{{', '.join(f'{n:.6f}' for n in numbers)}}}")
        return parse(
            f"g (float[N,8] x) => (float[N,3] y) <{', '.join(weights)}> "
            "{ h = Gemm(x, w, b)  r = Relu(h)  y = Gemm(r, v, c) }"
        )

    return make


@pytest.fixture
def samples():
    """Return a function that draws a data set in which the class is the sum of a few inputs, in three parts."""

    def draw(count=256, seed=0):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((count, 8)).astype(np.float32)
        total = x[:, :3].sum(1)
        return {"x": x, "labels": np.digitize(total, [-0.8, 0.8]).astype(np.int64)}

    return draw


@pytest.fixture
def files(tmp_path, network, samples):
    """Write the classifier and its data; return their paths: model, training data, evaluation data, output."""
    from graphopt import io

    io.save(network(), tmp_path / "model.onnx")
    np.savez(tmp_path / "train.npz", **samples(512))
    np.savez(tmp_path / "eval.npz", **samples(200, seed=1))
    return tmp_path / "model.onnx", tmp_path / "train.npz", tmp_path / "eval.npz", tmp_path / "out.onnx"
